//! How much one user, and all together, may ask for.
//!
//! The port is [`Limits`]: requests in a window of time, and generations at once. Leave to run a generation is a
//! [`Permit`]; dropping it gives it back, so it cannot be forgotten on any way out.

pub mod memory;

use std::fmt;
use std::time::Duration;

use crate::auth::Principal;
use crate::error::Error;

/// A number of requests in a window of time, written `60/min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests.
    pub requests: u32,
    /// The window. It begins with its first request.
    pub window: Duration,
}

/// What is left of a user's requests, as the `RateLimit` fields say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// What there is in all.
    pub rate: Rate,
    /// Requests left in the window.
    pub remaining: u32,
    /// Time left in the window.
    pub resets_in: Duration,
}

/// Leave to run one generation.
pub struct Permit {
    /// Absent once it has been called.
    give_back: Option<Box<dyn FnOnce() + Send>>,
}

impl Permit {
    /// A permit that calls `give_back` when it is dropped.
    pub fn new(give_back: impl FnOnce() + Send + 'static) -> Self {
        Self { give_back: Some(Box::new(give_back)) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            give_back();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// The limits, as the relay sees them.
pub trait Limits: Send + Sync + 'static {
    /// Counts one request of the user.
    ///
    /// # Errors
    /// `RateLimited` with the time to wait if that is one too many; it is not counted then. The quota comes along.
    fn check(&self, caller: &Principal) -> Result<Quota, (Quota, Error)>;

    /// Leave to run one generation of the user.
    ///
    /// # Errors
    /// `TooManyStreams` if the user runs as many as allowed; `Overloaded` if the whole process does.
    fn admit(&self, caller: &Principal) -> Result<Permit, Error>;
}
