//! From rows to the values of the contract, and the look-ups that every function begins with.

use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;

use crate::clock;
use crate::error::{Code, Error};
use crate::id::{
    BotId, ConversationId, MessageId, MessageRef, ProviderKeyId, StreamId, TEMP_STREAM, UserId,
    VariantId,
};
use crate::store::refusal::refusal;
use crate::story::{Role, Status};

macro_rules! as_integer {
    ($($id:ty)*) => {$(
        impl ToSql for $id {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.get().into())
            }
        }

        impl FromSql for $id {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                Self::try_from(value.as_i64()?).map_err(FromSqlError::other)
            }
        }
    )*};
}

as_integer! { ConversationId MessageId VariantId BotId ProviderKeyId }

macro_rules! as_text {
    ($($word:ty)*) => {$(
        impl ToSql for $word {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }
    )*};
}

as_text! { StreamId Role Status crate::bot::Reasoning }

impl ToSql for UserId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.to_string().into())
    }
}

/// A column that holds one of the words of an enum, as serde knows them.
pub(super) fn word<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let word: String = row.get(column)?;
    decode(serde_json::Value::String(word))
}

/// A column that holds such a word or null.
pub(super) fn optional_word<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    let word: Option<String> = row.get(column)?;
    word.map(|word| decode(serde_json::Value::String(word))).transpose()
}

/// A column that holds JSON or null.
pub(super) fn json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    let parse = |text: String| {
        serde_json::from_str(&text).map_err(|error| FromSqlError::other(error).into())
    };
    text.map(parse).transpose()
}

fn decode<T: DeserializeOwned>(value: serde_json::Value) -> rusqlite::Result<T> {
    serde_json::from_value(value).map_err(|error| FromSqlError::other(error).into())
}

/// A column that holds a time.
pub(super) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?).map_err(|error| FromSqlError::other(error).into())
}

/// The state of a variant as it is read: one that streams past its time is interrupted.
pub(super) fn status(row: &Row<'_>) -> rusqlite::Result<Status> {
    let expires_at: Option<i64> = row.get("expires_at")?;
    let is_over = expires_at.is_some_and(|at| at <= clock::now().as_millisecond());
    match word(row, "status")? {
        Status::Streaming if is_over => Ok(Status::Interrupted),
        status => Ok(status),
    }
}

/// A conversation as the functions that write need it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConversationRow {
    pub(super) id: ConversationId,
    pub(super) bot_id: Option<BotId>,
    pub(super) head_id: Option<MessageId>,
}

/// The user's conversation.
pub(super) fn conversation(
    connection: &Connection,
    user: UserId,
    id: ConversationId,
) -> Result<ConversationRow, Error> {
    let row = connection
        .prepare_cached(
            "select id, bot_id, head_id from conversations where id = ?1 and user_id = ?2",
        )?
        .query_row(params![id, user], |row| {
            Ok(ConversationRow { id: row.get(0)?, bot_id: row.get(1)?, head_id: row.get(2)? })
        })
        .optional()?;
    row.ok_or_else(|| refusal(Code::ConversationNotFound))
}

/// A message as the functions that write need it.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageRow {
    pub(super) id: MessageId,
    pub(super) parent_id: Option<MessageId>,
    pub(super) role: Role,
    pub(super) conversation: ConversationRow,
}

/// The user's message.
pub(super) fn message(
    connection: &Connection,
    user: UserId,
    id: MessageId,
) -> Result<MessageRow, Error> {
    let row = connection
        .prepare_cached(
            "select m.parent_id, m.role, c.id as conversation_id, c.bot_id, c.head_id
             from messages m join conversations c on c.id = m.conversation_id
             where m.id = ?1 and c.user_id = ?2",
        )?
        .query_row(params![id, user], |row| {
            let conversation = ConversationRow {
                id: row.get("conversation_id")?,
                bot_id: row.get("bot_id")?,
                head_id: row.get("head_id")?,
            };
            Ok(MessageRow {
                id,
                parent_id: row.get("parent_id")?,
                role: word(row, "role")?,
                conversation,
            })
        })
        .optional()?;
    row.ok_or_else(|| refusal(Code::MessageNotFound))
}

/// The message that `reference` means to the user.
pub(super) fn referred_message(
    connection: &Connection,
    user: UserId,
    reference: &MessageRef,
) -> Result<MessageRow, Error> {
    let id = match reference {
        MessageRef::Id(id) => *id,
        MessageRef::Stream(stream_id) => connection
            .prepare_cached(
                "select v.message_id from generations g join variants v on v.id = g.variant_id
                 where g.user_id = ?1 and g.stream_id in (?2, ?3) order by g.stream_id = ?2 desc limit 1",
            )?
            .query_row(params![user, stream_id, format!("{TEMP_STREAM}{stream_id}")], |row| row.get(0))
            .optional()?
            .ok_or_else(|| refusal(Code::MessageNotFound))?,
    };
    message(connection, user, id)
}

/// The same message, if another variant of it may be generated.
pub(super) fn rerollable(message: MessageRow) -> Result<MessageRow, Error> {
    if message.role == Role::Assistant {
        return Ok(message);
    }
    Err(refusal(Code::NotRerollable))
}

/// Notes that something in the conversation has changed.
pub(super) fn touch(connection: &Connection, id: ConversationId) -> Result<(), Error> {
    connection
        .prepare_cached("update conversations set updated_at = ?2 where id = ?1")?
        .execute(params![id, clock::now().as_millisecond()])?;
    Ok(())
}

/// A new variant of the message; which one is active does not change.
pub(super) fn insert_variant(
    connection: &Connection,
    message_id: MessageId,
    content: &str,
    status: Status,
) -> Result<VariantId, Error> {
    Ok(connection
        .prepare_cached(
            "insert into variants (message_id, content, reasoning, status, created_at)
             values (?1, ?2, '', ?3, ?4) returning id",
        )?
        .query_row(params![message_id, content, status, clock::now().as_millisecond()], |row| {
            row.get(0)
        })?)
}

/// Makes the variant the one that the story shows.
pub(super) fn activate(
    connection: &Connection,
    message: MessageId,
    variant: VariantId,
) -> Result<(), Error> {
    connection
        .prepare_cached("update messages set active_variant_id = ?2 where id = ?1")?
        .execute(params![message, variant])?;
    Ok(())
}

/// Makes the message the one that the story ends with.
pub(super) fn set_head(
    connection: &Connection,
    id: ConversationId,
    head_id: Option<MessageId>,
) -> Result<(), Error> {
    connection
        .prepare_cached("update conversations set head_id = ?2 where id = ?1")?
        .execute(params![id, head_id])?;
    Ok(())
}

/// Whether something is being written in the conversation.
pub(super) fn is_running(connection: &Connection, id: ConversationId) -> Result<bool, Error> {
    Ok(connection
        .prepare_cached(
            "select exists (select 1 from messages m join variants v on v.message_id = m.id
               where m.conversation_id = ?1 and v.status = 'streaming' and v.expires_at > ?2)",
        )?
        .query_row(params![id, clock::now().as_millisecond()], |row| row.get(0))?)
}
