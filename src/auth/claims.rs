//! What an access token says, and which of it makes a caller.
//!
//! Read leniently (Supabase's hooks may add claims and leave some out) and checked strictly. Claims and their types are
//! from Supabase Auth's own source; what the relay needs is `sub`, `exp`, `aud`, `role` and `iss`.

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

/// The clocks of issuer and relay may differ by this many seconds: what PostgREST allows.
const SKEW_SECONDS: f64 = 30.0;

/// What every signed-in user of Supabase has, as audience and as role.
const AUTHENTICATED: &str = "authenticated";

/// The claims that matter.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Claims {
    /// The user.
    pub(super) sub: String,
    /// When the token ends, in seconds since 1970. Fractions are allowed by RFC 7519.
    pub(super) exp: f64,
    /// Before when it is not valid.
    #[serde(default)]
    pub(super) nbf: Option<f64>,
    /// When it was made.
    #[serde(default)]
    pub(super) iat: Option<f64>,
    /// Whom it is for.
    pub(super) aud: Audience,
    /// Who made it.
    pub(super) iss: String,
    /// The Postgres role.
    pub(super) role: String,
    /// Whether the user signed in without any credential.
    #[serde(default)]
    pub(super) is_anonymous: bool,
}

/// One name or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    /// As Supabase has it.
    One(String),
    /// As a custom hook may have it.
    Many(Vec<String>),
}

/// Whose tokens are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuers {
    /// Everybody's that the key verifies: `dev` only.
    Any,
    /// These, to the letter.
    Only(Vec<String>),
}

impl Issuers {
    fn accept(&self, issuer: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(issuers) => issuers.iter().any(|known| known == issuer),
        }
    }
}

/// Why claims make no caller; each is a sentence for whoever sent the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unacceptable {
    #[error("The access token has expired. Refresh the session.")]
    Expired,
    #[error(
        "The access token is not valid yet. Check the clocks of whoever signs tokens and of the relay."
    )]
    NotYetValid,
    #[error(
        "The access token was issued in the future. Check the clocks of whoever signs tokens and of the relay."
    )]
    IssuedInTheFuture,
    #[error("The access token is not for signed-in users: its `aud` is not `authenticated`.")]
    Audience,
    #[error(
        "The access token is not a signed-in user's: its `role` is not `authenticated`. The project's own keys are no users."
    )]
    Role,
    #[error("The access token was issued by somebody else: its `iss` is not this project's.")]
    Issuer,
    #[error("The access token names no user: its `sub` is no UUID.")]
    Subject,
}

impl Claims {
    /// The user that these claims stand for at `now`, and when that ends.
    pub(super) fn accept(
        &self,
        issuers: &Issuers,
        now: Timestamp,
    ) -> Result<(Uuid, Timestamp), Unacceptable> {
        let now = now.as_duration().as_secs_f64();
        let is_past = |time: f64| time <= now - SKEW_SECONDS;
        let is_future = |time: f64| time > now + SKEW_SECONDS;
        if is_past(self.exp) {
            return Err(Unacceptable::Expired);
        }
        if self.nbf.is_some_and(is_future) {
            return Err(Unacceptable::NotYetValid);
        }
        if self.iat.is_some_and(is_future) {
            return Err(Unacceptable::IssuedInTheFuture);
        }
        let is_for_users = match &self.aud {
            Audience::One(audience) => audience == AUTHENTICATED,
            Audience::Many(audiences) => audiences.iter().any(|audience| audience == AUTHENTICATED),
        };
        if !is_for_users {
            return Err(Unacceptable::Audience);
        }
        if self.role != AUTHENTICATED {
            return Err(Unacceptable::Role);
        }
        if !issuers.accept(&self.iss) {
            return Err(Unacceptable::Issuer);
        }
        // Only the form that Supabase writes: a UUID in braces or without hyphens would be another row's text.
        let sub = Uuid::try_parse(&self.sub).ok().filter(|_| self.sub.len() == 36);
        let sub = sub.ok_or(Unacceptable::Subject)?;
        Ok((sub, Timestamp::from_second(self.exp as i64).unwrap_or(Timestamp::MAX)))
    }
}
