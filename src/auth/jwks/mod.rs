//! A JSON Web Key Set, from text to keys that can check a signature.
//!
//! Each key is bound to the one algorithm of its kind (P-256 to ES256, RSA to RS256, Ed25519 to `EdDSA`), so no token can
//! choose another. What is not for signatures, or of another kind, is passed over: sets hold such keys during migrations.
//! So is what would let others than the project sign; the operator is told of each.

mod numbers;

use std::collections::HashMap;

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Keys at most in one set. Supabase has four at a time.
const KEYS_MAX: usize = 64;

/// A key that checks signatures.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// The keys of a set, by `kid`.
pub(super) type Keys = HashMap<String, Key>;

/// A set that was read.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) keys: Keys,
    /// Where in the set each of the others stands (from 0), and why it checks nothing.
    pub(super) passed_over: Vec<(usize, Unusable)>,
}

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

/// Why a key of a set checks no signature. None of these has a word of the key in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is no key, or one of its fields is of the wrong type")]
    Shape,
    #[error("it has no `kid`, so no token can name it")]
    Nameless,
    #[error("it is of a kind that the relay does not know")]
    Kind,
    #[error("its private part is published with it, so that everybody can sign; replace it")]
    Private,
    #[error("it is not for checking signatures")]
    Usage,
    #[error("its `alg` is not that of its kind")]
    Algorithm,
    #[error("its numbers are missing, malformed, or make no key")]
    Malformed,
    #[error("it is so weak that others can sign with it; replace it")]
    Weak,
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
    /// What only the signer may know, by RFC 7518, sections 6.2.2 and 6.3.2; it is looked for and not read.
    d: Option<IgnoredAny>,
    p: Option<IgnoredAny>,
    q: Option<IgnoredAny>,
    dp: Option<IgnoredAny>,
    dq: Option<IgnoredAny>,
    qi: Option<IgnoredAny>,
    oth: Option<IgnoredAny>,
}

/// Reads a set. An empty one is valid: that is what a project with a shared secret alone answers.
pub(super) fn parse(json: &[u8]) -> Result<Set, InvalidKeySet> {
    // It must be an object, where serde takes an array for a structure, too.
    serde_json::from_slice::<HashMap<String, IgnoredAny>>(json)?;
    let wire: WireSet = serde_json::from_slice(json)?;
    if wire.keys.len() > KEYS_MAX {
        return Err(InvalidKeySet::TooMany);
    }
    let mut set = Set { keys: Keys::new(), passed_over: Vec::new() };
    for (at, key) in wire.keys.into_iter().enumerate() {
        let key = Some(key).filter(serde_json::Value::is_object).ok_or(Unusable::Shape);
        let key = key.and_then(|key| serde_json::from_value(key).map_err(|_| Unusable::Shape));
        match key.and_then(usable) {
            // With two keys of one name it would be chance which of them counts.
            Ok((kid, _)) if set.keys.contains_key(&kid) => {
                return Err(InvalidKeySet::Duplicate(kid));
            }
            Ok((kid, key)) => {
                set.keys.insert(kid, key);
            }
            Err(reason) => set.passed_over.push((at, reason)),
        }
    }
    Ok(set)
}

/// The key, if it is for signatures, of a kind that the relay knows, and whole.
fn usable(key: WireKey) -> Result<(String, Key), Unusable> {
    let algorithm = match (key.kty.as_str(), key.crv.as_deref()) {
        ("EC", Some("P-256")) => Algorithm::ES256,
        ("OKP", Some("Ed25519")) => Algorithm::EdDSA,
        ("RSA", _) => Algorithm::RS256,
        _ => return Err(Unusable::Kind),
    };
    if key.has_private_part() {
        return Err(Unusable::Private);
    }
    let is_for_signatures = key.usage.as_deref().is_none_or(|usage| usage == "sig")
        && key
            .key_ops
            .as_ref()
            .is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
    if !is_for_signatures {
        return Err(Unusable::Usage);
    }
    if !key.alg.as_deref().is_none_or(|alg| alg.parse() == Ok(algorithm)) {
        return Err(Unusable::Algorithm);
    }
    let number = |number: &Option<String>| {
        number.as_deref().and_then(numbers::decode).ok_or(Unusable::Malformed)
    };
    let decoding = match algorithm {
        Algorithm::ES256 => numbers::p256(&number(&key.x)?, &number(&key.y)?)?,
        Algorithm::EdDSA => numbers::ed25519(&number(&key.x)?)?,
        _ => numbers::rsa(&number(&key.n)?, &number(&key.e)?)?,
    };
    let kid = key.kid.ok_or(Unusable::Nameless)?;
    Ok((kid, Key { algorithm, decoding }))
}

impl WireKey {
    fn has_private_part(&self) -> bool {
        let Self { d, p, q, dp, dq, qi, oth, .. } = self;
        [d, p, q, dp, dq, qi, oth].into_iter().any(Option::is_some)
    }
}

#[cfg(test)]
mod tests;
