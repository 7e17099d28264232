//! A relay that is restarted again and again, under readers who come back each time: every message ends exactly once.
//!
//! `RELAY_TEST_RESTARTS=12` restarts it so many times, five seconds apart and under 100 readers, instead of some times in
//! quick succession.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::Reading;
use crate::database::Database;
use crate::oracle::{Cut, Endings, TEXT, telling};
use crate::provider::{PATIENCE, Provider};
use crate::relay::{Answer, Builder, TestRelay, User};

/// How readers and restarts are spread.
struct Pace {
    restarts: u32,
    interval: Duration,
    readers: usize,
    /// Between two words.
    telling: Duration,
    drain: &'static str,
}

impl Pace {
    fn chosen() -> Self {
        let restarts = std::env::var("RELAY_TEST_RESTARTS").ok();
        match restarts.and_then(|restarts| restarts.parse().ok()) {
            Some(restarts) => {
                let (interval, telling) = (Duration::from_secs(5), Duration::from_millis(2_400));
                Self { restarts, interval, readers: 100, telling, drain: "1s" }
            }
            None => {
                let (interval, telling) = (Duration::from_millis(700), Duration::from_millis(500));
                Self { restarts: 2, interval, readers: 20, telling, drain: "0s" }
            }
        }
    }
}

/// Asks, or asks for the rest, until there is an answer.
async fn ask(user: &User, story: i64, stream_id: &str, after: Option<u64>) -> Reading {
    let since = Instant::now();
    loop {
        let request = match after {
            Some(after) => {
                user.request(http::Method::GET, &format!("/v1/streams/{stream_id}?after={after}"))
            }
            None => {
                let body =
                    json!({"conversation_id": story, "input": "Go on.", "stream_id": stream_id});
                user.request(http::Method::POST, "/v1/stream").body(body.to_string())
            }
        };
        // While it is restarted nothing listens, or it says that it is.
        if let Ok(response) = request.send().await {
            if response.status() == 200 {
                return Reading::new(response);
            }
            assert_eq!(response.status(), 503, "{stream_id}: {:?}", Answer::of(response).await);
        }
        assert!(since.elapsed() < PATIENCE, "{stream_id} is not answered");
        sleep(Duration::from_millis(20)).await;
    }
}

/// One stream after the other, each read to its end wherever that comes; with what was read.
async fn read_on(
    user: User,
    story: i64,
    reader: usize,
    is_over: Arc<AtomicBool>,
) -> Vec<(String, Reading)> {
    let mut read = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let stream_id = format!("{reader}-{}", read.len());
        let mut reading = ask(&user, story, &stream_id, None).await;
        loop {
            while reading.next_if_whole().await.is_some() {}
            let last = reading.seen.last();
            if last.is_some_and(|event| event.is_end()) {
                break;
            }
            let mut more = ask(&user, story, &stream_id, last.and_then(|event| event.id)).await;
            more.seen = reading.seen;
            reading = more;
        }
        read.push((stream_id, reading));
    }
    read
}

async fn every_message_ends_once(provider: Provider, builder: Builder) {
    let pace = Pace::chosen();
    provider.always(telling(Cut::Words, pace.telling));
    let mut relay = builder.env("RELAY_DRAIN", pace.drain).start().await;
    let user = relay.user().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..pace.readers {
        let (user, is_over) = (user.clone(), Arc::clone(&is_over));
        readers.spawn(async move {
            let story = user.conversation().await;
            (story, read_on(user, story, reader, is_over).await)
        });
    }
    for _ in 0..pace.restarts {
        sleep(pace.interval).await;
        relay.restart().await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut endings = Endings::default();
    for (story, read) in readers.join_all().await {
        let tree = user.tree(story).await;
        assert_eq!(tree["messages"].as_array().unwrap().len(), 2 * read.len());
        let tree = tree.to_string();
        for (stream_id, reading) in read {
            assert_eq!(tree.matches(&format!("\"stream_id\":\"{stream_id}\"")).count(), 1);
            let end = reading.seen.last().unwrap();
            assert_eq!(reading.seen.iter().filter(|event| event.is_end()).count(), 1);
            let status = if end.name == "done" { "complete" } else { "interrupted" };
            let saved = user.saved(&stream_id, status).await;
            assert_eq!(saved["content"], reading.text(), "{stream_id}: {:?}", reading.seen);
            assert!(status == "interrupted" || reading.text() == TEXT, "{stream_id}");
            endings.count(status.to_owned());
        }
    }
    println!("endings of streams under {} restarts: {endings:?}", pace.restarts);
    assert!(endings.of("complete") > 0 && endings.of("interrupted") > 0, "{endings:?}");
    relay.finish().await;
}

#[tokio::test]
async fn every_message_ends_once_on_sqlite() {
    let provider = Provider::start().await;
    let builder = TestRelay::with(&provider);
    every_message_ends_once(provider, builder).await;
}

#[tokio::test]
async fn every_message_ends_once_on_postgres() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    let builder = TestRelay::with(&provider).env("RELAY_DATABASE_URL", database.url("relay"));
    every_message_ends_once(provider, builder).await;
}
