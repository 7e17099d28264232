//! Bots: which one answers, and what users do with theirs.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::page::page;
use super::rows;
use crate::bot::{Bot, BotSettings};
use crate::clock;
use crate::error::{Code, Error};
use crate::id::{BotId, UserId};
use crate::store::refusal::refusal;
use crate::store::{Cursor, Page};

const COLUMNS: &str = "id, name, provider, model, base_url, system_prompt, temperature, max_tokens, context_size, \
                       reasoning, show_reasoning, is_default, created_at, updated_at";

/// The bot that answers: the named one or none; else the first that exists of the bound one, a default, any.
pub(super) fn resolve(
    connection: &Connection,
    user: UserId,
    named: Option<BotId>,
    bound: Option<BotId>,
    demo_bot: Option<&BotSettings>,
) -> Result<Bot, Error> {
    let bot = connection
        .prepare_cached(&format!(
            "select {COLUMNS} from bots where user_id = ?1 and (?2 is null or id = ?2)
             order by id is ?3 desc, is_default desc, updated_at desc, id desc limit 1"
        ))?
        .query_row(params![user, named, bound], bot)
        .optional()?;
    match (bot, named, demo_bot) {
        (Some(bot), ..) => Ok(bot),
        (None, Some(_), _) => Err(refusal(Code::BotNotFound)),
        (None, None, Some(demo_bot)) => create(connection, user, demo_bot),
        (None, None, None) => Err(refusal(Code::NoBot)),
    }
}

pub(super) fn list(
    connection: &Connection,
    user: UserId,
    cursor: &Cursor,
    demo_bot: Option<&BotSettings>,
) -> Result<Page<Bot>, Error> {
    let after: i64 = cursor
        .after
        .as_deref()
        .map_or(Ok(0), |after| after.parse().map_err(|_| refusal(Code::InvalidRequest)))?;
    let mut statement = connection.prepare_cached(&format!(
        "select {COLUMNS} from bots where user_id = ?1 and id > ?2 order by id limit ?3"
    ))?;
    let found = statement.query_map(params![user, after, cursor.limit + 1], bot)?;
    let mut data = found.collect::<Result<Vec<_>, _>>()?;
    if let (true, None, Some(demo_bot)) = (data.is_empty(), &cursor.after, demo_bot) {
        data.push(create(connection, user, demo_bot)?);
    }
    Ok(page(data, cursor.limit, |last| last.id.to_string()))
}

pub(super) fn read(connection: &Connection, user: UserId, id: BotId) -> Result<Bot, Error> {
    connection
        .prepare_cached(&format!("select {COLUMNS} from bots where id = ?1 and user_id = ?2"))?
        .query_row(params![id, user], bot)
        .optional()?
        .ok_or_else(|| refusal(Code::BotNotFound))
}

pub(super) fn create(
    connection: &Connection,
    user: UserId,
    settings: &BotSettings,
) -> Result<Bot, Error> {
    let made = write(
        connection,
        &format!(
            "insert into bots (id, user_id, name, provider, model, base_url, system_prompt, temperature, max_tokens,
               context_size, reasoning, show_reasoning, is_default, created_at, updated_at)
             values (:id, :user_id, :name, :provider, :model, :base_url, :system_prompt, :temperature, :max_tokens,
               :context_size, :reasoning, :show_reasoning, :is_default, {LATEST}, {LATEST})
             returning {COLUMNS}"
        ),
        (user, None),
        settings,
    )?;
    made.ok_or_else(|| Error::internal("a new bot was not returned"))
}

pub(super) fn update(
    connection: &Connection,
    user: UserId,
    id: BotId,
    settings: &BotSettings,
) -> Result<Bot, Error> {
    let updated = write(
        connection,
        &format!(
            "update bots set name = :name, provider = :provider, model = :model, base_url = :base_url,
               system_prompt = :system_prompt, temperature = :temperature, max_tokens = :max_tokens,
               context_size = :context_size, reasoning = :reasoning, show_reasoning = :show_reasoning,
               is_default = :is_default, updated_at = {LATEST}
             where id = :id and user_id = :user_id
             returning {COLUMNS}"
        ),
        (user, Some(id)),
        settings,
    )?;
    updated.ok_or_else(|| refusal(Code::BotNotFound))
}

/// The present, or a moment later than every other change of the user's bots: which of them was changed last decides
/// who answers, and a millisecond is long.
const LATEST: &str = "max(:now, 1 + coalesce((select max(updated_at) from bots where user_id = :user_id and id is not :id), 0))";

fn write(
    connection: &Connection,
    sql: &str,
    (user, id): (UserId, Option<BotId>),
    settings: &BotSettings,
) -> Result<Option<Bot>, Error> {
    let parameters = named_params! {
        ":id": id,
        ":user_id": user,
        ":name": settings.name,
        ":provider": settings.provider,
        ":model": settings.model,
        ":base_url": settings.base_url,
        ":system_prompt": settings.system_prompt,
        ":temperature": settings.temperature,
        ":max_tokens": settings.max_tokens,
        ":context_size": settings.context_size,
        ":reasoning": settings.reasoning,
        ":show_reasoning": settings.show_reasoning,
        ":is_default": settings.is_default,
        ":now": clock::now().as_millisecond(),
    };
    Ok(connection.prepare_cached(sql)?.query_row(parameters, bot).optional()?)
}

pub(super) fn delete(connection: &Connection, user: UserId, id: BotId) -> Result<(), Error> {
    let deleted = connection
        .prepare_cached("delete from bots where id = ?1 and user_id = ?2")?
        .execute(params![id, user])?;
    if deleted == 0 { Err(refusal(Code::BotNotFound)) } else { Ok(()) }
}

fn bot(row: &Row<'_>) -> rusqlite::Result<Bot> {
    Ok(Bot {
        id: row.get("id")?,
        settings: BotSettings {
            name: row.get("name")?,
            provider: row.get("provider")?,
            model: row.get("model")?,
            base_url: row.get("base_url")?,
            system_prompt: row.get("system_prompt")?,
            temperature: row.get("temperature")?,
            max_tokens: row.get("max_tokens")?,
            context_size: row.get("context_size")?,
            reasoning: rows::optional_word(row, "reasoning")?,
            show_reasoning: row.get("show_reasoning")?,
            is_default: row.get("is_default")?,
        },
        created_at: rows::time(row, "created_at")?,
        updated_at: rows::time(row, "updated_at")?,
    })
}
