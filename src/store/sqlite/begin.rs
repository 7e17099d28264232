//! `begin`: which bot answers, the rows it writes to, and the path above them; and the announcement of a reroll.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{self, ConversationRow, MessageRow, word};
use super::{bots, keys, read};
use crate::bot::{Bot, BotSettings};
use crate::clock;
use crate::error::{Code, Error};
use crate::id::{ConversationId, MessageId, MessageRef, StreamId, UserId, VariantId};
use crate::store::model::{PATH_CHARS_PER_TOKEN, hash};
use crate::store::refusal::refusal;
use crate::store::{Announced, Begin, Begun, New, Place, Rows};
use crate::story::{Beat, Role, Status};

/// What is known of a stream id of the user before it begins.
enum Known {
    /// Nothing.
    Free,
    /// It was announced for this variant.
    Announced(VariantId),
}

/// Where the generation will write.
struct Reply {
    conversation: ConversationRow,
    /// The message it answers: the end of its path.
    parent_id: Option<MessageId>,
    message_id: MessageId,
    variant_id: VariantId,
    user_message_id: Option<MessageId>,
    previous_head_id: Option<MessageId>,
}

pub(super) fn begin(
    connection: &Connection,
    user: UserId,
    begin: &Begin,
    demo_bot: Option<&BotSettings>,
) -> Result<Begun, Error> {
    let known = match known(connection, user, begin)? {
        Ok(known) => known,
        Err(existing) => return Ok(existing),
    };
    let place = find_place(connection, user, begin, &known)?;
    let bound_bot = place.as_ref().and_then(|place| place.conversation().bot_id);
    let bot = bots::resolve(connection, user, begin.bot_id, bound_bot, demo_bot)?;
    let keys = keys::of_provider(connection, user, &bot.settings.provider)?;
    let Some(place) = place else {
        return Ok(Begun::New(Box::new(New { bot, rows: None, path: Vec::new(), keys })));
    };
    let reply = make_rows(connection, &place, &bot, begin)?;
    register(connection, user, begin, &reply)?;
    rows::touch(connection, reply.conversation.id)?;
    let path = if begin.wants_path {
        path(connection, reply.parent_id, &bot.settings)?
    } else {
        Vec::new()
    };
    let rows = Rows {
        conversation_id: reply.conversation.id,
        message_id: reply.message_id,
        variant_id: reply.variant_id,
        user_message_id: reply.user_message_id,
    };
    Ok(Begun::New(Box::new(New { bot, rows: Some(rows), path, keys })))
}

/// What is known of the stream id, or the generation that has it.
fn known(
    connection: &Connection,
    user: UserId,
    begin: &Begin,
) -> Result<Result<Known, Begun>, Error> {
    let row = connection
        .prepare_cached(
            "select fingerprint, variant_id from generations where user_id = ?1 and stream_id = ?2",
        )?
        .query_row(params![user, begin.stream_id], |row| {
            Ok((row.get::<_, Option<String>>(0)?, row.get(1)?))
        })
        .optional()?;
    match row {
        None => Ok(Ok(Known::Free)),
        Some((_, None)) => {
            // What it wrote was deleted, so the name is free.
            connection
                .prepare_cached(
                    "update generations set stream_id = null where user_id = ?1 and stream_id = ?2",
                )?
                .execute(params![user, begin.stream_id])?;
            Ok(Ok(Known::Free))
        }
        Some((None, Some(variant_id))) => Ok(Ok(Known::Announced(variant_id))),
        Some((Some(fingerprint), Some(_))) if fingerprint == begin.fingerprint => {
            let saved = read::find_stream(connection, user, &begin.stream_id)?;
            let saved = saved
                .ok_or_else(|| Error::internal("a generation with a variant was not found"))?;
            Ok(Err(Begun::Existing(Box::new(saved))))
        }
        Some(_) => Err(Error::stream_id_reused()),
    }
}

/// A place that exists and is the user's.
enum FoundPlace<'a> {
    Reply { conversation: ConversationRow, parent_id: Option<MessageId>, input: Option<&'a str> },
    Reroll(MessageRow),
    Announced(MessageRow, VariantId),
}

impl FoundPlace<'_> {
    fn conversation(&self) -> ConversationRow {
        match self {
            Self::Reply { conversation, .. } => *conversation,
            Self::Reroll(message) | Self::Announced(message, _) => message.conversation,
        }
    }
}

fn find_place<'a>(
    connection: &Connection,
    user: UserId,
    begin: &'a Begin,
    known: &Known,
) -> Result<Option<FoundPlace<'a>>, Error> {
    match (&begin.place, known) {
        (Place::Announced { variant_id, conversation_id }, Known::Announced(announced))
            if variant_id == announced =>
        {
            let message = connection
                .prepare_cached(
                    "select message_id from variants where id = ?1 and status = 'pending'",
                )?
                .query_row([variant_id], |row| row.get(0))
                .optional()?
                .ok_or_else(|| refusal(Code::VariantNotFound))?;
            let message = rows::message(connection, user, message)?;
            if conversation_id.is_some_and(|id| id != message.conversation.id) {
                return Err(refusal(Code::VariantNotFound));
            }
            Ok(Some(FoundPlace::Announced(message, *variant_id)))
        }
        (Place::Announced { .. }, _) => Err(refusal(Code::VariantNotFound)),
        (_, Known::Announced(_)) => Err(Error::stream_id_reused()),
        (Place::Nowhere, Known::Free) => Ok(None),
        (Place::Reply { conversation_id, parent_id, input }, Known::Free) => {
            let conversation = rows::conversation(connection, user, *conversation_id)?;
            if let Some(parent_id) = parent_id {
                let parent = rows::message(connection, user, *parent_id)?;
                if parent.conversation.id != conversation.id {
                    return Err(refusal(Code::MessageNotFound));
                }
            }
            let parent_id = parent_id.or(conversation.head_id);
            Ok(Some(FoundPlace::Reply { conversation, parent_id, input: input.as_deref() }))
        }
        (Place::Reroll { message }, Known::Free) => {
            let message = rows::rerollable(rows::referred_message(connection, user, message)?)?;
            Ok(Some(FoundPlace::Reroll(message)))
        }
    }
}

fn make_rows(
    connection: &Connection,
    place: &FoundPlace<'_>,
    bot: &Bot,
    begin: &Begin,
) -> Result<Reply, Error> {
    let conversation = place.conversation();
    let previous_head_id = conversation.head_id;
    let (message_id, parent_id, user_message_id) = match place {
        FoundPlace::Reply { parent_id, input, .. } => {
            let user_message_id = input
                .map(|input| say(connection, conversation.id, *parent_id, input))
                .transpose()?;
            let parent_id = user_message_id.or(*parent_id);
            (
                insert_message(connection, conversation.id, parent_id, Role::Assistant)?,
                parent_id,
                user_message_id,
            )
        }
        FoundPlace::Reroll(message) | FoundPlace::Announced(message, _) => {
            (message.id, message.parent_id, None)
        }
    };
    let variant_id = match place {
        FoundPlace::Announced(_, variant_id) => *variant_id,
        FoundPlace::Reply { .. } | FoundPlace::Reroll(_) => {
            rows::insert_variant(connection, message_id, "", Status::Streaming)?
        }
    };
    connection
        .prepare_cached("update variants set status = 'streaming', bot_id = ?2, model = ?3, expires_at = ?4 where id = ?1")?
        .execute(params![variant_id, bot.id, bot.settings.model, begin.expires_at.as_millisecond()])?;
    Ok(Reply { conversation, parent_id, message_id, variant_id, user_message_id, previous_head_id })
}

/// Saves what the user says. To write somewhere is to choose where the story goes on, so it becomes the head.
fn say(
    connection: &Connection,
    conversation_id: ConversationId,
    parent_id: Option<MessageId>,
    input: &str,
) -> Result<MessageId, Error> {
    let message_id = insert_message(connection, conversation_id, parent_id, Role::User)?;
    let variant_id = rows::insert_variant(connection, message_id, input, Status::Complete)?;
    rows::activate(connection, message_id, variant_id)?;
    rows::set_head(connection, conversation_id, Some(message_id))?;
    Ok(message_id)
}

fn insert_message(
    connection: &Connection,
    conversation_id: ConversationId,
    parent_id: Option<MessageId>,
    role: Role,
) -> Result<MessageId, Error> {
    Ok(connection
        .prepare_cached(
            "insert into messages (conversation_id, parent_id, role, created_at) values (?1, ?2, ?3, ?4) returning id",
        )?
        .query_row(params![conversation_id, parent_id, role, clock::now().as_millisecond()], |row| row.get(0))?)
}

/// Notes who may write the variant.
fn register(
    connection: &Connection,
    user: UserId,
    begin: &Begin,
    reply: &Reply,
) -> Result<(), Error> {
    // The same name is there already if it was announced.
    connection
        .prepare_cached(
            "insert into generations
               (user_id, stream_id, fingerprint, write_token_hash, variant_id, user_message_id, previous_head_id, is_announced)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)
             on conflict (user_id, stream_id) where stream_id is not null
             do update set fingerprint = excluded.fingerprint, write_token_hash = excluded.write_token_hash",
        )?
        .execute(params![
            user,
            begin.stream_id,
            begin.fingerprint,
            hash(&begin.write_token).as_slice(),
            reply.variant_id,
            reply.user_message_id,
            reply.previous_head_id
        ])?;
    Ok(())
}

/// The path that ends with `end`, oldest first: as much of its end as can matter. Walked message by message, so that
/// what it costs depends on the bot's context and not on the story's length.
fn path(
    connection: &Connection,
    end: Option<MessageId>,
    bot: &BotSettings,
) -> Result<Vec<Beat>, Error> {
    let mut statement = connection.prepare_cached(
        "select m.parent_id, m.role, v.content from messages m
         left join variants v on v.id = m.active_variant_id where m.id = ?1",
    )?;
    let mut left = u64::from(bot.context_size) * PATH_CHARS_PER_TOKEN;
    let mut next = end;
    let mut path = Vec::new();
    while let Some(id) = next {
        let (parent_id, role, content) = statement.query_row([id], |row| {
            Ok((
                row.get::<_, Option<MessageId>>("parent_id")?,
                word(row, "role")?,
                row.get::<_, Option<String>>("content")?,
            ))
        })?;
        next = parent_id;
        // An answer without text says nothing, and many providers refuse such a message.
        let Some(content) = content.filter(|content| !content.is_empty()) else { continue };
        let chars = content.chars().count() as u64;
        if chars > left && !path.is_empty() {
            break;
        }
        left = left.saturating_sub(chars);
        path.push(Beat { role, content });
    }
    path.reverse();
    Ok(path)
}

pub(super) fn announce_reroll(
    connection: &Connection,
    user: UserId,
    message: &MessageRef,
    conversation_id: Option<ConversationId>,
) -> Result<Announced, Error> {
    let message = rows::rerollable(rows::referred_message(connection, user, message)?)?;
    if conversation_id.is_some_and(|id| id != message.conversation.id) {
        return Err(refusal(Code::MessageNotFound));
    }
    let variant_id = rows::insert_variant(connection, message.id, "", Status::Pending)?;
    let stream_id = StreamId::random_reroll();
    connection
        .prepare_cached("insert into generations (user_id, stream_id, variant_id, is_announced) values (?1, ?2, ?3, 1)")?
        .execute(params![user, stream_id, variant_id])?;
    rows::touch(connection, message.conversation.id)?;
    Ok(Announced {
        variant_id,
        message_id: message.id,
        conversation_id: message.conversation.id,
        stream_id,
    })
}
