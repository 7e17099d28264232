//! What piles up: generations that have begun in the database and whose texts are in a dead relay's journal.

use std::path::Path;

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::database::Database;

/// Stories that they are in.
const STORIES: usize = 100;

/// Generations of one user.
pub(crate) struct Backlog {
    pub(crate) user: Uuid,
    pub(crate) count: usize,
    /// Of the text of each.
    pub(crate) text_len: usize,
}

impl Backlog {
    fn stream_id(at: usize) -> String {
        format!("backlog-{at}")
    }

    fn write_token(&self, at: usize) -> String {
        format!("{}-{at}", self.user)
    }

    /// Begins the first so many of them in a database that the relay uses.
    pub(crate) async fn begin_in_postgres(&self, database: &Database, count: usize) {
        let user = self.user;
        let begin = format!(
            "do $$
             declare
               stories bigint[];
               message bigint;
               variant bigint;
             begin
               with made as (
                 insert into public.relay_conversations (user_id)
                 select '{user}' from generate_series(1, {STORIES}) returning id)
               select array_agg(id) into stories from made;
               for at in 0 .. {count} - 1 loop
                 insert into public.relay_messages (conversation_id, user_id, role)
                   values (stories[1 + at % {STORIES}], '{user}', 'assistant') returning id into message;
                 insert into public.relay_variants (message_id, user_id, status, expires_at)
                   values (message, '{user}', 'streaming', now() + interval '1 hour') returning id into variant;
                 insert into public.relay_generations (user_id, stream_id, fingerprint, write_token_hash, variant_id)
                   values ('{user}', 'backlog-' || at, '', sha256(convert_to('{user}-' || at, 'UTF8')), variant);
               end loop;
             end $$;"
        );
        database.admin().await.batch_execute(&begin).await.unwrap();
    }

    /// How many of them are saved with their text.
    pub(crate) async fn saved_in_postgres(&self, database: &Database) -> usize {
        let saved = format!(
            "select count(*) from public.relay_variants
             where user_id = '{}' and status <> 'streaming' and content = repeat('x', {})",
            self.user, self.text_len
        );
        usize::try_from(database.count(&saved).await).unwrap()
    }

    /// Begins them in the stories' file of a relay that does not run.
    pub(crate) fn begin_in_sqlite(&self, data: &Path) {
        let mut connection = Connection::open(data.join("relay.db")).unwrap();
        let transaction = connection.transaction().unwrap();
        let insert = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            transaction.prepare_cached(sql).unwrap().execute(values).unwrap();
            transaction.last_insert_rowid()
        };
        let user = self.user.to_string();
        let stories: Vec<_> = (0..STORIES)
            .map(|_| insert("insert into conversations (user_id, title, created_at, updated_at) values (?, '', 0, 0)", &[&user]))
            .collect();
        for at in 0..self.count {
            let message = insert(
                "insert into messages (conversation_id, role, created_at) values (?, 'assistant', 0)",
                &[&stories[at % STORIES]],
            );
            let variant = insert(
                "insert into variants (message_id, content, reasoning, status, created_at, expires_at)
                 values (?, '', '', 'streaming', 0, 9e15)",
                &[&message],
            );
            let hash: [u8; 32] = Sha256::digest(self.write_token(at)).into();
            insert(
                "insert into generations (user_id, stream_id, fingerprint, write_token_hash, variant_id, is_announced)
                 values (?, ?, '', ?, ?, 0)",
                &[&user, &Self::stream_id(at), &hash, &variant],
            );
        }
        transaction.commit().unwrap();
    }

    /// How many of them are saved with their text.
    pub(crate) fn saved_in_sqlite(&self, data: &Path) -> usize {
        let connection = Connection::open(data.join("relay.db")).unwrap();
        let saved: i64 = connection
            .query_row(
                "select count(*) from variants where status <> 'streaming' and length(content) = ?",
                [self.text_len as i64],
                |row| row.get(0),
            )
            .unwrap();
        usize::try_from(saved).unwrap()
    }

    /// Puts them into the journal of a relay that does not run, as it was writing them.
    pub(crate) fn fill_records(&self, data: &Path) {
        const PIECES: usize = 4;
        self.fill(data, |transaction, at| {
            let mut record = transaction
                .prepare_cached(
                    "insert into records (owner, stream_id, write_token) values (?, ?, ?)",
                )
                .unwrap();
            record
                .execute(params![self.user.to_string(), Self::stream_id(at), self.write_token(at)])
                .unwrap();
            let record = transaction.last_insert_rowid();
            let mut piece = transaction
                .prepare_cached(
                    "insert into pieces (record_id, begin, kind, text) values (?, ?, 'token', ?)",
                )
                .unwrap();
            let text = "x".repeat(self.text_len / PIECES);
            for begin in (0..self.text_len).step_by(self.text_len / PIECES) {
                piece.execute(params![record, begin as i64, text]).unwrap();
            }
        });
    }

    /// Puts them into the outbox of a relay that does not run, to be tried in an hour.
    pub(crate) fn fill_outbox(&self, data: &Path) {
        let text = "x".repeat(self.text_len);
        self.fill(data, |transaction, at| {
            transaction
                .prepare_cached(
                    "insert into outbox (owner, stream_id, write_token, outcome, content, reasoning, model, due_at, created_at)
                     values (?, ?, ?, 'complete', ?, '', '', (unixepoch() + 3600) * 1000, 0)",
                )
                .unwrap()
                .execute(params![self.user.to_string(), Self::stream_id(at), self.write_token(at), text])
                .unwrap();
        });
    }

    /// Lets the first so many of those in the outbox be tried now, while the relay may run.
    pub(crate) fn let_be_tried(&self, data: &Path, count: usize) {
        let connection = Connection::open(data.join("journal.db")).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        let made = connection.execute("update outbox set due_at = 0 where id <= ?", [count as i64]);
        assert_eq!(made.unwrap(), count);
    }

    fn fill(&self, data: &Path, insert: impl Fn(&Connection, usize)) {
        let mut connection = Connection::open(data.join("journal.db")).unwrap();
        let transaction = connection.transaction().unwrap();
        for at in 0..self.count {
            insert(&transaction, at);
        }
        transaction.commit().unwrap();
    }
}
