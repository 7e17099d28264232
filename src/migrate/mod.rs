//! The database contract, brought to a Postgres of one's own: `storytellr-relay migrate`.
//!
//! It applies the files that `supabase db push` applies, and notes them in the same table, so that either may be used
//! after the other. All of it is one transaction: the database is ready, or as it was.

use std::fmt;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::with_causes;
use crate::store::functions::CONTRACT_VERSION;
use crate::store::functions::postgres_url::{PostgresUrl, Tls};

/// One file of `supabase/migrations/`.
struct Migration {
    version: &'static str,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: "20261124000001",
        name: "relay_tables",
        sql: include_str!("../../supabase/migrations/20261124000001_relay_tables.sql"),
    },
    Migration {
        version: "20261124000002",
        name: "relay_generation",
        sql: include_str!("../../supabase/migrations/20261124000002_relay_generation.sql"),
    },
    Migration {
        version: "20261124000003",
        name: "relay_library",
        sql: include_str!("../../supabase/migrations/20261124000003_relay_library.sql"),
    },
];

/// From 15 on a foreign key can set one of its columns to null, which the tables rely on.
const SERVER_VERSION_MIN: u32 = 150_000;

/// Begins the transaction. The lock lets one of several relays that are started together do the work; its number is
/// nothing but this program's own. The table is the Supabase CLI's.
const BEGIN: &str = "
    begin;
    set local statement_timeout = 0;
    select pg_advisory_xact_lock(7310868762149121390);
    create schema if not exists supabase_migrations;
    create table if not exists supabase_migrations.schema_migrations
      (version text primary key, statements text[], name text);";

/// Whether this is a Postgres that knows nothing of Supabase.
const IS_PLAIN: &str = "select to_regrole('anon') is null or to_regrole('authenticated') is null
    or to_regprocedure('auth.uid()') is null";

/// Whether the functions are there, but over another app's tables.
const HAS_ADAPTER: &str = "select to_regprocedure('public.relay_version(jsonb)') is not null
    and to_regclass('public.relay_messages') is null";

/// Why nothing was done.
#[derive(Debug)]
pub struct Unmigrated(String);

impl fmt::Display for Unmigrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing was changed: {}", self.0)
    }
}

impl std::error::Error for Unmigrated {}

impl From<tokio_postgres::Error> for Unmigrated {
    fn from(error: tokio_postgres::Error) -> Self {
        let told = error.as_db_error().map(|error| {
            let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{}: {}{hint}", error.code().code(), error.message())
        });
        Self(told.unwrap_or_else(|| with_causes(&error)))
    }
}

/// Brings the database at `url` to the version of the contract that this relay speaks, and returns what was done, a line
/// each. A database that is there already is left as it is.
///
/// # Errors
/// What the database says. Nothing was changed then.
pub async fn migrate(url: &PostgresUrl) -> Result<Vec<String>, Unmigrated> {
    let client = connect(url).await?;
    // Where it fails, the connection is closed, and Postgres rolls back.
    let mut done = Vec::new();
    let version: u32 = first(&client, "show server_version_num").await?.parse().unwrap_or(0);
    if version < SERVER_VERSION_MIN {
        return Err(Unmigrated("it needs PostgreSQL 15 or newer.".to_owned()));
    }
    client.batch_execute(BEGIN).await?;
    if is(&client, HAS_ADAPTER).await? {
        return Err(Unmigrated(
            "the functions over Storytellr's present tables are installed. Remove them first: \
             psql -f supabase/adapters/storytellr-v0-drop.sql"
                .to_owned(),
        ));
    }
    if is(&client, IS_PLAIN).await? {
        done.push(
            "made what Supabase has and a plain Postgres has not: roles, auth.uid()".to_owned(),
        );
    }
    client.batch_execute(include_str!("plain.sql")).await?;
    for Migration { version, name, sql } in MIGRATIONS {
        let noted = client
            .query_typed(
                "insert into supabase_migrations.schema_migrations (version, name, statements)
                 values ($1, $2, array[$3]) on conflict do nothing returning version",
                &[(version, Type::TEXT), (name, Type::TEXT), (sql, Type::TEXT)],
            )
            .await?;
        if noted.is_empty() {
            done.push(format!("was there: {version} {name}"));
        } else {
            client.batch_execute(sql).await?;
            done.push(format!("applied: {version} {name}"));
        }
    }
    let version = first(&client, "select public.relay_version('{}') ->> 'version'").await?;
    if version != CONTRACT_VERSION.to_string() {
        return Err(Unmigrated(format!(
            "the database has version {version} of the contract, and this relay speaks {CONTRACT_VERSION}. \
             Use the relay that belongs to it."
        )));
    }
    client.batch_execute("commit").await?;
    done.push(format!("The database is ready: version {CONTRACT_VERSION} of the contract."));
    Ok(done)
}

async fn connect(url: &PostgresUrl) -> Result<Client, Unmigrated> {
    match url.tls().map_err(|error| Unmigrated(error.message().into_owned()))? {
        Tls::Off => {
            let (client, connection) = url.config().connect(tokio_postgres::NoTls).await?;
            drive(connection);
            Ok(client)
        }
        Tls::On(tls) => {
            let (client, connection) = url.config().connect(tls).await?;
            drive(connection);
            Ok(client)
        }
    }
}

/// Lets the connection do its work until its client is dropped.
#[expect(clippy::disallowed_methods, reason = "this process has nothing to shut down")]
fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
    // What breaks it is told to whoever waits for an answer.
    tokio::spawn(async { drop(connection.await) });
}

async fn is(client: &Client, question: &str) -> Result<bool, Unmigrated> {
    Ok(first(client, question).await? == "t")
}

/// The first column of the first row, as text.
async fn first(client: &Client, query: &str) -> Result<String, Unmigrated> {
    let messages = client.simple_query(query).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_migration_is_known() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/supabase/migrations");
        let files = std::fs::read_dir(folder).unwrap();
        let files: BTreeSet<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let known: Vec<_> = MIGRATIONS
            .iter()
            .map(|migration| format!("{}_{}.sql", migration.version, migration.name))
            .collect();
        assert!(known.is_sorted());
        assert_eq!(files, BTreeSet::from_iter(known));
    }
}
