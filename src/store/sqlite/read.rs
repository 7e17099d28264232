//! Reading: a conversation's tree, a message, what a stream wrote.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows;
use crate::error::{Code, Error};
use crate::event::BotRef;
use crate::id::{ConversationId, MessageId, StreamId, UserId};
use crate::store::SavedStream;
use crate::store::model::VARIANT_LEN;
use crate::store::refusal::refusal;
use crate::story::{Message, Tree, Variant};

pub(super) fn tree(
    connection: &Connection,
    user: UserId,
    id: ConversationId,
    len_max: u64,
) -> Result<Tree, Error> {
    let conversation = super::conversations::read(connection, user, id)?;
    let messages = messages(connection, "m.conversation_id = ?1", id.get(), len_max)?;
    let parents: HashMap<_, _> =
        messages.iter().map(|message| (message.id, message.parent_id)).collect();
    let mut path = Vec::new();
    let mut next = conversation.head_id;
    while let Some(id) = next {
        path.push(id);
        next = parents.get(&id).copied().flatten();
    }
    path.reverse();
    Ok(Tree { conversation, path, messages })
}

pub(super) fn message(
    connection: &Connection,
    id: MessageId,
    len_max: u64,
) -> Result<Message, Error> {
    let message = messages(connection, "m.id = ?1", id.get(), len_max)?.into_iter().next();
    message.ok_or_else(|| refusal(Code::MessageNotFound))
}

/// The messages of which `condition` holds, with their variants, oldest first, if their texts are no longer than `len_max`.
fn messages(
    connection: &Connection,
    condition: &str,
    parameter: i64,
    len_max: u64,
) -> Result<Vec<Message>, Error> {
    let len: i64 = connection
        .prepare_cached(&format!(
            "select coalesce(sum(?2 + octet_length(v.content) + octet_length(v.reasoning)), 0)
             from variants v join messages m on m.id = v.message_id where {condition}"
        ))?
        .query_row([parameter, VARIANT_LEN], |row| row.get(0))?;
    if len.unsigned_abs() > len_max {
        return Err(refusal(Code::StoryTooLarge));
    }
    let mut variants: HashMap<MessageId, Vec<Variant>> = HashMap::new();
    let mut statement = connection.prepare_cached(&format!(
        "select v.*, g.stream_id from variants v join messages m on m.id = v.message_id
         left join generations g on g.variant_id = v.id where {condition} order by v.id"
    ))?;
    for row in
        statement.query_map([parameter], |row| Ok((row.get("message_id")?, variant(row)?)))?
    {
        let (message_id, variant) = row?;
        variants.entry(message_id).or_default().push(variant);
    }
    let mut statement = connection.prepare_cached(&format!(
        "select m.id, m.parent_id, m.role, m.active_variant_id, m.created_at from messages m where {condition} order by m.id"
    ))?;
    let messages = statement.query_map([parameter], |row| {
        let id = row.get("id")?;
        Ok(Message {
            id,
            parent_id: row.get("parent_id")?,
            role: rows::word(row, "role")?,
            active_variant_id: row.get("active_variant_id")?,
            created_at: rows::time(row, "created_at")?,
            variants: variants.remove(&id).unwrap_or_default(),
        })
    })?;
    Ok(messages.collect::<Result<_, _>>()?)
}

fn variant(row: &Row<'_>) -> rusqlite::Result<Variant> {
    Ok(Variant {
        id: row.get("id")?,
        content: row.get("content")?,
        reasoning: row.get("reasoning")?,
        status: rows::status(row)?,
        stream_id: rows::optional_word(row, "stream_id")?,
        bot_id: row.get("bot_id")?,
        model: row.get("model")?,
        finish_reason: row.get("finish_reason")?,
        usage: rows::json(row, "usage")?,
        error: rows::json(row, "error")?,
        created_at: rows::time(row, "created_at")?,
    })
}

pub(super) fn find_stream(
    connection: &Connection,
    user: UserId,
    stream_id: &StreamId,
) -> Result<Option<SavedStream>, Error> {
    let mut statement = connection.prepare_cached(
        "select v.*, m.conversation_id, m.parent_id, m.role, m.active_variant_id, b.name as bot_name,
           g.stream_id, g.user_message_id, g.is_announced
         from generations g join variants v on v.id = g.variant_id join messages m on m.id = v.message_id
         left join bots b on b.id = v.bot_id
         where g.user_id = ?1 and g.stream_id = ?2",
    )?;
    let saved = statement.query_row(params![user, stream_id], |row| {
        let variant = variant(row)?;
        let bot_name: Option<String> = row.get("bot_name")?;
        Ok(SavedStream {
            id: row.get("message_id")?,
            conversation_id: row.get("conversation_id")?,
            parent_id: row.get("parent_id")?,
            role: rows::word(row, "role")?,
            variant_id: variant.id,
            is_active: row.get::<_, Option<_>>("active_variant_id")? == Some(variant.id),
            stream_id: rows::word(row, "stream_id")?,
            content: variant.content,
            reasoning: variant.reasoning,
            status: variant.status,
            bot: BotRef { id: variant.bot_id, name: bot_name.unwrap_or_default() },
            model: variant.model,
            finish_reason: variant.finish_reason,
            usage: variant.usage,
            error: variant.error,
            user_message_id: row.get("user_message_id")?,
            is_announced: row.get("is_announced")?,
            created_at: variant.created_at,
        })
    });
    Ok(saved.optional()?)
}
