//! Calling the functions straight in Postgres, as the user and under row-level security.
//!
//! A call is one transaction whose four messages (begin, who is asking, the call, commit) are sent at once, so it costs
//! one round trip. It names no prepared statement and sets nothing that outlives the transaction, so a pooler that hands
//! out connections by transaction is no danger. What has been sent is carried out to its commit even if nobody waits for
//! the answer any more, so a connection is never left in the middle.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};

use super::postgres_url::{PostgresUrl, Tls};
use super::{Fault, Functions};
use crate::auth::Principal;
use crate::error::{Error, with_causes};

/// Connections at most. A call takes a millisecond or so, so these carry some thousand turns a second, and a small
/// Supabase project has sixty in all.
const POOL_LEN: usize = 10;

/// How long to wait for a free connection, and for a new one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// After so long Postgres gives a statement up, and a lock that another holds: what Supabase gives `authenticated`.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(8);

/// A little longer, so that it is Postgres which gives up first and says so.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is asking, until the transaction ends. PostgREST sets the same.
const SETTINGS: &str = "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true), \
                        set_config('statement_timeout', $3, true), set_config('lock_timeout', $3, true)";

/// The functions of a Postgres database.
#[derive(Debug)]
pub struct PostgresFunctions {
    pool: Pool,
}

impl PostgresFunctions {
    /// A pool without connections: the first call makes the first.
    ///
    /// # Errors
    /// If the certificate that the address names cannot be read.
    pub fn new(url: &PostgresUrl) -> Result<Self, Error> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match url.tls()? {
            Tls::Off => Manager::from_config(url.config().clone(), tokio_postgres::NoTls, config),
            Tls::On(tls) => Manager::from_config(url.config().clone(), tls, config),
        };
        let pool = Pool::builder(manager)
            .max_size(POOL_LEN)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(CONNECTION_TIMEOUT),
                create: Some(CONNECTION_TIMEOUT),
                recycle: Some(CONNECTION_TIMEOUT),
            })
            .build()
            .map_err(Error::internal)?;
        Ok(Self { pool })
    }
}

#[async_trait]
impl Functions for PostgresFunctions {
    async fn call(
        &self,
        caller: Option<&Principal>,
        function: &'static str,
        arguments: &SecretString,
    ) -> Result<Vec<u8>, Fault> {
        let client = self.pool.get().await.map_err(|error| no_connection(&error))?;
        let (role, claims) = match caller {
            Some(caller) => ("authenticated", claims(caller)?),
            None => ("anon", r#"{"role":"anon"}"#.to_owned()),
        };
        let statement_timeout = STATEMENT_TIMEOUT.as_millis().to_string();
        let settings: [(&(dyn ToSql + Sync), Type); 3] =
            [(&role, Type::TEXT), (&claims, Type::TEXT), (&statement_timeout, Type::TEXT)];
        // The name is one of this program's own.
        let call = format!("select public.{function}($1::text::jsonb)::text");
        let arguments = arguments.expose_secret();
        let arguments: [(&(dyn ToSql + Sync), Type); 1] = [(&arguments, Type::TEXT)];
        let transaction = async {
            tokio::join!(
                biased;
                client.batch_execute("begin"),
                client.query_typed(SETTINGS, &settings),
                client.query_typed(&call, &arguments),
                client.batch_execute("commit"),
            )
        };
        let Ok((begun, set, called, committed)) = timeout(CALL_TIMEOUT, transaction).await else {
            // It is busy with what nobody waits for.
            drop(Object::take(client));
            return Err(Fault::Unknown(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
        };
        begun.and(set.map(drop)).map_err(|error| fault(&error))?;
        let rows = called.map_err(|error| fault(&error))?;
        committed.map_err(|error| fault(&error))?;
        let answer: Option<String> = rows
            .first()
            .and_then(|row| row.try_get(0).ok())
            .ok_or_else(|| Fault::Broken(format!("{function} returned no row")))?;
        // SQL's null is JSON's.
        Ok(answer.map_or_else(|| b"null".to_vec(), String::into_bytes))
    }
}

/// What the verified token says, as policies read it.
fn claims(caller: &Principal) -> Result<String, Fault> {
    let payload = caller.token().expose_secret().split('.').nth(1);
    payload
        .and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok())
        .and_then(|json| String::from_utf8(json).ok())
        .ok_or_else(|| Fault::Broken("a verified token has no claims".to_owned()))
}

/// Nothing was asked of the database yet.
fn no_connection(error: &PoolError) -> Fault {
    match error {
        PoolError::Backend(error) => match error.as_db_error() {
            Some(error) => Fault::of_sqlstate(error.code().code(), error.message()),
            None => Fault::NotDone(with_causes(error), None),
        },
        other => Fault::NotDone(with_causes(other), None),
    }
}

fn fault(error: &tokio_postgres::Error) -> Fault {
    match error.as_db_error() {
        Some(error) => Fault::of_sqlstate(error.code().code(), error.message()),
        // The connection broke after the commit was sent.
        None => Fault::Unknown(with_causes(error)),
    }
}
