//! Generations whose relay is gone, ended as it would have ended them: with all that is left of their text, and with their
//! followers told.
//!
//! They come from two sides. What *another* relay left is in the journal that relays share. What *this* one left before it
//! was started again is in its outbox, and, if the journal is shared, there as well; whichever knows more of it is right.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Semaphore;
use tracing::info;

use crate::ending::{self, last_event};
use crate::error::{Code, Error};
use crate::event::Kind;
use crate::journal::{Estate, Orphan, Writer};
use crate::limits::tokens::Attempt;
use crate::outbox::{Entry, Name};
use crate::relay::Relay;
use crate::saving::{self, Saved};
use crate::spending;
use crate::store::{Conclusion, Finish, Outcome};

/// Generations that are ended side by side.
const SIDE_BY_SIDE: usize = 16;

/// What is told to wait who waited for a generation that never began: its name is free by then.
const RETRY_AFTER_UNBEGUN: Duration = Duration::from_secs(1);

/// Ends what other relays leave, for as long as it is polled and new work may begin.
pub(crate) async fn end_orphans(relay: Arc<Relay>) {
    let room = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let draining = relay.tasks.draining();
    let take = async || {
        // The semaphore is never closed.
        let permit = Arc::clone(&room).acquire_owned().await.ok()?;
        Some((permit, relay.journal.orphan().await))
    };
    while let Some(Some((permit, orphan))) = draining.run_until_cancelled(take()).await {
        let relay = Arc::clone(&relay);
        // What has been taken is ended, also if the process is to end meanwhile.
        relay.tasks.clone().spawn(async move {
            end_orphan(&relay, orphan).await;
            drop(permit);
        });
    }
}

async fn end_orphan(relay: &Relay, Orphan { writer, conclusion }: Orphan) {
    let (name, attempt) = (Name::of(writer.log()), spending::attempt(&writer));
    let write_token = writer.write_token();
    info!(stream_id = %name.stream_id, "ending what a relay that is gone was writing");
    if writer.start().is_none() {
        if let Some(write_token) = write_token
            && end_unbegun(relay, &name, write_token).await.is_err()
        {
            return;
        }
        // The provider may have been asked already: its prompt counts.
        spending::settle_for(relay, &attempt, None, [""; 2]).await;
        return writer.refuse(never_begun());
    }
    let conclusion = conclusion.unwrap_or_else(interrupted);
    let end = ending::save(relay, &writer, write_token, &conclusion).await;
    let (reasoning, content) = writer.texts();
    spending::settle_for(relay, &attempt, Some(&conclusion), [&reasoning, &content]).await;
    match end {
        Some(end) => writer.end(end),
        None => writer.lose(),
    }
}

/// Ends what may have been begun in the database, which its relay did not live to hear.
///
/// # Errors
/// Of the outbox's disk.
async fn end_unbegun(relay: &Relay, name: &Name, write_token: SecretString) -> Result<(), Error> {
    let finish = Finish::interrupted(write_token);
    match relay.outage.observe(relay.store.finish(&finish)).await {
        Ok(_) => Ok(()),
        // It may still be about to be begun, or the database is away.
        Err(error) => saving::put(relay, name, &finish, &error).await,
    }
}

/// Whoever asks again is told how it ended, if it had begun for the database, and begins it otherwise.
fn never_begun() -> Error {
    Error::new(
        Code::StoreUnavailable,
        "The relay that was asked for this stream was ended before it began. Ask for it again.",
    )
    .with_retry_after(RETRY_AFTER_UNBEGUN)
}

fn interrupted() -> Conclusion {
    Conclusion {
        outcome: Outcome::Interrupted,
        finish_reason: None,
        usage: None,
        // It depends on what is left of the text.
        failure: None,
        is_announced: false,
    }
}

/// Who is to save an entry of the outbox.
pub(crate) enum Heir {
    /// Its own relay, as it stands.
    Relay,
    /// Its own relay, which then tells those who follow it elsewhere.
    Told(Box<Told>),
    /// Another relay does, or soon will.
    Another,
}

/// A generation whose followers wait to be told how it ended.
pub(crate) struct Told {
    writer: Writer,
    /// Absent where they cannot be told here, but are to ask again.
    conclusion: Option<Conclusion>,
}

impl Told {
    /// Tells them what became of it. `None`: that is for the database to say.
    pub(crate) fn end(self, saved: Option<Saved>) {
        let Self { writer, conclusion } = self;
        match (writer.start(), conclusion, saved) {
            (Some(start), Some(conclusion), Some(saved)) => {
                let has_text = writer.has_text();
                writer.end(last_event(start, &conclusion, Some(saved), has_text));
            }
            _ => writer.lose(),
        }
    }
}

/// Finds out whose an entry is that was interrupted, and adds to it what is known of it elsewhere.
///
/// # Errors
/// Of the outbox's disk.
pub(crate) async fn heir(relay: &Relay, entry: &mut Entry) -> Result<Heir, Error> {
    if entry.finish.outcome != Outcome::Interrupted {
        return Ok(Heir::Relay);
    }
    let estate = relay.journal.inherit(&entry.name, &entry.finish.write_token).await;
    let Orphan { writer, conclusion } = match estate {
        Estate::Unknown => return Ok(Heir::Relay),
        Estate::Elsewhere => return Ok(Heir::Another),
        Estate::Taken(orphan) => *orphan,
    };
    let is_known_whole = conclusion.is_some();
    let conclusion = conclusion.unwrap_or_else(interrupted);
    let (reasoning, content) = writer.texts();
    // Nobody can follow what has not begun there, nor go on from what is no beginning of what is here. Who tried is cut
    // off when it is saved, and reads it in the database.
    if writer.start().is_none()
        || (!is_known_whole && !catch_up(&writer, &reasoning, &content, &entry.finish))
    {
        settle_for(relay, entry, None).await;
        return Ok(Heir::Told(Box::new(Told { writer, conclusion: None })));
    }
    let (write_token, model) = (entry.finish.write_token.clone(), entry.finish.model.clone());
    entry.finish = Finish::concluded(write_token, writer.texts(), &conclusion, model);
    // At once: when it is saved it is no longer known to be another's.
    settle_for(relay, entry, Some(&conclusion)).await;
    relay.outbox.amend(entry.id, &entry.finish).await?;
    Ok(Heir::Told(Box::new(Told { writer, conclusion: Some(conclusion) })))
}

/// Settles for the process that left the entry.
pub(crate) async fn settle_for(relay: &Relay, entry: &Entry, conclusion: Option<&Conclusion>) {
    let Entry { name, finish, .. } = entry;
    let attempt = Attempt::saved_with(name.clone(), &finish.write_token);
    let texts = [&*finish.reasoning, &*finish.content];
    spending::settle_for(relay, &attempt, conclusion, texts).await;
}

/// Appends what `finish` has beyond those texts, which are what the writer has. Returns whether the one then has all of the
/// other.
fn catch_up(writer: &Writer, reasoning: &str, content: &str, finish: &Finish) -> bool {
    let beyond = |known: &str, whole: &str| {
        if known.starts_with(whole) {
            Some(String::new())
        } else {
            whole.strip_prefix(known).map(str::to_owned)
        }
    };
    let (Some(more_reasoning), Some(more_content)) =
        (beyond(reasoning, &finish.reasoning), beyond(content, &finish.content))
    else {
        return false;
    };
    // Where the answer has begun, thoughts between its parts would have no known place.
    if !more_reasoning.is_empty() && !content.is_empty() {
        return false;
    }
    let pieces = [(Kind::Reasoning, &*more_reasoning), (Kind::Token, &*more_content)];
    writer.append(pieces.into_iter()).is_ok()
}
