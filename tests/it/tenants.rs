//! Many at once, and not a byte of one at another.

use std::time::Duration;

use serde_json::json;

use crate::provider::{Provider, Script};
use crate::relay::{TestRelay, User};

const STREAMS: usize = 1_000;
const USERS: usize = 20;

/// Tokens that say whose they are.
fn tokens(name: &str) -> Vec<String> {
    (0..20).map(|at| format!("<{name}-{at}>")).collect()
}

fn script(name: &str) -> Script {
    let pause = Duration::from_millis(10);
    let tokens = tokens(name);
    tokens
        .iter()
        .fold(Script::new(), |script, token| script.token(token).pause(pause))
        .finish("stop")
        .done()
}

/// Reads one story, or leaves it after some events.
async fn read(user: User, bot: i64, name: &'static str, leave_after: Option<usize>) {
    let story = user.conversation().await;
    let mut reading = user
        .stream(
            json!({"conversation_id": story, "bot_id": bot, "input": format!("<{name}-prompt>")}),
        )
        .await;
    match leave_after {
        None => {
            assert_eq!(reading.done().await["saved"], true);
            assert_eq!(reading.text(), tokens(name).concat());
        }
        Some(events) => {
            for _ in 0..events {
                reading.next().await;
            }
            assert!(tokens(name).concat().starts_with(&reading.text()));
        }
    }
    let stream_id = reading.stream_id();
    drop(reading);
    let saved = user.saved(&stream_id, "complete").await;
    assert_eq!(saved["content"], tokens(name).concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_of_two_providers_do_not_mix() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let (north, south) = (Provider::start().await, Provider::start().await);
    north.always(script("north"));
    south.always(script("south"));
    let relay = TestRelay::with(&north)
        .env("RELAY_PROVIDERS", format!("north={},south={}", north.base_url(), south.base_url()))
        .env("NORTH_API_KEY", "sk-canary-north")
        .env("SOUTH_API_KEY", "sk-canary-south")
        .start()
        .await;
    let mut users = Vec::new();
    for _ in 0..USERS {
        let user = relay.stranger();
        let bots = [
            user.bot(json!({"provider": "north"})).await,
            user.bot(json!({"provider": "south"})).await,
        ];
        users.push((user, bots));
    }
    let mut random = fastrand::Rng::with_seed(7);
    let readers: Vec<_> = (0..STREAMS)
        .map(|at| {
            let (user, bots) = &users[at % USERS];
            let side = random.usize(..2);
            let leave_after = random.bool().then(|| random.usize(..20));
            tokio::spawn(read(user.clone(), bots[side], ["north", "south"][side], leave_after))
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    for (provider, name, other) in [(&north, "north", "south"), (&south, "south", "north")] {
        let requests = provider.requests();
        for request in &requests {
            let key = format!("Bearer sk-canary-{name}");
            assert!(request.head.lines().any(|line| line.ends_with(&key)), "{}", request.head);
            assert!(!format!("{request:?}").contains(other), "{request:?}");
        }
    }
    assert_eq!(north.requests().len() + south.requests().len(), STREAMS);
    assert!(!relay.log().contains("sk-canary"));
    relay.finish().await;
}
