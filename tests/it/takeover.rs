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
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Event, Reading, check_ids};
use crate::oracle::{Cut, TEXT, telling};
use crate::provider::{PATIENCE, Provider};
use crate::redis::Pair;
use crate::relay::{Answer, User};

/// Pairs of relays that are killed side by side: a run waits for a lease to run out more than it works.
const SIDE_BY_SIDE: u64 = 4;

/// How many times a relay is killed; more by `RELAY_TEST_KILLS`.
const KILLS: u64 = 8;

/// Streams at the moment of each kill.
const STREAMS: u64 = 4;

/// A reader who starts a stream at the first relay and goes on at the others until the end. All events; none if the stream
/// is not there.
async fn read_anywhere(at: &[User], story: i64, stream_id: String) -> Vec<Event> {
    let body = json!({"conversation_id": story, "input": "Go on.", "stream_id": stream_id});
    let mut seen = Vec::new();
    let sent = at[0].request(Method::POST, "/v1/stream").body(body.to_string()).send().await;
    if let Ok(response) = sent
        && response.status() == 200
    {
        seen = read_to_the_end(response).await;
    }
    let since = Instant::now();
    for user in at[1..].iter().cycle() {
        if seen.last().is_some_and(Event::is_end) {
            break;
        }
        assert!(since.elapsed() < 2 * PATIENCE, "{stream_id} has no end: {seen:?}");
        let after = seen.last().and_then(|event: &Event| event.id).unwrap_or(0);
        let path = format!("/v1/streams/{stream_id}?after={after}");
        let asked = user.request(Method::GET, &path).send().await;
        match asked.map(|response| (response.status().as_u16(), response)) {
            Ok((200, response)) => seen.extend(read_to_the_end(response).await),
            Ok((404, _)) if seen.is_empty() => break,
            Ok((503, _)) | Err(_) => sleep(Duration::from_millis(100)).await,
            Ok((_, response)) => panic!("{stream_id}: {:?}", Answer::of(response).await),
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
            let seen = read_anywhere(&[user, away], story, stream_id.clone()).await;
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
    check(&pair.away, story, told).await
}

/// Holds streams to the oracle. Returns how each ended.
async fn check(user: &User, story: i64, told: Vec<(String, Vec<Event>)>) -> Vec<String> {
    let tree = user.tree(story).await.to_string();
    let mut endings = Vec::new();
    for (stream_id, seen) in told {
        let variants = tree.matches(&format!("\"stream_id\":\"{stream_id}\"")).count();
        if seen.is_empty() {
            endings.push("none".to_owned());
            continue;
        }
        assert_eq!(variants, 1, "{stream_id}: {tree}");
        let path = format!("/v1/message-by-stream-id?stream_id={stream_id}");
        let saved = user.get(&path).await.ok(200);
        let (content, status) =
            (saved["content"].as_str().unwrap(), saved["status"].as_str().unwrap());
        assert_eq!(content, text(&seen), "{stream_id} ({status}): {seen:?}");
        check_ids(&seen);
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
                let time = [0, 40, 200, 600][usize::try_from(seed % 4).unwrap()];
                let cut = if seed / 4 % 2 == 0 { Cut::Letters } else { Cut::Words };
                provider.always(telling(cut, Duration::from_millis(time)));
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

/// How long relays are restarted one after the other; longer by `RELAY_TEST_SECONDS`.
const RESTARTS_TIME: u64 = 10;

/// How often one is.
const RESTART_INTERVAL: Duration = Duration::from_secs(3);

/// Streams at any moment meanwhile.
const READERS: u64 = 30;

#[tokio::test]
async fn every_message_ends_once_while_relays_are_restarted_one_after_the_other() {
    let provider = Provider::start().await;
    provider.always(telling(Cut::Words, Duration::from_millis(1_200)));
    let pair = Pair::start_with(&provider, |relay| relay.env("RELAY_DRAIN", "500ms")).await;
    let seconds = std::env::var("RELAY_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(RESTARTS_TIME));
    let Pair { redis, mut first, mut second, user, away, story } = pair;
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let mut at = [user.clone(), away.clone()];
        readers.spawn(async move {
            let mut told = Vec::new();
            for number in 0.. {
                if Instant::now() >= until {
                    break;
                }
                at.reverse();
                let stream_id = format!("{reader}-{number}");
                let everywhere = [at[0].clone(), at[1].clone(), at[0].clone()];
                told.push((stream_id.clone(), read_anywhere(&everywhere, story, stream_id).await));
            }
            told
        });
    }
    let mut restarts = 0;
    let mut restart_at = Instant::now() + RESTART_INTERVAL;
    while restart_at < until {
        sleep_until(restart_at).await;
        restart_at += RESTART_INTERVAL;
        let relay = if restarts % 2 == 0 { &mut first } else { &mut second };
        relay.restart().await;
        restarts += 1;
    }
    let told: Vec<_> = readers.join_all().await.into_iter().flatten().collect();
    assert!(restarts > 0 && told.len() > 20, "{restarts} {}", told.len());
    let endings = check(&user, story, told).await;
    let count = |ending: &str| endings.iter().filter(|known| *known == ending).count();
    println!(
        "{restarts} restarts: complete {}, interrupted {}, not begun {}",
        count("complete"),
        count("interrupted"),
        count("none")
    );
    first.finish().await;
    second.finish().await;
    drop(redis);
}
