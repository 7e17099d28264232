//! What only looks hostile: it must pass, or the corpus shows nothing but a relay that refuses everybody.

use serde_json::{Value, json};

use super::{Keys, claims, decoded, encoded, good};
use crate::signer::{P256_ORDER, with};

pub(super) fn controls(keys: &Keys) -> Vec<(String, String)> {
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
            ("jku", json!(keys.theirs_at)),
            ("x5u", json!(keys.theirs_at)),
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
            ("exp", json!(now as f64 + 7_200.5)),
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
