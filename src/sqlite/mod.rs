//! SQLite files: their connections, each in a thread of its own, and group commit.
//!
//! SQLite has one writer at a time, and a commit costs a flush of the disk. So one thread writes: it takes all work that
//! waits, runs each piece in a savepoint of one transaction, commits once, and answers only then, unless whoever asked has
//! something to do meanwhile. Another thread reads, which in WAL mode never waits for the writer.

mod fault;
mod schema;
mod trial;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::commit::Commit;
use crate::error::Error;
use fault::Unusable;
pub(crate) use schema::Schema;

/// Pieces of work that may wait for a thread. Each is a few hundred microseconds, so a full queue is a second or so of
/// work: past that it is better to say no.
const QUEUE_LEN: usize = 1_024;

/// How long to wait for a place in a full queue. A disk may stand still for some seconds; one that takes nothing for as long as
/// this is broken, and a journal that cannot be written ends the process.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

/// Takes the write lock at once: a transaction that reads first and writes then does not wait for a lock that another
/// process holds, but fails.
const BEGIN_WRITING: &str = "begin immediate";

const BEGIN_READING: &str = "begin";

/// The path of a file that there is none of.
pub(crate) const MEMORY: &str = ":memory:";

/// Pieces of work in one transaction: enough to share a flush, few enough that the first does not wait long.
const BATCH_LEN_MAX: usize = 64;

/// How long to wait for a lock that another process holds on the file, a backup say.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Prepared statements kept for each connection: more than there are in this store.
const STATEMENTS_MAX: usize = 128;

/// Does the work, if there is a transaction for it, and returns what answers for it once it is known whether that was
/// committed.
type Job = Box<dyn FnOnce(Result<&Connection, Error>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// An open database. Dropping it finishes the work that waits and closes the file.
#[derive(Debug)]
pub(crate) struct Database {
    /// Absent in memory, where another connection would see another database. Closed before the writer: the last
    /// connection moves the log into the file, and this one could not.
    reader: Option<Worker>,
    writer: Worker,
    /// Held as long as the file is open: dropped last, after the threads have ended.
    _lock: Option<File>,
}

#[derive(Debug)]
struct Worker {
    /// The file, as an operator is told of it.
    path: Arc<Path>,
    /// Absent only while it is being dropped.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    is_failing: Arc<AtomicBool>,
}

impl Database {
    /// Opens the file, makes it and its folder if they are not there, and brings it to the present version of `schema`.
    pub(crate) fn open(path: &Path, schema: &Schema) -> Result<Self, Error> {
        let open = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let lock = lock(path)?;
            make_private(path)?;
            let mut writer = Connection::open(path)?;
            schema.prepare(&mut writer)?;
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
                | OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_URI;
            let reader = Connection::open_with_flags(path, flags)?;
            configure(&writer)?;
            configure(&reader)?;
            Ok((lock, writer, reader))
        };
        let (lock, writer, reader) = open().map_err(|unusable: Unusable| unusable.told(path))?;
        Ok(Self {
            writer: Worker::start("sqlite-writer", path, writer, BEGIN_WRITING)?,
            reader: Some(Worker::start("sqlite-reader", path, reader, BEGIN_READING)?),
            _lock: Some(lock),
        })
    }

    /// Opens a file that is there and of the present version, while another process may have it open.
    pub(crate) fn open_beside(path: &Path, schema: &Schema) -> Result<Self, Error> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let writer = Connection::open_with_flags(path, flags)?;
            schema.check(&writer)?;
            configure(&writer)?;
            Ok(writer)
        };
        Self::alone(path, open().map_err(|unusable: Unusable| unusable.told(path))?)
    }

    /// A database that is gone with the process.
    pub(crate) fn open_in_memory(schema: &Schema) -> Result<Self, Error> {
        let open = || {
            let mut writer = Connection::open_in_memory()?;
            schema.prepare(&mut writer)?;
            configure(&writer)?;
            Ok(writer)
        };
        let path = Path::new(MEMORY);
        Self::alone(path, open().map_err(|unusable: Unusable| unusable.told(path))?)
    }

    fn alone(path: &Path, writer: Connection) -> Result<Self, Error> {
        Ok(Self {
            writer: Worker::start("sqlite-writer", path, writer, BEGIN_WRITING)?,
            reader: None,
            _lock: None,
        })
    }

    /// Runs `work` in a transaction and returns when that has been committed and flushed. Work that fails changes
    /// nothing.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.writer.run(work).await
    }

    /// Runs `work` in a transaction and returns what it came to when it is done, which the [`Commit`] says whether it stays.
    /// Nobody else may be told of it before. Work that fails changes nothing.
    pub(crate) async fn write_ahead<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Commit), Error> {
        self.writer.run_ahead(work).await
    }

    /// Whether the last commit failed: the disk is full, or broken.
    pub(crate) fn is_failing(&self) -> bool {
        self.writer.is_failing.load(Ordering::Relaxed)
    }

    /// Runs `work` on what has been committed.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.reader.as_ref().unwrap_or(&self.writer).run(work).await
    }
}

impl Worker {
    fn start(
        name: &str,
        path: &Path,
        connection: Connection,
        begin: &'static str,
    ) -> Result<Self, Error> {
        let (jobs, queue) = mpsc::channel(QUEUE_LEN);
        let is_failing = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&is_failing);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work_off(&connection, begin, queue, &failing))
            .map_err(Error::internal)?;
        Ok(Self { path: path.into(), jobs: Some(jobs), thread: Some(thread), is_failing })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job = job(work, move |result| {
            Box::new(move |committed| {
                // Whoever asked may be gone; what was committed stays committed.
                drop(answer.send(committed.and(result)));
            })
        });
        self.submit(job, answered).await
    }

    async fn run_ahead<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Commit), Error> {
        let (answer, answered) = oneshot::channel();
        let (commit, is_committed) = oneshot::channel();
        let job = job(work, move |result| {
            if result.is_ok() {
                drop(answer.send(result));
                return Box::new(move |committed| drop(commit.send(committed)));
            }
            Box::new(move |committed| drop(answer.send(committed.and(result))))
        });
        let done = self.submit(job, answered).await?;
        let path = Arc::clone(&self.path);
        let commit = async move {
            let committed = is_committed.await.unwrap_or_else(|_| Err(gone()));
            committed.map_err(|error| fault::named(error, &path))
        };
        Ok((done, Commit::new(commit)))
    }

    /// Lets the thread do the job, and returns what it answers.
    async fn submit<T>(
        &self,
        job: Job,
        answered: oneshot::Receiver<Result<T, Error>>,
    ) -> Result<T, Error> {
        let answer = async {
            let jobs = self
                .jobs
                .as_ref()
                .ok_or_else(|| Error::store_unavailable("the store is closed"))?;
            match timeout(QUEUE_TIMEOUT, jobs.send(job)).await {
                Ok(Ok(())) => answered.await.unwrap_or_else(|_| Err(gone())),
                Ok(Err(_)) => Err(gone()),
                Err(_) => Err(Error::store_unavailable("the store's queue is full")),
            }
        };
        answer.await.map_err(|error| fault::named(error, &self.path))
    }
}

/// A job that does `work` in a savepoint and hands what came of it to `answer`.
fn job<T: Send + 'static>(
    work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    answer: impl FnOnce(Result<T, Error>) -> Answer + Send + 'static,
) -> Job {
    Box::new(move |connection| {
        let result = connection.clone().and_then(|connection| in_savepoint(connection, work));
        let is_undone = result.is_err() && connection.is_ok_and(is_rolled_back);
        let answer = answer(result);
        if is_undone {
            // It has taken the transaction with it, so its own error is all that there is to say.
            return Box::new(move |_| answer(Ok(())));
        }
        answer
    })
}

fn gone() -> Error {
    Error::store_unavailable("the store's thread is gone")
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It catches the panics of its work, so there is none to pass on.
            let _joined = thread.join();
        }
    }
}

fn work_off(
    connection: &Connection,
    begin: &str,
    mut queue: mpsc::Receiver<Job>,
    is_failing: &AtomicBool,
) {
    while let Some(first) = queue.blocking_recv() {
        let begun = step(connection, begin).map(|()| connection);
        let mut answers = vec![first(begun.clone())];
        while answers.len() < BATCH_LEN_MAX
            && (begun.is_err() || !is_rolled_back(connection))
            && let Ok(job) = queue.try_recv()
        {
            answers.push(job(begun.clone()));
        }
        let committed = begun.and_then(|_| step(connection, "commit"));
        if committed.is_err() && !is_rolled_back(connection) {
            // If even this fails, the next `begin` fails, and so does every answer after it.
            let _rolled_back = connection.execute_batch("rollback");
        }
        is_failing.store(committed.is_err(), Ordering::Relaxed);
        for answer in answers {
            answer(committed.clone());
        }
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    step(connection, "savepoint work")?;
    let result = catch_unwind(AssertUnwindSafe(|| work(connection)))
        .unwrap_or_else(|_| Err(Error::internal("a piece of work of the store panicked")));
    if result.is_err() {
        if is_rolled_back(connection) {
            return result;
        }
        step(connection, "rollback to work")?;
    }
    step(connection, "release work")?;
    result
}

/// A step of a transaction. One that fails is no answer to the work in it.
fn step(connection: &Connection, sql: &str) -> Result<(), Error> {
    let done = connection.prepare_cached(sql).and_then(|mut step| step.execute([]));
    done.map(drop).map_err(|error| fault::not_done(&error))
}

/// Whether there is no transaction (any more): a full disk ends it, and so can a trigger.
fn is_rolled_back(connection: &Connection) -> bool {
    connection.is_autocommit()
}

/// Makes sure that no other relay has the file: each would take the other's running generations for dead ones. The
/// operating system gives the lock back however the process ends.
fn lock(path: &Path) -> Result<File, Unusable> {
    let file = File::create(lock_path(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Unusable::Held),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    lock_path.into()
}

/// Makes the file if it is not there, for its owner alone: it holds everybody's stories. SQLite gives the files beside it
/// the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // A statement is planned once, and not anew for the values that are bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // `full` flushes at every commit: what was answered survives a power cut. What is kept to undo a piece of work goes to no
    // file.
    connection.execute_batch(
        "pragma synchronous = full; pragma foreign_keys = on; pragma temp_store = memory;",
    )
}
