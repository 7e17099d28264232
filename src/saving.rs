//! Saving what a generation wrote: in the database if it answers, in the outbox if it does not.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use crate::auth::Principal;
use crate::error::{Code, Error};
use crate::id::StreamId;
use crate::journal::Ended;
use crate::outage;
use crate::outbox::{Name, Room};
use crate::relay::Relay;
use crate::replay;
use crate::store::{Finish, Finished, Outcome, SavedStream};
use crate::story::Status;

/// How long a save is tried before its reader is told that it waits in the outbox: long enough for a database that is
/// busy or restarted, short enough for a reader who waits for the receipt.
const SAVE_TIME: Duration = Duration::from_secs(5);

/// The wait after the first failed try; each further one is twice as long.
const BACKOFF: Duration = Duration::from_millis(100);

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
    let error = loop {
        // A database that does not answer at all is not waited for: `finish` may be repeated, whatever came of this one.
        let tried = async {
            timeout_at(deadline, relay.store.finish(finish))
                .await
                .unwrap_or_else(|_| Err(outage::no_answer()))
        };
        let error = match relay.outage.observe(tried).await {
            Ok(finished) => return Ok(Saved::Stored(finished)),
            Err(error) => error,
        };
        if error.code() == Code::StreamNotFound {
            info!(stream_id = %name.stream_id, "what this stream wrote has been deleted");
            return Err(not_saved());
        }
        if error.code() != Code::StoreUnavailable || Instant::now() + backoff >= deadline {
            break error;
        }
        debug!(%error, stream_id = %name.stream_id, "save failed, will be tried again");
        sleep(backoff).await;
        backoff *= 2;
    };
    put(relay, name, finish, &error).await?;
    if relay.outage.keep() {
        debug!(%error, stream_id = %name.stream_id, "save failed: the text is in the outbox");
    } else {
        warn!(%error, stream_id = %name.stream_id, "save failed: the text is in the outbox");
    }
    Ok(Saved::Waiting)
}

/// Keeps `finish`, whose save failed with `error`, in the outbox, from where it is saved as soon as the database takes it.
///
/// # Errors
/// Of the outbox's disk, which ends the process.
pub(crate) async fn put(
    relay: &Relay,
    name: &Name,
    finish: &Finish,
    error: &Error,
) -> Result<(), Error> {
    let reason = match (error.code(), error.detail()) {
        (Code::StoreUnavailable, Some(detail)) => format!("the database does not answer: {detail}"),
        _ => error.to_operator(),
    };
    match relay.outbox.put(name, finish, &reason).await {
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

/// A stream as it is saved, or as it will be.
#[derive(Debug, Serialize)]
pub(crate) struct Known {
    #[serde(flatten)]
    stream: SavedStream,
    /// True: so the database has it. False: it is in the outbox, and will be
    /// there unless the database refuses it for good. Absent: it has not ended, or was
    /// interrupted and nobody can say whether a text of it is on its way.
    #[serde(rename = "saved", skip_serializing_if = "Option::is_none")]
    is_saved: Option<bool>,
}

/// What is known of a stream. What waits in this relay's outbox counts for more than what the database does not have yet.
///
/// # Errors
/// `StreamNotFound`, `StoreUnavailable`; `Internal`, if the outbox's disk fails.
pub(crate) async fn find(
    relay: &Relay,
    caller: &Principal,
    stream_id: &StreamId,
) -> Result<Known, Error> {
    let stream = relay.store.find_stream(caller, stream_id).await?;
    know(relay, caller, stream.ok_or_else(replay::not_found)?).await
}

async fn know(relay: &Relay, caller: &Principal, mut stream: SavedStream) -> Result<Known, Error> {
    // What is past its time reads as interrupted, and may wait all the same.
    let may_wait = match stream.status {
        Status::Streaming => true,
        Status::Interrupted => !stream.has_text(),
        Status::Pending | Status::Complete | Status::Stopped | Status::Failed => false,
    };
    if may_wait {
        let name = Name { owner: caller.user(), stream_id: stream.stream_id.clone() };
        let waiting = relay.outbox.find(&name).await?;
        // Of what was interrupted another relay may know more, and what has no text may never have begun: then it is not
        // of the stream that the database has, which was asked for again by that name.
        let is_certain = |finish: &Finish| {
            finish.outcome != Outcome::Interrupted || finish.has_text() && relay.journal.knows_all()
        };
        if let Some(finish) = waiting.filter(is_certain)
            && stream.finish(finish)
        {
            let is_saved = is_certain_to_be(&stream).then_some(false);
            return Ok(Known { stream, is_saved });
        }
    }
    let is_saved = is_certain_to_be(&stream).then_some(true);
    Ok(Known { stream, is_saved })
}

/// Whether it has come to what it says. A database that reads a stream as interrupted without text may only have waited for
/// too long: the text may be in the outbox of a relay that is gone, or nowhere.
fn is_certain_to_be(stream: &SavedStream) -> bool {
    match stream.status {
        Status::Pending | Status::Streaming => false,
        Status::Interrupted => stream.has_text(),
        Status::Complete | Status::Stopped | Status::Failed => true,
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
    let Known { stream, is_saved } = know(relay, caller, saved).await?;
    if stream.status != Status::Streaming {
        return replay::ended(stream, is_saved != Some(false));
    }
    let name = Name { owner: caller.user(), stream_id: stream.stream_id };
    if relay.outbox.has(&name).await? || !relay.journal.knows_all() {
        return Err(Error::new(
            Code::StoreUnavailable,
            "This stream is being saved, or written elsewhere. Ask for it again in a moment.",
        )
        .with_retry_after(RETRY_AFTER_SAVING));
    }
    // It was saved since it was read, or there is nobody who could.
    let saved = relay.store.find_stream(caller, &name.stream_id).await?;
    replay::ended(saved.ok_or_else(replay::not_found)?, true)
}

/// Whether another generation may begin: what begins without room for its end may be lost, or cost what is there.
///
/// # Errors
/// `Overloaded`.
pub(crate) fn has_room(relay: &Relay) -> Result<(), Error> {
    let message = match relay.outbox.room() {
        Room::Enough => return Ok(()),
        Room::Full => {
            "The database has been away for too long, and the relay begins nothing more before it is back. Try again later."
        }
        Room::DiskFull => {
            "The relay's disk is full, and it begins nothing more before there is room. Try again later."
        }
    };
    Err(Error::new(Code::Overloaded, message).with_retry_after(RETRY_AFTER_FULL))
}

fn not_saved() -> Error {
    Error::new(
        Code::NotSaved,
        "The answer could not be saved. Copy what you want to keep, and ask again.",
    )
}
