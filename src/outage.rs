//! Whether the database answers, told to the operator when it stops and when it does again, and not with every call that
//! meets the same silence.
//!
//! The database is *away* from the first call that it did not answer, if it has answered none since that was made: one slow
//! call among many is no outage.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::error::{Code, Error};

/// What is known of the database's absence.
#[derive(Debug, Default)]
pub struct Outage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answered_at: Option<Instant>,
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    /// Answers that went to the outbox meanwhile.
    kept: u64,
}

impl Outage {
    /// Waits for the database's answer to `call`, and notes whether there is one.
    ///
    /// # Errors
    /// Those of `call`.
    pub async fn observe<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let asked_at = Instant::now();
        let answer = call.await;
        match &answer {
            Err(error) if error.code() == Code::StoreUnavailable => self.fail(asked_at, error),
            // A refusal is an answer.
            Ok(_) | Err(_) => self.end(),
        }
        answer
    }

    /// Notes that an answer went to the outbox. Returns whether that is because the database is away, of which the operator
    /// has been told.
    pub fn keep(&self) -> bool {
        let mut state = self.lock();
        if let Some(away) = &mut state.away {
            away.kept += 1;
        }
        state.away.is_some()
    }

    fn fail(&self, asked_at: Instant, error: &Error) {
        let is_news = {
            let mut state = self.lock();
            let is_old = state.answered_at.is_some_and(|answered_at| answered_at > asked_at);
            let is_news = state.away.is_none() && !is_old;
            if is_news {
                state.away = Some(Away { since: Instant::now(), kept: 0 });
            }
            is_news
        };
        if is_news {
            warn!(%error, "the database does not answer: what ends goes to the outbox until it does");
        } else {
            debug!(%error, "the database did not answer a call");
        }
    }

    fn end(&self) {
        let ended = {
            let mut state = self.lock();
            state.answered_at = Some(Instant::now());
            state.away.take()
        };
        if let Some(Away { since, kept }) = ended {
            let seconds = since.elapsed().as_secs();
            info!(
                seconds,
                "the database answers again; {kept} answers were kept in the outbox meanwhile"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is whole at once, so a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the database has not answered for as long as somebody was ready to wait.
#[must_use]
pub(crate) fn no_answer() -> Error {
    Error::store_unavailable("no answer in time")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_slow_call_among_many_is_no_outage() {
        let outage = Outage::default();
        let slow = outage.observe(async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err::<(), _>(no_answer())
        });
        let quick = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            outage.observe(async { Ok(()) }).await
        };
        let (slow, quick) = tokio::join!(slow, quick);
        assert!(slow.is_err() && quick.is_ok() && !outage.keep());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_until_something_is_answered_even_if_that_is_a_refusal() {
        let outage = Outage::default();
        assert!(!outage.keep());
        assert!(outage.observe(async { Err::<(), _>(no_answer()) }).await.is_err());
        assert!(outage.keep() && outage.keep());
        let refused = outage.observe(async { Err::<(), _>(Error::stream_id_reused()) }).await;
        assert!(refused.is_err() && !outage.keep());
    }
}
