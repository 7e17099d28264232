//! The book of tokens, in the file that has the texts: what a killed relay had set aside is settled by what is left of the
//! answer, in the transaction that recovers it.

use std::collections::HashMap;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};
use secrecy::SecretString;

use super::{JournalFile, json, optional_json, owner, parsed, unreadable};
use crate::error::Error;
use crate::limits::tokens::{Attempt, Day, Debt, Estimate, Ledger, Spent, Used, Wish};
use crate::outbox::Name;
use crate::prompt;

/// Answers that other relays can be owed at most: a busy relay's quarter of an hour, or a quiet one's day. What is past it
/// counts at this relay alone. At some 200 bytes each they are 4 MiB of disk.
const DEBTS_MAX: i64 = 20_000;

/// How much text of a killed process is counted before its successor serves, in bytes: a second's work. Of the rest the length
/// says enough.
const COUNTED_LEN_MAX: usize = 8 << 20;

#[async_trait]
impl Ledger for JournalFile {
    async fn reserve(&self, wish: Wish) -> Result<Result<(), u64>, Error> {
        self.write(move |connection| reserve(connection, &wish)).await
    }

    async fn settle(&self, attempt: &Attempt, used: Used) -> Result<(), Error> {
        let attempt = attempt.clone();
        self.write(move |connection| settle(connection, &attempt, used)).await
    }

    async fn owe(&self, debt: Debt) -> Result<(), Error> {
        self.write(move |connection| owe(connection, &debt, 0).map(drop)).await
    }

    async fn debts(&self, limit: u32) -> Result<Vec<(i64, Debt)>, Error> {
        self.read(move |connection| {
            let mut statement =
                connection.prepare_cached("select * from debts order by id limit ?1")?;
            let debts = statement.query_map([limit], debt)?;
            Ok(debts.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn paid(&self, ids: Vec<i64>) -> Result<(), Error> {
        self.write(move |connection| {
            let mut delete = connection.prepare_cached("delete from debts where id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
            Ok(())
        })
        .await
    }
}

fn reserve(connection: &Connection, wish: &Wish) -> Result<Result<(), u64>, Error> {
    let Wish { attempt, day, estimate, limit, elsewhere, is_shared } = wish;
    let [user, stream_id, attempt_id] = words(attempt);
    forget_before(connection, *day)?;
    let here: i64 = connection
        .prepare_cached(
            "select
               coalesce((select tokens from spent where day = ?1 and owner = ?2), 0)
               + coalesce((select sum(prompt_tokens + answer_tokens) from reservations
                   where owner = ?2 and (stream_id, attempt) <> (?3, ?4) and day = ?1), 0)
               + coalesce((select sum(tokens) from debts where owner = ?2 and day = ?1), 0)",
        )?
        .query_row(params![day.0, user, stream_id, attempt_id], |row| row.get(0))?;
    let taken = elsewhere.saturating_add(here.unsigned_abs());
    if taken.saturating_add(estimate.total()) > *limit {
        return Ok(Err(taken));
    }
    connection
        .prepare_cached("insert or replace into reservations values (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            user,
            stream_id,
            attempt_id,
            day.0,
            number(estimate.prompt),
            number(estimate.answer),
            is_shared
        ])?;
    Ok(Ok(()))
}

fn settle(connection: &Connection, attempt: &Attempt, used: Used) -> Result<(), Error> {
    let reservation = connection
        .prepare_cached(
            "delete from reservations where owner = ?1 and stream_id = ?2 and attempt = ?3
             returning day, prompt_tokens, answer_tokens, is_shared",
        )?
        .query_row(words(attempt), |row| {
            let tokens = |at| Ok::<_, rusqlite::Error>(row.get::<_, i64>(at)?.unsigned_abs());
            let estimate = Estimate { prompt: tokens(1)?, answer: tokens(2)? };
            Ok((Day(row.get(0)?), estimate, row.get::<_, bool>(3)?))
        })
        .optional()?;
    let Some((day, estimate, is_shared)) = reservation else { return Ok(()) };
    let Spent { tokens, estimated } = used.of(estimate);
    if is_shared {
        let used = Used::Counted { tokens, estimated: estimated > 0 };
        let debt = Debt { attempt: attempt.clone(), day, used, is_new: true };
        if owe(connection, &debt, tokens)? {
            return Ok(());
        }
    }
    connection
        .prepare_cached(
            "insert into spent values (?1, ?2, ?3, ?4)
             on conflict do update set tokens = tokens + ?3, estimated = estimated + ?4",
        )?
        .execute(params![
            day.0,
            attempt.name.owner.to_string(),
            number(tokens),
            number(estimated)
        ])?;
    Ok(())
}

/// Keeps what others are to be told, if there is room for it. Returns whether there was.
fn owe(connection: &Connection, debt: &Debt, tokens: u64) -> Result<bool, Error> {
    let Debt { attempt, day, used, is_new } = debt;
    let [user, stream_id, attempt_id] = words(attempt);
    // By the first and the last, which are at hand: those between are paid in their order.
    let owed = connection
        .prepare_cached(
            "insert into debts (day, owner, stream_id, attempt, used, is_new, tokens)
             select ?1, ?2, ?3, ?4, ?5, ?6, ?7
             where coalesce((select max(id) from debts) - (select min(id) from debts) + 1, 0) < ?8",
        )?
        .execute(params![
            day.0,
            user,
            stream_id,
            attempt_id,
            json(&Some(used))?,
            is_new,
            number(tokens),
            DEBTS_MAX,
        ])?;
    Ok(owed > 0)
}

/// What was spent before that day limits nobody any more.
fn forget_before(connection: &Connection, day: Day) -> Result<(), Error> {
    for forget in ["delete from spent where day < ?1", "delete from debts where day < ?1"] {
        connection.prepare_cached(forget)?.execute([day.0])?;
    }
    Ok(())
}

/// Settles what the last process had set aside: by the text that is recorded, which may be none, or in full where nothing
/// was to be saved.
pub(super) fn settle_all(connection: &Connection) -> Result<(), Error> {
    let mut reservations =
        connection.prepare("select owner, stream_id, attempt from reservations")?;
    let reserved = reservations.query_map([], attempt)?.collect::<Result<Vec<_>, _>>()?;
    let mut records =
        connection.prepare("select id, owner, stream_id, write_token from records")?;
    let recorded = records
        .query_map([], |row| {
            let name = Name { owner: owner(row)?, stream_id: parsed(row, "stream_id")? };
            let write_token = SecretString::from(row.get::<_, String>("write_token")?);
            Ok((words(&Attempt::saved_with(name, &write_token)), row.get::<_, i64>("id")?))
        })?
        .collect::<Result<HashMap<_, _>, _>>()?;
    let mut text = connection.prepare(
        "select coalesce(group_concat(text, '' order by begin), '') from pieces where record_id = ?1",
    )?;
    let mut counted_len = 0;
    for attempt in reserved {
        let used = match recorded.get(&words(&attempt)) {
            None => Used::All,
            Some(record) => {
                let text: String = text.query_row([record], |row| row.get(0))?;
                counted_len += text.len();
                Used::Answer(if counted_len <= COUNTED_LEN_MAX {
                    prompt::count_tokens(&text, usize::MAX) as u64
                } else {
                    prompt::estimate_tokens(text.len())
                })
            }
        };
        settle(connection, &attempt, used)?;
    }
    Ok(())
}

fn debt(row: &Row<'_>) -> rusqlite::Result<(i64, Debt)> {
    let used = optional_json(row, "used")?.ok_or_else(|| unreadable("a debt of nothing"))?;
    let debt = Debt {
        attempt: attempt(row)?,
        day: Day(row.get("day")?),
        used,
        is_new: row.get("is_new")?,
    };
    Ok((row.get("id")?, debt))
}

/// What an attempt goes by: user, stream id, and its own id.
fn words(attempt: &Attempt) -> [String; 3] {
    let Attempt { name, id } = attempt;
    [name.owner.to_string(), name.stream_id.to_string(), id.clone()]
}

fn attempt(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    let name = Name { owner: owner(row)?, stream_id: parsed(row, "stream_id")? };
    Ok(Attempt { name, id: row.get("attempt")? })
}

/// As SQLite has numbers. What is more than it has is more than anybody may spend.
fn number(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

#[cfg(test)]
impl JournalFile {
    /// The tokens of each user and day, and how many of them are estimates.
    pub(crate) async fn spent(&self) -> Result<Vec<(i64, i64)>, Error> {
        self.read(|connection| {
            let mut spent = connection.prepare("select tokens, estimated from spent")?;
            let spent = spent.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(spent.collect::<Result<_, _>>()?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::UserId;
    use crate::journal::Records;

    fn of(stream: &str) -> Attempt {
        let name = Name { owner: UserId(Uuid::nil()), stream_id: stream.parse().unwrap() };
        Attempt { name, id: String::new() }
    }

    /// A wish of one user for so many tokens of a hundred, on that day.
    fn wish(stream: &str, day: i64, answer: u64) -> Wish {
        Wish {
            attempt: of(stream),
            day: Day(day),
            estimate: Estimate { prompt: 10, answer },
            limit: 100,
            elsewhere: 0,
            is_shared: false,
        }
    }

    #[tokio::test]
    async fn what_was_begun_yesterday_counts_to_yesterday() {
        let file = JournalFile::open_in_memory().unwrap();
        file.reserve(wish("a", 1, 90)).await.unwrap().unwrap();
        assert_eq!(file.reserve(wish("b", 1, 0)).await.unwrap(), Err(100));
        file.reserve(wish("b", 2, 90)).await.unwrap().unwrap();
        file.settle(&of("a"), Used::All).await.unwrap();
        file.settle(&of("b"), Used::Answer(10)).await.unwrap();
        assert_eq!(file.reserve(wish("c", 2, 71)).await.unwrap(), Err(20));
        let days = file.read(|connection| {
            let count = "select count(*) from spent where day < 2";
            Ok(connection.query_row(count, [], |row| row.get::<_, i64>(0))?)
        });
        assert_eq!(days.await.unwrap(), 0, "and yesterday is forgotten");
    }

    #[tokio::test]
    async fn what_is_known_of_others_counts_and_what_is_settled_is_owed_them() {
        let file = JournalFile::open_in_memory().unwrap();
        let shared = |stream, elsewhere, answer| Wish {
            is_shared: true,
            elsewhere,
            ..wish(stream, 1, answer)
        };
        assert_eq!(file.reserve(shared("a", 60, 31)).await.unwrap(), Err(60));
        file.reserve(shared("a", 60, 30)).await.unwrap().unwrap();
        let used = Used::Counted { tokens: 25, estimated: true };
        file.settle(&of("a"), used).await.unwrap();
        // Twice changes nothing.
        file.settle(&of("a"), Used::All).await.unwrap();
        assert_eq!(file.reserve(shared("b", 60, 6)).await.unwrap(), Err(85));
        let debts = file.debts(10).await.unwrap();
        let debt = Debt { attempt: of("a"), day: Day(1), used, is_new: true };
        assert_eq!(debts.iter().map(|(_, debt)| debt).collect::<Vec<_>>(), [&debt]);
        file.paid(debts.iter().map(|(id, _)| *id).collect()).await.unwrap();
        assert_eq!(file.debts(10).await.unwrap(), []);
        // They say so themselves from now on.
        assert_eq!(file.reserve(shared("b", 85, 6)).await.unwrap(), Err(85));
    }

    #[tokio::test]
    async fn what_there_is_no_room_to_tell_others_of_counts_here() {
        let file = JournalFile::open_in_memory().unwrap();
        let debt = |attempt| Debt { attempt, day: Day(1), used: Used::NOTHING, is_new: true };
        let fill = file.write(move |connection| {
            for _ in 0..DEBTS_MAX {
                assert!(owe(connection, &debt(of("old")), 0)?);
            }
            Ok(())
        });
        fill.await.unwrap();
        let shared = |stream, answer| Wish { is_shared: true, ..wish(stream, 1, answer) };
        file.reserve(shared("a", 50)).await.unwrap().unwrap();
        file.settle(&of("a"), Used::Answer(40)).await.unwrap();
        assert_eq!(file.reserve(shared("b", 41)).await.unwrap(), Err(50));
        // There is room again when some are told.
        let told = file.debts(1).await.unwrap();
        file.paid(told.into_iter().map(|(id, _)| id).collect()).await.unwrap();
        file.reserve(shared("b", 40)).await.unwrap().unwrap();
        file.settle(&of("b"), Used::Answer(40)).await.unwrap();
        assert_eq!(file.reserve(shared("c", 0)).await.unwrap(), Err(100));
        let debts = file.debts(u32::MAX).await.unwrap();
        assert_eq!(debts.last().map(|(_, debt)| &debt.attempt), Some(&of("b")));
    }

    /// The same name twice, as when the first attempt was refused before it began.
    #[tokio::test]
    async fn each_attempt_is_settled_by_what_is_recorded_of_it() {
        let file = JournalFile::open_in_memory().unwrap();
        let write_token = SecretString::from("token");
        let second = Attempt::saved_with(of("a").name, &write_token);
        file.reserve(wish("a", 1, 20)).await.unwrap().unwrap();
        let wish_again = Wish { attempt: second.clone(), ..wish("a", 1, 50) };
        file.reserve(wish_again).await.unwrap().unwrap();
        let (_, commit) = file.begin(&second.name, &write_token).await.unwrap();
        commit.wait().await.unwrap();
        file.write(settle_all).await.unwrap();
        // The first in full, and of the second the prompt.
        assert_eq!(file.reserve(wish("b", 1, 51)).await.unwrap(), Err(30 + 10));
    }
}
