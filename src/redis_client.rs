//! The connection to Redis: made again whenever it breaks, and never waited for by those who can do without.
//!
//! Redis is either *up* or *away*. It is up when it is connected, takes writes and has the relay's scripts; whatever fails
//! then makes it away, and it is tried again from the beginning. While it is away every call fails at once, so that an
//! outage costs nobody a time-out.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::error::Error;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may take. Calls are some hundred microseconds; a Redis that needs a second is no help to anybody.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The wait before a Redis that is away is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A key that is written to see whether writing works.
const PROBE: &str = "relay:probe";

/// Says that Redis did not do what it was asked, as far as is known. It has been told to the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Away;

/// A script, by the name that Redis keeps it under.
#[derive(Debug)]
pub(crate) struct Script {
    source: &'static str,
    hash: String,
}

impl Script {
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, hash: redis::Script::new(source).get_hash().to_owned() }
    }

    /// A call with those keys; arguments are added by the caller.
    pub(crate) fn call(&self, keys: &[&str]) -> redis::Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys.len()).arg(keys);
        command
    }
}

/// A Redis server, whether it can be reached or not.
pub(crate) struct Redis {
    client: Client,
    scripts: Vec<&'static str>,
    link: watch::Sender<Link>,
}

struct Link {
    connection: Option<MultiplexedConnection>,
    /// When it came to be as it is.
    since: Instant,
}

/// When a connection was made: tells it from every other one.
type Made = Instant;

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

impl Redis {
    /// The server at that address, not connected yet, which will be taught `scripts`.
    ///
    /// # Errors
    /// If that is no address of a Redis.
    pub(crate) fn new(
        url: &SecretString,
        scripts: impl IntoIterator<Item = &'static Script>,
    ) -> Result<Self, Error> {
        let link = watch::Sender::new(Link { connection: None, since: Instant::now() });
        let scripts = scripts.into_iter().map(|script| script.source).collect();
        let unusable = |error| Error::internal(format!("RELAY_REDIS_URL cannot be used: {error}"));
        let client = Client::open(url.expose_secret()).map_err(unusable)?;
        Ok(Self { client, scripts, link })
    }

    /// Keeps it connected for as long as this is polled.
    pub(crate) async fn keep_connected(&self) {
        let mut is_first = true;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    info!("redis is up");
                    self.set(Some(connection));
                    let mut link = self.link.subscribe();
                    // The sender is here, so it does not end.
                    let _away = link.wait_for(|link| link.connection.is_none()).await;
                }
                Err(error) if is_first => tell_away(&error),
                Err(_) => {}
            }
            is_first = false;
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Whether it can be used now.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) async fn try_once(&self) -> redis::RedisResult<()> {
        self.connect().await.map(drop)
    }

    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let mut connection = self.open(Some(RESPONSE_TIMEOUT)).await?;
        let mut pipeline = redis::pipe();
        // A replica, a full one or one that is still loading would answer, and take nothing.
        pipeline.cmd("SET").arg(PROBE).arg(1).arg("PX").arg(1_000).ignore();
        for source in &self.scripts {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(source).ignore();
        }
        pipeline.query_async::<()>(&mut connection).await?;
        Ok(connection)
    }

    /// A connection of the caller's own, for calls that wait.
    pub(crate) async fn open(
        &self,
        response_timeout: Option<Duration>,
    ) -> redis::RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(response_timeout);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    fn set(&self, connection: Option<MultiplexedConnection>) {
        self.link.send_replace(Link { connection, since: Instant::now() });
    }

    /// Since when it has been up without a break; `None` while it is away.
    pub(crate) fn up_since(&self) -> Option<Instant> {
        let link = self.link.borrow();
        link.connection.as_ref().map(|_| link.since)
    }

    /// Returns when it is up.
    pub(crate) async fn up(&self) {
        let mut link = self.link.subscribe();
        // The sender is here, so it does not end.
        let _up = link.wait_for(|link| link.connection.is_some()).await;
    }

    /// Carries all calls out, one after the other but in one round trip. Nobody knows how many of them were carried out if
    /// this fails.
    pub(crate) async fn pipeline<T: FromRedisValue>(&self, calls: &Pipeline) -> Result<T, Away> {
        let (mut connection, made) = self.connection()?;
        calls.query_async(&mut connection).await.map_err(|error| self.lose(made, &error))
    }

    /// Carries one call out, as [`Self::pipeline`].
    pub(crate) async fn call<T: FromRedisValue>(&self, call: &redis::Cmd) -> Result<T, Away> {
        let (mut connection, made) = self.connection()?;
        call.query_async(&mut connection).await.map_err(|error| self.lose(made, &error))
    }

    fn connection(&self) -> Result<(MultiplexedConnection, Made), Away> {
        let link = self.link.borrow();
        Ok((link.connection.clone().ok_or(Away)?, link.since))
    }

    /// From now on it is away, until it is found to be well again; unless it was, since that connection was made.
    fn lose(&self, made: Made, error: &redis::RedisError) -> Away {
        let is_news = self.link.send_if_modified(|link| {
            let is_news = link.connection.is_some() && link.since == made;
            if is_news {
                *link = Link { connection: None, since: Instant::now() };
            }
            is_news
        });
        if is_news {
            tell_away(error);
        }
        Away
    }
}

fn tell_away(error: &redis::RedisError) {
    warn!(%error, "redis is away: this relay goes on by itself");
}
