//! Tokens a day: what is set aside for a generation before its provider is called, and what it came to.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::outbox::Name;
use crate::text;

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// More tokens than any answer has. A provider's count is its word alone, and must not be more than a book can hold.
const TOKENS_MAX: u64 = 1 << 40;

/// Bytes of a write token's hash that tell one attempt from others of the same name.
const ATTEMPT_ID_LEN: usize = 12;

/// One attempt at a generation: what tokens are set aside for. What is ended before it begins leaves its name free, and whoever
/// asks again by that name makes another attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The generation.
    pub name: Name,
    /// Tells the attempt from others of that name.
    pub id: String,
}

impl Attempt {
    /// The one whose end is saved with that token, whichever relay ends it.
    #[must_use]
    pub fn saved_with(name: Name, write_token: &SecretString) -> Self {
        let hash = Sha256::digest(write_token.expose_secret());
        Self { name, id: text::hex(&hash[..ATTEMPT_ID_LEN]) }
    }

    /// The one of which nothing is saved, and that was asked for at that moment.
    #[must_use]
    pub fn unsaved(name: Name, started_at: Timestamp) -> Self {
        Self { name, id: started_at.as_millisecond().to_string() }
    }
}

/// A day in UTC, counted from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub i64);

impl Day {
    /// The day of that moment.
    #[must_use]
    pub fn of(now: Timestamp) -> Self {
        Self(now.as_second().div_euclid(DAY_SECONDS))
    }

    /// How long the day of that moment still lasts.
    #[must_use]
    pub fn rest(now: Timestamp) -> Duration {
        Duration::from_secs((DAY_SECONDS - now.as_second().rem_euclid(DAY_SECONDS)).unsigned_abs())
    }
}

/// What a generation may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens of its prompt, as the relay counts them.
    pub prompt: u64,
    /// Tokens that its answer may have.
    pub answer: u64,
}

impl Estimate {
    /// Both together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.prompt.saturating_add(self.answer)
    }
}

/// What became of what was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Used {
    /// So many tokens were used.
    Counted {
        /// Of prompt and answer together.
        tokens: u64,
        /// Whether the relay counted them, because the provider did not.
        estimated: bool,
    },
    /// So many tokens of answer are known; the prompt had what was estimated.
    Answer(u64),
    /// Nobody knows better than what was set aside.
    All,
}

/// What was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Tokens.
    pub tokens: u64,
    /// How many of them are the relay's own estimate.
    pub estimated: u64,
}

impl Used {
    /// The provider did nothing.
    pub const NOTHING: Self = Self::Counted { tokens: 0, estimated: false };

    /// What that comes to, where `estimate` was set aside.
    #[must_use]
    pub fn of(self, estimate: Estimate) -> Spent {
        let (tokens, is_estimate) = match self {
            Self::Counted { tokens, estimated } => (tokens, estimated),
            Self::Answer(tokens) => (estimate.prompt.saturating_add(tokens), true),
            Self::All => (estimate.total(), true),
        };
        let tokens = tokens.min(TOKENS_MAX);
        Spent { tokens, estimated: if is_estimate { tokens } else { 0 } }
    }
}

/// Where tokens are set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// In this relay's own book.
    Here,
    /// In the book that relays share, on that day: whoever ends the generation can settle it.
    Shared(Day),
}

/// Tokens that are to be set aside.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What they are for.
    pub attempt: Attempt,
    /// The day on which it begins, and to which all counts.
    pub day: Day,
    /// What it may cost.
    pub estimate: Estimate,
    /// What the user may spend that day.
    pub limit: u64,
    /// What is known to be spent or set aside elsewhere.
    pub elsewhere: u64,
    /// Whether other relays are to be told what it came to.
    pub is_shared: bool,
}

/// What other relays are to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    /// What it was set aside for.
    pub attempt: Attempt,
    /// The day to which it counts.
    pub day: Day,
    /// What it came to.
    pub used: Used,
    /// Whether they know nothing of it: it was set aside here.
    pub is_new: bool,
}

/// One relay's own book. A fault of what it is kept in is `Internal`, and no reason to go on.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Sets tokens aside, if what the user has spent and set aside leaves room for them; else says how much that is. When
    /// this has returned, they are settled at the next start if the process dies.
    async fn reserve(&self, wish: Wish) -> Result<Result<(), u64>, Error>;

    /// Settles what was set aside for that. Without effect if nothing is.
    async fn settle(&self, attempt: &Attempt, used: Used) -> Result<(), Error>;

    /// Keeps what other relays are to be told, as far as there is room for it.
    async fn owe(&self, debt: Debt) -> Result<(), Error>;

    /// What other relays are to be told, the oldest first, at most `limit`.
    async fn debts(&self, limit: u32) -> Result<Vec<(i64, Debt)>, Error>;

    /// They have been told.
    async fn paid(&self, ids: Vec<i64>) -> Result<(), Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_at_midnight_in_utc() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (last, first) = (at("2026-11-28T23:59:59Z"), at("2026-11-29T00:00:00Z"));
        assert_eq!(Day::of(last).0 + 1, Day::of(first).0);
        assert_eq!(Day::rest(last), Duration::from_secs(1));
        assert_eq!(Day::rest(first), Duration::from_secs(86_400));
    }

    #[test]
    fn what_nobody_counted_is_an_estimate() {
        let estimate = Estimate { prompt: 10, answer: 100 };
        let of = |used: Used| {
            let Spent { tokens, estimated } = used.of(estimate);
            (tokens, estimated)
        };
        assert_eq!(of(Used::NOTHING), (0, 0));
        assert_eq!(of(Used::Counted { tokens: 7, estimated: false }), (7, 0));
        assert_eq!(of(Used::Counted { tokens: 7, estimated: true }), (7, 7));
        assert_eq!(of(Used::Answer(5)), (15, 15));
        assert_eq!(of(Used::All), (110, 110));
        let absurd = Used::Counted { tokens: u64::MAX, estimated: false };
        assert_eq!(of(absurd), (TOKENS_MAX, 0));
    }
}
