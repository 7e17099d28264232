//! The journal of one process, in its memory and nowhere else: gone with it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Claim, Journal, Log, Opening, Roll, Writer};
use crate::error::Error;
use crate::id::{StreamId, UserId};

/// How long an ended generation can still be followed from memory; after that the database answers.
const RETENTION: Duration = Duration::from_secs(10 * 60);

/// How much text of ended generations is kept at most, in bytes. Past it the oldest go early: the database has them.
const ENDED_TEXT_LEN_MAX: usize = 256 << 20;

/// How often that is looked after at most: a look goes through all logs, and ten thousand may be running.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// The journal of one process.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    logs: Mutex<Logs>,
}

#[derive(Debug, Default)]
struct Logs {
    by_owner: HashMap<UserId, HashMap<StreamId, Arc<Log>>>,
    /// In the order in which they were claimed.
    claimed: VecDeque<Arc<Log>>,
    forgot_at: Option<Instant>,
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn claim(&self, opening: Opening) -> Result<Claim, Error> {
        let mut logs = self.lock();
        logs.forget();
        let of_owner = logs.by_owner.entry(opening.owner).or_default();
        match of_owner.get(&opening.stream_id).filter(|log| !log.is_void()) {
            Some(log) if log.fingerprint() == opening.fingerprint => {
                Ok(Claim::Existing(Arc::clone(log)))
            }
            Some(_) => Err(Error::stream_id_reused()),
            None => {
                let log = Log::new(opening);
                of_owner.insert(log.stream_id().clone(), Arc::clone(&log));
                logs.claimed.push_back(Arc::clone(&log));
                Ok(Claim::New(Writer::new(log)))
            }
        }
    }

    async fn find(&self, owner: UserId, stream_id: &StreamId) -> Option<Arc<Log>> {
        let logs = self.lock();
        let log = logs.by_owner.get(&owner).and_then(|of_owner| of_owner.get(stream_id));
        log.filter(|log| !log.is_void()).cloned()
    }

    async fn running(&self, owner: UserId) -> Roll {
        let logs = self.lock();
        let of_owner = logs.by_owner.get(&owner).into_iter().flat_map(HashMap::values);
        let mut running: Vec<_> = of_owner.filter_map(|log| log.running()).collect();
        running.sort_by(|a, b| (a.started_at, &a.stream_id).cmp(&(b.started_at, &b.stream_id)));
        Roll { running, is_complete: true }
    }
}

impl MemoryJournal {
    fn lock(&self) -> MutexGuard<'_, Logs> {
        // Every change under this lock is one insertion or one removal, so a panic leaves nothing half done.
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Logs {
    /// Forgets what is over: refused at once, ended after [`RETENTION`], or earlier if there is too much of it.
    fn forget(&mut self) {
        let now = Instant::now();
        if self.forgot_at.is_some_and(|at| now.duration_since(at) < FORGET_INTERVAL) {
            return;
        }
        self.forgot_at = Some(now);
        let ended = self.claimed.iter().filter(|log| log.ended_at().is_some());
        let mut ended_text_len: usize = ended.map(|log| log.held_len()).sum();
        let mut forgotten = Vec::new();
        self.claimed.retain(|log| {
            let is_over = match log.ended_at() {
                Some(at) => {
                    now.duration_since(at) >= RETENTION || ended_text_len > ENDED_TEXT_LEN_MAX
                }
                None => log.is_void(),
            };
            if is_over {
                ended_text_len = ended_text_len.saturating_sub(log.held_len());
                forgotten.push(Arc::clone(log));
            }
            !is_over
        });
        for log in forgotten {
            let Some(of_owner) = self.by_owner.get_mut(&log.owner()) else { continue };
            // A refused name may have been claimed again since.
            if of_owner.get(log.stream_id()).is_some_and(|current| Arc::ptr_eq(current, &log)) {
                of_owner.remove(log.stream_id());
            }
            if of_owner.is_empty() {
                self.by_owner.remove(&log.owner());
            }
        }
    }
}
