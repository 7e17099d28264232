//! Headers that want something of the relay: RFC 8725, 3.10 to 3.12, RFC 7515, 4.1, and RFC 7516. To take another kind of
//! token, to decrypt, to open or fetch a file, or to use a key that came along.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{
    ATTACKERS_SECRET, CLAIM, CRITICAL, Corpus, DAMAGED, KIND, Keys, NAMELESS, NO_TOKEN, claims,
    encoded,
};
use crate::key_sets::{FORGED, OTHERWISE, UNKNOWN};
use crate::signer::with;

/// RFC 8725, 3.10 to 3.12, and RFC 7515, 4.1: what a header may not bring about.
pub(super) fn of_tokens(keys: &Keys, corpus: &mut Corpus) {
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
pub(super) fn of_encrypted_tokens_and_names(keys: &Keys, corpus: &mut Corpus) {
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
        &keys.theirs_at,
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
pub(super) fn keys_brought_along(keys: &Keys, corpus: &mut Corpus) {
    for (ours, theirs) in keys.ours.iter().zip(&keys.theirs) {
        let name = format!("{:?}", ours.algorithm);
        let url = json!(keys.theirs_at);
        let certificate = json!([STANDARD.encode(&theirs.der)]);
        let jwk = if theirs.jwk.is_null() {
            json!({"kty": "oct", "alg": "HS256", "k": encoded(ATTACKERS_SECRET)})
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
