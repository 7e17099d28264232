//! The journal's file: what must survive the process, on the one machine that has it.
//!
//! It is three ports at once, [`Records`](super::Records) (in `records.rs`), [`Outbox`] and, in `ledger.rs`,
//! [`Ledger`](crate::limits::tokens::Ledger), because a generation goes from the first to the second in one transaction when
//! its process has died, and is settled in the third by what is left of it.

mod batch;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod ledger;
mod records;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::clock;
use crate::commit::Commit;
use crate::error::Error;
use crate::id::UserId;
use crate::outbox::{self, Entry, Listed, Name, Outbox, Retry, Room};
use crate::sqlite::{Database, MEMORY, Schema};
use crate::store::{Finish, Outcome};

/// What marks a SQLite file as a relay's journal, in its header: "`RelJ`".
const APPLICATION_ID: i64 = 0x5265_6c4a;

const SCHEMA: Schema = Schema {
    application_id: APPLICATION_ID,
    steps: &[
        include_str!("1.sql"),
        include_str!("2.sql"),
        include_str!("3.sql"),
        include_str!("4.sql"),
    ],
    upkeep: "",
    is_checked: true,
};

/// With less room than this on its disk nothing more may begin: what runs needs some to end, and what another program
/// writes meanwhile is not known. The longest answer is 4 MiB, the usual one 4 KiB, and the log of a file grows to 4 MiB.
const DISK_ROOM_MIN: u64 = 64 << 20;

/// The journal's file, open.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    database: Database,
    /// Entries of the outbox that are not set aside: counted when it is looked into, and what was put in since.
    waiting: AtomicU64,
    /// How much is in batches, in bytes.
    batched: Arc<AtomicU64>,
}

impl JournalFile {
    /// Opens the file, and makes it if it is not there. No other relay can open it as long as this one has it.
    ///
    /// # Errors
    /// With a message for the operator, if it cannot be written or another relay has it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self::new(path, Database::open(path, &SCHEMA)?))
    }

    /// A file that is gone with the process.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn open_in_memory() -> Result<Self, Error> {
        Ok(Self::new(Path::new(MEMORY), Database::open_in_memory(&SCHEMA)?))
    }

    /// Opens a file that is there, while a relay may be using it.
    ///
    /// # Errors
    /// With a message for the operator, if it is not there or of another version.
    pub fn open_beside(path: &Path) -> Result<Self, Error> {
        Ok(Self::new(path, Database::open_beside(path, &SCHEMA)?))
    }

    /// Fails if [`Self::open`] would, unless only because another relay has the file. Nothing is changed, and no relay kept
    /// from it. Returns whether there is a file.
    ///
    /// # Errors
    /// With a message for the operator.
    pub fn try_out(path: &Path) -> Result<bool, Error> {
        Database::try_out(path, &SCHEMA)
    }

    fn new(path: &Path, database: Database) -> Self {
        Self {
            path: path.to_owned(),
            database,
            waiting: AtomicU64::new(0),
            batched: Arc::default(),
        }
    }

    /// Notes that `instance` has the file from now on. Returns which one had it before.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn hand_over(&self, instance: Uuid) -> Result<Option<Uuid>, Error> {
        self.write(move |connection| {
            let predecessor: Option<String> =
                connection.query_row("select id from instance", [], |row| row.get(0)).optional()?;
            connection.execute("delete from instance", [])?;
            connection.execute("insert into instance (id) values (?1)", [instance.to_string()])?;
            Ok(predecessor.and_then(|id| id.parse().ok()))
        })
        .await
    }

    /// An entry is due later, after so many more attempts.
    async fn put_off(
        &self,
        id: i64,
        until: Timestamp,
        reason: &str,
        attempts: u32,
    ) -> Result<(), Error> {
        let reason = reason.to_owned();
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "update outbox set due_at = ?2, reason = ?3, attempts = attempts + ?4 where id = ?1",
                )?
                .execute(params![id, until.as_millisecond(), reason, attempts])?;
            Ok(())
        })
        .await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.database.write(work).await.map_err(|error| broken(&error))
    }

    /// As [`Self::write`], but returns when `work` is done, which the [`Commit`] says whether it stays.
    async fn write_ahead<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Commit), Error> {
        let written = self.database.write_ahead(work).await;
        let (done, commit) = written.map_err(|error| broken(&error))?;
        let commit = async move { commit.wait().await.map_err(|error| broken(&error)) };
        Ok((done, Commit::new(commit)))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.database.read(work).await.map_err(|error| broken(&error))
    }
}

/// A fault of the disk under the journal. It is no use to try again: after a failed flush the system may have dropped
/// what it could not write, and a second one would succeed and prove nothing.
fn broken(error: &Error) -> Error {
    error.detail().map_or_else(|| Error::internal(error.message()), Error::internal)
}

#[async_trait]
impl Outbox for JournalFile {
    async fn put(&self, name: &Name, finish: &Finish, reason: &str) -> Result<(), Error> {
        let (name, finish, reason) = (name.clone(), finish.clone(), reason.to_owned());
        let put = self.write(move |connection| {
            let now = clock::now().as_millisecond();
            let put = connection
                .prepare_cached(
                    "insert into outbox (owner, stream_id, write_token, outcome, content, reasoning, finish_reason,
                       usage, failure, model, due_at, created_at, reason)
                     values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12)
                     on conflict (write_token) do nothing",
                )?
                .execute(params![
                    name.owner.to_string(),
                    name.stream_id.as_str(),
                    finish.write_token.expose_secret(),
                    finish.outcome.as_str(),
                    finish.content,
                    finish.reasoning,
                    finish.finish_reason,
                    json(&finish.usage)?,
                    json(&finish.failure)?,
                    finish.model,
                    now,
                    reason,
                ])?;
            Ok(put as u64)
        });
        self.waiting.fetch_add(put.await?, Ordering::Relaxed);
        Ok(())
    }

    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<Entry>, Error> {
        let counted_before = self.waiting.load(Ordering::Relaxed);
        let read = self.read(move |connection| {
            let waiting: i64 = connection
                .prepare_cached("select count(*) from outbox where set_aside_at is null")?
                .query_row([], |row| row.get(0))?;
            let mut statement = connection.prepare_cached(
                "select * from outbox where set_aside_at is null and due_at <= ?1 order by due_at, id limit ?2",
            )?;
            let entries = statement.query_map(params![now.as_millisecond(), limit], entry)?;
            Ok((waiting.cast_unsigned(), entries.collect::<Result<_, _>>()?))
        });
        let (waiting, entries) = read.await?;
        // What was put in meanwhile may not be among those that were read. It is looked for soon, and all are counted then.
        let _counted = self.waiting.compare_exchange(
            counted_before,
            waiting,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        Ok(entries)
    }

    async fn remove(&self, ids: Vec<i64>) -> Result<(), Error> {
        self.write(move |connection| {
            let mut delete = connection.prepare_cached("delete from outbox where id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
            Ok(())
        })
        .await
    }

    async fn amend(&self, id: i64, finish: &Finish) -> Result<(), Error> {
        let finish = finish.clone();
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "update outbox set outcome = ?2, content = ?3, reasoning = ?4, finish_reason = ?5, usage = ?6,
                       failure = ?7 where id = ?1",
                )?
                .execute(params![
                    id,
                    finish.outcome.as_str(),
                    finish.content,
                    finish.reasoning,
                    finish.finish_reason,
                    json(&finish.usage)?,
                    json(&finish.failure)?,
                ])?;
            Ok(())
        })
        .await
    }

    async fn postpone(&self, id: i64, until: Timestamp, reason: &str) -> Result<(), Error> {
        self.put_off(id, until, reason, 0).await
    }

    async fn note_refusal(&self, id: i64, until: Timestamp, reason: &str) -> Result<(), Error> {
        self.put_off(id, until, reason, 1).await
    }

    async fn set_aside(&self, id: i64, reason: &str) -> Result<(), Error> {
        let reason = reason.to_owned();
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "update outbox set set_aside_at = ?2, reason = ?3, attempts = attempts + 1 where id = ?1",
                )?
                .execute(params![id, clock::now().as_millisecond(), reason])?;
            Ok(())
        })
        .await
    }

    async fn find(&self, name: &Name) -> Result<Option<Finish>, Error> {
        let name = name.clone();
        self.read(move |connection| {
            let found = connection
                .prepare_cached(
                    "select * from outbox where owner = ?1 and stream_id = ?2 order by id desc limit 1",
                )?
                .query_row([name.owner.to_string(), name.stream_id.to_string()], entry)
                .optional()?;
            Ok(found.map(|entry| entry.finish))
        })
        .await
    }

    async fn has(&self, name: &Name) -> Result<bool, Error> {
        let name = name.clone();
        self.read(move |connection| {
            let found: Option<i64> = connection
                .prepare_cached(
                    "select id from outbox where owner = ?1 and stream_id = ?2 and set_aside_at is null",
                )?
                .query_row([name.owner.to_string(), name.stream_id.to_string()], |row| row.get(0))
                .optional()?;
            Ok(found.is_some())
        })
        .await
    }

    fn room(&self) -> Room {
        if self.waiting.load(Ordering::Relaxed) >= outbox::LEN_MAX {
            return Room::Full;
        }
        // A disk that does not say how full it is may still be written to.
        match rustix::fs::statvfs(&self.path) {
            Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_ROOM_MIN => {
                Room::DiskFull
            }
            _ => Room::Enough,
        }
    }

    async fn list(&self, limit: u32) -> Result<Vec<Listed>, Error> {
        self.read(move |connection| {
            let mut statement = connection.prepare(
                "select id, owner, stream_id, length(cast(content as blob)) as len, attempts, reason, set_aside_at, created_at
                 from outbox order by id limit ?1",
            )?;
            let entries = statement.query_map([limit], listed)?;
            Ok(entries.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn retry_all(&self) -> Result<u64, Error> {
        self.write(|connection| let_be_tried(connection, None)).await
    }

    async fn retry(&self, id: i64) -> Result<Retry, Error> {
        self.write(move |connection| {
            if let_be_tried(connection, Some(id))? > 0 {
                return Ok(Retry::Again);
            }
            let is_there: bool = connection.query_row(
                "select exists (select 1 from outbox where id = ?1)",
                [id],
                |row| row.get(0),
            )?;
            Ok(if is_there { Retry::Waits } else { Retry::Unknown })
        })
        .await
    }
}

/// Of what was set aside, the entry of that id or all. Returns how many those are.
fn let_be_tried(connection: &Connection, id: Option<i64>) -> Result<u64, Error> {
    let retried = connection.execute(
        "update outbox set set_aside_at = null, attempts = 0, due_at = ?2
         where set_aside_at is not null and (?1 is null or id = ?1)",
        params![id, clock::now().as_millisecond()],
    )?;
    Ok(retried as u64)
}

fn json(value: &Option<impl serde::Serialize>) -> Result<Option<String>, Error> {
    value.as_ref().map(serde_json::to_string).transpose().map_err(Error::internal)
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let outcome: String = row.get("outcome")?;
    let write_token: String = row.get("write_token")?;
    Ok(Entry {
        id: row.get("id")?,
        name: Name { owner: owner(row)?, stream_id: parsed(row, "stream_id")? },
        finish: Finish {
            write_token: SecretString::from(write_token),
            outcome: Outcome::of(&outcome)
                .ok_or_else(|| unreadable(format!("outcome {outcome}")))?,
            content: row.get("content")?,
            reasoning: row.get("reasoning")?,
            finish_reason: row.get("finish_reason")?,
            usage: optional_json(row, "usage")?,
            failure: optional_json(row, "failure")?,
            model: row.get("model")?,
        },
        attempts: row.get("attempts")?,
        created_at: time(row.get("created_at")?)?,
    })
}

fn time(at: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(at).map_err(unreadable)
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    Ok(Listed {
        id: row.get("id")?,
        user_id: owner(row)?,
        stream_id: parsed(row, "stream_id")?,
        len: row.get::<_, i64>("len")?.cast_unsigned(),
        attempts: row.get("attempts")?,
        reason: row.get("reason")?,
        set_aside_at: row.get::<_, Option<i64>>("set_aside_at")?.map(time).transpose()?,
        created_at: time(row.get("created_at")?)?,
    })
}

fn owner(row: &Row<'_>) -> rusqlite::Result<UserId> {
    Ok(UserId(parsed::<Uuid>(row, "owner")?))
}

fn parsed<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?.parse().map_err(unreadable)
}

fn optional_json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

fn unreadable(
    error: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
) -> rusqlite::Error {
    rusqlite::types::FromSqlError::Other(error.into()).into()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_put_in_while_others_are_looked_for_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = Arc::new(JournalFile::open(&folder.path().join("journal.db")).unwrap());
        let owner = UserId(Uuid::from_bytes([1; 16]));
        for put in 1..=100_u64 {
            let name = Name { owner, stream_id: format!("stream-{put}").parse().unwrap() };
            let finish = Finish::interrupted(SecretString::from(format!("token-{put}")));
            let looking = Arc::clone(&file);
            let (ended, mut is_over) = oneshot::channel();
            let mut looks = JoinSet::new();
            looks.spawn(async move {
                while is_over.try_recv().is_err() {
                    looking.due(clock::now(), 1).await.unwrap();
                }
            });
            file.put(&name, &finish, "away").await.unwrap();
            ended.send(()).unwrap();
            looks.join_all().await;
            assert!(file.waiting.load(Ordering::Relaxed) >= put, "after {put}");
        }
    }
}
