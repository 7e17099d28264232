//! Nothing is lost and nothing is doubled: relays killed at any moment, a database that is away, a disk that fails.
//!
//! The oracle for all: for every stream that was begun there is one variant; its text is a beginning of what the provider
//! sent, and all of it where `done` was sent; and a reader who comes back has put together exactly what is saved.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::Reading;
use crate::cutter::{Cuttable, Cutter};
use crate::database::Database;
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{Answer, Builder, TestRelay, User};

/// What every provider of these tests sends, a word at a time.
const TEXT: &str = "Once upon a time 🦊 there was a lighthouse\nthat nobody had lit for years, until one night it shone.";

/// How many times a relay is killed; more by `RELAY_TEST_KILLS`.
const KILLS: u64 = 25;

/// A run whose seed once failed is run first.
const ONCE_FAILED: [u64; 0] = [];

fn telling(pause: Duration) -> Script {
    let words = TEXT.split_inclusive(' ');
    let script = words.fold(Script::new(), |script, word| script.token(word).pause(pause));
    script.finish("stop").done()
}

/// A stream, as far as its reader came before the relay was gone.
struct Told {
    stream_id: String,
    reading: Option<Reading>,
}

/// Reads until the end, or until the relay is gone.
async fn tell(user: User, story: i64, stream_id: String) -> Told {
    let body = json!({"conversation_id": story, "input": "Go on.", "stream_id": stream_id});
    let request = user.request(http::Method::POST, "/v1/stream").body(body.to_string());
    let Ok(response) = request.send().await else { return Told { stream_id, reading: None } };
    assert_eq!(response.status(), 200);
    let mut reading = Reading::new(response);
    while reading.next_if_whole().await.is_some() {}
    Told { stream_id, reading: Some(reading) }
}

/// Holds a stream to the oracle, once the relay runs again. Returns how it ended.
async fn check(user: &User, story: i64, told: Told) -> String {
    let Told { stream_id, reading } = told;
    let saved = settled(user, &stream_id).await;
    let Some(saved) = saved else {
        assert!(
            reading.is_none_or(|reading| reading.seen.is_empty()),
            "{stream_id} had begun and is gone"
        );
        return "none".to_owned();
    };
    let content = saved["content"].as_str().unwrap();
    assert!(TEXT.starts_with(content), "{stream_id}: {content:?}");
    let tree = user.tree(story).await;
    let variants = tree.to_string().matches(&format!("\"stream_id\":\"{stream_id}\"")).count();
    assert_eq!(variants, 1, "{stream_id}");
    let status = saved["status"].as_str().unwrap().to_owned();
    let reading = match reading {
        Some(reading) if reading.seen.last().is_some_and(|event| event.is_end()) => {
            assert_eq!(
                (status.as_str(), reading.seen.last().unwrap().name.as_str()),
                ("complete", "done")
            );
            assert_eq!((content, reading.text().as_str()), (TEXT, TEXT));
            return status;
        }
        Some(reading) => {
            let after = reading.seen.last().and_then(|event| event.id);
            let mut more = user.follow(&stream_id, after).await;
            more.end().await;
            // Positions go back where the reader had more than was recorded, and is told to replace it.
            more.seen = [reading.seen, more.seen].concat();
            more
        }
        None => {
            let mut whole = user.follow(&stream_id, None).await;
            whole.end().await;
            whole
        }
    };
    assert_eq!(reading.text(), content, "{stream_id}: {:?}", reading.seen);
    status
}

/// What is saved of the stream, once nobody writes it any more.
async fn settled(user: &User, stream_id: &str) -> Option<Value> {
    let since = Instant::now();
    loop {
        let answer = user.get(&format!("/v1/message-by-stream-id?stream_id={stream_id}")).await;
        match answer.status {
            404 => return None,
            200 if answer.json["status"] != "streaming" => return Some(answer.json),
            _ => assert!(since.elapsed() < PATIENCE, "not settled: {:?}", answer.json),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// One relay, killed and started again: four streams each time, and a moment that the seed chooses.
async fn killed_at(relay: &mut TestRelay, user: &User, seed: u64) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let story = user.conversation().await;
    let mut readers = JoinSet::new();
    for reader in 0..4 {
        readers.spawn(tell(user.clone(), story, format!("{seed}-{reader}")));
    }
    sleep(Duration::from_micros(random.u64(0..250_000))).await;
    relay.kill().await;
    relay.start_again().await;
    let mut endings = Vec::new();
    while let Some(told) = readers.join_next().await {
        endings.push(check(user, story, told.unwrap()).await);
    }
    endings
}

async fn a_relay_killed_at_any_moment_loses_and_doubles_nothing(
    provider: Provider,
    builder: Builder,
) {
    provider.always(telling(Duration::from_millis(1)));
    let mut relay = builder.start().await;
    let user = relay.user().await;
    let kills = std::env::var("RELAY_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    let mut endings = std::collections::BTreeMap::<String, usize>::new();
    for seed in ONCE_FAILED.into_iter().chain(0..kills.unwrap_or(KILLS)) {
        for ending in killed_at(&mut relay, &user, seed).await {
            *endings.entry(ending).or_default() += 1;
        }
    }
    println!("endings of killed streams: {endings:?}");
    assert!(
        endings.contains_key("interrupted"),
        "no stream was ever caught in the middle: {endings:?}"
    );
    relay.finish().await;
}

#[tokio::test]
async fn a_relay_killed_at_any_moment_loses_and_doubles_nothing_on_sqlite() {
    let provider = Provider::start().await;
    let builder = TestRelay::with(&provider);
    a_relay_killed_at_any_moment_loses_and_doubles_nothing(provider, builder).await;
}

#[tokio::test]
async fn a_relay_killed_at_any_moment_loses_and_doubles_nothing_on_postgres() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    let builder = TestRelay::with(&provider).env("RELAY_DATABASE_URL", database.url("relay"));
    a_relay_killed_at_any_moment_loses_and_doubles_nothing(provider, builder).await;
}

/// Streams that have told their whole text while the database is away.
async fn told_without_database(
    user: &User,
    story: i64,
    gate: &Gate,
    cutter: &Cutter,
    count: usize,
) -> Vec<String> {
    let mut readers = JoinSet::new();
    for _ in 0..count {
        let user = user.clone();
        readers.spawn(async move {
            let mut reading = user.say(story, "Go on.").await;
            reading.until("token").await;
            reading
        });
    }
    let readings = readers.join_all().await;
    cutter.shut();
    gate.open();
    let mut ended = JoinSet::new();
    for mut reading in readings {
        ended.spawn(async move {
            let done = reading.done().await;
            assert_eq!((&done["saved"], reading.text().as_str()), (&json!(false), TEXT));
            reading.stream_id()
        });
    }
    ended.join_all().await
}

fn gated(gate: &Gate) -> Script {
    let (first, rest) = TEXT.split_at(5);
    Script::new().token(first).gate(gate).token(rest).finish("stop").done()
}

#[tokio::test]
async fn what_ends_while_the_database_is_away_is_saved_once_when_it_is_back() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, mut relay, user, story } = Cuttable::start(&provider).await;
    let streams = told_without_database(&user, story, &gate, &cutter, 50).await;
    // Killed in between, too: what is in the outbox is on the disk.
    relay.kill().await;
    cutter.open();
    let back = Instant::now();
    relay.start_again().await;
    for stream in &streams {
        assert_eq!(user.saved(stream, "complete").await["content"], TEXT);
    }
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    let tree = user.tree(story).await;
    assert_eq!(tree["messages"].as_array().unwrap().len(), 100);
    for stream in &streams {
        let mut follower = user.follow(stream, None).await;
        assert_eq!(
            (follower.done().await["saved"].clone(), follower.text()),
            (json!(true), TEXT.to_owned())
        );
    }
    relay.finish().await;
}

#[tokio::test]
async fn who_comes_back_before_the_database_has_the_answer_is_not_told_another() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, mut relay, user, story } = Cuttable::start(&provider).await;
    let streams = told_without_database(&user, story, &gate, &cutter, 1).await;
    relay.kill().await;
    relay.start_again().await;
    let path = format!("/v1/streams/{}", streams[0]);
    user.get(&path).await.refused(503, "store_unavailable");
    cutter.open();
    let since = Instant::now();
    let answer = loop {
        let response = user.request(http::Method::GET, &path).send().await.unwrap();
        if response.status() == 200 {
            break Reading::new(response);
        }
        Answer::of(response).await.refused(503, "store_unavailable");
        assert!(since.elapsed() < PATIENCE);
        sleep(Duration::from_millis(20)).await;
    };
    let mut answer = answer;
    answer.done().await;
    assert_eq!(answer.text(), TEXT);
    relay.finish().await;
}

#[tokio::test]
async fn what_the_database_refuses_for_good_is_set_aside_and_blocks_nobody() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    let doomed = user.conversation().await;
    let lost = told_without_database(&user, doomed, &gate, &cutter, 1).await;
    // Somebody deletes the story while its last page is on its way.
    let delete = format!("delete from relay_conversations where id = {doomed}");
    Database::shared().await.admin().await.batch_execute(&delete).await.unwrap();
    cutter.open();
    let since = Instant::now();
    let outbox = loop {
        let listed = relay.run(&["outbox", "list"]);
        if listed.contains("set_aside_at\":\"") {
            break listed;
        }
        assert!(since.elapsed() < PATIENCE, "{listed}");
        sleep(Duration::from_millis(50)).await;
    };
    let entry: Value = serde_json::from_str(outbox.trim()).unwrap();
    assert_eq!((&entry["stream_id"], &entry["user_id"]), (&json!(lost[0]), &json!(user.id)));
    assert!(
        entry["reason"].as_str().unwrap().contains("deleted") && !outbox.contains("lighthouse"),
        "{outbox}"
    );
    assert_eq!(user.told(story, "Go on.").await["saved"], true);
    assert!(relay.run(&["outbox", "retry"]).starts_with("1 "));
    // It is refused again, which the log tells as the error that it is.
    relay.finish_with_errors().await;
}
