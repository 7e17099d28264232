//! Two relays before one Redis and one Postgres, of which one is killed at any moment: its readers move to the other, and
//! the oracle of `durability.rs` holds for every stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::{Event, Reading};
use crate::provider::{PATIENCE, Provider, Script};
use crate::redis::Pair;
use crate::relay::{Answer, User};

/// What the provider of these tests sends, a word at a time.
const TEXT: &str = "Once upon a time 🦊 there was a lighthouse\nthat nobody had lit for years, until one night it shone.";

/// Pairs of relays that are killed side by side: a run waits for a lease to run out more than it works.
const SIDE_BY_SIDE: u64 = 4;

/// How many times a relay is killed; more by `RELAY_TEST_KILLS`.
const KILLS: u64 = 8;

/// Streams at the moment of each kill.
const STREAMS: u64 = 4;

fn telling(pause: Duration) -> Script {
    let words = TEXT.split_inclusive(' ');
    let script = words.fold(Script::new(), |script, word| script.token(word).pause(pause));
    script.finish("stop").done()
}

/// A reader who starts a stream at one relay and goes on at the other until the end. All events; none if the stream is
/// not there.
async fn read_anywhere(user: User, away: User, story: i64, stream_id: String) -> Vec<Event> {
    let body = json!({"conversation_id": story, "input": "Go on.", "stream_id": stream_id});
    let mut seen = Vec::new();
    let sent = user.request(Method::POST, "/v1/stream").body(body.to_string()).send().await;
    if let Ok(response) = sent
        && response.status() == 200
    {
        seen = read_to_the_end(response).await;
    }
    let since = Instant::now();
    while !seen.last().is_some_and(Event::is_end) {
        assert!(since.elapsed() < 2 * PATIENCE, "{stream_id} has no end: {seen:?}");
        let after = seen.last().and_then(|event: &Event| event.id).unwrap_or(0);
        let path = format!("/v1/streams/{stream_id}?after={after}");
        let response = away.request(Method::GET, &path).send().await.unwrap();
        match response.status().as_u16() {
            200 => seen.extend(read_to_the_end(response).await),
            404 if seen.is_empty() => break,
            status => {
                assert_eq!(status, 503, "{:?}", Answer::of(response).await);
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    seen
}

async fn read_to_the_end(response: reqwest::Response) -> Vec<Event> {
    let mut reading = Reading::new(response);
    while reading.next_if_whole().await.is_some() {}
    reading.seen
}

fn text(seen: &[Event]) -> String {
    seen.iter().fold(String::new(), |text, event| match event.name.as_str() {
        "sync" => event.json()["content"].as_str().unwrap().to_owned(),
        "token" => text + &event.data,
        _ => text,
    })
}

/// One kill, at a moment that the seed chooses. Returns how each stream ended.
async fn killed_at(pair: &mut Pair, seed: u64) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let story = pair.user.conversation().await;
    let mut readers = JoinSet::new();
    for at in 0..STREAMS {
        let stream_id = format!("{seed}-{at}");
        let (user, away) = (pair.user.clone(), pair.away.clone());
        readers.spawn(async move {
            let seen = read_anywhere(user, away, story, stream_id.clone()).await;
            (stream_id, seen)
        });
    }
    let mut told = Vec::new();
    if seed.is_multiple_of(4) {
        // At an end, when it has been told once.
        told.extend(readers.join_next().await.map(Result::unwrap));
    } else {
        sleep(Duration::from_micros(random.u64(0..800_000))).await;
    }
    pair.first.kill().await;
    // As often as not it is back before anybody has missed it.
    let is_back_at_once = random.bool();
    if is_back_at_once {
        pair.first.start_again().await;
    }
    told.extend(readers.join_all().await);
    if !is_back_at_once {
        pair.first.start_again().await;
    }
    let tree = pair.away.tree(story).await;
    let mut endings = Vec::new();
    for (stream_id, seen) in told {
        let variants = tree.to_string().matches(&format!("\"stream_id\":\"{stream_id}\"")).count();
        if seen.is_empty() {
            endings.push("none".to_owned());
            continue;
        }
        assert_eq!(variants, 1, "{stream_id}: {tree}");
        let path = format!("/v1/message-by-stream-id?stream_id={stream_id}");
        let saved = pair.away.get(&path).await.ok(200);
        let (content, status) =
            (saved["content"].as_str().unwrap(), saved["status"].as_str().unwrap());
        assert_eq!(content, text(&seen), "{stream_id} ({status}): {seen:?}");
        let ends = seen.iter().filter(|event| event.is_end()).count();
        assert_eq!(ends, 1, "{stream_id}: {seen:?}");
        match seen.last().unwrap().name.as_str() {
            "done" => assert_eq!((status, content), ("complete", TEXT), "{stream_id}"),
            _ => assert!(
                status == "interrupted" && TEXT.starts_with(content),
                "{stream_id}: {status} {content:?}"
            ),
        }
        endings.push(status.to_owned());
    }
    endings
}

#[tokio::test]
async fn a_relay_killed_beside_another_loses_and_doubles_nothing() {
    let kills = std::env::var("RELAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: u64 = kills.unwrap_or(KILLS);
    let (next, endings) =
        (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(BTreeMap::<String, u64>::new())));
    let mut pairs = JoinSet::new();
    for _ in 0..SIDE_BY_SIDE {
        let (next, endings) = (Arc::clone(&next), Arc::clone(&endings));
        pairs.spawn(async move {
            let provider = Provider::start().await;
            let mut pair = Pair::start(&provider).await;
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= kills {
                    break;
                }
                let pause = [0, 2, 10, 30][usize::try_from(seed % 4).unwrap()];
                provider.always(telling(Duration::from_millis(pause)));
                for ending in killed_at(&mut pair, seed).await {
                    *endings.lock().await.entry(ending).or_default() += 1;
                }
            }
            pair.finish().await;
        });
    }
    pairs.join_all().await;
    let endings = endings.lock().await;
    println!("endings of streams of killed relays: {endings:?}");
    assert!(endings.contains_key("interrupted") && endings.contains_key("complete"), "{endings:?}");
}
