//! Several relays that share a Redis: whatever one writes can be followed, listed and stopped at any, and when one is gone
//! another ends what it was writing.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::client::Reading;
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::redis::{Pair, Redis};
use crate::relay::{TestRelay, User};

const WORDS: [&str; 6] = ["Once ", "upon ", "a\ntime ", "🦊 ", "there ", "was."];

fn text() -> String {
    WORDS.concat()
}

/// An answer of which each word waits for the gate.
fn gated(gate: &Gate) -> Script {
    WORDS
        .iter()
        .fold(Script::new(), |script, word| script.gate(gate).token(word))
        .gate(gate)
        .finish("stop")
        .done()
}

/// Reads until that much of the text is there.
async fn read_to(reading: &mut Reading, text: &str) {
    while reading.text() != text {
        assert!(reading.next().await.is_some(), "{:?}", reading.seen);
    }
}

/// A stream that is written at the first relay, and followed at the second as well.
struct Followed {
    here: Reading,
    there: Reading,
    stream_id: String,
}

impl Followed {
    /// As far as its first `words` words have come to the second.
    async fn begin(pair: &Pair, words: usize) -> Self {
        let here = pair.user.say(pair.story, "Go.").await;
        let stream_id = here.stream_id();
        let mut there = pair.away.follow(&stream_id, None).await;
        read_to(&mut there, &WORDS[..words].concat()).await;
        Self { here, there, stream_id }
    }
}

#[tokio::test]
async fn a_stream_is_followed_listed_and_read_again_at_another_relay() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start(&provider).await;
    let mut here = pair.user.say(pair.story, "Go.").await;
    gate.step();
    here.until("token").await;
    let stream_id = here.stream_id();
    let mut there = pair.away.follow(&stream_id, None).await;
    read_to(&mut there, WORDS[0]).await;

    let listed = |user: &User| {
        let user = user.clone();
        async move { user.get("/v1/streams").await.ok(200)["data"].clone() }
    };
    assert_eq!(listed(&pair.user).await, listed(&pair.away).await);
    assert_eq!(listed(&pair.away).await[0]["stream_id"], stream_id);
    pair.second
        .user()
        .await
        .get(&format!("/v1/streams/{stream_id}"))
        .await
        .refused(404, "stream_not_found");

    gate.open();
    let (done_here, done_there) = (here.done().await, there.done().await);
    assert_eq!((done_here["saved"].clone(), done_here), (json!(true), done_there));
    assert_eq!((here.text(), there.text()), (text(), text()));
    assert_eq!(here.seen.last(), there.seen.last(), "positions are the same everywhere");
    assert_eq!(listed(&pair.away).await, json!([]));

    // After its end, too, and from any position.
    for event in &here.seen {
        let mut rest = pair.away.follow(&stream_id, event.id).await;
        rest.done().await;
        let known: String = here
            .seen
            .iter()
            .filter(|seen| seen.id <= event.id && seen.name == "token")
            .map(|seen| seen.data.as_str())
            .collect();
        assert_eq!(known + &rest.text(), text());
    }
    pair.finish().await;
}

#[tokio::test]
async fn readers_who_change_relays_at_every_event_miss_and_repeat_nothing() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    let words: Vec<_> = (0..500).map(|at| format!("{at} 🦊\n")).collect();
    let script = words.iter().fold(Script::new(), |script, word| script.gate(&gate).token(word));
    provider.once(script.finish("stop").done());
    let pair = Pair::start(&provider).await;
    let mut writing = pair.user.say(pair.story, "Go.").await;
    let stream_id = writing.stream_id();
    let (mut seen, mut after) = (Vec::new(), None);
    for at in 0..words.len() {
        gate.step();
        let user = if at % 2 == 0 { &pair.away } else { &pair.user };
        let mut reading = user.follow(&stream_id, after).await;
        let wanted = words[..=at].concat();
        loop {
            seen.push(reading.next().await.unwrap());
            after = seen.last().and_then(|event| event.id);
            let text: String = seen
                .iter()
                .filter(|event| event.name == "token")
                .map(|event| event.data.as_str())
                .collect();
            if text == wanted {
                break;
            }
            assert!(wanted.starts_with(&text), "{text:?}");
        }
    }
    gate.open();
    writing.done().await;
    assert_eq!(writing.text(), words.concat());
    pair.finish().await;
}

#[tokio::test]
async fn fifty_readers_of_one_stream_at_two_relays_read_the_same() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start(&provider).await;
    let writing = pair.user.say(pair.story, "Go.").await;
    let stream_id = writing.stream_id();
    let mut readers = tokio::task::JoinSet::new();
    for at in 0..50 {
        let user = if at % 2 == 0 { pair.user.clone() } else { pair.away.clone() };
        let stream_id = stream_id.clone();
        readers.spawn(async move {
            let mut reading = user.follow(&stream_id, None).await;
            (reading.done().await, reading.text())
        });
    }
    gate.open();
    let answers = readers.join_all().await;
    assert!(answers.iter().all(|answer| *answer == (answers[0].0.clone(), text())), "{answers:?}");
    drop(writing);
    pair.finish().await;
}

#[tokio::test]
async fn one_stream_id_at_two_relays_is_one_generation() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start(&provider).await;
    for body in [
        json!({"conversation_id": pair.story, "input": "Go.", "stream_id": "saved"}),
        json!({"input": "Go.", "stream_id": "unsaved"}),
    ] {
        let mut here = pair.user.stream(body.clone()).await;
        let mut there = pair.away.stream(body.clone()).await;
        gate.open();
        assert_eq!(here.done().await, there.done().await);
        assert_eq!((here.text(), there.text()), (text(), text()));
        let mut other = body.clone();
        other["system"] = json!("Be brief.");
        pair.away.post("/v1/stream", &other).await.refused(409, "stream_id_reused");
        provider.once(gated(&gate));
    }
    assert_eq!(provider.requests().len(), 2);
    pair.finish().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_everywhere_and_its_name_is_free_at_once() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let pair = Pair::start(&provider).await;
    let bad =
        json!({"conversation_id": pair.story, "input": "Go.", "bot_id": 1, "stream_id": "name"});
    pair.user.post("/v1/stream", &bad).await.refused(403, "bot_not_found");
    let good = json!({"conversation_id": pair.story, "input": "Go.", "stream_id": "name"});
    pair.user.stream(good.clone()).await.done().await;
    pair.away.stream(good).await.done().await;
    assert_eq!(provider.requests().len(), 1);
    pair.finish().await;
}

#[tokio::test]
async fn a_stop_at_another_relay_closes_the_provider_within_a_second() {
    let provider = Provider::start().await;
    provider.once(Script::new().token(WORDS[0]).stall());
    let pair = Pair::start(&provider).await;
    let mut here = pair.user.say(pair.story, "Go.").await;
    here.until("token").await;
    let stream_id = here.stream_id();
    let path = format!("/v1/streams/{stream_id}");
    pair.second.user().await.delete(&path).await.refused(404, "stream_not_found");
    let stopped_at = Instant::now();
    assert_eq!(pair.away.delete(&path).await.status, 204);
    provider.closed(0).await;
    assert!(stopped_at.elapsed() < Duration::from_secs(1), "{:?}", stopped_at.elapsed());
    assert_eq!(here.done().await["status"], "stopped");
    assert_eq!(pair.away.delete(&path).await.status, 204, "it has ended");
    assert_eq!(pair.away.saved(&stream_id, "stopped").await["content"], WORDS[0]);
    pair.finish().await;
}

#[tokio::test]
async fn a_reader_at_another_relay_is_somebody_who_is_there() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start_with(&provider, |relay| relay.env("RELAY_DETACHED_GRACE", "2s")).await;
    let here = pair.user.say(pair.story, "Go.").await;
    let mut there = pair.away.follow(&here.stream_id(), None).await;
    drop(here);
    // For longer than the grace, and than it takes for a reader elsewhere to be forgotten.
    sleep(Duration::from_secs(9)).await;
    gate.open();
    assert_eq!(there.done().await["status"], "complete");

    provider.once(Script::new().token(WORDS[0]).stall());
    let here = pair.user.say(pair.story, "Go on.").await;
    let mut there = pair.away.follow(&here.stream_id(), None).await;
    there.until("token").await;
    let stream_id = here.stream_id();
    drop((here, there));
    pair.user.saved(&stream_id, "stopped").await;
    provider.closed(1).await;
    pair.finish().await;
}

/// The one variant that is saved of a stream, and that there is no other.
async fn saved_once(user: &User, story: i64, stream_id: &str, status: &str) -> Value {
    let saved = user.saved(stream_id, status).await;
    let tree = user.tree(story).await;
    assert_eq!(tree.to_string().matches(&format!("\"stream_id\":\"{stream_id}\"")).count(), 1);
    saved
}

#[tokio::test]
async fn what_a_killed_relay_was_writing_is_ended_by_another_within_fifteen_seconds() {
    let provider = Provider::start().await;
    provider.once(Script::new().token(WORDS[0]).token(WORDS[1]).stall());
    let mut pair = Pair::start(&provider).await;
    let Followed { here: _here, mut there, stream_id } = Followed::begin(&pair, 2).await;
    pair.first.kill().await;
    let since = Instant::now();
    let error = there.error().await;
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert_eq!((&error["code"], &error["saved"]), (&json!("interrupted"), &json!(true)));
    let saved = saved_once(&pair.away, pair.story, &stream_id, "interrupted").await;
    assert_eq!(
        (saved["content"].as_str().unwrap(), there.text()),
        (&*WORDS[..2].concat(), WORDS[..2].concat())
    );

    // The one that was killed comes back, and has nothing to add.
    pair.first.start_again().await;
    pair.first.is_in_touch().await;
    let mut again = pair.user.follow(&stream_id, None).await;
    assert_eq!(again.error().await["code"], "interrupted");
    assert_eq!(again.text(), WORDS[..2].concat());
    let since = Instant::now();
    while !pair.first.run(&["outbox", "list"]).is_empty() {
        assert!(since.elapsed() < PATIENCE);
        sleep(Duration::from_millis(50)).await;
    }
    saved_once(&pair.away, pair.story, &stream_id, "interrupted").await;
    pair.finish().await;
}

#[tokio::test]
async fn a_relay_that_is_started_again_at_once_ends_its_own_and_tells_readers_elsewhere() {
    let provider = Provider::start().await;
    provider.once(Script::new().token(WORDS[0]).token(WORDS[1]).stall());
    let mut pair = Pair::start(&provider).await;
    let Followed { here: _here, mut there, stream_id } = Followed::begin(&pair, 2).await;
    pair.first.kill().await;
    pair.first.start_again().await;
    assert_eq!(there.error().await["code"], "interrupted");
    let saved = saved_once(&pair.user, pair.story, &stream_id, "interrupted").await;
    assert_eq!(saved["content"], there.text());
    pair.finish().await;
}

#[tokio::test]
async fn a_writer_that_was_paused_for_longer_than_its_lease_changes_nothing() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start(&provider).await;
    gate.step();
    let Followed { mut here, mut there, stream_id } = Followed::begin(&pair, 1).await;
    pair.first.signal("STOP");
    // The provider goes on to the end meanwhile.
    gate.open();
    assert_eq!(there.error().await["code"], "interrupted");
    pair.first.signal("CONT");
    while let Some(event) = here.next_if_whole().await {
        assert_ne!(event.name, "done", "a receipt for what is not saved");
    }
    let saved = saved_once(&pair.user, pair.story, &stream_id, "interrupted").await;
    assert_eq!(saved["content"], WORDS[0]);
    for user in [&pair.user, &pair.away] {
        let after = here.seen.last().and_then(|event| event.id);
        let mut again = user.follow(&stream_id, after).await;
        assert_eq!(again.error().await["code"], "interrupted");
        again.seen = [here.seen.clone(), again.seen].concat();
        assert_eq!(again.text(), WORDS[0], "{:?}", again.seen);
    }
    provider.once(Script::telling(&WORDS));
    assert_eq!(pair.user.told(pair.story, "Go on.").await["saved"], true);
    pair.finish().await;
}

/// An answer that takes so many seconds, with several tokens in each.
fn lasting(seconds: u64) -> Script {
    let words = (0..seconds * 5).map(|at| format!("{at} "));
    let script = words
        .fold(Script::new(), |script, word| script.token(&word).pause(Duration::from_millis(200)));
    script.finish("stop").done()
}

#[tokio::test]
async fn a_relay_that_is_alive_is_never_taken_for_dead() {
    let provider = Provider::start().await;
    provider.always(lasting(14));
    let mut pair = Pair::start(&provider).await;
    // By now the second relay would take over from whoever has no lease.
    sleep(Duration::from_secs(8)).await;
    pair.first.restart().await;
    let mut readers = tokio::task::JoinSet::new();
    // From its very first moment on.
    for at in 0..6 {
        let (user, story) = (pair.user.clone(), pair.story);
        readers.spawn(async move {
            let body = json!({"conversation_id": story, "input": "Go.", "stream_id": format!("at-once-{at}")});
            user.stream(body).await.done().await
        });
    }
    pair.first.is_in_touch().await;
    sleep(Duration::from_secs(3)).await;
    pair.redis.call::<()>(&["FLUSHALL"]);
    for done in readers.join_all().await {
        assert_eq!((&done["status"], &done["saved"]), (&json!("complete"), &json!(true)));
    }
    pair.finish().await;
}

#[tokio::test]
async fn a_name_that_redis_forgot_and_gave_to_another_ends_nothing() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let pair = Pair::start(&provider).await;
    let body = json!({"input": "Go.", "stream_id": "mine"});
    let mut here = pair.user.stream(body.clone()).await;
    gate.step();
    here.until("token").await;
    pair.redis.call::<()>(&["FLUSHALL"]);
    // It belongs to this one now, or to the first, if that has told of it again already.
    let mut there = pair.away.stream(body).await;
    gate.open();
    assert_eq!((here.done().await["status"].clone(), here.text()), (json!("complete"), text()));
    assert_eq!((there.done().await["status"].clone(), there.text()), (json!("complete"), text()));
    pair.finish().await;
}

#[tokio::test]
async fn whoever_hangs_up_while_redis_is_asked_leaves_nothing_behind() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let pair = Pair::start(&provider).await;
    let mut here = pair.user.say(pair.story, "Go.").await;
    let stream_id = here.stream_id();
    let impatient = Duration::from_millis(150);
    let body = json!({"conversation_id": pair.story, "input": "Again.", "stream_id": "again"});
    pair.redis.call::<()>(&["CLIENT", "PAUSE", "600", "ALL"]);
    let post = pair.user.request(http::Method::POST, "/v1/stream").body(body.to_string());
    let get = pair.away.request(http::Method::GET, &format!("/v1/streams/{stream_id}"));
    let (posted, got) = tokio::join!(post.timeout(impatient).send(), get.timeout(impatient).send());
    assert!(posted.is_err() && got.is_err(), "they did not have to wait: {posted:?} {got:?}");
    gate.open();
    let mut again = pair.user.stream(body).await;
    let mut there = pair.away.follow(&stream_id, None).await;
    for reading in [&mut here, &mut again, &mut there] {
        assert_eq!(reading.done().await["status"], "complete");
    }
    pair.finish().await;
}

/// Returns when the relay says that it lists all that is being written, wherever that is.
async fn lists_all(user: &User) {
    let since = Instant::now();
    while user.get("/v1/streams").await.ok(200)["complete"] != true {
        assert!(since.elapsed() < PATIENCE);
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_is_written_out_of_reach_is_neither_stopped_nor_said_to_be_over() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start(&provider).await;
    gate.step();
    let Followed { mut here, there, stream_id } = Followed::begin(&pair, 1).await;
    lists_all(&pair.away).await;
    pair.redis.cutter.shut();
    pair.second.says("degraded").await;
    let path = format!("/v1/streams/{stream_id}");
    pair.away.delete(&path).await.refused(503, "store_unavailable");
    assert_eq!(pair.away.get("/v1/streams").await.ok(200)["complete"], false);
    pair.redis.cutter.open();
    pair.second.is_in_touch().await;
    lists_all(&pair.away).await;
    gate.open();
    assert_eq!((here.done().await["status"].clone(), here.text()), (json!("complete"), text()));
    drop(there);
    pair.finish().await;
}

#[tokio::test]
async fn everything_in_redis_is_there_for_a_time_only() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&WORDS));
    provider.once(Script::new().token(WORDS[0]).stall());
    let mut pair = Pair::start(&provider).await;
    pair.user.told(pair.story, "Go.").await;
    let here = pair.user.say(pair.story, "Go on.").await;
    let mut there = pair.away.follow(&here.stream_id(), None).await;
    there.until("token").await;
    pair.first.kill().await;
    there.error().await;
    for key in pair.redis.call::<Vec<String>>(&["KEYS", "*"]) {
        let time: i64 = pair.redis.call(&["TTL", &key]);
        assert!(key.starts_with("relay:"), "{key}");
        // The one that names the relays, and every relay that is gone is taken out of it.
        assert!(time >= 0 || time == -2 || key == "relay:instances", "{key} stays for ever");
    }
    pair.first.start_again().await;
    pair.finish().await;
}

#[tokio::test]
async fn what_a_killed_relay_had_finished_but_not_saved_is_saved_whole_by_another() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let (mut pair, database) = Pair::cuttable(&provider, |relay| relay).await;
    let here = pair.user.say(pair.story, "Go.").await;
    let stream_id = here.stream_id();
    let mut there = pair.away.follow(&stream_id, None).await;
    database.shut();
    gate.open();
    // All of it is told before it is saved, and it is tried for some seconds.
    read_to(&mut there, &text()).await;
    pair.first.logs("save failed").await;
    pair.first.kill().await;
    database.open();
    let done = there.done().await;
    assert_eq!((&done["status"], &done["saved"]), (&json!("complete"), &json!(true)));
    assert_eq!(done["finish_reason"], "stop", "it is told as its own relay would have");
    let saved = saved_once(&pair.away, pair.story, &stream_id, "complete").await;
    assert_eq!(saved["content"], text());
    pair.first.start_again().await;
    saved_once(&pair.user, pair.story, &stream_id, "complete").await;
    pair.finish().await;
}

#[tokio::test]
async fn what_is_in_the_outbox_of_a_killed_relay_is_nobody_elses_to_end() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let (mut pair, database) = Pair::cuttable(&provider, |relay| relay).await;
    let mut here = pair.user.say(pair.story, "Go.").await;
    let stream_id = here.stream_id();
    database.shut();
    gate.open();
    assert_eq!(here.done().await["saved"], false);
    pair.first.kill().await;
    database.open();
    // For longer than a lease. It is over, and whoever asks gets all of it.
    sleep(Duration::from_secs(9)).await;
    let mut there = pair.away.follow(&stream_id, None).await;
    assert_eq!((there.done().await["status"].clone(), there.text()), (json!("complete"), text()));
    pair.first.start_again().await;
    let saved = saved_once(&pair.away, pair.story, &stream_id, "complete").await;
    assert_eq!(saved["content"], text());
    pair.finish().await;
}

#[tokio::test]
async fn what_redis_never_heard_of_is_saved_from_the_data_folder() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let mut pair = Pair::start(&provider).await;
    gate.step();
    let Followed { mut here, mut there, stream_id } = Followed::begin(&pair, 1).await;
    pair.redis.cutter.shut();
    for word in 1..4 {
        gate.step();
        read_to(&mut here, &WORDS[..=word].concat()).await;
    }
    // The file is at most a batch behind.
    sleep(Duration::from_millis(500)).await;
    pair.first.kill().await;
    pair.redis.cutter.open();
    pair.first.start_again().await;
    let saved = saved_once(&pair.user, pair.story, &stream_id, "interrupted").await;
    assert_eq!(saved["content"], WORDS[..4].concat());
    // Who followed elsewhere is told all of it, or cut off and told when coming back.
    while there.next_if_whole().await.is_some() {}
    if !there.seen.last().is_some_and(|event| event.is_end()) {
        let mut more = pair.away.follow(&stream_id, there.seen.last().and_then(|e| e.id)).await;
        more.error().await;
        there.seen.extend(more.seen);
    }
    assert_eq!(there.text(), WORDS[..4].concat());
    pair.finish().await;
}

/// A turn that a killed relay was beginning is nobody's until its lease is over, and nobody is kept waiting for that.
#[tokio::test]
async fn who_asks_elsewhere_for_what_a_killed_relay_was_beginning_is_told_to_come_back() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&WORDS));
    let (mut pair, database) = Pair::start_alone(&provider, |relay| relay).await;
    let turn = json!({"conversation_id": pair.story, "input": "Go.", "stream_id": "again"});
    let lock = pair.kill_beginning(&database, &turn).await;
    let refused = pair.away.post("/v1/stream", &turn).await;
    refused.refused(503, "store_unavailable");
    assert!(refused.headers.contains_key("retry-after"));
    lock.batch_execute("rollback").await.unwrap();

    let again = pair.away.request(http::Method::POST, "/v1/stream").body(turn.to_string());
    let mut answer = pair.away.begins(again, (503, "store_unavailable")).await;
    answer.end().await;
    let tree = pair.away.tree(pair.story).await;
    assert_eq!(tree.to_string().matches("\"stream_id\":\"again\"").count(), 1, "{tree}");
    pair.first.start_again().await;
    pair.finish().await;
}

async fn with_redis(provider: &Provider, redis: &Redis) -> (TestRelay, User, i64) {
    let relay = TestRelay::with(provider).env("RELAY_REDIS_URL", redis.url()).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    (relay, user, story)
}

#[tokio::test]
async fn a_relay_starts_and_writes_without_its_redis_and_says_so() {
    let (provider, redis) = (Provider::start().await, Redis::start().await);
    provider.always(Script::telling(&WORDS));
    redis.cutter.shut();
    let (relay, user, story) = with_redis(&provider, &redis).await;
    relay.says("\"status\":\"degraded\"").await;
    assert_eq!(user.told(story, "Go.").await["saved"], true);
    relay.logs("redis is away").await;
    redis.cutter.open();
    relay.says("\"status\":\"ready\"").await;
    assert_eq!(user.told(story, "Go on.").await["saved"], true);
    relay.finish().await;
}

/// What becomes of a stream when something happens to Redis in its middle, at the relay that writes it and at another.
async fn in_mid_stream(happens: impl AsyncFnOnce(&Redis)) {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.once(gated(&gate));
    let pair = Pair::start(&provider).await;
    gate.step();
    let Followed { mut here, mut there, stream_id } = Followed::begin(&pair, 1).await;
    pair.redis.keep();
    for word in 1..3 {
        gate.step();
        read_to(&mut here, &WORDS[..=word].concat()).await;
        read_to(&mut there, &WORDS[..=word].concat()).await;
    }
    happens(&pair.redis).await;
    // Who reads at the relay that writes notices nothing.
    gate.step();
    read_to(&mut here, &WORDS[..4].concat()).await;
    pair.redis.cutter.open();
    gate.open();
    assert_eq!(here.done().await["saved"], true);
    assert_eq!(here.text(), text());
    // Who reads elsewhere is late at worst, or has to come back.
    let since = Instant::now();
    while !there.seen.last().is_some_and(|event| event.is_end()) {
        assert!(since.elapsed() < PATIENCE, "{:?}", there.seen);
        if there.next_if_whole().await.is_none() {
            let after = there.seen.last().and_then(|event| event.id);
            let path = format!("/v1/streams/{stream_id}?after={}", after.unwrap_or(0));
            let response = pair.away.request(http::Method::GET, &path).send().await.unwrap();
            if response.status() == 200 {
                let mut more = Reading::new(response);
                std::mem::swap(&mut there, &mut more);
                there.seen = more.seen;
            } else {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    assert_eq!((there.seen.last().unwrap().name.as_str(), there.text()), ("done", text()));
    assert_eq!(saved_once(&pair.away, pair.story, &stream_id, "complete").await["content"], text());
    pair.finish().await;
}

#[tokio::test]
async fn redis_away_in_mid_stream() {
    in_mid_stream(async |redis| redis.cutter.shut()).await;
}

#[tokio::test]
async fn redis_flapping_in_mid_stream() {
    in_mid_stream(async |redis| {
        for _ in 0..10 {
            redis.cutter.shut();
            sleep(Duration::from_millis(150)).await;
            redis.cutter.open();
            sleep(Duration::from_millis(250)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn redis_flushed_in_mid_stream() {
    in_mid_stream(async |redis| redis.call::<()>(&["FLUSHALL"])).await;
}

#[tokio::test]
async fn redis_restarted_with_the_last_of_it_lost_in_mid_stream() {
    in_mid_stream(async |redis| redis.crash()).await;
}

#[tokio::test]
async fn redis_full_in_mid_stream() {
    in_mid_stream(async |redis| {
        redis.call::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
        sleep(Duration::from_secs(1)).await;
        redis.call::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    })
    .await;
}
