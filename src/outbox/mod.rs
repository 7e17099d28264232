//! The outbox: finished generations whose save failed, kept until the database has them.
//!
//! A generation's end is told when its text is in the database or here, and what is here survives the process. The port
//! is [`Outbox`]; `saving.rs` puts things in, and `outbox_worker.rs` takes them out.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use crate::error::Error;
use crate::id::{StreamId, UserId};
use crate::journal::Log;
use crate::store::Finish;

/// Past so many entries no new generation begins: what is finished is worth more than what is not. At some 4 KiB each
/// they are 80 MiB of disk.
pub const LEN_MAX: u64 = 20_000;

/// A generation as the outbox names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// Whose it is.
    pub owner: UserId,
    /// Its name among its owner's.
    pub stream_id: StreamId,
}

impl Name {
    /// Of the generation that is written to `log`.
    #[must_use]
    pub fn of(log: &Log) -> Self {
        Self { owner: log.owner(), stream_id: log.stream_id().clone() }
    }
}

/// A finished generation that is to be saved.
#[derive(Debug)]
pub struct Entry {
    /// Its place in the outbox.
    pub id: i64,
    /// Its generation.
    pub name: Name,
    /// What is to be saved.
    pub finish: Finish,
    /// How often that was tried from here.
    pub attempts: u32,
    /// Since when it is here.
    pub created_at: Timestamp,
}

/// What an operator is shown of an entry: nothing of its text.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its place in the outbox.
    pub id: i64,
    /// Whose it is.
    pub user_id: UserId,
    /// Its stream.
    pub stream_id: StreamId,
    /// How long its text is, in bytes.
    pub len: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// What came of the last attempt that was answered, or why it came here.
    pub reason: Option<String>,
    /// When it was set aside; absent while it is tried.
    pub set_aside_at: Option<Timestamp>,
    /// Since when it is here.
    pub created_at: Timestamp,
}

/// What came of letting an entry be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It will be.
    Again,
    /// It was not set aside: it is tried anyway.
    Waits,
    /// There is no entry of that id, or not any more.
    Unknown,
}

/// Whether there is room for what begins now, should the database be away when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Enough,
    /// So much waits that no more may begin.
    Full,
    /// The disk has so little room left that no more may begin.
    DiskFull,
}

/// The outbox, as the relay sees it. A fault of what it is kept in is `Internal`, and no reason to go on.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Keeps `finish`, which could not be saved for that reason. When this has returned, it survives the process. What is
    /// here already under the same write token stays as it is.
    async fn put(&self, name: &Name, finish: &Finish, reason: &str) -> Result<(), Error>;

    /// At most `limit` entries that are to be tried at `now`, the longest waiting first.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<Entry>, Error>;

    /// The database has them, or will never.
    async fn remove(&self, ids: Vec<i64>) -> Result<(), Error>;

    /// More is known of it than when it was put here.
    async fn amend(&self, id: i64, finish: &Finish) -> Result<(), Error>;

    /// It is to be looked at again then: it could not be tried.
    async fn postpone(&self, id: i64, until: Timestamp, reason: &str) -> Result<(), Error>;

    /// It was tried and refused, and is to be tried again then.
    async fn note_refusal(&self, id: i64, until: Timestamp, reason: &str) -> Result<(), Error>;

    /// The database refuses it for good: it is kept for the operator and blocks nobody.
    async fn set_aside(&self, id: i64, reason: &str) -> Result<(), Error>;

    /// What is to be saved of this generation, whether it is tried or was set aside.
    async fn find(&self, name: &Name) -> Result<Option<Finish>, Error>;

    /// Whether this generation waits here to be saved.
    async fn has(&self, name: &Name) -> Result<bool, Error>;

    /// Whether there is room for more. Asked at every turn, so it waits for nothing.
    fn room(&self) -> Room;

    /// All entries, oldest first, at most `limit`.
    async fn list(&self, limit: u32) -> Result<Vec<Listed>, Error>;

    /// Lets what was set aside be tried again. Returns how many those are.
    async fn retry_all(&self) -> Result<u64, Error>;

    /// Lets the entry of that id be tried again, if it was set aside.
    async fn retry(&self, id: i64) -> Result<Retry, Error>;
}
