//! How long a relay takes to recover what a dead one was writing: until it listens, and until all of it is saved.
//!
//! `cargo bench --bench recovery` (PostgreSQL is installed by `./test`).

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    dead_code,
    reason = "a benchmark ends at what it does not expect, prints, and shares the harness of the tests"
)]

#[path = "../tests/it/backlog.rs"]
mod backlog;
#[path = "../tests/it/client.rs"]
mod client;
#[path = "../tests/it/database.rs"]
mod database;
#[path = "../tests/it/provider.rs"]
mod provider;
#[path = "../tests/it/relay.rs"]
mod relay;

use std::time::{Duration, Instant};

use backlog::Backlog;
use database::Database;
use provider::Provider;
use relay::TestRelay;

/// Generations that were being written.
const UNSAVED: usize = 10_000;

/// The text of each: as long as the usual answer.
const TEXT_LEN: usize = 4 << 10;

#[tokio::main]
async fn main() {
    let provider = Provider::start().await;
    recover(&provider, None).await;
    recover(&provider, Some(Database::migrated().await)).await;
}

async fn recover(provider: &Provider, database: Option<Database>) {
    let mut builder = TestRelay::with(provider).env("RELAY_LOG", "warn,storytellr_relay::cli=info");
    if let Some(database) = &database {
        builder = builder.env("RELAY_DATABASE_URL", database.url("relay"));
    }
    let mut relay = builder.start().await;
    let user = relay.user().await;
    relay.kill().await;
    let backlog = Backlog { user: user.id, count: UNSAVED, text_len: TEXT_LEN };
    match &database {
        Some(database) => backlog.begin_in_postgres(database, UNSAVED).await,
        None => backlog.begin_in_sqlite(relay.data()),
    }
    backlog.fill_records(relay.data());
    let began = Instant::now();
    relay.start_again().await;
    let listening = began.elapsed();
    loop {
        let saved = match &database {
            Some(database) => backlog.saved_in_postgres(database).await,
            None => backlog.saved_in_sqlite(relay.data()),
        };
        if saved == UNSAVED {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "{:<10} {UNSAVED} unsaved: listening after {:.2} s, all saved after {:.2} s",
        if database.is_some() { "postgres" } else { "sqlite" },
        listening.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    relay.finish().await;
}
