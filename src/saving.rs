//! Saving what a generation wrote: in the database if it answers, in the outbox if it does not, and from there into the
//! database when it does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{error, info, warn};

use crate::auth::Principal;
use crate::clock;
use crate::error::{Code, Error};
use crate::id::random_byte;
use crate::journal::{Ended, Writer};
use crate::outbox::{self, Entry, Name};
use crate::recovery::{self, Heir};
use crate::relay::Relay;
use crate::replay;
use crate::store::{Begin, Finish, Finished, Outcome, Place, SavedStream};
use crate::story::Status;

/// How long a save is tried before its reader is told that it waits in the outbox: long enough for a database that is
/// busy or restarted, short enough for a reader who waits for the receipt.
const SAVE_TIME: Duration = Duration::from_secs(5);

/// The wait after the first failed try; each further one is twice as long.
const BACKOFF: Duration = Duration::from_millis(100);

/// Entries of the outbox that are taken out at once, and how many of them are saved side by side.
const BATCH_LEN: u32 = 256;
const SIDE_BY_SIDE: usize = 16;

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

/// After so many refusals an entry is set aside: some five minutes, in which a migration may be applied.
const ATTEMPTS_MAX: u32 = 9;

/// What is told to wait who comes back for an answer that is still on its way to the database.
const RETRY_AFTER_SAVING: Duration = Duration::from_secs(1);

/// What a caller is told to wait while the outbox is full.
const RETRY_AFTER_FULL: Duration = Duration::from_secs(30);

/// Where a generation's text is safe.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Saved {
    /// In the database.
    Stored(Finished),
    /// In the outbox, on its way there.
    Waiting,
}

/// Saves `finish`. When this has returned, the text is safe, or the process is ending because it cannot be.
///
/// # Errors
/// `NotSaved`, if what was to be written has been deleted; `Internal`, if the outbox's disk fails, which ends the process.
pub(crate) async fn save(relay: &Relay, name: &Name, finish: &Finish) -> Result<Saved, Error> {
    let deadline = Instant::now() + SAVE_TIME;
    let mut backoff = BACKOFF;
    // A database that does not answer at all is not waited for: `finish` may be repeated, whatever came of this one.
    while let Ok(tried) = timeout_at(deadline, relay.store.finish(finish)).await {
        let error = match tried {
            Ok(finished) => return Ok(Saved::Stored(finished)),
            Err(error) => error,
        };
        if error.code() == Code::StreamNotFound {
            info!(stream_id = %name.stream_id, "what this stream wrote has been deleted");
            return Err(not_saved());
        }
        let is_worth_waiting =
            error.code() == Code::StoreUnavailable && Instant::now() + backoff < deadline;
        warn!(%error, stream_id = %name.stream_id, "save failed{}", if is_worth_waiting { ", will be tried again" } else { "" });
        if !is_worth_waiting {
            break;
        }
        sleep(backoff).await;
        backoff *= 2;
    }
    warn!(stream_id = %name.stream_id, "the text goes to the outbox");
    put(relay, name, finish).await?;
    Ok(Saved::Waiting)
}

/// Notes what is about to begin where it survives the process. Nothing of a [`Place::Nowhere`], which saves nothing.
///
/// # Errors
/// Of the journal's disk, which ends the process.
pub(crate) async fn record(relay: &Relay, writer: &Writer, begin: &Begin) -> Result<(), Error> {
    if begin.place == Place::Nowhere {
        return Ok(());
    }
    match relay.recorder.begin(&Name::of(writer.log()), &begin.write_token).await {
        Ok(record) => {
            writer.record(&relay.recorder, record);
            Ok(())
        }
        Err(error) => {
            relay.tasks.fail(error.clone());
            Err(error)
        }
    }
}

/// Takes everything back that was begun, because it cannot be run. What cannot be taken back now is as soon as it can.
pub(crate) async fn take_back(relay: &Relay, writer: &Writer, begin: &Begin) {
    // Told where it failed; the caller is told why the turn was refused, which is what can be acted on.
    let _taken_back =
        save(relay, &Name::of(writer.log()), &Finish::refused(begin.write_token.clone())).await;
}

/// After a `begin` that failed: where nobody knows whether the database carried it out, it is taken back as soon as the
/// database answers, so that the caller's word, that nothing was saved, becomes true.
///
/// # Errors
/// Of the outbox's disk, which ends the process.
pub(crate) async fn take_back_if_begun(
    relay: &Relay,
    writer: &Writer,
    begin: &Begin,
    error: &Error,
) -> Result<(), Error> {
    if error.code() != Code::StoreUnavailable || begin.place == Place::Nowhere {
        return Ok(());
    }
    put(relay, &Name::of(writer.log()), &Finish::refused(begin.write_token.clone())).await
}

/// Keeps `finish` in the outbox, from where it is saved as soon as the database takes it.
///
/// # Errors
/// Of the outbox's disk, which ends the process.
pub(crate) async fn put(relay: &Relay, name: &Name, finish: &Finish) -> Result<(), Error> {
    match relay.outbox.put(name, finish).await {
        Ok(()) => {
            relay.outbox_filled.notify_one();
            Ok(())
        }
        Err(error) => {
            relay.tasks.fail(error.clone());
            Err(error)
        }
    }
}

/// What a stream that nobody writes any more came to, as its followers get it.
///
/// # Errors
/// `StoreUnavailable` while it is on its way to the database; `StreamNotFound`.
pub(crate) async fn ended(
    relay: &Relay,
    caller: &Principal,
    saved: SavedStream,
) -> Result<Ended, Error> {
    if saved.status != Status::Streaming {
        return replay::ended(saved);
    }
    let name = Name { owner: caller.user(), stream_id: saved.stream_id.clone() };
    if relay.outbox.has(&name).await? || !relay.journal.knows_all() {
        return Err(Error::new(
            Code::StoreUnavailable,
            "This stream is being saved, or written elsewhere. Ask for it again in a moment.",
        )
        .with_retry_after(RETRY_AFTER_SAVING));
    }
    // It was saved since it was read, or there is nobody who could.
    let saved = relay.store.find_stream(caller, &name.stream_id).await?;
    replay::ended(saved.ok_or_else(replay::not_found)?)
}

/// Whether another generation may begin: past its bound the outbox takes no more, so that nothing in it is lost.
///
/// # Errors
/// `Overloaded`.
pub(crate) async fn has_room(relay: &Relay) -> Result<(), Error> {
    if relay.outbox.counts().await?.waiting < outbox::LEN_MAX {
        return Ok(());
    }
    Err(Error::new(
        Code::Overloaded,
        "The database has been away for too long, and the relay begins nothing more before it is back. Try again later.",
    )
    .with_retry_after(RETRY_AFTER_FULL))
}

fn not_saved() -> Error {
    Error::new(
        Code::NotSaved,
        "The answer could not be saved. Copy what you want to keep, and ask again.",
    )
}

/// Brings what is in the outbox into the database, for as long as it is polled.
pub(crate) async fn work_off(relay: Arc<Relay>) {
    // Of what the last process was writing, others may know more, and wait to be told how it ended.
    let _elapsed = timeout(TOUCH_TIME, relay.journal.in_touch()).await;
    let mut pause = BACKOFF;
    loop {
        match try_due(&relay).await {
            Ok(Tried::Done) => pause = BACKOFF,
            Ok(Tried::Nothing) => {
                // Whoever puts something in says so; an operator's tool cannot.
                let _elapsed = timeout(LOOK_INTERVAL, relay.outbox_filled.notified()).await;
            }
            Ok(Tried::Unavailable) => {
                sleep(pause / 2 + pause * u32::from(random_byte()) / 512).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => return relay.tasks.fail(error),
        }
    }
}

/// Brings what is due in the outbox into the database, as far as that answers.
///
/// # Errors
/// Of the outbox's disk.
pub(crate) async fn work_off_due(relay: &Relay) -> Result<(), Error> {
    while try_due(relay).await? == Tried::Done {}
    Ok(())
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Done,
    Nothing,
    Unavailable,
}

async fn try_due(relay: &Relay) -> Result<Tried, Error> {
    let due = relay.outbox.due(clock::now(), BATCH_LEN).await?;
    if due.is_empty() {
        return Ok(Tried::Nothing);
    }
    let tried = stream::iter(due).map(|entry| try_entry(relay, entry));
    let tried: Vec<_> = tried.buffer_unordered(SIDE_BY_SIDE).collect().await;
    Ok(if tried.contains(&Tried::Unavailable) { Tried::Unavailable } else { Tried::Done })
}

async fn try_entry(relay: &Relay, mut entry: Entry) -> Tried {
    let heir = match recovery::heir(relay, &mut entry).await {
        Ok(heir) => heir,
        Err(error) => {
            relay.tasks.fail(error);
            return Tried::Unavailable;
        }
    };
    let Entry { id, name, finish, attempts, created_at } = entry;
    let stream_id = &name.stream_id;
    if matches!(heir, Heir::Another) {
        let later = clock::now().saturating_add(RETRY_WAIT).unwrap_or(Timestamp::MAX);
        let kept = relay.outbox.postpone(id, later, "another relay ends it").await;
        return kept.map_or_else(
            |error| {
                relay.tasks.fail(error);
                Tried::Unavailable
            },
            |()| Tried::Done,
        );
    }
    let finished = relay.store.finish(&finish).await;
    if let Heir::Told(told) = heir {
        told.end(match &finished {
            Ok(finished) => finished.is_by(&finish).then_some(Saved::Stored(*finished)),
            Err(error) if error.code() == Code::StoreUnavailable => Some(Saved::Waiting),
            Err(_) => None,
        });
    }
    let (kept, tried) = match finished {
        Ok(_) => {
            info!(%stream_id, attempts, "saved from the outbox");
            (relay.outbox.remove(id).await, Tried::Done)
        }
        // Left as it is: it is due as before.
        Err(error) if error.code() == Code::StoreUnavailable => (Ok(()), Tried::Unavailable),
        // It was never begun, or is gone already; unless the database is still about to carry out what it was asked by a
        // relay that did not live to hear of it.
        Err(error)
            if error.code() == Code::StreamNotFound
                && matches!(finish.outcome, Outcome::Interrupted | Outcome::Refused) =>
        {
            let later = clock::now().saturating_add(RETRY_WAIT).unwrap_or(Timestamp::MAX);
            let is_certain = clock::now().duration_since(created_at) >= LATE_BEGIN_TIME;
            let kept = if is_certain {
                relay.outbox.remove(id).await
            } else {
                relay.outbox.postpone(id, later, "not begun yet").await
            };
            (kept, Tried::Done)
        }
        Err(error) if error.code() == Code::StreamNotFound || attempts + 1 >= ATTEMPTS_MAX => {
            error!(%stream_id, %error, "the database refuses an answer for good: it is set aside in the outbox");
            (relay.outbox.set_aside(id, &error.to_string()).await, Tried::Done)
        }
        Err(error) => {
            warn!(%stream_id, %error, "the database refuses an answer");
            let wait = RETRY_WAIT * 2_u32.pow(attempts);
            let until = clock::now().saturating_add(wait).unwrap_or(Timestamp::MAX);
            (relay.outbox.postpone(id, until, &error.to_string()).await, Tried::Done)
        }
    };
    if let Err(error) = kept {
        relay.tasks.fail(error);
    }
    tried
}
