//! Stopping and leaving are two things: a stop ends the generation, leaving ends it only if nobody comes back.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::provider::{Gate, Provider, Script};
use crate::relay::TestRelay;

fn begun(gate: &Gate) -> Script {
    Script::new().token("Once").gate(gate).token(" upon").finish("stop").done()
}

#[tokio::test]
async fn a_stop_closes_the_provider_and_keeps_the_text() {
    let provider = Provider::start().await;
    provider.always(begun(&Gate::new()));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    let path = format!("/v1/streams/{}", reading.stream_id());
    let stopped_at = Instant::now();
    user.delete(&path).await.ok(204);
    provider.closed(0).await;
    assert!(stopped_at.elapsed() < Duration::from_secs(1));
    let done = reading.done().await;
    assert_eq!(
        (&done["status"], &done["saved"], &done["finish_reason"]),
        (&json!("stopped"), &json!(true), &json!(null))
    );
    assert_eq!(user.story(story).await, ["Go.", "Once"]);
    user.saved(&reading.stream_id(), "stopped").await;
    user.delete(&path).await.ok(204);
    relay.finish().await;
}

#[tokio::test]
async fn an_answer_that_pours_can_be_stopped_and_is_saved_as_it_was_read() {
    let provider = Provider::start().await;
    provider.once(Script::new().flood("Once more. "));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    user.delete(&format!("/v1/streams/{}", reading.stream_id())).await.ok(204);
    provider.closed(0).await;
    assert_eq!(reading.done().await["status"], "stopped");
    let text = reading.text();
    assert_eq!(text, "Once more. ".repeat(text.len() / 11), "in order, and nothing of it missing");
    assert_eq!(user.story(story).await, ["Go.", &text]);
    relay.finish().await;
}

#[tokio::test]
async fn a_stop_before_the_first_token_leaves_the_story_where_it_was() {
    let provider = Provider::start().await;
    provider.always(Script::new().stall());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("start").await;
    provider.asked(1).await;
    user.delete(&format!("/v1/streams/{}", reading.stream_id())).await.ok(204);
    assert_eq!(reading.done().await["status"], "stopped");
    assert_eq!(user.story(story).await, ["Go."]);
    provider.closed(0).await;
    relay.finish().await;
}

#[tokio::test]
async fn a_stop_of_a_stream_that_never_was_is_not_found() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    relay.stranger().delete("/v1/streams/nothing").await.refused(404, "stream_not_found");
    relay.finish().await;
}

#[tokio::test]
async fn a_story_goes_on_when_its_reader_leaves() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(begun(&gate));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    let stream_id = reading.stream_id();
    drop(reading);
    gate.open();
    assert_eq!(user.saved(&stream_id, "complete").await["content"], "Once upon");
    relay.finish().await;
}

#[tokio::test]
async fn a_story_that_nobody_comes_back_for_is_stopped() {
    for grace in ["0s", "300ms"] {
        let provider = Provider::start().await;
        provider.always(begun(&Gate::new()));
        let relay = TestRelay::with(&provider).env("RELAY_DETACHED_GRACE", grace).start().await;
        let user = relay.user().await;
        let story = user.conversation().await;
        let mut reading = user.say(story, "Go.").await;
        reading.until("token").await;
        let stream_id = reading.stream_id();
        drop(reading);
        provider.closed(0).await;
        assert_eq!(user.saved(&stream_id, "stopped").await["content"], "Once");
        assert_eq!(user.story(story).await, ["Go.", "Once"]);
        relay.finish().await;
    }
}

#[tokio::test]
async fn whoever_comes_back_in_time_reads_on() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(begun(&gate));
    let relay = TestRelay::with(&provider).env("RELAY_DETACHED_GRACE", "1s").start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    let seen = reading.until("token").await.id;
    let stream_id = reading.stream_id();
    drop(reading);
    let mut follower = user.follow(&stream_id, seen).await;
    // Longer than the grace that began when the first reader left: it must be over and forgotten.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    gate.open();
    assert_eq!(follower.done().await["status"], "complete");
    assert_eq!(follower.text(), " upon");
    relay.finish().await;
}

#[tokio::test]
async fn a_slow_reader_slows_nobody() {
    let provider = Provider::start().await;
    let tokens: Vec<_> = (0..200).map(|at| format!("{at:010}").repeat(1_000)).collect();
    provider.once(Script::telling(&tokens.iter().map(String::as_str).collect::<Vec<_>>()));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut slow = user.stream(json!({"input": "Go.", "stream_id": "long"})).await;
    let mut quick = user.follow("long", None).await;
    quick.done().await;
    assert_eq!(quick.text(), tokens.concat());
    slow.done().await;
    assert_eq!(slow.text(), tokens.concat());
    relay.finish().await;
}
