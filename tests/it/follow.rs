//! The same generation, for as many readers as want it, from wherever they are.

use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::client::Reading;
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{Answer, TestRelay, User};

const EVENTS: usize = 200;

fn tokens() -> Vec<String> {
    (0..EVENTS).map(|at| format!("{at} 🦊\n")).collect()
}

/// An answer of which each token waits for the gate.
fn gated(gate: &Gate) -> Script {
    let tokens = tokens();
    tokens
        .iter()
        .fold(Script::new(), |script, token| script.gate(gate).token(token))
        .finish("stop")
        .done()
}

#[tokio::test]
async fn the_same_request_fifty_times_at_once_is_one_generation() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["one", " and", " only"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "same"});
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let (user, body) = (user.clone(), body.clone());
            tokio::spawn(async move {
                let mut reading = user.stream(body).await;
                let done = reading.done().await;
                (reading.text(), reading.seen[0].data.clone(), done)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for reader in readers {
        answers.push(reader.await.unwrap());
    }
    assert_eq!(answers[0].0, "one and only");
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(provider.requests().len(), 1);
    assert_eq!(user.tree(story).await["messages"].as_array().unwrap().len(), 2);
    relay.finish().await;
}

#[tokio::test]
async fn a_stream_id_belongs_to_one_turn_of_one_user() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let body = |input: &str| json!({"conversation_id": story, "input": input, "stream_id": "mine"});
    user.stream(body("One.")).await.done().await;
    user.post("/v1/stream", &body("Two.")).await.refused(409, "stream_id_reused");

    let other = relay.user().await;
    let others = other.conversation().await;
    other
        .stream(json!({"conversation_id": others, "input": "Mine.", "stream_id": "mine"}))
        .await
        .done()
        .await;

    relay.restart().await;
    user.post("/v1/stream", &body("Two.")).await.refused(409, "stream_id_reused");
    let mut again = user.stream(body("One.")).await;
    again.done().await;
    assert_eq!((again.text().as_str(), provider.requests().len()), ("fine", 2));
    relay.finish().await;
}

#[tokio::test]
async fn a_turn_that_was_refused_leaves_its_stream_id_free() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "mine"});
    user.post("/v1/stream", &body).await.refused(403, "no_bot");
    let keyless = user.bot(json!({"provider": "openai"})).await;
    user.post("/v1/stream", &body).await.refused(402, "no_provider_key");
    assert_eq!(user.tree(story).await["messages"], json!([]), "a refused turn must leave nothing");
    user.delete(&format!("/v1/bots/{keyless}")).await.ok(204);
    user.bot(json!({})).await;
    user.stream(body).await.done().await;
    assert_eq!(user.story(story).await, ["Go.", "fine"]);
    relay.finish().await;
}

#[tokio::test]
async fn followers_that_join_at_every_event_miss_nothing_and_repeat_nothing() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(gated(&gate));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut first = user.say(story, "Go.").await;
    let stream_id = first.stream_id();
    first.next().await.unwrap();

    let mut followers = Vec::new();
    for _ in 0..EVENTS {
        gate.step();
        let event = first.next().await.unwrap();
        let so_far = first.text();
        followers.push((String::new(), user.follow(&stream_id, None).await));
        followers.push((so_far, user.follow(&stream_id, event.id).await));
    }
    first.done().await;
    let whole = tokens().concat();
    assert_eq!(first.text(), whole);
    for (had, mut follower) in followers {
        follower.done().await;
        assert_eq!(had.clone() + &follower.text(), whole);
        assert_eq!(follower.seen[0].name == "start", had.is_empty());
    }
    relay.finish().await;
}

async fn check_every_cursor(user: &User, stream_id: &str, seen: &Reading) {
    let whole = seen.text();
    let mut had = String::new();
    for event in &seen.seen {
        if event.name == "token" {
            had.push_str(&event.data);
        }
        let mut rest = user.follow(stream_id, event.id).await;
        let end = rest.end().await;
        assert_eq!(end.data, seen.seen.last().unwrap().data);
        assert_eq!(had.clone() + &rest.text(), whole, "after {event:?}");
        assert!(rest.seen.iter().all(|event| event.name != "sync"), "{:?}", rest.seen);
    }
}

#[tokio::test]
async fn a_stream_that_is_over_is_resumed_from_the_journal_and_after_a_restart_from_the_database() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["Es", " war", " 🦊", "\n\n", "Ende"]));
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.done().await;
    let stream_id = reading.stream_id();
    check_every_cursor(&user, &stream_id, &reading).await;
    relay.restart().await;
    check_every_cursor(&user, &stream_id, &reading).await;
    let mut again = user.follow(&stream_id, None).await;
    again.done().await;
    assert_eq!(again.seen[0].data, reading.seen[0].data, "the same start");
    relay.finish().await;
}

#[tokio::test]
async fn a_failed_stream_is_replayed_from_the_database_with_its_error() {
    let provider = Provider::start().await;
    provider.once(Script::new().token("Once").end());
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    let error = reading.error().await;
    relay.restart().await;
    let mut again = user.follow(&reading.stream_id(), None).await;
    assert_eq!(again.error().await, error);
    assert_eq!(again.text(), "Once");
    relay.finish().await;
}

#[tokio::test]
async fn a_cursor_that_means_nothing_gets_everything_anew() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["🦊🦊"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.done().await;
    // In the middle of a character, and past the end.
    for wrong in [3, 1_000_000, u64::MAX] {
        let mut follower = user.follow(&reading.stream_id(), Some(wrong)).await;
        follower.done().await;
        assert_eq!(follower.seen[0].name, "sync");
        assert_eq!(follower.text(), "🦊🦊");
    }
    relay.finish().await;
}

#[tokio::test]
async fn last_event_id_is_read_strictly_and_outranks_the_address() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["a", "b"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.done().await;
    let path = format!("/v1/streams/{}?after=3", reading.stream_id());
    let get = |header: &str| user.request(Method::GET, &path).header("last-event-id", header);
    let mut follower = user.reading(get("2")).await;
    follower.done().await;
    assert_eq!(follower.text(), "b");
    for nothing in ["", "0"] {
        let mut follower = user.reading(get(nothing)).await;
        follower.done().await;
        assert_eq!(follower.seen[0].name == "start", nothing == "0", "an empty header is none");
    }
    let mut follower = user.reading(get(&"9".repeat(40))).await;
    follower.done().await;
    assert_eq!(follower.seen[0].name, "sync");
    for wrong in ["-1", "1-1", "0x1", "+1", "1.0", "one", "1;drop"] {
        let answer = Answer::of(get(wrong).send().await.unwrap()).await;
        answer.refused(400, "invalid_request");
    }
    let path = format!("/v1/streams/{}?after=one", reading.stream_id());
    let request = user.request(Method::GET, &path).header("last-event-id", "2");
    let answer = Answer::of(request.send().await.unwrap()).await;
    answer.refused(400, "invalid_request");
    relay.finish().await;
}

#[tokio::test]
async fn reasoning_survives_a_resume_and_a_rebuilt_one_is_synced() {
    let provider = Provider::start().await;
    provider.once(
        Script::new().reasoning("hm").token("Yes").reasoning("so").token("!").finish("stop").done(),
    );
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"show_reasoning": true})).await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.done().await;
    let stream_id = reading.stream_id();
    assert_eq!((reading.reasoning().as_str(), reading.text().as_str()), ("hmso", "Yes!"));
    let mut rest = user.follow(&stream_id, Some(4)).await;
    rest.done().await;
    assert_eq!((rest.reasoning().as_str(), rest.text().as_str()), ("so", "es!"));
    relay.restart().await;
    let mut rest = user.follow(&stream_id, Some(4)).await;
    rest.done().await;
    assert_eq!(rest.seen[0].name, "sync");
    assert_eq!((rest.reasoning().as_str(), rest.text().as_str()), ("hmso", "Yes!"));
    relay.finish().await;
}

#[tokio::test]
async fn streams_that_are_over_hold_so_much_memory_however_many_follow_them() {
    let provider = Provider::start().await;
    let part = "x".repeat(900_000);
    provider.once(Script::telling(&[&part, &part, &part]));
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.done().await;
    let path = format!("/v1/streams/{}", reading.stream_id());
    relay.restart().await;
    // 64 MiB of one user's, and nobody reads any of it.
    let follow = async || user.request(Method::GET, &path).send().await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..(64 << 20) / (3 * 900_000) {
        let response = follow().await;
        assert_eq!(response.status(), 200);
        unread.push(response);
    }
    Answer::of(follow().await).await.refused(503, "overloaded");
    drop(unread.pop());
    let followed = timeout(PATIENCE, async {
        loop {
            let response = follow().await;
            if response.status() == 200 {
                break response.text().await.unwrap();
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let text = followed.await.expect("who has gone still counts");
    assert!(text.contains("event: done"));
    relay.finish().await;
}

#[tokio::test]
async fn streams_of_others_do_not_exist() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("secret").gate(&gate).finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    let (stream_id, stranger) = (reading.stream_id(), relay.stranger());
    for path in [
        format!("/v1/streams/{stream_id}"),
        format!("/v1/message-by-stream-id?stream_id={stream_id}"),
    ] {
        stranger.get(&path).await.refused(404, "stream_not_found");
    }
    stranger.delete(&format!("/v1/streams/{stream_id}")).await.refused(404, "stream_not_found");
    assert_eq!(
        stranger.get("/v1/streams").await.ok(200),
        json!({"data": [], "next": null, "complete": true})
    );
    let running = user.get("/v1/streams").await.ok(200);
    assert_eq!(
        (&running["data"][0]["stream_id"], &running["data"][0]["conversation_id"]),
        (&json!(stream_id), &json!(story))
    );
    gate.open();
    reading.done().await;
    relay.finish().await;
}
