//! Nothing is lost and nothing is doubled by a relay that is killed, at any moment, or restarted again and again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::backlog::Backlog;
use crate::database::Database;
use crate::oracle::{Cut, Endings, TEXT, check, tell_and_count, telling};
use crate::provider::{PATIENCE, Provider};
use crate::relay::{Builder, TestRelay, User};

/// How many times a relay is killed; more by `RELAY_TEST_KILLS`.
const KILLS: u64 = 20;

/// A run whose seed once failed is run first.
const ONCE_FAILED: [u64; 0] = [];

/// Streams that are told when the relay is killed.
const STREAMS: usize = 4;

/// A relay that is killed again and again.
struct Victim {
    provider: Provider,
    relay: TestRelay,
    user: User,
    /// What takes no answer in some runs, so that they go to the outbox.
    database: Option<Database>,
    endings: Endings,
}

impl Victim {
    async fn start(provider: Provider, builder: Builder, database: Option<Database>) -> Self {
        let relay = builder.start().await;
        let user = relay.user().await;
        Self { provider, relay, user, database, endings: Endings::default() }
    }

    /// Kills it at a moment that the seed chooses: before or while streams begin, in the middle of them, or at their end.
    /// In some runs the database takes no answer meanwhile, and in some the relay is killed again while it recovers.
    async fn kill_at(&mut self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let cut = if random.bool() { Cut::Letters } else { Cut::Words };
        self.provider.always(telling(cut, Duration::from_micros(random.u64(0..80_000))));
        let story = self.user.conversation().await;
        let refusing = self.database.as_ref().filter(|_| random.u8(0..6) == 0);
        if let Some(database) = refusing {
            database.refuse_answers(true).await;
        }
        let (told, mut count) = watch::channel(0);
        let mut readers = JoinSet::new();
        for reader in 0..STREAMS {
            let stream_id = format!("{seed}-{reader}");
            readers.spawn(tell_and_count(self.user.clone(), story, stream_id, told.clone()));
        }
        drop(told);
        let whole = STREAMS * TEXT.len();
        let (bytes, later) = match random.u8(0..3) {
            0 => (0, random.u64(0..20_000)),
            1 => (random.usize(0..whole), random.u64(0..2_000)),
            _ => (whole - 20 + random.usize(0..=20 + STREAMS), random.u64(0..5_000)),
        };
        // It fails if all have ended before.
        drop(count.wait_for(|count| *count >= bytes).await);
        sleep(Duration::from_micros(later)).await;
        self.relay.kill().await;
        for _ in 0..random.u8(0..3) {
            self.relay.start_and_kill(Duration::from_micros(random.u64(0..150_000))).await;
        }
        if let Some(database) = refusing {
            database.refuse_answers(false).await;
        }
        self.relay.start_again().await;
        while let Some(told) = readers.join_next().await {
            self.endings.count(check(&self.user, story, told.unwrap()).await);
        }
    }

    async fn kill_at_any_moment(mut self) {
        let kills = std::env::var("RELAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
        for seed in ONCE_FAILED.into_iter().chain(0..kills.unwrap_or(KILLS)) {
            self.kill_at(seed).await;
        }
        println!("endings of killed streams: {:?}", self.endings);
        for ending in ["complete", "interrupted", "none"] {
            assert!(self.endings.of(ending) > 0, "never {ending}: {:?}", self.endings);
        }
        self.relay.finish().await;
    }
}

#[tokio::test]
async fn a_relay_killed_at_any_moment_loses_and_doubles_nothing_on_sqlite() {
    let provider = Provider::start().await;
    let builder = TestRelay::with(&provider);
    Victim::start(provider, builder, None).await.kill_at_any_moment().await;
}

#[tokio::test]
async fn a_relay_killed_at_any_moment_loses_and_doubles_nothing_on_postgres() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    let builder = TestRelay::with(&provider).env("RELAY_DATABASE_URL", database.url("relay"));
    Victim::start(provider, builder, Some(database)).await.kill_at_any_moment().await;
}

/// More than is brought into the database at once.
const UNSAVED: usize = 600;

#[tokio::test]
async fn all_that_a_killed_relay_was_writing_is_recovered_on_sqlite() {
    let provider = Provider::start().await;
    let mut relay = TestRelay::with(&provider).start().await;
    let backlog = Backlog { user: relay.user().await.id, count: UNSAVED, text_len: 4 << 10 };
    relay.kill().await;
    backlog.begin_in_sqlite(relay.data());
    backlog.fill_records(relay.data());
    relay.start_again().await;
    assert_eq!(backlog.saved_in_sqlite(relay.data()), UNSAVED, "before anybody is let in");
    relay.finish().await;
}

#[tokio::test]
async fn all_that_a_killed_relay_was_writing_is_recovered_on_postgres() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    let builder = TestRelay::with(&provider).env("RELAY_DATABASE_URL", database.url("relay"));
    let mut relay = builder.start().await;
    let backlog = Backlog { user: relay.user().await.id, count: UNSAVED, text_len: 4 << 10 };
    relay.kill().await;
    backlog.begin_in_postgres(&database, UNSAVED).await;
    backlog.fill_records(relay.data());
    relay.start_again().await;
    let since = Instant::now();
    while backlog.saved_in_postgres(&database).await < UNSAVED {
        assert!(since.elapsed() < PATIENCE, "{}", relay.log());
        sleep(Duration::from_millis(20)).await;
    }
    relay.finish().await;
}
