//! A real Redis of a test's own, behind a proxy that can be shut, and two relays that share it and a Postgres.

use std::sync::Mutex;
use std::time::Duration;

use http::Method;
use redis::Cmd;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::cutter::Cutter;
use crate::database::{Database, Recipe, Server, free_port};
use crate::provider::{PATIENCE, Provider};
use crate::relay::{Builder, TestRelay, User};

const REDIS: Recipe = Recipe {
    prepare: ":",
    // Nothing is written to the disk but when a test says so.
    serve: r#"exec redis-server --bind 127.0.0.1 --port "$PORT" --dir "$DATA" --save "" --appendonly no"#,
    probe: r#"redis-cli -h 127.0.0.1 -p "$PORT" ping >/dev/null 2>&1"#,
    end_by: "KILL",
};

/// A Redis server.
pub(crate) struct Redis {
    data: TempDir,
    port: u16,
    server: Mutex<Option<Server>>,
    pub(crate) cutter: Cutter,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let (data, port) = (TempDir::new().unwrap(), free_port());
        let server = Mutex::new(Some(serve(&data, port)));
        Self { data, port, server, cutter: Cutter::before(port).await }
    }

    /// Its address, behind the cutter.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.cutter.port())
    }

    /// Does something as an operator would, past the cutter.
    pub(crate) fn call<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut call = Cmd::new();
        call.arg(words);
        call.query(&mut client.get_connection().unwrap()).unwrap()
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> String {
        let said: String = self.call(&["INFO", "server"]);
        let line = said.lines().find_map(|line| line.strip_prefix("process_id:"));
        line.unwrap().to_owned()
    }

    /// What it has now is what it will have after [`Self::crash`].
    pub(crate) fn keep(&self) {
        self.call::<()>(&["SAVE"]);
    }

    /// Ends it at once and starts it again with what was kept.
    pub(crate) fn crash(&self) {
        let mut server = self.server.lock().unwrap();
        drop(server.take());
        *server = Some(serve(&self.data, self.port));
    }
}

fn serve(data: &TempDir, port: u16) -> Server {
    let env = [("DATA", data.path().to_str().unwrap()), ("PORT", &port.to_string())];
    Server::start(&REDIS, &env, &[])
}

/// Of `pg_stat_activity` what waits for a lock in this database.
pub(crate) const WAITS: &str = "datname = current_database() and wait_event_type = 'Lock'";

/// Two relays before one database and one Redis, and a user who knows both.
pub(crate) struct Pair {
    pub(crate) redis: Redis,
    pub(crate) first: TestRelay,
    pub(crate) second: TestRelay,
    /// At the first relay.
    pub(crate) user: User,
    /// The same at the second.
    pub(crate) away: User,
    pub(crate) story: i64,
}

impl Pair {
    pub(crate) async fn start(provider: &Provider) -> Self {
        Self::start_with(provider, |builder| builder).await
    }

    pub(crate) async fn start_with(provider: &Provider, set: impl Fn(Builder) -> Builder) -> Self {
        let (database, redis) = (Database::shared().await, Redis::start().await);
        let relay = || {
            set(TestRelay::with(provider)
                .env("RELAY_DATABASE_URL", database.url("relay"))
                .env("RELAY_REDIS_URL", redis.url()))
            .start()
        };
        let (first, second) = (relay().await, relay().await);
        let user = first.user().await;
        let away = second.same(&user);
        let story = user.conversation().await;
        let pair = Self { redis, first, second, user, away, story };
        pair.first.is_in_touch().await;
        pair.second.is_in_touch().await;
        pair
    }

    /// Two whose way to the database can be cut.
    pub(crate) async fn cuttable(
        provider: &Provider,
        set: impl Fn(Builder) -> Builder,
    ) -> (Self, Cutter) {
        let (cutter, url) = Cutter::before_postgres().await;
        let set = |relay| set(relay).env("RELAY_DATABASE_URL", url.clone());
        (Self::start_with(provider, set).await, cutter)
    }

    /// Two before a database of their own, which nobody else waits for.
    pub(crate) async fn start_alone(
        provider: &Provider,
        set: impl Fn(Builder) -> Builder,
    ) -> (Self, Database) {
        let database = Database::migrated().await;
        let set = |relay| set(relay).env("RELAY_DATABASE_URL", database.url("relay"));
        (Self::start_with(provider, set).await, database)
    }

    /// Asks the first relay for that turn in the story, and kills it before the turn has begun. The database is theirs
    /// alone. What is returned holds a lock on the story, and the turn waits for that to be rolled back.
    pub(crate) async fn kill_beginning(&mut self, database: &Database, turn: &Value) -> Client {
        let lock = database.admin().await;
        let story = self.story;
        let sql =
            format!("begin; select from public.relay_conversations where id = {story} for update");
        lock.batch_execute(&sql).await.unwrap();
        let request = self.user.request(Method::POST, "/v1/stream").body(turn.to_string());
        let asking = tokio::spawn(request.send());
        let waiting = format!("select count(*) from pg_stat_activity where {WAITS}");
        let since = Instant::now();
        while database.count(&waiting).await == 0 {
            assert!(since.elapsed() < PATIENCE, "{}", self.first.log());
            sleep(Duration::from_millis(10)).await;
        }
        self.first.kill().await;
        assert!(asking.await.unwrap().is_err(), "it had been answered");
        lock
    }

    pub(crate) async fn finish(self) {
        self.first.finish().await;
        self.second.finish().await;
    }

    /// The end of a test whose users cannot be asked whether they are at rest.
    pub(crate) async fn finish_without_users(self) {
        self.first.finish_without_users().await;
        self.second.finish_without_users().await;
    }
}
