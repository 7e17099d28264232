//! Leave to run one generation, and the tokens that are set aside for it, which nobody can forget to give back.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Limits;
use super::tokens::{Attempt, Estimate, Held, Used};
use crate::auth::Principal;
use crate::error::Error;

/// Leave to run one generation. Dropped, what was set aside counts as spent: nobody knows how much of it was.
pub struct Permit {
    limits: Arc<dyn Limits>,
    /// Absent once it has been given back.
    left: Option<Left>,
}

/// What a permit was for.
#[derive(Debug)]
pub struct Left {
    /// What is running.
    pub attempt: Attempt,
    /// Where its tokens are set aside, if they are.
    pub held: Option<Held>,
}

/// Leave to make that attempt, which is the caller's.
///
/// # Errors
/// As [`Limits::enter`].
pub async fn admit(
    limits: &Arc<dyn Limits>,
    caller: &Principal,
    attempt: Attempt,
) -> Result<Permit, Error> {
    limits.enter(caller, &attempt.name).await?;
    Ok(Permit { limits: Arc::clone(limits), left: Some(Left { attempt, held: None }) })
}

impl Permit {
    /// Sets aside what the generation may cost.
    ///
    /// # Errors
    /// As [`Limits::reserve`].
    pub async fn reserve(&mut self, caller: &Principal, estimate: Estimate) -> Result<(), Error> {
        if let Some(left) = &mut self.left {
            left.held = self.limits.reserve(caller, &left.attempt, estimate).await?;
        }
        Ok(())
    }

    /// Gives it back, with what the generation came to. When this has returned, the book is right, and the user may run
    /// another generation at once, at any relay.
    ///
    /// # Errors
    /// As [`Limits::settle`].
    pub async fn settle(mut self, used: Used) -> Result<(), Error> {
        let Some(Left { attempt, held }) = self.left.take() else { return Ok(()) };
        self.limits.leave(&attempt.name).await;
        match held {
            Some(held) => self.limits.settle(&attempt, held, used).await,
            None => Ok(()),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            self.limits.leave_soon(left);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// Permits that were dropped and are to be settled. As many as there were at most.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    waiting: Mutex<Vec<Left>>,
    filled: Notify,
}

impl Dropped {
    pub(super) fn push(&self, left: Left) {
        self.lock().push(left);
        self.filled.notify_one();
    }

    /// All there are, as soon as there are any.
    pub(super) async fn next(&self) -> Vec<Left> {
        self.filled.notified().await;
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Left>> {
        // Every change under this lock is one push, so a panic leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::error::Code;
    use crate::id::UserId;
    use crate::journal::file::JournalFile;
    use crate::limits::memory::MemoryLimits;
    use crate::limits::{Allowance, Allowances, Rate};
    use crate::outbox::Name;

    const RATE: Rate = Rate { requests: 60, window: Duration::from_secs(60) };

    /// One generation at once, and a hundred tokens. Beside the limits what they keep their book in.
    fn limits() -> (Arc<dyn Limits>, Arc<JournalFile>) {
        let users = Allowance { rate: RATE, streams: 1, tokens_per_day: Some(100) };
        let allowances = Allowances { users, anonymous: users, address: RATE };
        let ledger = Arc::new(JournalFile::open_in_memory().unwrap());
        (Arc::new(MemoryLimits::new(allowances, Arc::clone(&ledger) as _)), ledger)
    }

    async fn reserve(limits: &Arc<dyn Limits>, answer: u64) -> Result<Permit, Error> {
        let caller = Principal::for_tests(UserId(Uuid::nil()));
        let name = Name { owner: caller.user(), stream_id: crate::id::StreamId::random() };
        let attempt = Attempt::unsaved(name, crate::clock::now());
        let mut permit = admit(limits, &caller, attempt).await?;
        permit.reserve(&caller, Estimate { prompt: 10, answer }).await?;
        Ok(permit)
    }

    async fn refused(limits: &Arc<dyn Limits>, answer: u64) -> Code {
        reserve(limits, answer).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn what_a_dropped_permit_had_set_aside_counts_as_spent() {
        let (limits, ledger) = limits();
        drop(reserve(&limits, 60).await.unwrap());
        let settled = async {
            while ledger.spent().await.unwrap() != [(70, 70)] {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            error = limits.run() => panic!("{error}"),
            () = settled => {}
        }
        assert_eq!(refused(&limits, 21).await, Code::BudgetExceeded);
        reserve(&limits, 20).await.unwrap().settle(Used::All).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_settled_one_did_not_use_is_there_again() {
        let (limits, ledger) = limits();
        let permit = reserve(&limits, 90).await.unwrap();
        assert_eq!(refused(&limits, 0).await, Code::TooManyStreams);
        permit.settle(Used::Answer(40)).await.unwrap();
        assert_eq!(refused(&limits, 41).await, Code::BudgetExceeded);
        let permit = reserve(&limits, 40).await.unwrap();
        permit.settle(Used::NOTHING).await.unwrap();
        let used = Used::Counted { tokens: 1_000, estimated: false };
        reserve(&limits, 40).await.unwrap().settle(used).await.unwrap();
        assert_eq!(refused(&limits, 0).await, Code::BudgetExceeded);
        assert_eq!(
            ledger.spent().await.unwrap(),
            [(1_050, 50)],
            "what the relay counted itself is told apart"
        );
    }
}
