//! The text of generations that are being written: batches as they come, pieces of what is kept for longer.
//!
//! Text is written as a batch, one row for all generations. Batches go when no generation is left that could be in them, or
//! when they have become many: then what is needed of them becomes pieces, a row for each generation (they *settle*). So a
//! text is written twice at most unless its generation outlasts a few megabytes of everybody's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use rusqlite::{Connection, params};
use secrecy::{ExposeSecret, SecretString};

use super::batch::{self, PieceRef};
use super::{JournalFile, json, ledger, unreadable};
use crate::clock;
use crate::commit::Commit;
use crate::error::Error;
use crate::event::{Failure, Kind};
use crate::journal::recorder::{Piece, RecordId, Records};
use crate::outbox::Name;

/// How much may be in batches, in bytes, with so many counted for each row: what a start has to read at most, and what is
/// held in memory when they settle, which takes some 20 ms.
const BATCHED_LEN_MAX: u64 = 4 << 20;
const ROW_LEN: u64 = 64;

#[async_trait]
impl Records for JournalFile {
    async fn begin(
        &self,
        name: &Name,
        write_token: &SecretString,
    ) -> Result<(RecordId, Commit), Error> {
        let (name, write_token) = (name.clone(), write_token.clone());
        self.write_ahead(move |connection| {
            let id = connection
                .prepare_cached(
                    "insert into records (owner, stream_id, write_token) values (?1, ?2, ?3) returning id",
                )?
                .query_row(
                    params![name.owner.to_string(), name.stream_id.as_str(), write_token.expose_secret()],
                    |row| row.get(0),
                )?;
            Ok(RecordId(id))
        })
        .await
    }

    async fn append(&self, pieces: Vec<Piece>, ended: Vec<RecordId>) -> Result<(), Error> {
        let batched = Arc::clone(&self.batched);
        self.write(move |connection| {
            if !pieces.is_empty() {
                let batch = batch::encode(&pieces);
                connection
                    .prepare_cached("insert into batches (pieces) values (?1)")?
                    .execute([&batch])?;
                batched.fetch_add(batch.len() as u64 + ROW_LEN, Ordering::Relaxed);
            }
            if !ended.is_empty() {
                end(connection, &ended, &batched)?;
            }
            if batched.load(Ordering::Relaxed) > BATCHED_LEN_MAX {
                unbatch(connection, &batched)?;
            }
            Ok(())
        })
        .await
    }

    async fn recover(&self) -> Result<u64, Error> {
        let batched = Arc::clone(&self.batched);
        self.write(move |connection| {
            unbatch(connection, &batched)?;
            recover(connection)
        })
        .await
    }
}

/// Removes records, and all batches if none is left.
fn end(connection: &Connection, ended: &[RecordId], batched: &AtomicU64) -> Result<(), Error> {
    let mut delete = connection.prepare_cached("delete from records where id = ?1")?;
    for record in ended {
        delete.execute([record.0])?;
    }
    let is_one_left: bool = connection
        .prepare_cached("select exists (select 1 from records)")?
        .query_row([], |row| row.get(0))?;
    if !is_one_left && batched.swap(0, Ordering::Relaxed) > 0 {
        connection.prepare_cached("delete from batches")?.execute([])?;
    }
    Ok(())
}

/// Makes pieces of what is in batches and still needed: for each generation one for each stretch of one kind.
fn unbatch(connection: &Connection, batched: &AtomicU64) -> Result<(), Error> {
    let live: HashSet<RecordId> = connection
        .prepare_cached("select id from records")?
        .query_map([], |row| row.get(0).map(RecordId))?
        .collect::<Result<_, _>>()?;
    let mut texts: HashMap<RecordId, Vec<Piece>> = HashMap::new();
    let mut batches = connection.prepare_cached("select pieces from batches order by id")?;
    let mut rows = batches.query([])?;
    while let Some(row) = rows.next()? {
        let batch = row.get_ref("pieces")?.as_blob().map_err(unreadable)?;
        for piece in batch::decode(batch) {
            let piece = piece.map_err(unreadable)?;
            if live.contains(&piece.record) {
                join(texts.entry(piece.record).or_default(), &piece);
            }
        }
    }
    let mut insert = connection.prepare_cached(
        "insert into pieces (record_id, begin, kind, text) values (?1, ?2, ?3, ?4)",
    )?;
    for piece in texts.into_values().flatten() {
        let begin = i64::try_from(piece.begin).map_err(Error::internal)?;
        insert.execute(params![piece.record.0, begin, piece.kind.as_str(), piece.text])?;
    }
    connection.prepare_cached("delete from batches")?.execute([])?;
    batched.store(0, Ordering::Relaxed);
    Ok(())
}

/// Adds the next piece of a generation to those before it.
fn join(pieces: &mut Vec<Piece>, next: &PieceRef<'_>) {
    match pieces.last_mut() {
        Some(last) if last.kind == next.kind && last.begin + last.text.len() == next.begin => {
            last.text.push_str(next.text);
        }
        _ => pieces.push(Piece {
            record: next.record,
            begin: next.begin,
            kind: next.kind,
            text: next.text.to_owned(),
        }),
    }
}

/// Moves what was being written into the outbox, as interrupted. What the outbox has already under the same write token
/// is the generation's true end.
fn recover(connection: &Connection) -> Result<u64, Error> {
    let failure = |has_text| json(&Some(Failure::from(&Error::interrupted(has_text))));
    ledger::settle_all(connection)?;
    let now = clock::now().as_millisecond();
    let text = |kind: Kind| {
        format!(
            "coalesce((select group_concat(text, '' order by begin) from pieces
               where record_id = records.id and kind = '{}'), '')",
            kind.as_str()
        )
    };
    let recovered = connection.execute(
        &format!(
            "insert into outbox (owner, stream_id, write_token, outcome, content, reasoning, failure, model, due_at, created_at, reason)
             select owner, stream_id, write_token, 'interrupted', {}, {},
               iif(exists (select 1 from pieces where record_id = records.id), ?1, ?2), '', ?3, ?3,
               'its relay was ended while it wrote this' from records where true
             on conflict (write_token) do nothing",
            text(Kind::Token),
            text(Kind::Reasoning)
        ),
        params![failure(true)?, failure(false)?, now],
    )?;
    connection.execute("delete from records", [])?;
    Ok(recovered as u64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::*;
    use crate::id::UserId;
    use crate::journal::file::APPLICATION_ID;
    use crate::outbox::Outbox;

    fn name(at: usize) -> Name {
        let stream_id = format!("stream-{at}").parse().unwrap();
        Name { owner: UserId(Uuid::from_bytes([1; 16])), stream_id }
    }

    fn token(at: usize) -> SecretString {
        SecretString::from(format!("token-{at}"))
    }

    async fn begin(file: &JournalFile, at: usize) -> RecordId {
        let (record, commit) = file.begin(&name(at), &token(at)).await.unwrap();
        commit.wait().await.unwrap();
        record
    }

    fn piece(record: RecordId, begin: usize, kind: Kind, text: &str) -> Piece {
        Piece { record, begin, kind, text: text.to_owned() }
    }

    async fn count(file: &JournalFile, table: &'static str) -> i64 {
        let count = format!("select count(*) from {table}");
        file.read(move |connection| Ok(connection.query_row(&count, [], |row| row.get(0))?))
            .await
            .unwrap()
    }

    /// What a start finds: the write token, the reasoning and the content of each generation.
    async fn recovered(path: &Path) -> Vec<(String, String, String)> {
        let file = JournalFile::open(path).unwrap();
        file.recover().await.unwrap();
        for table in ["records", "pieces", "batches"] {
            assert_eq!(count(&file, table).await, 0, "{table}");
        }
        let entries = file.due(clock::now(), 100).await.unwrap();
        let entries = entries.into_iter().map(|entry| entry.finish);
        entries
            .map(|finish| {
                (finish.write_token.expose_secret().to_owned(), finish.reasoning, finish.content)
            })
            .collect()
    }

    fn text(at: usize, reasoning: &str, content: &str) -> (String, String, String) {
        (format!("token-{at}"), reasoning.to_owned(), content.to_owned())
    }

    #[tokio::test]
    async fn what_was_appended_of_what_has_not_ended_is_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let file = JournalFile::open(&path).unwrap();
        let (first, second) = (begin(&file, 1).await, begin(&file, 2).await);
        file.append(
            vec![
                piece(first, 0, Kind::Reasoning, "Hm. "),
                piece(first, 4, Kind::Token, "On"),
                piece(second, 0, Kind::Token, "Twice"),
            ],
            vec![],
        )
        .await
        .unwrap();
        let third = begin(&file, 3).await;
        file.append(vec![piece(first, 6, Kind::Token, "ce 🦊")], vec![second]).await.unwrap();
        file.append(vec![piece(first, 13, Kind::Reasoning, "So.")], vec![]).await.unwrap();
        begin(&file, 4).await;
        file.append(vec![piece(third, 0, Kind::Token, "\n")], vec![]).await.unwrap();
        drop(file);
        let expected = [text(1, "Hm. So.", "Once 🦊"), text(3, "", "\n"), text(4, "", "")];
        assert_eq!(recovered(&path).await, expected);
        assert_eq!(recovered(&path).await, expected, "and once more from the outbox");
    }

    #[tokio::test]
    async fn batches_go_when_nothing_runs_and_settle_when_they_are_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let file = JournalFile::open(&path).unwrap();
        let first = begin(&file, 1).await;
        file.append(vec![piece(first, 0, Kind::Token, "Once")], vec![]).await.unwrap();
        assert_eq!(count(&file, "batches").await, 1);
        file.append(vec![], vec![first]).await.unwrap();
        assert_eq!(count(&file, "batches").await, 0, "nothing runs");

        const LEN: usize = 100 << 10;
        const FLUSHES: usize = 100;
        let long = begin(&file, 2).await;
        let mut expected = String::new();
        for flush in 0..FLUSHES {
            let short = begin(&file, 100 + flush).await;
            let word = format!("{flush} ");
            let pieces = vec![
                piece(short, 0, Kind::Token, &"x".repeat(LEN)),
                piece(long, expected.len(), Kind::Token, &word),
            ];
            expected.push_str(&word);
            file.append(pieces, vec![short]).await.unwrap();
        }
        let most = BATCHED_LEN_MAX.div_ceil(LEN as u64).cast_signed();
        assert!(count(&file, "batches").await <= most);
        let settled = (FLUSHES * LEN) as u64 / BATCHED_LEN_MAX;
        assert_eq!(count(&file, "pieces").await, settled.cast_signed(), "of the long one alone");
        drop(file);
        assert!(std::fs::metadata(&path).unwrap().len() < 4 * BATCHED_LEN_MAX);
        assert_eq!(recovered(&path).await, [text(2, "", &expected)]);
    }

    #[tokio::test]
    async fn a_journal_of_the_version_before_is_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let old = Connection::open(&path).unwrap();
        for step in [include_str!("1.sql"), include_str!("2.sql")] {
            old.execute_batch(step).unwrap();
        }
        old.pragma_update(None, "user_version", 2).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.execute_batch(
            "insert into records values (7, '01010101-0101-0101-0101-010101010101', 'stream-1', 'token-1');
             insert into pieces values (7, 0, 'reasoning', 'Hm.'), (7, 10, 'token', 'upon'), (7, 3, 'token', 'Once ')",
        )
        .unwrap();
        drop(old);
        assert_eq!(recovered(&path).await, [text(1, "Hm.", "Once upon")]);
    }

    #[tokio::test]
    async fn a_batch_that_cannot_be_read_is_told_and_kept() {
        let file = JournalFile::open_in_memory().unwrap();
        begin(&file, 1).await;
        file.write(|connection| {
            connection.execute("insert into batches (pieces) values (x'ffff')", [])?;
            Ok(())
        })
        .await
        .unwrap();
        let error = file.recover().await.unwrap_err();
        assert!(error.to_operator().contains("cannot be read"), "{}", error.to_operator());
        assert_eq!(count(&file, "batches").await, 1);
    }
}
