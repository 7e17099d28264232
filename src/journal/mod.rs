//! The journal: every event of a generation, in order, for as many readers as want it.
//!
//! A generation is written by one [`Writer`] and read by any number of [`Follower`]s, who share one [`Log`] in memory
//! and never wait for each other: a follower is a cursor, not a queue. Live streaming, coming back, a second tab and
//! the fiftieth copy of a request are all the same thing, a follower from some position.
//!
//! The port is [`Journal`]: which logs there are, and who may write them.

pub mod file;
mod follower;
mod log;
pub mod memory;
mod mirror;
mod recorder;
pub mod shared;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::Serialize;

use crate::error::Error;
use crate::id::{ConversationId, MessageId, StreamId, UserId, VariantId};
use crate::outbox::Name;
use crate::store::Conclusion;

pub use follower::{Follower, View};
pub(crate) use log::moved;
pub use log::{Ended, Log, TEXT_LEN_MAX};
pub use recorder::{Piece, RecordId, Recorder, Records};
pub use writer::{Control, Watch, Writer};

/// What a generation is known by before it has begun.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Whose it is.
    pub owner: UserId,
    /// Its name, unique among its owner's.
    pub stream_id: StreamId,
    /// Tells the turn that it answers from every other one.
    pub fingerprint: String,
    /// When it was asked for.
    pub started_at: Timestamp,
    /// What its end is saved with; absent if nothing is saved, or somebody else writes it.
    pub write_token: Option<SecretString>,
}

#[cfg(any(test, fuzzing))]
impl Opening {
    /// Of nobody in particular.
    pub(crate) fn for_tests() -> Self {
        Self {
            owner: UserId(uuid::Uuid::nil()),
            stream_id: StreamId::random(),
            fingerprint: String::new(),
            started_at: crate::clock::now(),
            write_token: None,
        }
    }
}

/// Who gets to write a generation.
#[derive(Debug)]
pub enum Claim {
    /// The caller does: nobody had claimed this name.
    New(Writer),
    /// Somebody does already, for the same turn.
    Existing(Arc<Log>),
}

/// A generation that has not ended, as `GET /v1/streams` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// Its name.
    pub stream_id: StreamId,
    /// The story it belongs to.
    pub conversation_id: Option<ConversationId>,
    /// The message it writes.
    pub message_id: Option<MessageId>,
    /// The variant it writes.
    pub variant_id: Option<VariantId>,
    /// When it was asked for.
    pub started_at: Timestamp,
}

/// The generations of somebody that have begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roll {
    /// Those that are known, oldest first.
    pub running: Vec<Running>,
    /// Whether those are all: false while other relays may write what is not known here.
    pub is_complete: bool,
}

/// Whether a generation is still its writer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It is, as far as is known.
    Held,
    /// Another relay has taken it over: nothing of it is to be saved here.
    Lost,
}

/// A generation whose relay is gone, to be ended by whoever has this.
#[derive(Debug)]
pub struct Orphan {
    /// Writes its end. Everything that is left of it is in the log.
    pub writer: Writer,
    /// How its own relay was about to end it, if it came so far. Its text is whole then.
    pub conclusion: Option<Conclusion>,
}

/// What the journal knows of a generation that the last process left unfinished.
#[derive(Debug)]
pub enum Estate {
    /// Nothing: it is for the caller to end.
    Unknown,
    /// It is for the caller to end, and others follow it.
    Taken(Box<Orphan>),
    /// Another relay has it, or soon will.
    Elsewhere,
}

/// How far the journal reaches, where it is kept in more than memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Every relay knows of every generation.
    Everywhere,
    /// Relays know of their own generations only, for the time being.
    Degraded,
}

/// The generations that are running or ended lately.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Gives the right to write the generation named in `opening` to exactly one of all who ask.
    ///
    /// A generation that was refused before it began counts as never claimed.
    ///
    /// # Errors
    /// `StreamIdReused` if the name belongs to another turn.
    async fn claim(&self, opening: Opening) -> Result<Claim, Error>;

    /// The generation of that name, if it is the owner's and has not ended longer ago than the journal remembers.
    async fn find(&self, owner: UserId, stream_id: &StreamId) -> Option<Arc<Log>>;

    /// The owner's generations that have begun and not ended.
    async fn running(&self, owner: UserId) -> Roll;

    /// Asks whoever writes the generation to end it as stopped.
    ///
    /// # Errors
    /// `StoreUnavailable` if they cannot be reached.
    async fn stop(&self, log: &Arc<Log>) -> Result<(), Error> {
        log.request_stop();
        Ok(())
    }

    /// Notes how the generation that is written to `log` is about to end, so that another relay would end it in the same
    /// way, and says whether it is still the caller's to end.
    async fn seal(&self, _log: &Arc<Log>, _conclusion: &Conclusion) -> Hold {
        Hold::Held
    }

    /// The next generation that another relay has left unfinished. Waits for as long as there is none.
    async fn orphan(&self) -> Orphan {
        std::future::pending().await
    }

    /// Who is to end the generation that the last process left unfinished.
    async fn inherit(&self, _name: &Name, _write_token: &SecretString) -> Estate {
        Estate::Unknown
    }

    /// Whether what this journal does not know is not being written anywhere.
    fn knows_all(&self) -> bool {
        true
    }

    /// How far it reaches; `None` where there is no more than memory.
    fn reach(&self) -> Option<Reach> {
        None
    }

    /// Returns when other relays can be reached, if there are any.
    async fn in_touch(&self) {}

    /// Keeps the journal in touch with others, for as long as this is polled.
    async fn run(&self) {
        std::future::pending::<()>().await;
    }

    /// Tells others what they do not know yet, and that this relay ends.
    async fn close(&self) {}
}
