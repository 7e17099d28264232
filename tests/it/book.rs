//! The book of tokens where it was wrong once: what nobody saw, what was begun twice, what was said to be lost and was not.

use serde_json::{Value, json};
use storytellr_relay::clock;
use storytellr_relay::limits::tokens::Day;
use tokio::time::sleep;

use crate::provider::{PATIENCE, Provider, Script};
use crate::relay::{Builder, TestRelay, User};

/// The budget of the tests.
const LIMIT: u64 = 1_050_000;

/// What an answer may have.
const ANSWER: u64 = 100_000;

fn limited(relay: Builder) -> Builder {
    relay.env("RELAY_TOKENS_PER_DAY", LIMIT.to_string())
}

/// Gives the user a bot that takes any context and keeps its thoughts to itself.
async fn prepare(user: &User) {
    // At midnight all books begin anew, and no test expects that.
    let rest = Day::rest(clock::now());
    if rest < 3 * PATIENCE {
        sleep(rest).await;
    }
    user.bot(json!({"context_size": 10_000_000, "reasoning": "high"})).await;
}

/// Says something that may cost [`ANSWER`].
fn asked() -> Value {
    json!({"input": "Go.", "max_tokens": ANSWER})
}

/// What the user has left, as who asks for a little too much is told.
async fn left(user: &User) -> u64 {
    let body = json!({"input": "Go.", "max_tokens": LIMIT - 1});
    let answer = user.post("/v1/stream", &body).await;
    let message = answer.refused(429, "budget_exceeded").to_owned();
    let (_, rest) = message.split_once("tokens, and ").unwrap();
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

/// Thoughts of ten thousand tokens that readers are not shown, and every way out.
#[tokio::test]
async fn thoughts_that_nobody_saw_are_paid_for() {
    let provider = Provider::start().await;
    let relay = limited(TestRelay::with(&provider))
        .env("RELAY_IDLE_TIMEOUT", "1s")
        .env("RELAY_DRAIN", "0s")
        .start();
    let mut relay = relay.await;
    let user = relay.stranger();
    prepare(&user).await;
    let mut expected = LIMIT;
    let mut paid = async |user: &User, how: &str| {
        let now = left(user).await;
        let paid = expected - now;
        assert!((10_000..10_100).contains(&paid), "{how}: {paid}");
        expected = now;
    };
    let thinking = || Script::new().reasoning(&"Hmm ".repeat(10_000));

    provider.once(thinking().token("x").finish("stop").done());
    let done = user.stream(asked()).await.done().await;
    assert!(done["usage"]["completion_tokens"].as_u64().unwrap() > 10_000, "{done}");
    paid(&user, "complete").await;

    provider.once(thinking().stall());
    user.stream(asked()).await.error().await;
    paid(&user, "too slow").await;

    provider.once(thinking().end());
    user.stream(asked()).await.error().await;
    paid(&user, "broken off").await;

    let limited = json!({"error": {"code": 429, "message": "Slow down."}});
    provider.once(thinking().chunk(&limited).end());
    let error = user.stream(asked()).await.error().await;
    assert_eq!(error["code"], "provider_rate_limited");
    paid(&user, "limited by the provider").await;

    provider.once(thinking().token("x").stall());
    let mut reading = user.stream(asked()).await;
    reading.until("token").await;
    user.delete(&format!("/v1/streams/{}", reading.stream_id())).await.ok(204);
    reading.done().await;
    paid(&user, "stopped").await;

    provider.once(thinking().token("x").stall());
    user.stream(asked()).await.until("token").await;
    relay.restart().await;
    paid(&user, "interrupted").await;

    // Before the first word all that is free, as ever.
    provider.once(Script::new().chunk(&limited).end());
    user.stream(asked()).await.error().await;
    assert_eq!(left(&user).await, expected);
    relay.finish().await;
}
