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
mod recorder;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use crate::error::Error;
use crate::id::{ConversationId, MessageId, StreamId, UserId, VariantId};

pub use follower::{Follower, View};
pub use log::{Ended, Log};
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
}

#[cfg(test)]
impl Opening {
    /// Of nobody in particular.
    pub(crate) fn for_tests() -> Self {
        Self {
            owner: UserId(uuid::Uuid::nil()),
            stream_id: StreamId::random(),
            fingerprint: String::new(),
            started_at: crate::clock::now(),
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
    ///
    /// # Errors
    /// None in memory; a journal elsewhere may be out of reach.
    async fn find(&self, owner: UserId, stream_id: &StreamId) -> Result<Option<Arc<Log>>, Error>;

    /// The owner's generations that have begun and not ended, oldest first.
    ///
    /// # Errors
    /// As for [`Journal::find`].
    async fn running(&self, owner: UserId) -> Result<Vec<Running>, Error>;
}
