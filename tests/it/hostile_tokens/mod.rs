//! A corpus of hostile tokens: RFC 8725 point by point, for a key of every kind, each refused for its own reason and beside
//! others that are only unusual and pass.

use std::collections::HashSet;
use std::sync::Arc;

use aws_lc_rs::signature::ED25519_PUBLIC_KEY_LEN;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use storytellr_relay::auth::{Issuers, KeySet, SharedSecret, Verifier};
use storytellr_relay::clock;
use storytellr_relay::error::Code;
use uuid::Uuid;

use crate::key_sets::{FORGED, OTHERWISE, UNKNOWN, set};
use crate::provider::Provider;
use crate::relay::{self, Answer, ISSUER, TestRelay};
use crate::signer::{P256_ORDER, Signer, with};

/// What is told besides the reasons of `key_sets.rs`.
const NO_TOKEN: &str = "no access token";
const DAMAGED: &str = "damaged";
const CRITICAL: &str = "critical";
const KIND: &str = "another kind of token";
const NAMELESS: &str = "which key";
const CLAIM: &str = "lacks a claim";
const LONG: &str = "longer than any";

/// The keys of a project in migration, which has all there are, and an attacker's of each kind and of the same name.
struct Keys {
    ours: [Signer; 4],
    theirs: [Signer; 4],
}

impl Keys {
    fn new() -> Self {
        let make =
            || [Signer::hs256(), Signer::es256("ec"), Signer::rs256("rsa"), Signer::eddsa("ed")];
        let mut theirs = make();
        theirs[0].encoding =
            EncodingKey::from_secret(b"an-attackers-secret-of-at-least-32-characters");
        Self { ours: make(), theirs }
    }

    fn public(&self) -> Vec<&Signer> {
        self.ours.iter().skip(1).collect()
    }
}

/// Tokens, by what is wrong with them and what they must be told.
#[derive(Default)]
struct Corpus(Vec<(String, String, &'static str)>);

impl Corpus {
    fn add(&mut self, what: impl Into<String>, token: impl Into<String>, reason: &'static str) {
        self.0.push((what.into(), token.into(), reason));
    }

    /// A good token but for that claim.
    fn add_claim(&mut self, signer: &Signer, claim: &str, value: &Value, reason: &'static str) {
        let start: String = value.to_string().chars().take(60).collect();
        let claims = with(claims(), claim, value).to_string();
        let token = signer.compact(signer.header().to_string(), claims);
        self.add(format!("{claim} {start}: {:?}", signer.algorithm), token, reason);
    }
}

fn claims() -> Value {
    relay::claims(Uuid::now_v7())
}

/// Message and signature of a good token.
fn good(signer: &Signer) -> (String, String) {
    let token = signer.compact(signer.header().to_string(), claims().to_string());
    let (message, signature) = token.rsplit_once('.').unwrap();
    (message.to_owned(), signature.to_owned())
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

/// What no key of a project has, in and out of the registry.
const UNKNOWN_ALGORITHMS: &[&str] = &[
    "none",
    "None",
    "NONE",
    "nOnE",
    "none\0",
    " none",
    "",
    " ",
    "HS256 ",
    "hs256",
    "HS256\0",
    "HS384",
    "HS512",
    "ES384",
    "ES512",
    "ES256K",
    "es256",
    "PS256",
    "PS384",
    "PS512",
    "RS384",
    "RS512",
    "rs256",
    "Ed25519",
    "Ed448",
    "EDDSA",
    "RSA1_5",
    "RSA-OAEP",
    "RSA-OAEP-256",
    "dir",
    "A128KW",
    "ECDH-ES",
    "PBES2-HS256+A128KW",
    "HS256,ES256",
    "\u{ff28}S256",
];

/// RFC 8725, 2.1 and 3.1: nobody but the relay says how a token is checked.
fn algorithms(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        let (message, signature) = good(signer);
        let (_, payload) = message.split_once('.').unwrap();
        for alg in UNKNOWN_ALGORITHMS {
            let header = with(signer.header(), "alg", &json!(alg)).to_string();
            let what = format!("alg {alg:?} of {:?}", signer.algorithm);
            corpus.add(
                format!("{what}, signed"),
                signer.compact(&header, decoded(payload)),
                OTHERWISE,
            );
            corpus.add(
                format!("{what}, unsigned"),
                format!("{}.{payload}.", encoded(&header)),
                OTHERWISE,
            );
            corpus.add(
                format!("{what}, swapped"),
                format!("{}.{payload}.{signature}", encoded(&header)),
                OTHERWISE,
            );
        }
        for alg in [json!(null), json!(["HS256"]), json!(256), json!(true), json!({"alg": "HS256"})]
        {
            let header = with(signer.header(), "alg", &alg).to_string();
            corpus.add(
                format!("alg {alg} of {:?}", signer.algorithm),
                signer.compact(header, claims().to_string()),
                NO_TOKEN,
            );
        }
        let mut header = signer.header();
        header.as_object_mut().unwrap().remove("alg");
        corpus.add("no alg", signer.compact(header.to_string(), claims().to_string()), NO_TOKEN);
    }
}

/// An algorithm that is known, of another key.
fn algorithms_of_other_keys(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        for other in keys.ours.iter().filter(|other| other.algorithm != signer.algorithm) {
            let what = format!("{:?} says {:?}", signer.algorithm, other.algorithm);
            let alg = json!(other.algorithm);
            let own_name = with(signer.header(), "alg", &alg).to_string();
            let reason = match (signer.algorithm, other.algorithm) {
                (Algorithm::HS256, _) => NAMELESS,
                (_, Algorithm::HS256) => FORGED,
                _ => UNKNOWN,
            };
            corpus.add(
                format!("{what} by its own name"),
                signer.compact(own_name, claims().to_string()),
                reason,
            );
            let its_name = with(other.header(), "alg", &alg).to_string();
            corpus.add(
                format!("{what} by its name"),
                signer.compact(its_name, claims().to_string()),
                FORGED,
            );
        }
    }
}

/// RFC 8725, 2.1: what is public of a key is no secret, in whatever form somebody may have put it.
fn public_keys_as_secrets(keys: &Keys, corpus: &mut Corpus) {
    for signer in keys.public() {
        for (at, public) in signer.public_forms().into_iter().enumerate() {
            for form in [
                public.clone(),
                STANDARD.encode(&public).into_bytes(),
                encoded(&public).into_bytes(),
            ] {
                let forger =
                    Signer { encoding: EncodingKey::from_secret(&form), ..Signer::hs256() };
                let header = with(forger.header(), "kid", &json!(signer.kid)).to_string();
                let token = forger.compact(header, claims().to_string());
                corpus.add(format!("form {at} of {} as a secret", signer.kid), token, FORGED);
            }
        }
    }
    for weak in ["", "secret", "\0", "null", "undefined", "your-256-bit-secret"] {
        let forger =
            Signer { encoding: EncodingKey::from_secret(weak.as_bytes()), ..Signer::hs256() };
        let token = forger.compact(forger.header().to_string(), claims().to_string());
        corpus.add(format!("signed with {weak:?}"), token, FORGED);
    }
}

/// RFC 8725, 3.2 and 3.3: every operation is checked, and a signature is one only of what it was made for.
fn signatures(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        let name = format!("{:?}", signer.algorithm);
        let (message, signature) = good(signer);
        let (_, others) = good(signer);
        let bytes = decoded(&signature);
        let mut add = |what: &str, signature: &[u8]| {
            corpus.add(
                format!("{what}: {name}"),
                format!("{message}.{}", encoded(signature)),
                FORGED,
            );
        };
        add("none", &[]);
        add("of another token", &decoded(&others));
        add("cut by a byte", &bytes[..bytes.len() - 1]);
        add("cut at the start", &bytes[1..]);
        add("half", &bytes[..bytes.len() / 2]);
        add("one byte", &bytes[..1]);
        add("longer by a byte", &[bytes.as_slice(), &[0]].concat());
        add("longer at the start", &[&[0], bytes.as_slice()].concat());
        add("twice", &[bytes.as_slice(), &bytes].concat());
        add("zeros", &vec![0; bytes.len()]);
        add("ones", &vec![0xFF; bytes.len()]);
        add("one", &[vec![0; bytes.len() - 1], vec![1]].concat());
        add("reversed", &bytes.iter().rev().copied().collect::<Vec<_>>());
        for (at, bit) in
            [(0, 0x80), (0, 1), (bytes.len() / 2, 1), (bytes.len() - 1, 1), (bytes.len() - 1, 0x80)]
        {
            let mut flipped = bytes.clone();
            flipped[at] ^= bit;
            add(&format!("bit {bit} of byte {at}"), &flipped);
        }
        for other in keys.ours.iter().filter(|other| other.algorithm != signer.algorithm) {
            let message_of_other = other.signed(&message);
            let (_, signature) = message_of_other.rsplit_once('.').unwrap();
            corpus.add(
                format!("{:?}'s under {name}", other.algorithm),
                format!("{message}.{signature}"),
                FORGED,
            );
        }
        // The message changed under it, by as little as can be.
        let (header, payload) = message.split_once('.').unwrap();
        for (what, header, payload) in [
            ("another user", header.to_owned(), encoded(claims().to_string())),
            (
                "a longer life",
                header.to_owned(),
                encoded(with(claims(), "exp", &json!(4e9)).to_string()),
            ),
            ("a space in the claims", header.to_owned(), encoded(format!("{} ", claims()))),
            ("a space in the header", encoded(format!("{} ", signer.header())), payload.to_owned()),
            ("header and claims swapped into one", format!("{header}{payload}"), String::new()),
        ] {
            let reason = if payload.is_empty() { NO_TOKEN } else { FORGED };
            corpus.add(
                format!("{what}: {name}"),
                format!("{header}.{payload}.{signature}"),
                reason,
            );
        }
    }
    for (ours, theirs) in keys.ours.iter().zip(&keys.theirs) {
        let (message, _) = good(ours);
        corpus.add(format!("an attacker's {:?}", ours.algorithm), theirs.signed(&message), FORGED);
    }
}

/// RFC 8725, 3.4: numbers that are none to the curve, and other writings of those that are.
fn curves(keys: &Keys, corpus: &mut Corpus) {
    let [_, ec, _, ed] = &keys.ours;
    let (message, signature) = good(ec);
    let bytes = decoded(&signature);
    let (r, s) = bytes.split_at(32);
    let one = [&[0; 31][..], &[1]].concat();
    let zero = vec![0; 32];
    let order = P256_ORDER.to_vec();
    let ones = vec![0xFF; 32];
    for (what, numbers) in [
        ("r and s are 0", [zero.as_slice(), &zero]),
        ("r is 0", [&zero, s]),
        ("s is 0", [r, &zero]),
        ("r is the order", [&order, s]),
        ("s is the order", [r, &order]),
        ("both are the order", [&order, &order]),
        ("r is past the field", [&ones, s]),
        ("s is past the field", [r, &ones]),
        ("r and s are 1", [&one, &one]),
        ("r is 1", [&one, s]),
        ("s is 1", [r, &one]),
        ("r is s", [s, s]),
        ("swapped", [s, r]),
    ] {
        corpus.add(what, format!("{message}.{}", encoded(numbers.concat())), FORGED);
    }
    for (what, r, s) in
        [("as in certificates", r, s), ("zeros as in certificates", &zero[..1], &zero[..1])]
    {
        corpus.add(what, format!("{message}.{}", encoded(der(r, s))), FORGED);
    }
    let (message, signature) = good(ed);
    let bytes = decoded(&signature);
    // L, the order of Ed25519's group, least byte first: S + L is the same number to the curve.
    let order = [
        0xED, 0xD3, 0xF5, 0x5C, 0x1A, 0x63, 0x12, 0x58, 0xD6, 0x9C, 0xF7, 0xA2, 0xDE, 0xF9, 0xDE,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    let added = bytes[32..].iter().zip(order).map(|(byte, more)| {
        let sum = u16::from(*byte) + more + carry;
        carry = sum >> 8;
        sum as u8
    });
    let malleated = [&bytes[..32], &added.collect::<Vec<_>>()].concat();
    corpus.add("S + L", format!("{message}.{}", encoded(malleated)), FORGED);
    corpus.add(
        "S is 0",
        format!("{message}.{}", encoded([&bytes[..32], &[0; 32]].concat())),
        FORGED,
    );
    let neutral = [&[1][..], &[0; 63]].concat();
    corpus.add("R is neutral, S is 0", format!("{message}.{}", encoded(neutral)), FORGED);
}

/// A signature as certificates have it.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let sign = if number[0] & 0x80 == 0 { vec![] } else { vec![0] };
        [vec![0x02, (sign.len() + number.len()) as u8], sign, number.to_vec()].concat()
    };
    let numbers = [integer(r), integer(s)].concat();
    [vec![0x30, numbers.len() as u8], numbers].concat()
}

/// RFC 7515, 7.1: three parts, and no other writing of them.
fn forms(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        let name = format!("{:?}", signer.algorithm);
        let (message, signature) = good(signer);
        let (header, payload) = message.split_once('.').unwrap();
        let good = format!("{message}.{signature}");
        for (what, token) in [
            ("only a header", header.to_owned()),
            ("two parts", message.clone()),
            ("four parts", format!("{good}.{signature}")),
            ("five parts", format!("{good}.{signature}.{signature}")),
            ("a dot behind", format!("{good}.")),
            ("a dot before", format!(".{good}")),
            ("two dots", format!("{header}..{payload}.{signature}")),
            ("no header", format!(".{payload}.{signature}")),
            ("dots alone", "..".to_owned()),
            ("many dots", ".".repeat(1_000)),
            ("twice", format!("{good},{good}")),
            ("in quotes", format!("\"{good}\"")),
            ("as JSON", json!({"protected": header, "payload": payload, "signature": signature}).to_string()),
            ("as JSON with several", json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]}).to_string()),
            ("in percent signs", good.replace('.', "%2E")),
            ("with slashes for dots", good.replace('.', "/")),
            ("from the end", good.chars().rev().collect()),
            ("an unprotected header", format!("{}.{payload}.{signature}", encoded("{}"))),
        ] {
            corpus.add(format!("{what}: {name}"), token, NO_TOKEN);
        }
        corpus.add(
            format!("no claims: {name}"),
            signer.compact(signer.header().to_string(), ""),
            CLAIM,
        );
        for pad in ["=", "==", "\n", " ", "\t", "+", "/", "%3D", "\u{e9}", "A", "AA", "AAA"] {
            let what = |place: &str| format!("{pad:?} behind the {place}: {name}");
            // One character more may be nothing but a longer part, which then is damaged in another way.
            let is_base64 = pad.starts_with('A');
            if !is_base64 {
                corpus.add(
                    what("header"),
                    signer.signed(&format!("{header}{pad}.{payload}")),
                    NO_TOKEN,
                );
                corpus.add(what("claims"), signer.signed(&format!("{message}{pad}")), DAMAGED);
                corpus.add(what("signature"), format!("{good}{pad}"), DAMAGED);
            } else {
                corpus.add(what("signature"), format!("{good}{pad}"), FORGED);
            }
        }
        let padded = URL_SAFE.encode(decoded(payload).into_iter().chain(*b" ").collect::<Vec<_>>());
        if padded.contains('=') {
            corpus.add(
                format!("padded: {name}"),
                signer.signed(&format!("{header}.{padded}")),
                DAMAGED,
            );
        }
    }
}

/// RFC 8725, 2.6 and 3.7: JSON in UTF-8, and nothing that two readers read in two ways.
fn texts(keys: &Keys, corpus: &mut Corpus) {
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for signer in &keys.ours {
        let name = format!("{:?}", signer.algorithm);
        let (header, claims) = (signer.header().to_string(), claims().to_string());
        let inner = claims.strip_prefix('{').unwrap();
        for (what, text) in [
            ("UTF-16", wide(&claims)),
            ("a byte order mark", format!("\u{feff}{claims}").into_bytes()),
            ("broken UTF-8", [b"{\"x\": \"\xff\",", inner.as_bytes()].concat()),
            ("NUL behind", format!("{claims}\0").into_bytes()),
            ("two objects", format!("{claims}{claims}").into_bytes()),
            ("an array", format!("[{claims}]").into_bytes()),
            ("a text", json!(claims).to_string().into_bytes()),
            ("null", b"null".to_vec()),
            ("a number", b"1".to_vec()),
            ("an empty object", b"{}".to_vec()),
            ("cut", claims.as_bytes()[..claims.len() - 1].to_vec()),
            ("a comment", format!("{{/**/{inner}").into_bytes()),
            ("a comma too many", format!("{},}}", claims.strip_suffix('}').unwrap()).into_bytes()),
            ("NaN", format!("{{\"nbf\":NaN,{inner}").into_bytes()),
            ("Infinity", format!("{{\"nbf\":Infinity,{inner}").into_bytes()),
            ("hexadecimal", format!("{{\"nbf\":0x1,{inner}").into_bytes()),
            ("single quotes", claims.replace('"', "'").into_bytes()),
            ("half a surrogate", format!("{{\"sub\":\"\\ud800\",{inner}").into_bytes()),
            ("compressed", deflated(claims.as_bytes())),
        ] {
            corpus.add(format!("claims: {what}: {name}"), signer.compact(&header, text), CLAIM);
        }
        let inner_header = header.strip_prefix('{').unwrap();
        for (what, text) in [
            ("UTF-16", wide(&header)),
            ("a byte order mark", format!("\u{feff}{header}").into_bytes()),
            ("broken UTF-8", [b"{\"x\": \"\xff\",", inner_header.as_bytes()].concat()),
            ("two objects", format!("{header}{header}").into_bytes()),
            ("an array", format!("[{header}]").into_bytes()),
            ("null", b"null".to_vec()),
            ("nothing", Vec::new()),
            (
                "deep",
                format!("{{\"x\":{}{},{inner_header}", "[".repeat(1_000), "]".repeat(1_000))
                    .into_bytes(),
            ),
            ("alg twice", format!("{{\"alg\":\"none\",{inner_header}").into_bytes()),
            ("typ twice", format!("{{\"typ\":\"JWT\",{inner_header}").into_bytes()),
            ("kid twice", format!("{{\"kid\":\"a\",\"kid\":\"b\",{inner_header}").into_bytes()),
        ] {
            corpus.add(format!("header: {what}: {name}"), signer.compact(text, &claims), NO_TOKEN);
        }
        for twice in [
            r#""sub":"6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a12""#,
            r#""\u0073ub":"6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a12""#,
            r#""role":"service_role""#,
            r#""aud":"authenticated""#,
            r#""exp":9e15"#,
            r#""iss":"x""#,
            r#""is_anonymous":false"#,
            r#""iat":0"#,
        ] {
            let first = format!("{{{twice},{inner}");
            let last = format!("{},{twice}}}", claims.strip_suffix('}').unwrap());
            for claims in [first, last] {
                corpus.add(
                    format!("{twice} twice: {name}"),
                    signer.compact(&header, claims),
                    CLAIM,
                );
            }
        }
    }
}

/// The bytes as DEFLATE stores them.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    [&[1], &len.to_le_bytes()[..], &(!len).to_le_bytes(), bytes].concat()
}

/// RFC 8725, 3.10 to 3.12, and RFC 7515, 4.1: what a header may not bring about.
fn headers(keys: &Keys, corpus: &mut Corpus) {
    for ours in &keys.ours {
        let name = format!("{:?}", ours.algorithm);
        let mut add = |what: String, header: Value, reason| {
            corpus.add(
                format!("{what}: {name}"),
                ours.compact(header.to_string(), claims().to_string()),
                reason,
            );
        };
        for crit in [
            json!(["exp"]),
            json!(["b64"]),
            json!([]),
            json!("b64"),
            json!(null),
            json!([1]),
            json!({}),
        ] {
            add(format!("crit {crit}"), with(ours.header(), "crit", &crit), CRITICAL);
            add(
                format!("crit {crit} and b64"),
                with(with(ours.header(), "crit", &crit), "b64", &json!(false)),
                CRITICAL,
            );
        }
        for typ in [
            "logout+jwt",
            "dpop+jwt",
            "kb+jwt",
            "secevent+jwt",
            "id+jwt",
            "refresh+jwt",
            "JWE",
            "JWS",
            "JOSE",
            "JWT ",
            "",
            "text/jwt",
            "application/",
            "J\0WT",
        ] {
            add(format!("typ {typ:?}"), with(ours.header(), "typ", &json!(typ)), KIND);
        }
        for enc in [json!("A256GCM"), json!(null), json!(""), json!(["A256GCM"])] {
            add(format!("enc {enc}"), with(ours.header(), "enc", &enc), OTHERWISE);
        }
        for (field, value) in [
            ("typ", json!(7)),
            ("typ", json!(["JWT"])),
            ("cty", json!(1)),
            ("kid", json!(7)),
            ("kid", json!(["ec"])),
            ("kid", json!({"kid": 1})),
            ("kid", json!(true)),
            ("jku", json!(1)),
            ("x5c", json!("MIIB")),
            ("jwk", json!("x")),
            ("zip", json!(1)),
        ] {
            add(format!("{field} {value}"), with(ours.header(), field, &value), NO_TOKEN);
        }
        // A token in a token.
        let inner = ours.compact(ours.header().to_string(), claims().to_string());
        let nested = with(ours.header(), "cty", &json!("JWT")).to_string();
        corpus.add(format!("nested: {name}"), ours.compact(nested, inner), CLAIM);
        let unencoded = with(with(ours.header(), "b64", &json!(false)), "x", &json!(0)).to_string();
        let message = format!("{}.{}", encoded(unencoded), claims().to_string().replace('.', ""));
        corpus.add(format!("claims that are not encoded: {name}"), ours.signed(&message), DAMAGED);
    }
}

/// RFC 7516: encrypted tokens, and RFC 8725, 3.10: names of keys that are more than names.
fn encrypted_ones_and_names(keys: &Keys, corpus: &mut Corpus) {
    for alg in ["dir", "RSA-OAEP-256", "A256KW", "ECDH-ES", "PBES2-HS256+A128KW"] {
        let header = encoded(
            json!({"alg": alg, "enc": "A256GCM", "p2c": 2_147_483_647, "zip": "DEF"}).to_string(),
        );
        corpus.add(
            format!("encrypted, {alg}"),
            format!("{header}.a2V5.aXY.dGV4dA.dGFn"),
            OTHERWISE,
        );
        corpus.add(
            format!("encrypted, {alg}, three parts"),
            format!("{header}.aXY.dGV4dA"),
            OTHERWISE,
        );
    }
    let kids = [
        "../../dev/null",
        "/dev/null",
        "file:///dev/null",
        "' OR 1=1--",
        "ec' UNION SELECT 'x",
        "|sleep 5",
        "$(sleep 5)",
        "${jndi:ldap://x}",
        "https://attacker.example/jwks.json",
        "ec\0",
        "ec ",
        " ec",
        "EC",
        "e\u{441}",
        "\u{202e}ce",
        "\r\nset-cookie: x",
        "%65c",
        "ec/../ec",
        "ec.",
        "",
    ];
    let ec = &keys.ours[1];
    for kid in kids {
        let header = with(ec.header(), "kid", &json!(kid)).to_string();
        corpus.add(format!("kid {kid:?}"), ec.compact(header, claims().to_string()), UNKNOWN);
    }
    let header = with(ec.header(), "kid", &json!("k".repeat(8_000))).to_string();
    corpus.add("a long kid", ec.compact(header, claims().to_string()), UNKNOWN);
}

/// RFC 8725, 3.10: an attacker's token with the attacker's key in it, or the way to it.
fn keys_brought_along(keys: &Keys, corpus: &mut Corpus) {
    for (ours, theirs) in keys.ours.iter().zip(&keys.theirs) {
        let name = format!("{:?}", ours.algorithm);
        let url = json!("https://attacker.example/jwks.json");
        let certificate = json!([STANDARD.encode(&theirs.der)]);
        let jwk = if theirs.jwk.is_null() {
            json!({"kty": "oct", "alg": "HS256", "k": encoded("an-attackers-secret-of-at-least-32-characters")})
        } else {
            theirs.jwk.clone()
        };
        for (field, value) in
            [("jku", &url), ("x5u", &url), ("url", &url), ("x5c", &certificate), ("jwk", &jwk)]
        {
            let header = with(ours.header(), field, value).to_string();
            corpus.add(
                format!("{field}: {name}"),
                theirs.compact(header, claims().to_string()),
                FORGED,
            );
            if !ours.kid.is_empty() {
                for (kid, reason) in [(json!("theirs"), UNKNOWN), (json!(null), NAMELESS)] {
                    let header = with(with(ours.header(), field, value), "kid", &kid).to_string();
                    corpus.add(
                        format!("{field}, kid {kid}: {name}"),
                        theirs.compact(header, claims().to_string()),
                        reason,
                    );
                }
            }
        }
    }
}

/// RFC 8725, 3.9 and 3.10: a claim of another type is none.
fn claims_of_other_types(keys: &Keys, corpus: &mut Corpus) {
    let now = jsonwebtoken::get_current_timestamp();
    for signer in &keys.ours {
        for claim in ["exp", "aud", "iss", "sub", "role"] {
            for wrong in
                [json!(null), json!({}), json!({"a": 1}), json!(true), json!([[]]), json!([1])]
            {
                corpus.add_claim(signer, claim, &wrong, CLAIM);
            }
        }
        for claim in ["exp", "nbf", "iat"] {
            for wrong in
                [json!(now.to_string()), json!(""), json!("NaN"), json!("1e309"), json!([now + 60])]
            {
                corpus.add_claim(signer, claim, &wrong, CLAIM);
            }
        }
        for claim in ["iss", "sub", "role"] {
            for wrong in [json!(7), json!(["x"]), json!(1.5)] {
                corpus.add_claim(signer, claim, &wrong, CLAIM);
            }
        }
        for wrong in [json!(7), json!(["authenticated", 7]), json!(["authenticated", null])] {
            corpus.add_claim(signer, "aud", &wrong, CLAIM);
        }
        for wrong in [json!("true"), json!(1), json!(null), json!([])] {
            corpus.add_claim(signer, "is_anonymous", &wrong, CLAIM);
        }
        for claims in ["1e309", "-1e309", "1e400", "99e999999999"] {
            let far =
                with(self::claims(), "exp", &json!(424_242)).to_string().replace("424242", claims);
            corpus.add(
                format!("exp {claims}: {:?}", signer.algorithm),
                signer.compact(signer.header().to_string(), far),
                CLAIM,
            );
        }
    }
}

/// RFC 7519, 4.1: from when and until when.
fn times(keys: &Keys, corpus: &mut Corpus) {
    let now = jsonwebtoken::get_current_timestamp();
    for signer in &keys.ours {
        for past in [
            json!(0),
            json!(-1),
            json!(now - 31),
            json!(-1e300),
            json!(0.5),
            json!(i64::MIN),
            json!(-0.0),
            json!(1e-300),
        ] {
            corpus.add_claim(signer, "exp", &past, "expired");
        }
        for future in [
            json!(now + 120),
            json!(1e300),
            json!(u64::MAX),
            json!(now as f64 + 120.5),
            json!(now * 1_000),
        ] {
            corpus.add_claim(signer, "nbf", &future, "not valid yet");
            corpus.add_claim(signer, "iat", &future, "issued in the future");
        }
    }
}

/// RFC 8725, 3.8 and 3.9: whose tokens, and for whom.
fn claims_of_others(keys: &Keys, corpus: &mut Corpus) {
    let id = "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11";
    for signer in &keys.ours {
        for aud in [
            json!(""),
            json!([]),
            json!("anon"),
            json!("Authenticated"),
            json!("authenticated "),
            json!("authenticated\0"),
            json!(["anon", ""]),
            json!("authenticated,anon"),
        ] {
            corpus.add_claim(signer, "aud", &aud, "`aud`");
        }
        for role in [
            "anon",
            "service_role",
            "supabase_admin",
            "postgres",
            "",
            "AUTHENTICATED",
            "authenticated ",
            "authenticated\0",
            "\u{430}uthenticated",
        ] {
            corpus.add_claim(signer, "role", &json!(role), "`role`");
        }
        for iss in [
            String::new(),
            format!("{ISSUER}/"),
            format!(" {ISSUER}"),
            format!("{ISSUER}\0"),
            ISSUER.to_uppercase(),
            ISSUER.replace("https", "http"),
            ISSUER.replace("project", "other"),
            ISSUER.replace("/auth", ":443/auth"),
            format!("{ISSUER}?x"),
            format!("{ISSUER}#"),
            "supabase".to_owned(),
            ISSUER.replace("project", "pr\u{43e}ject"),
            format!("https://attacker.example/{ISSUER}"),
        ] {
            corpus.add_claim(signer, "iss", &json!(iss), "`iss`");
        }
        for sub in [
            String::new(),
            "root".to_owned(),
            "1".to_owned(),
            "*".to_owned(),
            id.replace('-', ""),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
            format!("{id}\0"),
            format!(" {id}"),
            format!("{id}\n"),
            id.replace('-', "\u{2010}"),
            "z".repeat(36),
            "x".repeat(5_000),
            format!("{id}' or '1'='1"),
            id[..35].to_owned(),
        ] {
            corpus.add_claim(signer, "sub", &json!(sub), "`sub`");
        }
    }
}

fn long_ones(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        let name = format!("{:?}", signer.algorithm);
        let claims = with(claims(), "x", &json!("x".repeat(12 << 10))).to_string();
        corpus.add(
            format!("long claims: {name}"),
            signer.compact(signer.header().to_string(), claims),
            LONG,
        );
        let header = with(signer.header(), "x", &json!("x".repeat(12 << 10))).to_string();
        corpus.add(
            format!("long header: {name}"),
            signer.compact(header, self::claims().to_string()),
            LONG,
        );
        let (message, signature) = good(signer);
        corpus.add(
            format!("long signature: {name}"),
            format!("{message}.{}", "A".repeat(16 << 10)),
            LONG,
        );
        corpus.add(
            format!("many parts: {name}"),
            format!("{message}.{signature}{}", ".A".repeat(8 << 10)),
            LONG,
        );
    }
}

/// What only looks hostile: it must pass, or the corpus shows nothing.
fn controls(keys: &Keys) -> Vec<(String, String)> {
    let now = jsonwebtoken::get_current_timestamp();
    let mut controls = Vec::new();
    for signer in &keys.ours {
        let name = format!("{:?}", signer.algorithm);
        let mut add = |what: &str, header: &Value, claims: &Value| {
            controls.push((
                format!("{what}: {name}"),
                signer.compact(header.to_string(), claims.to_string()),
            ));
        };
        add("as it is", &signer.header(), &claims());
        for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/jwt", "application/at+jwt"] {
            add(typ, &with(signer.header(), "typ", &json!(typ)), &claims());
        }
        for (field, value) in [
            ("typ", json!(null)),
            ("jku", json!("https://attacker.example/jwks.json")),
            ("x5u", json!("https://attacker.example/")),
            ("cty", json!("x")),
            ("zip", json!("DEF")),
            ("b64", json!(false)),
            ("x5t", json!("x")),
            ("unknown", json!({"a": [1, 2]})),
            ("Alg", json!("none")),
            ("jwk", json!({"kty": 1})),
            ("ALG", json!("none")),
        ] {
            add(field, &with(signer.header(), field, &value), &claims());
        }
        let deep =
            serde_json::from_str::<Value>(&format!("{}{}", "[".repeat(100), "]".repeat(100)))
                .unwrap();
        for (claim, value) in [
            ("exp", json!(now as f64 + 60.5)),
            ("exp", json!(1e300)),
            ("nbf", json!(null)),
            ("nbf", json!(now)),
            ("iat", json!(null)),
            ("iat", json!(-1)),
            ("aud", json!(["other", "authenticated"])),
            ("is_anonymous", json!(true)),
            ("scope", json!("service_role")),
            ("alg", json!("none")),
            ("x", deep),
            ("Role", json!("anon")),
            ("user_metadata", json!({"role": "service_role", "sub": "root", "aud": "x"})),
            ("x", json!("x".repeat(8_000))),
        ] {
            add(claim, &signer.header(), &with(claims(), claim, &value));
        }
    }
    // An ECDSA signature has a twin, which is as good, and of which nothing here depends.
    let (message, signature) = good(&keys.ours[1]);
    let bytes = decoded(&signature);
    let mut borrow = 0;
    let mut twin = bytes.clone();
    for at in (0..32).rev() {
        let difference = i16::from(P256_ORDER[at]) - i16::from(bytes[32 + at]) - borrow;
        borrow = i16::from(difference < 0);
        twin[32 + at] = difference.rem_euclid(256) as u8;
    }
    controls.push(("the twin of a signature".to_owned(), format!("{message}.{}", encoded(twin))));
    controls
}

fn corpus(keys: &Keys) -> Corpus {
    let mut corpus = Corpus::default();
    for part in [
        algorithms,
        algorithms_of_other_keys,
        public_keys_as_secrets,
        signatures,
        curves,
        forms,
        texts,
        headers,
        keys_brought_along,
        encrypted_ones_and_names,
        claims_of_other_types,
        times,
        claims_of_others,
        long_ones,
    ] {
        part(keys, &mut corpus);
    }
    corpus
}

#[tokio::test]
async fn each_hostile_token_is_refused_for_its_reason_and_each_unusual_one_is_not() {
    let keys = Keys::new();
    let source = Provider::start().await;
    source.always(set(&keys.public()));
    let url = format!("{}/jwks", source.base_url());
    let key_set = Arc::new(KeySet::new(url.parse().unwrap()).unwrap());
    tokio::spawn(Arc::clone(&key_set).keep_fresh());
    let issuers = Issuers::Only(vec![ISSUER.to_owned()]);
    let verifier = Verifier::new(SharedSecret::new(relay::SECRET).as_ref(), Some(key_set), issuers);
    let relay = TestRelay::with(&source)
        .env("SUPABASE_JWKS_URL", url)
        .env("RELAY_LOG", "trace")
        .start()
        .await;
    let send = async |token: &str| {
        let request = relay.client().get(relay.url("/auth/test")).bearer_auth(token);
        Answer::of(request.send().await.unwrap()).await
    };

    let corpus = corpus(&keys).0;
    let mut faults = Vec::new();
    for (what, token, reason) in &corpus {
        let message = match verifier.verify(token, clock::now()).await {
            Err(error) if error.code() == Code::InvalidToken => error.message().to_owned(),
            otherwise => format!("{otherwise:?}"),
        };
        if !message.contains(reason) {
            faults.push(format!("{what}: {message}"));
        // What no header can hold is not even sent.
        } else if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            assert_eq!(send(token).await.refused(401, "invalid_token"), message, "{what}");
        }
    }
    for (what, token) in controls(&keys) {
        let verified = verifier.verify(&token, clock::now()).await;
        let answer = send(&token).await;
        if verified.is_err() || answer.status != 200 {
            faults.push(format!("{what}: {verified:?}, {}", answer.json));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));

    let different: HashSet<_> = corpus.iter().map(|(_, token, _)| token).collect();
    println!("{} hostile tokens", different.len());
    assert!(different.len() >= 1_000, "{}", different.len());
    // The first set, and one for the names that are not in it; more if that took longer than names are remembered.
    assert!(source.requests().len() < 12, "{}", source.requests().len());
    relay.finish_without_users().await;
}

/// With such a key in a set everybody signs: the neutral element and zero are a signature of every message to it, and of
/// one in two, four or eight to the others.
#[tokio::test]
async fn a_key_that_everybody_can_sign_for_is_no_key() {
    let small_order = [
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "7P_______________________________________38",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "JuiVj8KyJ7BFw_SJ8u-Y8NXfrAXTxjM5sTgCiG1T_AU",
    ];
    let named = |at: usize| format!("weak-{at}");
    let mut keys: Vec<_> = small_order
        .iter()
        .enumerate()
        .map(|(at, x)| json!({"kty": "OKP", "crv": "Ed25519", "kid": named(at), "x": x}))
        .collect();
    // And one whose private part is there for everybody to read.
    let published = Signer::es256("published");
    keys.push(with(published.jwk.clone(), "d", &json!(encoded([7; 32]))));
    let known = Signer::eddsa("known");
    keys.push(known.jwk.clone());
    let source = Provider::start().await;
    source.always(crate::key_sets::answer(json!({"keys": keys}).to_string().as_bytes()));
    let url = format!("{}/jwks", source.base_url());
    let relay = TestRelay::with(&source)
        .env("SUPABASE_JWKS_URL", url)
        .env("SUPABASE_JWT_SECRET", "")
        .start()
        .await;
    let send = async |token: &str| {
        let request = relay.client().get(relay.url("/auth/test")).bearer_auth(token);
        Answer::of(request.send().await.unwrap()).await
    };
    send(&known.token()).await.ok(200);
    let neutral = encoded([&[1][..], &[0; 2 * ED25519_PUBLIC_KEY_LEN - 1]].concat());
    for at in 0..small_order.len() {
        for _ in 0..64 {
            let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": named(at)}).to_string();
            let forged = format!("{}.{}.{neutral}", encoded(header), encoded(claims().to_string()));
            assert!(
                send(&forged).await.refused(401, "invalid_token").contains(UNKNOWN),
                "key {at}"
            );
        }
    }
    assert!(send(&published.token()).await.refused(401, "invalid_token").contains(UNKNOWN));
    send(&known.token()).await.ok(200);
    let log = relay.log();
    assert!(log.contains("so weak that others can sign") && log.contains("private part"), "{log}");
    relay.finish_without_users().await;
}
