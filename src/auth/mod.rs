//! Who is asking: from an access token of Supabase Auth to a [`Principal`].
//!
//! Whoever holds a [`Principal`] holds a verified caller; there is no other way to make one than [`Verifier::verify`].

mod claims;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hs256;
mod jwks;
mod key_set;
mod verifier;

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::SecretString;

use crate::id::UserId;

pub use claims::Issuers;
pub use hs256::{SECRET_LEN_MIN, SharedSecret, sign};
pub use key_set::KeySet;
pub use verifier::Verifier;

/// A verified caller. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Principal {
    user: UserId,
    is_anonymous: bool,
    expires_at: Timestamp,
    token: Arc<SecretString>,
}

impl Principal {
    /// Whose stories, bots and limits these are.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// Whether the user signed in without any credential, and so has lower limits.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.is_anonymous
    }

    /// When the token ends. A generation that runs by then goes on.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The access token itself, for stores that act under it.
    #[must_use]
    pub fn token(&self) -> &SecretString {
        &self.token
    }
}

#[cfg(test)]
impl Principal {
    /// A caller for tests of what comes after authentication.
    pub(crate) fn for_tests(user: UserId) -> Self {
        Self {
            user,
            is_anonymous: false,
            expires_at: Timestamp::MAX,
            token: Arc::new(SecretString::from("")),
        }
    }
}
