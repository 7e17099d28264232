//! How long a reader waits on each store: until `start`, when the turn is saved and the provider is called, and until the
//! first token, beside the same provider reached directly. All in one run, turn by turn in random order, so that what
//! else the machine does weighs on all alike.
//!
//! `cargo bench --bench time_to_start` (PostgreSQL and the PostgREST-compatible server are installed by `./test`).

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    dead_code,
    reason = "a benchmark ends at what it does not expect, prints, and shares the harness of the tests"
)]

#[path = "../tests/it/client.rs"]
mod client;
#[path = "../tests/it/database.rs"]
mod database;
#[path = "../tests/it/postgrest.rs"]
mod postgrest;
#[path = "../tests/it/provider.rs"]
mod provider;
#[path = "../tests/it/relay.rs"]
mod relay;

use std::time::{Duration, Instant};

use database::Database;
use postgrest::Postgrest;
use provider::{Provider, Script};
use relay::{Builder, TestRelay, User};

/// Turns on each store.
const TURNS: usize = 1_000;

/// Turns that are not counted, while connections are made and plans are cached.
const WARM_UP: usize = 50;

struct Arm {
    name: &'static str,
    relay: TestRelay,
    user: User,
    starts: Vec<Duration>,
    tokens: Vec<Duration>,
}

impl Arm {
    async fn new(name: &'static str, builder: Builder) -> Self {
        let relay = builder.env("RELAY_LOG", "info").start().await;
        let user = relay.user().await;
        Self { name, relay, user, starts: Vec::new(), tokens: Vec::new() }
    }

    /// The first turn of a new story: the same each time.
    async fn turn(&mut self) {
        let story = self.user.conversation().await;
        let began = Instant::now();
        let mut reading = self.user.say(story, "And then?").await;
        reading.until("start").await;
        self.starts.push(began.elapsed());
        reading.until("token").await;
        self.tokens.push(began.elapsed());
        reading.done().await;
    }
}

/// The same request to the provider itself, until its first token.
async fn directly(client: &reqwest::Client, provider: &Provider) -> Duration {
    let url = format!("{}/chat/completions", provider.base_url());
    let began = Instant::now();
    let mut response = client.post(url).body("{}").send().await.unwrap();
    response.chunk().await.unwrap();
    let time = began.elapsed();
    while response.chunk().await.unwrap().is_some() {}
    time
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[times.len() * percent / 100].as_secs_f64() * 1e3
}

#[tokio::main]
async fn main() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["once upon a time"]));
    let database = Database::migrated().await;
    let postgrest = Postgrest::on(&database);
    let rest = format!("http://127.0.0.1:{}", postgrest.port());
    let with = || TestRelay::with(&provider);
    let mut arms = [
        Arm::new("sqlite", with()).await,
        Arm::new("postgres", with().env("RELAY_DATABASE_URL", database.url("relay"))).await,
        Arm::new("postgrest", with().env("SUPABASE_REST_URL", rest)).await,
    ];
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut direct = Vec::new();
    for turn in 0..WARM_UP + TURNS {
        if turn == WARM_UP {
            direct.clear();
            for arm in &mut arms {
                (arm.starts, arm.tokens) = Default::default();
            }
        }
        let mut order = [0, 1, 2, 3];
        fastrand::shuffle(&mut order);
        for at in order {
            match arms.get_mut(at) {
                Some(arm) => arm.turn().await,
                None => direct.push(directly(&client, &provider).await),
            }
        }
    }
    println!("{TURNS} turns each, ms            p50      p99   p50 less the provider's own");
    let base = percentile(&mut direct, 50);
    println!("{:<12}first token {base:>8.2} {:>8.2}", "provider", percentile(&mut direct, 99));
    for mut arm in arms {
        for (what, times) in [("start", &mut arm.starts), ("first token", &mut arm.tokens)] {
            let (p50, p99) = (percentile(times, 50), percentile(times, 99));
            println!("{:<12}{what:<12}{p50:>8.2} {p99:>8.2} {:>8.2}", arm.name, p50 - base);
        }
        arm.relay.finish().await;
    }
}
