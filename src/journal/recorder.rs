//! Making the journal durable behind the live path: text is copied to where it survives the process, in batches, and
//! nobody who writes or reads waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::log::Log;
use crate::commit::Commit;
use crate::error::Error;
use crate::event::Kind;
use crate::outbox::Name;
use crate::text::discreet;

/// How long text may wait to be copied: what can be lost of an unfinished answer when the process dies.
const BATCH_TIME: Duration = Duration::from_millis(50);

/// A generation with so many bytes that are not copied yet is not kept waiting.
pub(super) const BATCH_LEN: usize = 4 << 10;

/// The place of a generation's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordId(pub i64);

/// Text to be copied.
pub struct Piece {
    /// Where to.
    pub record: RecordId,
    /// The position of its first byte in the generation's text.
    pub begin: usize,
    /// Which of the two texts it belongs to.
    pub kind: Kind,
    /// The text.
    pub text: String,
}

discreet!(Piece { record, begin, kind });

/// Where text survives the process. A fault of it is `Internal`, and no reason to go on.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Begins the copy of a generation. When it is safe, the generation is ended by [`Records::recover`] if the process dies.
    async fn begin(
        &self,
        name: &Name,
        write_token: &SecretString,
    ) -> Result<(RecordId, Commit), Error>;

    /// Adds to copies, and removes those of generations whose end is safe elsewhere.
    async fn append(&self, pieces: Vec<Piece>, ended: Vec<RecordId>) -> Result<(), Error>;

    /// For the start of a process: moves what the last one was writing to the outbox, as interrupted, and returns how much
    /// that was.
    async fn recover(&self) -> Result<u64, Error>;
}

/// What copies, and what is to be copied.
pub struct Recorder {
    records: Arc<dyn Records>,
    queue: Mutex<Queue>,
    /// There is something to copy.
    filled: Notify,
    /// There is much to copy.
    hurried: Notify,
}

#[derive(Default)]
struct Queue {
    /// Each once; bounded by the number of generations.
    logs: Vec<Arc<Log>>,
    ended: Vec<RecordId>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// Copies to `records`, as soon as [`Recorder::run`] runs.
    #[must_use]
    pub fn new(records: Arc<dyn Records>) -> Arc<Self> {
        Arc::new(Self {
            records,
            queue: Mutex::default(),
            filled: Notify::new(),
            hurried: Notify::new(),
        })
    }

    /// As [`Records::begin`].
    ///
    /// # Errors
    /// As there.
    pub async fn begin(
        &self,
        name: &Name,
        write_token: &SecretString,
    ) -> Result<(RecordId, Commit), Error> {
        self.records.begin(name, write_token).await
    }

    /// Copies for as long as it is polled, or until that fails, which is returned.
    pub async fn run(self: Arc<Self>) -> Error {
        loop {
            self.filled.notified().await;
            tokio::select! {
                () = sleep(BATCH_TIME) => {}
                () = self.hurried.notified() => {}
            }
            if let Err(error) = self.flush().await {
                return error;
            }
        }
    }

    /// Copies what there is to copy now.
    ///
    /// # Errors
    /// As [`Records::append`].
    pub async fn flush(&self) -> Result<(), Error> {
        let Queue { logs, ended } = std::mem::take(&mut *self.lock());
        let mut pieces = Vec::new();
        for log in logs {
            log.take_unrecorded(&mut pieces);
        }
        if pieces.is_empty() && ended.is_empty() {
            return Ok(());
        }
        self.records.append(pieces, ended).await
    }

    pub(super) fn fill(&self, log: &Arc<Log>) {
        self.lock().logs.push(Arc::clone(log));
        self.filled.notify_one();
    }

    pub(super) fn hurry(&self) {
        self.hurried.notify_one();
    }

    pub(super) fn end(&self, record: RecordId) {
        self.lock().ended.push(record);
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change under this lock is one push, so a panic leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far the text of a log is copied.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) recorder: Arc<Recorder>,
    pub(super) record: RecordId,
    /// Bytes that are copied, or are being copied.
    pub(super) recorded: usize,
    /// Whether the recorder knows that there is more.
    pub(super) is_queued: bool,
    /// Whether it knows that there is much more.
    pub(super) is_hurried: bool,
}
