//! Tokens signed with the project's shared secret.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::error::Error;

/// The shortest secret in bytes: RFC 7518, section 3.2 asks for as many bits as the hash has.
pub const SECRET_LEN_MIN: usize = 32;

/// The project's shared secret, `SUPABASE_JWT_SECRET`.
#[derive(Debug, Clone)]
pub struct SharedSecret(SecretString);

impl SharedSecret {
    /// `None` if `secret` is shorter than [`SECRET_LEN_MIN`].
    #[must_use]
    pub fn new(secret: &str) -> Option<Self> {
        (secret.len() >= SECRET_LEN_MIN).then(|| Self(SecretString::from(secret)))
    }

    pub(super) fn decoding_key(&self) -> DecodingKey {
        DecodingKey::from_secret(self.0.expose_secret().as_bytes())
    }
}

/// An access token that says `claims`, as Supabase Auth would sign it.
///
/// # Errors
/// Internal, if the claims cannot be encoded.
pub fn sign(secret: &SharedSecret, claims: &impl Serialize) -> Result<String, Error> {
    let key = EncodingKey::from_secret(secret.0.expose_secret().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).map_err(Error::internal)
}
