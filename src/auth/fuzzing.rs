//! Forgers: whatever a fuzzer sends as a token or as a key set must make nobody somebody.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::Value;

use super::{Issuers, Principal, SharedSecret, Verifier, jwks};
use crate::error::{Code, Error};

const SECRET: &str = "the-secret-of-the-project-whose-users-these-are";
const OTHER_SECRET: &str = "the-secret-of-a-project-whose-users-they-are-not";
const ISSUER: &str = "https://project.supabase.co/auth/v1";
const NOW: i64 = 1_800_000_000;
const SKEW: f64 = 30.0;

/// The first byte says whether the rest is a token, which nobody has signed then, or its header and its claims with a NUL
/// between them, which are signed here.
pub(crate) fn token(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    if kind % 2 == 0 {
        refused(&String::from_utf8_lossy(rest));
        return;
    }
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let message = format!("{}.{}", encode(header), encode(claims));
    refused(&format!("{message}."));
    refused(&signed(&message, OTHER_SECRET));
    let token = signed(&message, SECRET);
    if let Ok(principal) = verify(&token) {
        check_claims(header, claims, &principal);
        check_changed(&token, rest);
    }
}

fn signed(message: &str, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    let Ok(signature) = crypto::sign(message.as_bytes(), &key, Algorithm::HS256) else {
        panic!("HMAC takes every key and every message")
    };
    format!("{message}.{signature}")
}

fn verify(token: &str) -> Result<Principal, Error> {
    let issuers = Issuers::Only(vec![ISSUER.to_owned()]);
    let verifier = Verifier::new(SharedSecret::new(SECRET).as_ref(), None, issuers);
    let verified = verifier.verify(token, Timestamp::from_second(NOW).unwrap_or_default());
    let Some(verified) = verified.now_or_never() else { panic!("there is nothing to wait for") };
    verified
}

#[track_caller]
fn refused(token: &str) {
    let code = verify(token).map_err(|error| error.code());
    assert!(matches!(code, Err(Code::InvalidToken)), "{token}");
}

/// What RFC 7519 and Supabase want of it, looked up in another way.
fn check_claims(header: &[u8], claims: &[u8], principal: &Principal) {
    let json = |part: &[u8]| serde_json::from_slice::<Value>(part);
    // A claim that is passed over may be nested too deep for this, or a number too large.
    let (Ok(header), Ok(claims)) = (json(header), json(claims)) else { return };
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none() && header.get("enc").is_none(), "{header}");
    let is_authenticated = |value: &Value| *value == "authenticated";
    let audience = &claims["aud"];
    let is_for_users = is_authenticated(audience)
        || audience.as_array().is_some_and(|several| several.iter().any(is_authenticated));
    assert!(is_for_users && is_authenticated(&claims["role"]), "{claims}");
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(
        claims["sub"].as_str().map(str::to_ascii_lowercase),
        Some(principal.user().to_string())
    );
    assert_eq!(claims["is_anonymous"] == true, principal.is_anonymous());
    let (now, time) = (NOW as f64, |claim: &str| claims[claim].as_f64());
    assert!(time("exp").is_some_and(|ends| ends > now - SKEW), "{claims}");
    for begins in ["nbf", "iat"] {
        assert!(time(begins).is_none_or(|begins| begins <= now + SKEW), "{claims}");
    }
}

/// One other character anywhere, and it is another's word.
fn check_changed(token: &str, chance: &[u8]) {
    let at = chance.iter().map(|byte| usize::from(*byte)).sum::<usize>() % token.len();
    for other in ["", "A", "B", "_", ".", "=", "\0", "é"] {
        let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        if changed != token {
            refused(&changed);
        }
    }
    for longer in
        [format!("{token}="), format!("{token}A"), format!(" {token}"), format!("{token}.")]
    {
        refused(&longer);
    }
}

/// A key set as somebody may answer for the project.
pub(crate) fn key_set(input: &[u8]) {
    let Ok(set) = jwks::parse(input) else { return };
    // As above, beside the keys.
    let Ok(json) = serde_json::from_slice::<Value>(input) else { return };
    let listed = json["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert!(listed.len() <= 64 && set.keys.len() + set.passed_over.len() == listed.len(), "{json}");
    let passed_over: Vec<_> = set.passed_over.iter().map(|(at, _)| *at).collect();
    for (at, listed) in listed.iter().enumerate() {
        if passed_over.contains(&at) {
            continue;
        }
        let key = listed["kid"].as_str().and_then(|kid| set.keys.get(kid));
        let Some(key) = key else { panic!("{listed} is neither taken nor passed over") };
        let is_private = ["d", "p", "q"].iter().any(|part| !listed[part].is_null());
        assert!(!is_private, "{listed}");
        let of_its_kind = match key.algorithm {
            Algorithm::ES256 => "EC",
            Algorithm::EdDSA => "OKP",
            Algorithm::RS256 => "RSA",
            other => panic!("{other:?}"),
        };
        assert_eq!(listed["kty"], of_its_kind);
        check_forgeries(key, listed);
    }
}

/// Signatures that anybody can write must hold for no message. With a weak key of Ed25519 the second of them holds for one
/// message in eight, or in fewer.
fn check_forgeries(key: &jwks::Key, listed: &Value) {
    let len = if key.algorithm == Algorithm::RS256 {
        let modulus = listed["n"].as_str().and_then(|n| URL_SAFE_NO_PAD.decode(n).ok());
        modulus.unwrap_or_default().len()
    } else {
        64
    };
    let zeros = vec![0; len];
    let mut neutral = zeros.clone();
    neutral[0] = 1;
    let mut one = zeros.clone();
    one[len - 1] = 1;
    for signature in [zeros, neutral, one].map(|bytes| URL_SAFE_NO_PAD.encode(bytes)) {
        for message in 0..16_u8 {
            let held = crypto::verify(&signature, &[message], &key.decoding, key.algorithm);
            assert!(!matches!(held, Ok(true)), "{listed}");
        }
    }
}
