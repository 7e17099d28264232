//! From the `Authorization` header's token to a [`Principal`], or to a reason that helps the honest.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::SecretString;

use super::Principal;
use super::claims::{Claims, Issuers};
use super::hs256::SharedSecret;
use super::key_set::KeySet;
use crate::error::{Code, Error};
use crate::id::UserId;

/// The longest token in bytes. Supabase's have about one KiB; custom claims may make them longer.
const TOKEN_LEN_MAX: usize = 16 << 10;

/// What a caller is told to wait for the keys: they are tried for every second or so.
const KEYS_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Tells callers by their tokens. An algorithm is bound to the kind of the key it is checked with.
#[derive(Debug)]
pub struct Verifier {
    shared_secret: Option<DecodingKey>,
    key_set: Option<Arc<KeySet>>,
    issuers: Issuers,
}

impl Verifier {
    /// A verifier for tokens of `issuers` signed with `shared_secret` or with a key of `key_set`; a project in migration
    /// has both.
    #[must_use]
    pub fn new(
        shared_secret: Option<&SharedSecret>,
        key_set: Option<Arc<KeySet>>,
        issuers: Issuers,
    ) -> Self {
        Self { shared_secret: shared_secret.map(SharedSecret::decoding_key), key_set, issuers }
    }

    /// Whether there is anything to check a token with.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared_secret.is_some()
            || self.key_set.as_ref().is_some_and(|key_set| key_set.has_set())
    }

    /// The caller that `token` stands for at `now`. Waits only for a key that is not known yet. Cancel safe.
    ///
    /// # Errors
    /// `InvalidToken`, with a sentence that says why; `KeysUnavailable` as long as no key set could be fetched.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Principal, Error> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(invalid("The access token is longer than any that Supabase signs."));
        }
        let claims = self.decode(token).await?;
        let (user, expires_at) =
            claims.accept(&self.issuers, now).map_err(|reason| invalid(reason.to_string()))?;
        Ok(Principal {
            user: UserId(user),
            is_anonymous: claims.is_anonymous,
            expires_at,
            token: Arc::new(SecretString::from(token)),
        })
    }

    async fn decode(&self, token: &str) -> Result<Claims, Error> {
        check_header(token)?;
        let header = jsonwebtoken::decode_header(token).map_err(|_| no_token())?;
        match (header.alg, &self.shared_secret, &self.key_set) {
            (Algorithm::HS256, Some(secret), _) => read_claims(token, secret, Algorithm::HS256),
            (Algorithm::ES256 | Algorithm::RS256 | Algorithm::EdDSA, _, Some(key_set)) => {
                let kid = header.kid.ok_or_else(|| {
                    invalid("The access token does not say which key it is signed with.")
                })?;
                let keys = key_set.keys_for(&kid).await;
                match keys.get(&kid) {
                    Some(key) if key.algorithm == header.alg => {
                        read_claims(token, &key.decoding, key.algorithm)
                    }
                    None if !key_set.has_set() => Err(keys_unavailable()),
                    _ => Err(invalid(
                        "The access token is signed with a key that is not among the project's.",
                    )),
                }
            }
            _ => Err(signed_otherwise()),
        }
    }
}

fn read_claims(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Claims, Error> {
    let mut validation = Validation::new(algorithm);
    // Times, audience and issuer are checked in `claims.rs`, where what is absent is refused too.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let decoded = jsonwebtoken::decode::<Claims>(token, key, &validation);
    let decoded = decoded.map_err(|error| match error.kind() {
        // A signature that is no base64url is damaged, and says nothing of the claims.
        ErrorKind::InvalidSignature | ErrorKind::Base64(_) => invalid(
            "The access token's signature is wrong. It is forged, damaged, or another project's.",
        ),
        _ => wrong_claims(error),
    })?;
    // A claim that is not read is passed over whatever bytes it has.
    if !token.split('.').nth(1).is_some_and(is_utf8) {
        return Err(wrong_claims("it is not UTF-8"));
    }
    Ok(decoded.claims)
}

fn is_utf8(part: &str) -> bool {
    URL_SAFE_NO_PAD.decode(part).is_ok_and(|bytes| String::from_utf8(bytes).is_ok())
}

fn wrong_claims(detail: impl std::fmt::Display) -> Error {
    invalid(
        "The access token lacks a claim that Supabase Auth sets, or has one twice or of the wrong type, or is no text.",
    )
    .with_detail(detail)
}

fn keys_unavailable() -> Error {
    Error::new(Code::KeysUnavailable, "The project's keys cannot be fetched, so nobody can be told by their token. Try again in a moment.")
        .with_retry_after(KEYS_RETRY_AFTER)
}

/// Refuses what `jsonwebtoken` ignores, and an algorithm that it cannot name, which it takes for a damaged token.
///
/// Nothing else in a header counts: keys and addresses of keys that come with a token (`jwk`, `jku`, `x5c`, `x5u`) are
/// whoever's the token is.
fn check_header(token: &str) -> Result<(), Error> {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let header: Option<serde_json::Map<String, serde_json::Value>> =
        header.and_then(|json| serde_json::from_slice(&json).ok());
    let header = header.ok_or_else(no_token)?;
    // RFC 7515, section 4.1.11: an extension that is critical and not understood makes a token invalid, and the relay
    // understands none.
    if header.contains_key("crit") {
        return Err(invalid(
            "The access token has critical header extensions, which this relay does not know.",
        ));
    }
    let text = |field: &str| header.get(field).and_then(serde_json::Value::as_str);
    // RFC 7516, section 9: what has an `enc` is encrypted, and its other parts mean something else.
    let is_encrypted = header.contains_key("enc");
    if is_encrypted || text("alg").is_some_and(|name| name.parse::<Algorithm>().is_err()) {
        return Err(signed_otherwise());
    }
    if text("typ").is_some_and(|kind| !is_access_token(kind)) {
        return Err(invalid(
            "That is no access token, but another kind of token: its `typ` says so. Send the session's `access_token`.",
        ));
    }
    Ok(())
}

/// Whether a token says that it is one of those that are sent here: RFC 8725, section 3.11, so that what an issuer signs
/// for another use with the same key (a logout, a proof of possession) is not taken for a login. Supabase's say `JWT`; `at+jwt` is
/// RFC 9068's name. Media types have no case, and need no `application/`.
fn is_access_token(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
}

fn signed_otherwise() -> Error {
    invalid(
        "The access token is signed in a way that this relay does not accept. Send the session's `access_token` of the relay's own project.",
    )
}

fn no_token() -> Error {
    invalid(
        "That is no access token. Send the session's `access_token`, not an API key of the project.",
    )
}

fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Code::InvalidToken, reason)
}

#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod tests;
