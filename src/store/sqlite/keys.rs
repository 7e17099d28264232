//! Users' own keys for providers, sealed.

use rusqlite::{Connection, Row, params};

use super::rows;
use crate::clock;
use crate::error::{Code, Error};
use crate::id::{ProviderKeyId, UserId};
use crate::provider_key::{NewKey, ProviderKey, SealedKey};
use crate::store::KEYS_MAX;
use crate::store::refusal::refusal;

pub(super) fn list(connection: &Connection, user: UserId) -> Result<Vec<ProviderKey>, Error> {
    let mut statement = connection.prepare_cached(
        "select id, provider, base_url, last4, created_at from keys where user_id = ?1
         order by created_at, id",
    )?;
    let keys = statement.query_map([user], key)?;
    Ok(keys.collect::<Result<_, _>>()?)
}

/// The user's keys for that provider.
pub(super) fn of_provider(
    connection: &Connection,
    user: UserId,
    provider: &str,
) -> Result<Vec<SealedKey>, Error> {
    let mut statement = connection.prepare_cached(
        "select id, origin, sealed from keys where user_id = ?1 and provider = ?2",
    )?;
    let keys = statement.query_map(params![user, provider], |row| {
        Ok(SealedKey { id: row.get("id")?, origin: row.get("origin")?, sealed: row.get("sealed")? })
    })?;
    Ok(keys.collect::<Result<_, _>>()?)
}

pub(super) fn put(
    connection: &Connection,
    user: UserId,
    new: &NewKey,
) -> Result<ProviderKey, Error> {
    let others: i64 = connection
        .prepare_cached(
            "select count(*) from keys where user_id = ?1 and (provider, origin) <> (?2, ?3)",
        )?
        .query_row(params![user, new.provider, new.origin], |row| row.get(0))?;
    if others >= KEYS_MAX as i64 {
        return Err(refusal(Code::TooManyKeys));
    }
    Ok(connection
        .prepare_cached(
            "insert into keys (user_id, provider, origin, base_url, last4, sealed, created_at)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             on conflict (user_id, provider, origin) do update set
               base_url = excluded.base_url, last4 = excluded.last4, sealed = excluded.sealed,
               created_at = excluded.created_at
             returning id, provider, base_url, last4, created_at",
        )?
        .query_row(
            params![
                user,
                new.provider,
                new.origin,
                new.base_url,
                new.last4,
                new.sealed,
                clock::now().as_millisecond()
            ],
            key,
        )?)
}

pub(super) fn reseal(
    connection: &Connection,
    user: UserId,
    id: ProviderKeyId,
    old: &str,
    new: &str,
) -> Result<(), Error> {
    let resealed = connection
        .prepare_cached(
            "update keys set sealed = ?4 where id = ?1 and user_id = ?2 and sealed = ?3",
        )?
        .execute(params![id, user, old, new])?;
    if resealed == 0 { Err(refusal(Code::KeyNotFound)) } else { Ok(()) }
}

pub(super) fn delete(
    connection: &Connection,
    user: UserId,
    id: ProviderKeyId,
) -> Result<(), Error> {
    let deleted = connection
        .prepare_cached("delete from keys where id = ?1 and user_id = ?2")?
        .execute(params![id, user])?;
    if deleted == 0 { Err(refusal(Code::KeyNotFound)) } else { Ok(()) }
}

fn key(row: &Row<'_>) -> rusqlite::Result<ProviderKey> {
    Ok(ProviderKey {
        id: row.get("id")?,
        provider: row.get("provider")?,
        base_url: row.get("base_url")?,
        last4: row.get("last4")?,
        created_at: rows::time(row, "created_at")?,
    })
}
