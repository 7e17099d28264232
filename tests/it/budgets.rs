//! Tokens a day: nobody gets more than their budget, however they ask, and the book is right again whatever happened.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use storytellr_relay::clock;
use storytellr_relay::limits::tokens::Day;
use tokio::time::{Instant, sleep, timeout};

use crate::client::Reading;
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::redis::Pair;
use crate::relay::{Answer, Builder, TestRelay, User};

/// The budget of the tests.
const LIMIT: u64 = 1_050_000;

/// What an answer may have. With its prompt of some tokens there is room for ten.
const ANSWER: u64 = 100_000;

fn limited(relay: Builder) -> Builder {
    relay.env("RELAY_TOKENS_PER_DAY", LIMIT.to_string())
}

/// A user whose bot takes any context.
async fn user(relay: &TestRelay) -> User {
    let user = relay.stranger();
    prepare(&user).await;
    user
}

async fn prepare(user: &User) {
    // At midnight all books begin anew, and no test expects that.
    let rest = Day::rest(clock::now());
    if rest < 3 * PATIENCE {
        sleep(rest).await;
    }
    user.bot(json!({"context_size": 10_000_000})).await;
}

/// Says something that may cost [`ANSWER`].
fn asked() -> Value {
    json!({"input": "Go.", "max_tokens": ANSWER})
}

/// What the user has left, as who asks for more is told.
async fn left(user: &User) -> u64 {
    let body = json!({"input": "Go.", "max_tokens": 2_000_000});
    let answer = user.post("/v1/stream", &body).await;
    let message = answer.refused(429, "budget_exceeded").to_owned();
    let (_, rest) = message.split_once("tokens, and ").unwrap();
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

/// Returns when the user has so much left.
async fn comes_to(user: &User, expected: impl Fn(u64) -> bool) -> u64 {
    let since = Instant::now();
    loop {
        let left = left(user).await;
        if expected(left) {
            return left;
        }
        assert!(since.elapsed() < PATIENCE, "{left} left");
        sleep(Duration::from_millis(50)).await;
    }
}

/// An answer that the provider says took so many tokens, prompt and all.
fn costing(tokens: u64) -> Script {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": tokens - 9});
    Script::new().token("x").finish("stop").chunk(&json!({"choices": [], "usage": usage})).done()
}

/// The same, when the gate is open.
fn gated(gate: &Gate, tokens: u64) -> Script {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": tokens - 9});
    let usage = json!({"choices": [], "usage": usage});
    Script::new().token("x").gate(gate).finish("stop").chunk(&usage).done()
}

fn spent(done: &Value) -> u64 {
    let usage = &done["usage"];
    usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
}

/// A hundred requests at once, shared out among those users, of which as many begin as there is room for: ten.
async fn a_hundred_at_once(users: &[&User], gate: &Gate) {
    let asked = (0..100).map(|at| {
        let user = users[at % users.len()];
        let request = user.request(Method::POST, "/v1/stream").body(asked().to_string());
        async move { request.send().await.unwrap() }
    });
    let mut readings = Vec::new();
    for response in join_all(asked).await {
        if response.status() == 200 {
            readings.push(Reading::new(response));
        } else {
            Answer::of(response).await.refused(429, "budget_exceeded");
        }
    }
    assert_eq!(readings.len(), 10);
    let left_meanwhile = left(users[0]).await;
    assert!(left_meanwhile < ANSWER, "{left_meanwhile}");
    gate.open();
    for mut reading in readings {
        reading.done().await;
    }
    for user in users {
        assert_eq!(left(user).await, LIMIT - 10 * 30, "what was not used is there again");
    }
}

#[tokio::test]
async fn a_hundred_requests_at_once_never_overspend() {
    let provider = Provider::start().await;
    for data in ["folder", "memory"] {
        let gate = Gate::new();
        provider.always(gated(&gate, 30));
        let mut relay = limited(TestRelay::with(&provider));
        if data == "memory" {
            relay = relay.env("RELAY_DATA", "memory");
        }
        let relay = relay.start().await;
        a_hundred_at_once(&[&user(&relay).await], &gate).await;
        relay.finish().await;
    }
}

#[tokio::test]
async fn a_hundred_requests_at_two_relays_never_overspend() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate, 30));
    let pair = Pair::start_with(&provider, limited).await;
    let here = user(&pair.first).await;
    let there = pair.second.same(&here);
    a_hundred_at_once(&[&here, &there], &gate).await;
    pair.finish().await;
}

/// Every way out but death, one after the other, and what each leaves in the book.
#[tokio::test]
async fn the_book_is_right_however_an_answer_ends() {
    let provider = Provider::start().await;
    let relay = limited(TestRelay::with(&provider)).env("RELAY_DRAIN", "0s").start();
    let mut relay = relay.await;
    let user = user(&relay).await;
    let mut expected = LIMIT;

    provider.once(costing(70_000));
    user.stream(asked()).await.done().await;
    expected -= 70_000;
    assert_eq!(left(&user).await, expected, "as the provider counts it");

    provider.once(Script::telling(&["Once ", "upon ", "a time."]));
    let done = user.stream(asked()).await.done().await;
    assert_eq!(done["usage"]["estimated"], true);
    expected -= spent(&done);
    assert_eq!(left(&user).await, expected, "as the relay counts it, where the provider does not");

    provider.once(Script::new().token("Once ").stall());
    let mut reading = user.stream(asked()).await;
    reading.until("token").await;
    assert!(left(&user).await <= expected - ANSWER, "set aside meanwhile");
    user.delete(&format!("/v1/streams/{}", reading.stream_id())).await.ok(204);
    expected -= spent(&reading.done().await);
    assert_eq!(left(&user).await, expected, "stopped");

    provider.once(Script::answer(401, "content-type: application/json\r\n").end());
    user.stream(asked()).await.error().await;
    assert_eq!(left(&user).await, expected, "who refuses a key charges nothing");

    provider.once(Script::new().token("Once upon a time.").reset());
    user.stream(asked()).await.error().await;
    let failed = expected - left(&user).await;
    assert!((5..50).contains(&failed), "a prompt and some words: {failed}");
    expected -= failed;

    provider.once(Script::new().token("Once upon a time.").stall());
    user.stream(asked()).await.until("token").await;
    relay.restart().await;
    let interrupted = expected - left(&user).await;
    assert_eq!(interrupted, failed, "as the relay counts it, also at its own end");
    expected -= interrupted;

    // Refused before it began: nothing was set aside, and nothing is saved.
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "max_tokens": 2_000_000, "stream_id": "same"});
    user.post("/v1/stream", &body).await.refused(429, "budget_exceeded");
    assert_eq!(user.tree(story).await["messages"], json!([]));
    provider.once(costing(100));
    let body =
        json!({"conversation_id": story, "input": "Go.", "max_tokens": 10, "stream_id": "same"});
    user.stream(body).await.done().await;
    assert_eq!(left(&user).await, expected - 100);
    relay.finish().await;
}

#[tokio::test]
async fn the_book_survives_a_killed_relay() {
    let provider = Provider::start().await;
    let mut relay = limited(TestRelay::with(&provider)).start().await;
    let user = user(&relay).await;
    provider.once(costing(70_000));
    user.stream(asked()).await.done().await;

    let story = user.conversation().await;
    let text = "Once upon a time. ".repeat(20);
    provider.once(Script::new().token(&text).stall());
    let body = json!({"conversation_id": story, "input": "Go.", "max_tokens": ANSWER});
    let mut reading = user.stream(body).await;
    reading.until("token").await;
    // Its text is recorded within a moment.
    let recorded = || {
        let journal = rusqlite::Connection::open(relay.data().join("journal.db")).unwrap();
        let count =
            journal.query_row("select count(*) from batches", [], |row| row.get::<_, i64>(0));
        count.unwrap()
    };
    let since = Instant::now();
    while recorded() == 0 {
        assert!(since.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    assert!(left(&user).await <= LIMIT - 70_000 - ANSWER, "set aside meanwhile");
    relay.kill().await;
    relay.start_again().await;
    let killed = LIMIT - 70_000 - left(&user).await;
    assert!((100..200).contains(&killed), "a prompt and the text so far: {killed}");

    // Of an answer that nobody wanted to keep no text is left: it counts in full.
    provider.once(Script::new().token("x").stall());
    user.stream(asked()).await.until("token").await;
    relay.kill().await;
    relay.start_again().await;
    let in_full = LIMIT - 70_000 - killed - left(&user).await;
    assert!((ANSWER..ANSWER + 50).contains(&in_full), "{in_full}");

    relay.restart().await;
    assert_eq!(left(&user).await, LIMIT - 70_000 - killed - in_full);
    relay.finish().await;
}

/// Nine answers at a time, of which each costs 30 if it comes to its end, and its prompt and a word if it does not.
#[tokio::test]
async fn a_relay_killed_at_any_moment_keeps_its_book() {
    let provider = Provider::start().await;
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 21}});
    let moment = Duration::from_millis(50);
    provider.always(Script::new().token("x").pause(moment).finish("stop").chunk(&usage).done());
    let mut relay = limited(TestRelay::with(&provider)).start().await;
    let user = user(&relay).await;
    let user = &user;
    for later in [0, 5, 15, 30, 60, 90, 120, 200] {
        // New ones each time: a prompt grows with its story.
        let stories = join_all((0..9).map(|_| user.conversation())).await;
        let before = left(user).await;
        let asked = stories.iter().map(|story| async move {
            let body = json!({"conversation_id": story, "input": "Go.", "max_tokens": ANSWER});
            let request = user.request(Method::POST, "/v1/stream").body(body.to_string());
            request.send().await?.bytes().await
        });
        // How far they come is not known, and does not matter.
        let _cut_off = timeout(Duration::from_millis(later), join_all(asked)).await;
        relay.kill().await;
        relay.start_again().await;
        let spent = before - left(user).await;
        assert!(spent <= 9 * 30, "{spent} after {later} ms");
    }
    relay.finish().await;
}

#[tokio::test]
async fn another_relay_settles_for_a_killed_one() {
    let provider = Provider::start().await;
    let mut pair = Pair::start_with(&provider, limited).await;
    let here = user(&pair.first).await;
    let there = pair.second.same(&here);
    let story = here.conversation().await;
    provider.once(Script::new().token(&"Once upon a time. ".repeat(20)).stall());
    let body = json!({"conversation_id": story, "input": "Go.", "max_tokens": ANSWER});
    let mut reading = here.stream(body).await;
    reading.until("token").await;
    let mut following = there.follow(&reading.stream_id(), None).await;
    following.until("token").await;
    assert!(left(&there).await <= LIMIT - ANSWER, "set aside everywhere");
    pair.first.kill().await;
    let killed = LIMIT - comes_to(&there, |left| left > LIMIT - ANSWER).await;
    assert!((100..200).contains(&killed), "a prompt and the text so far: {killed}");
    pair.first.start_again().await;
    pair.first.is_in_touch().await;
    assert_eq!(left(&here).await, LIMIT - killed);
    pair.finish().await;
}

#[tokio::test]
async fn with_redis_gone_each_relay_limits_by_itself_and_tells_afterwards() {
    let provider = Provider::start().await;
    let mut pair = Pair::start_with(&provider, limited).await;
    let here = user(&pair.first).await;
    let there = pair.second.same(&here);
    provider.once(costing(500_000));
    here.stream(asked()).await.done().await;
    assert_eq!(left(&there).await, LIMIT - 500_000);

    // One that began before, and ends meanwhile.
    let gate = Gate::new();
    provider.once(gated(&gate, 10_000));
    let mut across = here.stream(asked()).await;
    across.until("token").await;
    pair.redis.cutter.shut();
    pair.first.says("\"redis\":\"down\"").await;
    pair.second.says("\"redis\":\"down\"").await;
    gate.open();
    across.done().await;

    // Each goes on from what it last heard, and not from nothing.
    provider.once(costing(400_000));
    here.stream(asked()).await.done().await;
    assert!(left(&here).await <= LIMIT - 900_000);
    provider.once(costing(50_000));
    there.stream(asked()).await.done().await;
    assert_eq!(left(&there).await, LIMIT - 550_000);
    here.post("/v1/stream", &json!({"input": "Go.", "max_tokens": 150_000}))
        .await
        .refused(429, "budget_exceeded");

    // What was settled meanwhile is not forgotten with its relay.
    pair.first.kill().await;
    pair.first.start_again().await;
    pair.redis.cutter.open();
    let expected = LIMIT - 500_000 - 10_000 - 400_000 - 50_000;
    for user in [&here, &there] {
        comes_to(user, |left| left == expected).await;
    }
    assert_eq!(pair.redis.call::<u64>(&["HGET", &account(&here), "taken"]), LIMIT - expected);
    pair.finish().await;
}

#[tokio::test]
async fn a_new_day_is_a_new_budget() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, limited).await;
    let user = user(&pair.first).await;
    provider.once(costing(1_000_000));
    user.stream(asked()).await.done().await;
    assert_eq!(left(&user).await, LIMIT - 1_000_000);
    // As if that had been long ago.
    pair.redis.call::<()>(&["HSET", &account(&user), "day", "20000"]);
    assert_eq!(left(&user).await, LIMIT);
    provider.once(costing(1_000));
    user.stream(asked()).await.done().await;
    assert_eq!(left(&pair.second.same(&user)).await, LIMIT - 1_000);
    let life: u64 = pair.redis.call(&["TTL", &account(&user)]);
    assert!(life <= 86_400, "it is gone at midnight: {life}");
    pair.finish().await;
}

fn account(user: &User) -> String {
    format!("relay:tokens:{}", user.id)
}

#[tokio::test]
async fn anonymous_users_have_a_budget_of_their_own() {
    let provider = Provider::start().await;
    provider.always(costing(1_000));
    let relay = TestRelay::with(&provider)
        .env("RELAY_TOKENS_PER_DAY", "2000000")
        .env("RELAY_ANONYMOUS_TOKENS_PER_DAY", "200000")
        .start()
        .await;
    let anonymous = relay.anonymous();
    prepare(&anonymous).await;
    anonymous.stream(asked()).await.done().await;
    assert_eq!(left(&anonymous).await, 199_000);
    let signed_in = user(&relay).await;
    signed_in.stream(asked()).await.done().await;
    assert_eq!(left(&signed_in).await, 1_999_000);
    relay.finish().await;
}
