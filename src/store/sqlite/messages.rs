//! What is done to messages by hand: choose a variant, write one, delete.

use rusqlite::{Connection, OptionalExtension, params};

use super::{read, rows};
use crate::clock;
use crate::error::{Code, Error};
use crate::id::{MessageId, UserId, VariantId};
use crate::store::refusal::refusal;
use crate::story::{Message, Status};

pub(super) fn select_variant(
    connection: &Connection,
    user: UserId,
    message: MessageId,
    variant: VariantId,
    len_max: u64,
) -> Result<Message, Error> {
    let message = rows::message(connection, user, message)?;
    let status = connection
        .prepare_cached(
            "select status, expires_at from variants where id = ?1 and message_id = ?2",
        )?
        .query_row(params![variant, message.id], rows::status)
        .optional()?;
    match status {
        None | Some(Status::Pending) => return Err(refusal(Code::VariantNotFound)),
        Some(Status::Streaming) => return Err(refusal(Code::GenerationRunning)),
        Some(Status::Complete | Status::Stopped | Status::Interrupted | Status::Failed) => {}
    }
    rows::activate(connection, message.id, variant)?;
    rows::touch(connection, message.conversation.id)?;
    // Refused, it takes back what was done above.
    read::message(connection, message.id, len_max)
}

pub(super) fn write_variant(
    connection: &Connection,
    user: UserId,
    message: MessageId,
    content: &str,
    len_max: u64,
) -> Result<Message, Error> {
    let message = rows::message(connection, user, message)?;
    let variant = rows::insert_variant(connection, message.id, content, Status::Complete)?;
    rows::activate(connection, message.id, variant)?;
    rows::touch(connection, message.conversation.id)?;
    read::message(connection, message.id, len_max)
}

pub(super) fn delete_message(
    connection: &Connection,
    user: UserId,
    message: MessageId,
) -> Result<(), Error> {
    const BELOW: &str = "with recursive below (id) as (
        select ?1 union all select m.id from messages m join below on m.parent_id = below.id)";
    let message = rows::message(connection, user, message)?;
    let is_running: bool = connection
        .prepare_cached(&format!(
            "{BELOW} select exists (select 1 from variants v join below on v.message_id = below.id
               where v.status = 'streaming' and v.expires_at > ?2)"
        ))?
        .query_row(params![message.id, clock::now().as_millisecond()], |row| row.get(0))?;
    if is_running {
        return Err(refusal(Code::GenerationRunning));
    }
    let holds_head: bool = connection
        .prepare_cached(&format!("{BELOW} select exists (select 1 from below where id = ?2)"))?
        .query_row(params![message.id, message.conversation.head_id], |row| row.get(0))?;
    if holds_head {
        rows::set_head(connection, message.conversation.id, message.parent_id)?;
    }
    connection
        .prepare_cached(&format!(
            "{BELOW} delete from messages where id in (select id from below)"
        ))?
        .execute([message.id])?;
    rows::touch(connection, message.conversation.id)
}
