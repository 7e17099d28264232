//! How much one user may ask for, and that it does not cost another.

use serde_json::json;

use crate::provider::{Gate, Provider, Script};
use crate::relay::TestRelay;

#[tokio::test]
async fn sixty_requests_a_minute_and_then_none() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).env("RELAY_RATE_LIMIT", "").start().await;
    let user = relay.stranger();
    for left in (0..60).rev() {
        let answer = user.get("/v1/bots").await;
        let limit = answer.headers["ratelimit"].to_str().unwrap().to_owned();
        assert!(limit.starts_with(&format!("\"requests\";r={left};t=")), "{limit}");
        answer.ok(200);
    }
    let answer = user.get("/v1/bots").await;
    answer.refused(429, "rate_limited");
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(answer.headers["ratelimit-policy"], "\"requests\";q=60;w=60");
    assert_eq!(answer.headers["ratelimit"], format!("\"requests\";r=0;t={wait}"));
    relay.stranger().get("/v1/bots").await.ok(200);
    relay.finish_without_users().await;
}

#[tokio::test]
async fn four_answers_at_once_and_a_fifth_when_one_has_ended() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(Script::new().token("x").gate(&gate).finish("stop").done());
    let relay = TestRelay::with(&provider).env("RELAY_MAX_STREAMS_PER_USER", "").start().await;
    let user = relay.user().await;
    let mut readings = Vec::new();
    for _ in 0..4 {
        readings.push(user.stream(json!({"input": "Go."})).await);
    }
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "fifth"});
    let answer = user.post("/v1/stream", &body).await;
    answer.refused(429, "too_many_streams");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(
        user.tree(story).await["messages"],
        json!([]),
        "nothing is saved of a turn that was not admitted"
    );
    let mut others = relay.user().await.stream(json!({"input": "Go."})).await;
    gate.open();
    others.done().await;
    readings[0].done().await;
    user.stream(body).await.done().await;
    for mut reading in readings.into_iter().skip(1) {
        reading.done().await;
    }
    relay.finish().await;
}

#[tokio::test]
async fn attaching_to_a_running_answer_needs_no_leave() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("x").gate(&gate).finish("stop").done());
    let relay = TestRelay::with(&provider).env("RELAY_MAX_STREAMS_PER_USER", "1").start().await;
    let user = relay.user().await;
    let body = json!({"input": "Go.", "stream_id": "same"});
    let mut first = user.stream(body.clone()).await;
    let mut second = user.stream(body).await;
    gate.open();
    first.done().await;
    second.done().await;
    relay.finish().await;
}
