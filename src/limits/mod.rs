//! How much one address, one user, and all together, may ask for.
//!
//! The port is [`Limits`]: requests in a window of time, generations at once, and tokens a day. Leave to run a generation is
//! a [`Permit`], which has the tokens that are set aside for it; dropping it gives it back, so it cannot be forgotten on any
//! way out.
//!
//! What several relays count together (`shared/`) each goes on counting by itself while it cannot ask, from what it was told
//! last.

pub mod memory;
mod permit;
mod refusal;
mod running;
pub mod shared;
pub mod tokens;
mod windows;

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use crate::auth::Principal;
use crate::error::Error;
use crate::outbox::Name;

pub use permit::{Left, Permit, admit};
use tokens::{Attempt, Estimate, Held, Used};

/// A number of requests in a window of time, written `60/min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests.
    pub requests: u32,
    /// The window. It begins with its first request.
    pub window: Duration,
}

/// What is left of somebody's requests, as the `RateLimit` fields say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// What there is in all.
    pub rate: Rate,
    /// Requests left in the window.
    pub remaining: u32,
    /// Time left in the window.
    pub resets_in: Duration,
}

/// What one user may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Requests.
    pub rate: Rate,
    /// Generations at once.
    pub streams: usize,
    /// Tokens of prompts and answers in a day of UTC; `None`: any number.
    pub tokens_per_day: Option<u64>,
}

/// What everybody may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowances {
    /// Users who signed in.
    pub users: Allowance,
    /// Users who did so without any credential: whoever likes has as many of them as they like.
    pub anonymous: Allowance,
    /// One address, whoever asks from there, before that is known.
    pub address: Rate,
}

impl Allowances {
    /// What the caller may ask for.
    #[must_use]
    pub fn of(&self, caller: &Principal) -> Allowance {
        if caller.is_anonymous() { self.anonymous } else { self.users }
    }

    /// Whether anybody's tokens are counted.
    pub(crate) fn have_budgets(&self) -> bool {
        self.users.tokens_per_day.or(self.anonymous.tokens_per_day).is_some()
    }
}

/// One request too many: it was not counted, and the quota says until when.
pub type TooMany = (Quota, Error);

/// The limits, as the relay sees them.
#[async_trait]
pub trait Limits: Send + Sync + 'static {
    /// Counts one request from that address, which stands for all that one customer has.
    ///
    /// # Errors
    /// `RateLimited` with the time to wait if that is one too many.
    async fn check_address(&self, address: IpAddr) -> Result<Quota, TooMany>;

    /// Counts one request of the user.
    ///
    /// # Errors
    /// As [`Limits::check_address`].
    async fn check(&self, caller: &Principal) -> Result<Quota, TooMany>;

    /// Counts one more running generation of the user. [`admit`] is how it is not forgotten.
    ///
    /// # Errors
    /// `TooManyStreams` if the user runs as many as allowed; `Overloaded` if the whole process does.
    async fn enter(&self, caller: &Principal, name: &Name) -> Result<(), Error>;

    /// Counts it no more. When this has returned, there is room for another one.
    async fn leave(&self, name: &Name);

    /// Counts it no more, soon, and settles what was set aside for it as spent: for those who cannot wait.
    fn leave_soon(&self, left: Left);

    /// Whether the user's tokens are counted.
    fn has_budget(&self, caller: &Principal) -> bool;

    /// Sets tokens aside for a generation of the user, and says where. `None` if the user may spend any number.
    ///
    /// # Errors
    /// `BudgetExceeded` if they are more than are left, with the time to midnight unless they are more than a day has; `Internal` if the book's disk fails.
    async fn reserve(
        &self,
        caller: &Principal,
        attempt: &Attempt,
        estimate: Estimate,
    ) -> Result<Option<Held>, Error>;

    /// Settles what was set aside there, unless somebody has. When this has returned, that is in the book.
    ///
    /// # Errors
    /// `Internal` if the book's disk fails.
    async fn settle(&self, attempt: &Attempt, held: Held, used: Used) -> Result<(), Error>;

    /// Whether other relays count tokens together with this one.
    fn share_budgets(&self) -> bool {
        false
    }

    /// Settles what another relay, or the last process, has set aside in a book that is shared. Without effect if nothing
    /// is.
    ///
    /// # Errors
    /// As [`Limits::settle`].
    async fn settle_for(&self, _attempt: &Attempt, _used: Used) -> Result<(), Error> {
        Ok(())
    }

    /// Does what is to be done soon, and keeps in touch with others, for as long as it is polled, or until the book's disk
    /// fails, which is returned.
    async fn run(&self) -> Error;
}
