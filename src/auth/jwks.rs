//! A JSON Web Key Set, from text to keys that can check a signature.
//!
//! Each key is bound to the one algorithm of its kind (P-256 to ES256, RSA to RS256, Ed25519 to `EdDSA`), so no token can
//! choose another. What is not for signatures, or of another kind, is passed over: sets hold such keys during migrations.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Keys at most in one set. Supabase has four at a time.
const KEYS_MAX: usize = 64;

/// A coordinate of P-256 in bytes. Some signers leave out leading zeros, and `jsonwebtoken` wants them.
const P256_COORDINATE_LEN: usize = 32;

/// The shortest RSA key in bits that RFC 7518, section 3.3 allows.
const RSA_BITS_MIN: usize = 2048;

/// A key that checks signatures.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// The keys of a set, by `kid`.
pub(super) type Keys = HashMap<String, Key>;

/// Why a set cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidKeySet {
    #[error("it is no key set: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
    #[error("it has two keys with the `kid` {0:?}")]
    Duplicate(String),
}

#[derive(Deserialize)]
struct WireSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct WireKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// Reads a set. An empty one is valid: that is what a project with a shared secret alone answers.
pub(super) fn parse(json: &[u8]) -> Result<Keys, InvalidKeySet> {
    let set: WireSet = serde_json::from_slice(json)?;
    if set.keys.len() > KEYS_MAX {
        return Err(InvalidKeySet::TooMany);
    }
    let mut keys = Keys::new();
    for key in set.keys {
        let Some((kid, key)) = serde_json::from_value(key).ok().and_then(usable) else { continue };
        // With two keys of one name it would be chance which of them counts.
        if keys.contains_key(&kid) {
            return Err(InvalidKeySet::Duplicate(kid));
        }
        keys.insert(kid, key);
    }
    Ok(keys)
}

/// The key, if it is for signatures, of a kind that the relay knows, and whole.
fn usable(key: WireKey) -> Option<(String, Key)> {
    let is_for_signatures = key.usage.as_deref().is_none_or(|usage| usage == "sig")
        && key
            .key_ops
            .as_ref()
            .is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
    let (algorithm, decoding) = match (key.kty.as_str(), key.crv.as_deref()) {
        ("EC", Some("P-256")) => {
            let (x, y) = (coordinate(key.x.as_deref()?)?, coordinate(key.y.as_deref()?)?);
            (Algorithm::ES256, DecodingKey::from_ec_components(&x, &y).ok()?)
        }
        ("OKP", Some("Ed25519")) => {
            (Algorithm::EdDSA, DecodingKey::from_ed_components(key.x.as_deref()?).ok()?)
        }
        ("RSA", _) => {
            let (n, e) = (key.n.as_deref()?, key.e.as_deref()?);
            let modulus = URL_SAFE_NO_PAD.decode(n).ok()?;
            let bits = modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
            (bits >= RSA_BITS_MIN).then_some(())?;
            (Algorithm::RS256, DecodingKey::from_rsa_components(n, e).ok()?)
        }
        _ => return None,
    };
    let is_of_that_algorithm = key.alg.as_deref().is_none_or(|alg| alg.parse() == Ok(algorithm));
    (is_for_signatures && is_of_that_algorithm).then_some(())?;
    Some((key.kid?, Key { algorithm, decoding }))
}

/// A coordinate with the zeros that it should begin with.
fn coordinate(text: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let missing = P256_COORDINATE_LEN.checked_sub(bytes.len())?;
    Some(URL_SAFE_NO_PAD.encode([vec![0; missing], bytes].concat()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The public signing key of the Supabase CLI, and RFC 8037's Ed25519 key.
    fn ec() -> Value {
        json!({"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "use": "sig", "key_ops": ["verify"],
            "x": "M5Sjqn5zwC9Kl1zVfUUGvv9boQjCGd45G8sdopBExB4", "y": "P6IXMvA2WYXSHSOMTBH2jsw_9rrzGy89FjPf6oOsIxQ"})
    }

    fn ed() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn with(mut key: Value, field: &str, value: Value) -> Value {
        key[field] = value;
        key
    }

    #[track_caller]
    fn check(keys: &Value, expected: &[(&str, Algorithm)]) {
        let keys = parse(json!({"keys": keys}).to_string().as_bytes()).unwrap();
        let mut found: Vec<_> =
            keys.iter().map(|(kid, key)| (kid.as_str(), key.algorithm)).collect();
        found.sort_unstable_by_key(|(kid, _)| *kid);
        assert_eq!(found, expected);
    }

    #[test]
    fn keys_are_bound_to_the_algorithm_of_their_kind() {
        let rsa = json!({"kty": "RSA", "kid": "rsa", "n": URL_SAFE_NO_PAD.encode([0xC1; 256]), "e": "AQAB"});
        check(
            &json!([ec(), ed(), rsa]),
            &[("ec", Algorithm::ES256), ("ed", Algorithm::EdDSA), ("rsa", Algorithm::RS256)],
        );
        check(&json!([]), &[]);
    }

    #[test]
    fn keys_that_are_not_for_this_are_passed_over() {
        for unusable in [
            with(ec(), "alg", json!("ES384")),
            with(ec(), "alg", json!("HS256")),
            with(ec(), "use", json!("enc")),
            with(ec(), "key_ops", json!(["sign"])),
            with(ec(), "crv", json!("P-384")),
            with(ec(), "crv", json!("secp256k1")),
            with(ec(), "kid", json!(null)),
            with(ec(), "kid", json!(7)),
            with(ec(), "x", json!("not base64!")),
            with(ec(), "x", json!(URL_SAFE_NO_PAD.encode([1; 33]))),
            with(ed(), "alg", json!("RS256")),
            json!({"kty": "oct", "kid": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
            json!({"kty": "RSA", "kid": "short", "n": URL_SAFE_NO_PAD.encode([0xC1; 128]), "e": "AQAB"}),
            json!("nonsense"),
            json!({}),
        ] {
            check(&json!([unusable, ed()]), &[("ed", Algorithm::EdDSA)]);
        }
    }

    #[test]
    fn short_coordinates_are_padded() {
        let padded = coordinate(&URL_SAFE_NO_PAD.encode([7; 31])).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(padded).unwrap(), [&[0][..], &[7; 31]].concat());
        assert_eq!(coordinate(&URL_SAFE_NO_PAD.encode([7; 33])), None);
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for wrong in ["", "x", "[]", "{}", r#"{"keys": 1}"#, "<html>"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let many: Vec<_> = (0..65).map(|kid| with(ed(), "kid", json!(kid.to_string()))).collect();
        assert!(matches!(
            parse(json!({"keys": many}).to_string().as_bytes()),
            Err(InvalidKeySet::TooMany)
        ));
        let twice = json!({"keys": [ec(), with(ed(), "kid", json!("ec"))]});
        assert!(matches!(parse(twice.to_string().as_bytes()), Err(InvalidKeySet::Duplicate(_))));
    }
}
