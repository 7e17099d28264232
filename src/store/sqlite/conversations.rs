//! Conversations: list, make, change, delete.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::page::page;
use super::{bots, rows};
use crate::clock;
use crate::error::{Code, Error};
use crate::id::{BotId, ConversationId, UserId};
use crate::store::refusal::refusal;
use crate::store::{ConversationPatch, Cursor, Page};
use crate::story::Conversation;

const COLUMNS: &str = "id, title, bot_id, head_id, created_at, updated_at";

/// Past every row: where the first page begins.
const FIRST: (i64, i64) = (i64::MAX, i64::MAX);

pub(super) fn list(
    connection: &Connection,
    user: UserId,
    cursor: &Cursor,
) -> Result<Page<Conversation>, Error> {
    let (updated_at, id) = cursor.after.as_deref().map_or(Ok(FIRST), position)?;
    let mut statement = connection.prepare_cached(&format!(
        "select {COLUMNS} from conversations where user_id = ?1 and (updated_at, id) < (?2, ?3)
         order by updated_at desc, id desc limit ?4"
    ))?;
    // One more than asked for tells whether there is another page.
    let found =
        statement.query_map(params![user, updated_at, id, cursor.limit + 1], conversation)?;
    let data = found.collect::<Result<Vec<_>, _>>()?;
    Ok(page(data, cursor.limit, |last| format!("{}-{}", last.updated_at.as_millisecond(), last.id)))
}

/// Where the cursor of a page points to: `<milliseconds>-<id>`.
fn position(cursor: &str) -> Result<(i64, i64), Error> {
    let parse = |(updated_at, id): (&str, &str)| Some((updated_at.parse().ok()?, id.parse().ok()?));
    cursor.split_once('-').and_then(parse).ok_or_else(|| refusal(Code::InvalidRequest))
}

pub(super) fn create(
    connection: &Connection,
    user: UserId,
    title: &str,
    bot_id: Option<BotId>,
) -> Result<Conversation, Error> {
    if let Some(bot_id) = bot_id {
        bots::read(connection, user, bot_id)?;
    }
    Ok(connection
        .prepare_cached(&format!(
            "insert into conversations (user_id, title, bot_id, created_at, updated_at) values (?1, ?2, ?3, ?4, ?4)
             returning {COLUMNS}"
        ))?
        .query_row(params![user, title, bot_id, clock::now().as_millisecond()], conversation)?)
}

pub(super) fn read(
    connection: &Connection,
    user: UserId,
    id: ConversationId,
) -> Result<Conversation, Error> {
    connection
        .prepare_cached(&format!(
            "select {COLUMNS} from conversations where id = ?1 and user_id = ?2"
        ))?
        .query_row(params![id, user], conversation)
        .optional()?
        .ok_or_else(|| refusal(Code::ConversationNotFound))
}

pub(super) fn patch(
    connection: &Connection,
    user: UserId,
    id: ConversationId,
    patch: &ConversationPatch,
) -> Result<Conversation, Error> {
    let current = read(connection, user, id)?;
    if let Some(Some(bot_id)) = patch.bot_id {
        bots::read(connection, user, bot_id)?;
    }
    if let Some(head_id) = patch.head_id
        && rows::message(connection, user, head_id)?.conversation.id != id
    {
        return Err(refusal(Code::MessageNotFound));
    }
    let title = patch.title.as_deref().unwrap_or(&current.title);
    let bot_id = patch.bot_id.unwrap_or(current.bot_id);
    let head_id = patch.head_id.or(current.head_id);
    connection
        .prepare_cached("update conversations set title = ?2, bot_id = ?3, head_id = ?4, updated_at = ?5 where id = ?1")?
        .execute(params![id, title, bot_id, head_id, clock::now().as_millisecond()])?;
    read(connection, user, id)
}

pub(super) fn delete(
    connection: &Connection,
    user: UserId,
    id: ConversationId,
) -> Result<(), Error> {
    read(connection, user, id)?;
    if rows::is_running(connection, id)? {
        return Err(refusal(Code::GenerationRunning));
    }
    connection.prepare_cached("delete from conversations where id = ?1")?.execute([id])?;
    Ok(())
}

fn conversation(row: &Row<'_>) -> rusqlite::Result<Conversation> {
    Ok(Conversation {
        id: row.get("id")?,
        title: row.get("title")?,
        bot_id: row.get("bot_id")?,
        head_id: row.get("head_id")?,
        created_at: rows::time(row, "created_at")?,
        updated_at: rows::time(row, "updated_at")?,
    })
}
