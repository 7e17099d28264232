//! Brings what is in the outbox into the database, once it takes it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::clock;
use crate::error::{Code, Error};
use crate::id::random_byte;
use crate::outbox::Entry;
use crate::recovery::{self, Heir};
use crate::relay::Relay;
use crate::saving::Saved;
use crate::store::{Finished, Outcome};

/// The wait after a database that did not answer; each further one is twice as long.
const BACKOFF: Duration = Duration::from_millis(100);

/// Entries of the outbox that are taken out at once, and how many of them are saved side by side.
const BATCH_LEN: u32 = 256;
const SIDE_BY_SIDE: usize = 16;

/// How many are saved side by side while nobody else asks anything of the database: as many as SQLite commits at once.
const SIDE_BY_SIDE_ALONE: usize = 64;

/// How long a database that does not answer is left alone at most: what waits for it is in within some seconds of its
/// return.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a start waits to reach the other relays before it ends by itself what the last process was writing.
const TOUCH_TIME: Duration = Duration::from_secs(2);

/// How long the outbox is left alone when nothing in it is due. An operator may let something be tried again meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The wait before an entry that was refused is tried again; each further one is twice as long.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// How long a call that was sent may be carried out after whoever sent it has died: statements are given up after 8 s
/// (`store/functions/postgres.rs`), and so are waits for a lock.
const LATE_BEGIN_TIME: SignedDuration = SignedDuration::from_secs(20);

/// After so many refusals an entry is set aside: some four minutes, in which a migration may be applied.
const ATTEMPTS_MAX: u32 = 9;

/// Works for as long as it is polled.
pub(crate) async fn run(relay: Arc<Relay>) {
    // Of what the last process was writing, others may know more, and wait to be told how it ended.
    let _elapsed = timeout(TOUCH_TIME, relay.journal.in_touch()).await;
    let mut pause = BACKOFF;
    loop {
        match try_due(&relay, SIDE_BY_SIDE).await {
            Ok(Round::Done) => pause = BACKOFF,
            Ok(Round::Nothing) => {
                // Whoever puts something in says so; an operator's tool cannot.
                let _elapsed = timeout(LOOK_INTERVAL, relay.outbox_filled.notified()).await;
            }
            Ok(Round::Unavailable) => {
                sleep(pause / 2 + pause * u32::from(random_byte()) / 512).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => return relay.tasks.fail(error),
        }
    }
}

/// Brings what is due into the database, as far as that answers, while nobody else asks anything of it.
///
/// # Errors
/// Of the outbox's disk.
pub(crate) async fn run_due(relay: &Relay) -> Result<(), Error> {
    while try_due(relay, SIDE_BY_SIDE_ALONE).await? == Round::Done {}
    Ok(())
}

/// What came of trying what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Done,
    Nothing,
    Unavailable,
}

/// What came of trying an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    /// It need not be here any more.
    Over(i64),
    /// It is tried again later, or was set aside.
    Kept,
    Unavailable,
}

async fn try_due(relay: &Relay, side_by_side: usize) -> Result<Round, Error> {
    let due = relay.outbox.due(clock::now(), BATCH_LEN).await?;
    if due.is_empty() {
        return Ok(Round::Nothing);
    }
    let tried = stream::iter(due).map(|entry| try_entry(relay, entry));
    let tried: Vec<_> = tried.buffer_unordered(side_by_side).try_collect().await?;
    let over = tried.iter().filter_map(|tried| match tried {
        Tried::Over(id) => Some(*id),
        Tried::Kept | Tried::Unavailable => None,
    });
    // All at once, because each time is a flush. If the process dies before, they are saved again, which changes nothing.
    relay.outbox.remove(over.collect()).await?;
    Ok(if tried.contains(&Tried::Unavailable) { Round::Unavailable } else { Round::Done })
}

/// What is to become of an entry.
enum Verdict {
    /// It is where it belongs, or belongs nowhere any more.
    Over,
    /// The database did not answer: the entry is due as before.
    Unavailable,
    /// It is not the time yet, for that reason.
    NotYet(&'static str),
    /// The database refuses it. It may be set right.
    Refused(String),
    /// There is no use in trying again, for that reason.
    Hopeless(String),
}

async fn try_entry(relay: &Relay, mut entry: Entry) -> Result<Tried, Error> {
    let verdict = match recovery::heir(relay, &mut entry).await? {
        Heir::Another => Verdict::NotYet("another relay ends it"),
        Heir::Relay => {
            let verdict = judge(&entry, &finish(relay, &entry).await);
            let is_tried = !matches!(verdict, Verdict::Unavailable | Verdict::NotYet(_));
            if is_tried && entry.finish.outcome == Outcome::Interrupted {
                // Whatever the database thinks of the answer, it was asked for.
                recovery::settle_for(relay, &entry, None).await;
            }
            verdict
        }
        Heir::Told(told) => {
            let finished = finish(relay, &entry).await;
            told.end(match &finished {
                Ok(finished) => finished.is_by(&entry.finish).then_some(Saved::Stored(*finished)),
                Err(error) if error.code() == Code::StoreUnavailable => Some(Saved::Waiting),
                Err(_) => None,
            });
            judge(&entry, &finished)
        }
    };
    let Entry { id, name, attempts, .. } = entry;
    let stream_id = &name.stream_id;
    let later = |wait| clock::now().saturating_add(wait).unwrap_or(Timestamp::MAX);
    match verdict {
        Verdict::Over => {
            info!(%stream_id, attempts, "done with an entry of the outbox");
            return Ok(Tried::Over(id));
        }
        Verdict::Unavailable => return Ok(Tried::Unavailable),
        Verdict::NotYet(reason) => relay.outbox.postpone(id, later(RETRY_WAIT), reason).await?,
        Verdict::Refused(reason) if attempts + 1 < ATTEMPTS_MAX => {
            warn!(%stream_id, reason, "the database refuses an answer");
            let wait = RETRY_WAIT * 2_u32.pow(attempts);
            relay.outbox.note_refusal(id, later(wait), &reason).await?;
        }
        Verdict::Refused(reason) | Verdict::Hopeless(reason) => {
            error!(%stream_id, reason, "an answer cannot be saved: it is set aside in the outbox");
            relay.outbox.set_aside(id, &reason).await?;
        }
    }
    Ok(Tried::Kept)
}

async fn finish(relay: &Relay, entry: &Entry) -> Result<Finished, Error> {
    relay.outage.observe(relay.store.finish(&entry.finish)).await
}

/// What the database's answer means for the entry.
fn judge(entry: &Entry, finished: &Result<Finished, Error>) -> Verdict {
    // Of these nobody was told that they would be saved as they are.
    let is_a_guess = matches!(entry.finish.outcome, Outcome::Interrupted | Outcome::Refused);
    match finished {
        Ok(finished) if is_a_guess || finished.is_by(&entry.finish) => Verdict::Over,
        Ok(_) => Verdict::Hopeless("another relay had ended it before".to_owned()),
        Err(error) if error.code() == Code::StoreUnavailable => Verdict::Unavailable,
        Err(error) if error.code() == Code::StreamNotFound && is_a_guess => {
            // It was never begun, or is gone already; unless the database is still about to carry out what it was asked by
            // a relay that did not live to hear of it.
            if clock::now().duration_since(entry.created_at) >= LATE_BEGIN_TIME {
                Verdict::Over
            } else {
                Verdict::NotYet("not begun yet")
            }
        }
        Err(error) if error.code() == Code::StreamNotFound => {
            Verdict::Hopeless(error.to_operator())
        }
        Err(error) => Verdict::Refused(error.to_operator()),
    }
}
