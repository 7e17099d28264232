//! Other writings of what is good: RFC 7515, 7.1, and RFC 8725, 2.6 and 3.7. What two readers could read in two ways is
//! refused, and so is what nobody should have to read at all.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::json;

use super::{CLAIM, Corpus, DAMAGED, Keys, LONG, NO_TOKEN, claims, decoded, encoded, good};
use crate::key_sets::FORGED;
use crate::signer::with;

/// RFC 7515, 7.1: three parts, and no other writing of them.
pub(super) fn of_tokens(keys: &Keys, corpus: &mut Corpus) {
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
        assert!(padded.contains('='), "{padded}");
        corpus.add(
            format!("padded: {name}"),
            signer.signed(&format!("{header}.{padded}")),
            DAMAGED,
        );
    }
}

/// RFC 8725, 2.6 and 3.7: JSON in UTF-8, and nothing that two readers read in two ways.
pub(super) fn of_claims_and_headers(keys: &Keys, corpus: &mut Corpus) {
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

/// None is read that is longer than a token has to be.
pub(super) fn too_long(keys: &Keys, corpus: &mut Corpus) {
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
