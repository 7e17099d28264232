//! The end of the process, asked for and not.

use serde_json::{Value, json};

use crate::provider::{Gate, Provider, Script};
use crate::relay::{Answer, TestRelay};

#[tokio::test]
async fn a_running_answer_may_finish_and_nothing_new_begins() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    relay.terminate();
    // The signal takes a moment to arrive.
    let readiness = loop {
        let readiness =
            Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await;
        if readiness.status != 200 {
            break readiness;
        }
    };
    assert_eq!((readiness.status, &readiness.json["status"]), (503, &json!("draining")));
    let refused =
        user.post("/v1/stream", &json!({"conversation_id": story, "input": "More."})).await;
    refused.refused(503, "shutting_down");
    assert!(refused.headers.contains_key("retry-after"));
    let mut follower = user.follow(&reading.stream_id(), None).await;
    gate.open();
    assert_eq!(reading.done().await["saved"], true);
    follower.done().await;
    relay.ended().await;
    relay.start_again().await;
    assert_eq!(user.story(story).await, ["Go.", "Once upon"]);
    relay.finish().await;
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_is_interrupted_with_its_text_saved() {
    let provider = Provider::start().await;
    provider.always(Script::new().token("Once").stall());
    let mut relay = TestRelay::with(&provider).env("RELAY_DRAIN", "300ms").start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    relay.terminate();
    let error = reading.error().await;
    assert_eq!(
        (&error["code"], &error["saved"], &error["retryable"]),
        (&json!("interrupted"), &json!(true), &json!(true))
    );
    relay.ended().await;
    relay.start_again().await;
    let message = user.message(story, &error["message_id"]).await;
    let variant = &message["variants"][0];
    assert_eq!((&variant["status"], &variant["content"]), (&json!("interrupted"), &json!("Once")));
    assert_eq!(message["active_variant_id"], variant["id"], "it has no other");
    assert_eq!(user.story(story).await, ["Go.", "Once"]);
    relay.finish().await;
}

#[tokio::test]
async fn an_answer_that_pours_is_interrupted_with_all_that_was_read_of_it() {
    let provider = Provider::start().await;
    provider.always(Script::new().flood("Once more. "));
    let mut relay = TestRelay::with(&provider).env("RELAY_DRAIN", "100ms").start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    relay.terminate();
    assert_eq!(reading.error().await["code"], "interrupted");
    relay.ended().await;
    relay.start_again().await;
    assert_eq!(user.story(story).await, ["Go.", &reading.text()]);
    relay.finish().await;
}

#[tokio::test]
async fn a_second_signal_hurries() {
    let provider = Provider::start().await;
    provider.always(Script::new().token("Once").stall());
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.until("token").await;
    relay.terminate();
    while relay.client().get(relay.url("/readyz")).send().await.unwrap().status() == 200 {}
    relay.terminate();
    assert_eq!(reading.error().await["code"], "interrupted");
    relay.ended().await;
    relay.start_again().await;
    relay.finish().await;
}

#[tokio::test]
async fn a_reroll_that_is_only_announced_does_not_hide_an_interrupted_answer() {
    let provider = Provider::start().await;
    provider.once(Script::new().token("Once").stall());
    let mut relay = TestRelay::with(&provider).env("RELAY_DRAIN", "0s").start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    reading.until("token").await;
    let name = format!("temp-stream-{}", reading.stream_id());
    let request =
        user.request(http::Method::POST, "/v1/reroll").header("accept", "application/json");
    let request = request.body(json!({"parent_message_id": name}).to_string());
    assert_eq!(request.send().await.unwrap().status(), 200);
    relay.restart().await;
    assert_eq!(user.story(story).await, ["Go.", "Once"]);
    relay.finish().await;
}

#[tokio::test]
async fn what_a_killed_relay_was_writing_is_interrupted() {
    let provider = Provider::start().await;
    provider.once(Script::new().token("Once").stall());
    provider.once(Script::telling(&["Better."]));
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    let start = reading.until("start").await.json();
    reading.until("token").await;
    relay.kill().await;
    relay.start_again().await;
    assert_eq!(user.saved(&reading.stream_id(), "interrupted").await["id"], start["message_id"]);
    assert_eq!(user.tree(story).await["head_id"], start["message_id"]);
    let mut follower = user.follow(&reading.stream_id(), None).await;
    let error = follower.error().await;
    // Its text was in memory alone, and nobody says otherwise.
    assert_eq!((&error["code"], error.get("saved")), (&json!("interrupted"), None));
    let done = user.reroll(json!({"message_id": start["message_id"]})).await.done().await;
    assert_eq!((&done["message_id"], &done["saved"]), (&start["message_id"], &json!(true)));
    assert_eq!(user.story(story).await, ["Go.", "Better."]);
    relay.finish().await;
}

/// Of an answer of which nothing had come, nobody is told that a text is kept, now or later.
#[tokio::test]
async fn an_answer_that_is_interrupted_before_its_first_word_promises_nothing() {
    let provider = Provider::start().await;
    provider.always(Script::new().stall());
    let mut relay = TestRelay::with(&provider).env("RELAY_DRAIN", "0s").start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    for is_killed in [false, true] {
        let mut reading = user.say(story, "Go.").await;
        reading.until("start").await;
        let stream_id = reading.stream_id();
        if is_killed {
            relay.kill().await;
        } else {
            relay.terminate();
            promises_nothing(&reading.error().await);
            relay.ended().await;
        }
        relay.start_again().await;
        let path = format!("/v1/message-by-stream-id?stream_id={stream_id}");
        let saved = user.get(&path).await.ok(200);
        assert_eq!(
            (&saved["status"], saved.get("saved")),
            (&json!("interrupted"), None),
            "{saved}"
        );
        assert!(!saved.to_string().contains("kept"), "{saved}");
        promises_nothing(&user.follow(&stream_id, None).await.error().await);
    }
    relay.finish().await;
}

fn promises_nothing(error: &Value) {
    assert_eq!((&error["code"], error.get("saved")), (&json!("interrupted"), None), "{error}");
    assert!(error["message_id"].is_null(), "{error}");
    assert!(error["error"].as_str().unwrap().contains("nothing of it was saved"), "{error}");
}
