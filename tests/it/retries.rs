//! A request to a provider is made again before the first token, and never after it.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::provider::{Provider, Script};
use crate::relay::TestRelay;

/// The provider answers with `scripts` in turn; the stream must end as `end` after that many calls.
async fn check(scripts: Vec<Script>, end: &str, calls: usize) {
    let provider = Provider::start().await;
    scripts.into_iter().for_each(|script| provider.once(script));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    let last = reading.end().await;
    assert_eq!(last.name, end, "{last:?}");
    assert_eq!(provider.requests().len(), calls);
    relay.finish().await;
}

fn status(status: u16) -> Script {
    Script::answer(status, "").end()
}

fn told() -> Script {
    Script::telling(&["fine"])
}

#[tokio::test]
async fn passing_faults_are_tried_again() {
    for passing in [408, 429, 500, 502, 503] {
        check(vec![status(passing), told()], "done", 2).await;
    }
    check(vec![status(500), status(503), told()], "done", 3).await;
}

#[tokio::test]
async fn three_tries_are_all() {
    check(vec![status(500), status(500), status(500)], "error", 3).await;
}

#[tokio::test]
async fn lasting_faults_are_not_tried_again() {
    for lasting in [400, 401, 402, 403, 404, 422, 204, 302] {
        check(vec![status(lasting)], "error", 1).await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_first_token_is_tried_again() {
    check(vec![Script::new().reset(), told()], "done", 2).await;
    check(
        vec![Script::new().raw(b": hello\n\n").pause(Duration::from_millis(50)).reset(), told()],
        "done",
        2,
    )
    .await;
}

#[tokio::test]
async fn nothing_is_tried_again_after_the_first_token() {
    for failing in [
        Script::new().token("x").pause(Duration::from_millis(50)).reset(),
        Script::new().token("x").end(),
        Script::new().token("x").chunk(&json!({"error": {"code": 503, "message": "no"}})).end(),
        Script::new().reasoning("x").pause(Duration::from_millis(50)).reset(),
    ] {
        check(vec![failing], "error", 1).await;
    }
}

#[tokio::test]
async fn retry_after_is_heeded_and_the_reader_notices_only_a_later_first_token() {
    let provider = Provider::start().await;
    provider.once(Script::answer(429, "retry-after: 1\r\n").end());
    provider.once(told());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let began = Instant::now();
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.done().await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    let names: Vec<_> = reading.seen.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["start", "token", "done"]);
    relay.finish().await;
}

/// A wait that would end after the time for the first token helps nobody.
#[tokio::test]
async fn a_wait_that_is_too_long_for_the_first_token_is_told_at_once() {
    let provider = Provider::start().await;
    provider.once(Script::answer(429, "retry-after: 9\r\n").end());
    let relay = TestRelay::with(&provider).env("RELAY_FIRST_TOKEN_TIMEOUT", "5s").start().await;
    let user = relay.user().await;
    let error = user.stream(json!({"input": "Go."})).await.error().await;
    assert_eq!(error["code"], "provider_rate_limited");
    assert_eq!(provider.requests().len(), 1);
    relay.finish().await;
}

#[tokio::test]
async fn a_long_retry_after_is_told_and_not_waited_for() {
    let provider = Provider::start().await;
    provider.once(Script::answer(429, "retry-after: 11\r\n").end());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let error = user.stream(json!({"input": "Go."})).await.error().await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("provider_rate_limited"), &json!(true))
    );
    assert!(error["error"].as_str().unwrap().contains("11 s"), "{error}");
    assert_eq!(provider.requests().len(), 1);
    relay.finish().await;
}
