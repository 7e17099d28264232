//! `finish`: what becomes of a generation's rows when it ends.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{self, ConversationRow};
use crate::clock;
use crate::error::{Code, Error};
use crate::id::{ConversationId, MessageId, VariantId};
use crate::store::model::hash;
use crate::store::refusal::refusal;
use crate::store::{Finish, Finished, Outcome};
use crate::story::Status;

/// A generation that has not been finished.
struct Unfinished {
    id: i64,
    variant_id: VariantId,
    message_id: MessageId,
    parent_id: Option<MessageId>,
    conversation: ConversationRow,
    user_message_id: Option<MessageId>,
    previous_head_id: Option<MessageId>,
}

pub(super) fn finish(connection: &Connection, finish: &Finish) -> Result<Finished, Error> {
    let generation = match find(connection, finish)? {
        Ok(unfinished) => unfinished,
        Err(finished) => return Ok(finished),
    };
    let is_kept = match finish.outcome {
        Outcome::Refused => {
            undo(connection, &generation)?;
            false
        }
        Outcome::Failed if !finish.has_text() => {
            fail_without_text(connection, &generation, finish)?
        }
        Outcome::Complete | Outcome::Stopped | Outcome::Interrupted | Outcome::Failed => {
            write(connection, &generation, finish)?;
            true
        }
    };
    let finished = Finished {
        message_id: is_kept.then_some(generation.message_id),
        variant_id: is_kept.then_some(generation.variant_id),
        outcome: Some(finish.outcome),
        content_len: Some(finish.content.len() as u64),
    };
    keep(connection, &generation, finished)?;
    rows::touch(connection, generation.conversation.id)?;
    Ok(finished)
}

/// The generation that the write token is for, or what was answered when it was finished.
fn find(connection: &Connection, finish: &Finish) -> Result<Result<Unfinished, Finished>, Error> {
    let hash = hash(&finish.write_token);
    let found = connection
        .prepare_cached("select id, result, variant_id, user_message_id, previous_head_id from generations where write_token_hash = ?1")?
        .query_row([hash.as_slice()], |row| {
            Ok((
                row.get("id")?,
                rows::json::<Finished>(row, "result")?,
                row.get::<_, Option<VariantId>>("variant_id")?,
                row.get("user_message_id")?,
                row.get("previous_head_id")?,
            ))
        })
        .optional()?;
    let (id, user_message_id, previous_head_id, variant_id) = match found {
        Some((_, Some(finished), ..)) => return Ok(Err(finished)),
        Some((id, None, Some(variant_id), user_message_id, previous_head_id)) => {
            (id, user_message_id, previous_head_id, variant_id)
        }
        Some((_, None, None, ..)) | None => return Err(refusal(Code::StreamNotFound)),
    };
    let unfinished = connection
        .prepare_cached(
            "select m.id as message_id, m.parent_id, c.id as conversation_id, c.bot_id, c.head_id
             from variants v join messages m on m.id = v.message_id join conversations c on c.id = m.conversation_id
             where v.id = ?1",
        )?
        .query_row([variant_id], |row| {
            let conversation = ConversationRow {
                id: row.get::<_, ConversationId>("conversation_id")?,
                bot_id: row.get("bot_id")?,
                head_id: row.get("head_id")?,
            };
            let (message_id, parent_id) = (row.get("message_id")?, row.get("parent_id")?);
            Ok(Unfinished { id, variant_id, message_id, parent_id, conversation, user_message_id, previous_head_id })
        })?;
    Ok(Ok(unfinished))
}

/// Writes the text, and moves what has to move.
fn write(connection: &Connection, generation: &Unfinished, finish: &Finish) -> Result<(), Error> {
    let Unfinished { variant_id, message_id, parent_id, conversation, .. } = *generation;
    let has_text = !finish.content.is_empty();
    let (status, becomes_active) = match finish.outcome {
        Outcome::Complete => (Status::Complete, true),
        Outcome::Stopped => (Status::Stopped, has_text),
        Outcome::Interrupted => (Status::Interrupted, !has_other_texts(connection, generation)?),
        Outcome::Failed | Outcome::Refused => (Status::Failed, false),
    };
    let json = |value: serde_json::Result<String>| value.map_err(Error::internal);
    let usage = finish.usage.map(|usage| json(serde_json::to_string(&usage))).transpose()?;
    let failure =
        finish.failure.as_ref().map(|failure| json(serde_json::to_string(failure))).transpose()?;
    connection
        .prepare_cached(
            "update variants set content = ?2, reasoning = ?3, status = ?4, finish_reason = ?5, usage = ?6, error = ?7,
               model = coalesce(nullif(?8, ''), model), expires_at = null where id = ?1",
        )?
        .execute(params![
            variant_id,
            finish.content,
            finish.reasoning,
            status,
            finish.finish_reason,
            usage,
            failure,
            finish.model
        ])?;
    if becomes_active {
        rows::activate(connection, message_id, variant_id)?;
        if conversation.head_id == parent_id {
            rows::set_head(connection, conversation.id, Some(message_id))?;
        }
    }
    Ok(())
}

/// Removes a reply that never had any text, message and all, unless something hangs on it. Returns whether it is still
/// there.
fn fail_without_text(
    connection: &Connection,
    generation: &Unfinished,
    finish: &Finish,
) -> Result<bool, Error> {
    if has_other_variants(connection, generation)? {
        delete_variant(connection, generation)?;
    } else if has_children(connection, generation.message_id)? {
        write(connection, generation, finish)?;
        return Ok(true);
    } else {
        remove_reply(connection, generation)?;
    }
    Ok(false)
}

/// Takes back everything that `begin` made.
fn undo(connection: &Connection, generation: &Unfinished) -> Result<(), Error> {
    if has_other_variants(connection, generation)?
        || has_children(connection, generation.message_id)?
    {
        return delete_variant(connection, generation);
    }
    let head_id = remove_reply(connection, generation)?;
    let Some(user_message_id) = generation.user_message_id else { return Ok(()) };
    if !has_children(connection, user_message_id)? {
        if head_id == Some(user_message_id) {
            go_back(connection, generation)?;
        }
        delete_message(connection, user_message_id)?;
    }
    Ok(())
}

/// Removes the reply. A head that the reader moved to it moves up, so that the story keeps its end; returns where the head
/// is then.
fn remove_reply(
    connection: &Connection,
    generation: &Unfinished,
) -> Result<Option<MessageId>, Error> {
    let mut head_id = generation.conversation.head_id;
    if head_id == Some(generation.message_id) {
        head_id = generation.parent_id;
        rows::set_head(connection, generation.conversation.id, head_id)?;
    }
    delete_message(connection, generation.message_id)?;
    Ok(head_id)
}

/// Moves the head to where it was before the user's message, if that is still there.
fn go_back(connection: &Connection, generation: &Unfinished) -> Result<(), Error> {
    connection
        .prepare_cached(
            "update conversations set head_id = (select id from messages where id = ?2) where id = ?1",
        )?
        .execute(params![generation.conversation.id, generation.previous_head_id])?;
    Ok(())
}

/// Notes the answer for whoever asks again. Where the rows are gone the name is free again.
fn keep(connection: &Connection, generation: &Unfinished, finished: Finished) -> Result<(), Error> {
    let kept = serde_json::to_string(&finished).map_err(Error::internal)?;
    connection
        .prepare_cached(
            "update generations set result = ?2, ended_at = ?3,
               stream_id = case when ?4 then stream_id end where id = ?1",
        )?
        .execute(params![
            generation.id,
            kept,
            clock::now().as_millisecond(),
            finished.variant_id.is_some()
        ])?;
    Ok(())
}

/// Ends what is streaming though nobody writes it any more, by the same rules as a generation that was interrupted.
pub(super) fn interrupt_orphans(connection: &Connection) -> Result<u64, Error> {
    connection.execute(
        "update messages set active_variant_id = v.id from variants v
         where v.message_id = messages.id and v.status = 'streaming'
           and not exists (select 1 from variants other where other.message_id = messages.id and other.id <> v.id
                             and other.status not in ('pending', 'streaming'))",
        [],
    )?;
    connection.execute(
        "update conversations set head_id = m.id from messages m join variants v on v.id = m.active_variant_id
         where m.conversation_id = conversations.id and m.parent_id is conversations.head_id and v.status = 'streaming'",
        [],
    )?;
    let interrupted = connection.execute(
        "update variants set status = 'interrupted', expires_at = null where status = 'streaming'",
        [],
    )?;
    Ok(interrupted as u64)
}

fn has_other_variants(connection: &Connection, generation: &Unfinished) -> Result<bool, Error> {
    Ok(connection
        .prepare_cached(
            "select exists (select 1 from variants where message_id = ?1 and id <> ?2)",
        )?
        .query_row(params![generation.message_id, generation.variant_id], |row| row.get(0))?)
}

/// Whether there is something else that the message could show: what is only announced, or being written, is not.
fn has_other_texts(connection: &Connection, generation: &Unfinished) -> Result<bool, Error> {
    Ok(connection
        .prepare_cached(
            "select exists (select 1 from variants where message_id = ?1 and id <> ?2
               and status not in ('pending', 'streaming'))",
        )?
        .query_row(params![generation.message_id, generation.variant_id], |row| row.get(0))?)
}

fn has_children(connection: &Connection, id: MessageId) -> Result<bool, Error> {
    Ok(connection
        .prepare_cached("select exists (select 1 from messages where parent_id = ?1)")?
        .query_row([id], |row| row.get(0))?)
}

fn delete_variant(connection: &Connection, generation: &Unfinished) -> Result<(), Error> {
    connection
        .prepare_cached("delete from variants where id = ?1")?
        .execute([generation.variant_id])?;
    Ok(())
}

fn delete_message(connection: &Connection, id: MessageId) -> Result<(), Error> {
    connection.prepare_cached("delete from messages where id = ?1")?.execute([id])?;
    Ok(())
}
