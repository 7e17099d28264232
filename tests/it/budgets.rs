//! Tokens a day: nobody gets more than their budget, however they ask, and the book is right again whatever happened.

use std::time::Duration;

use futures_util::future::{join, join_all};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::client::Reading;
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::purse::{
    ANSWER, LIMIT, account, asked, comes_to, costing, gated, left, limited, prepare,
};
use crate::redis::Pair;
use crate::relay::{Answer, TestRelay, User};

/// A user whose bot takes any context.
async fn user(relay: &TestRelay) -> User {
    let user = relay.stranger();
    prepare(&user, json!({})).await;
    user
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
    let relay = limited(TestRelay::with(&provider))
        .env("RELAY_DRAIN", "0s")
        .env("RELAY_DETACHED_GRACE", "1s")
        .start();
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

    provider.once(Script::new().token("Once ").stall());
    let mut reading = user.stream(asked()).await;
    reading.until("token").await;
    let stream_id = reading.stream_id();
    drop(reading);
    let deserted = comes_to(&user, |left| left > expected - ANSWER).await;
    expected -= spent(&user.follow(&stream_id, None).await.done().await);
    assert_eq!(deserted, expected, "stopped, since nobody was left who reads it");

    provider.once(Script::answer(401, "content-type: application/json\r\n").end());
    user.stream(asked()).await.error().await;
    assert_eq!(left(&user).await, expected, "who refuses a key charges nothing");

    provider.once(Script::new().token("Once upon a time.").reset());
    user.stream(asked()).await.error().await;
    let failed = expected - left(&user).await;
    assert!((5..50).contains(&failed), "a prompt and some words: {failed}");
    expected -= failed;

    provider.once(Script::new().token("Once upon a time.").stall());
    let mut reading = user.stream(asked()).await;
    reading.until("token").await;
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

/// What may be as long as it likes, or is thought and never shown, cannot be set aside or counted.
#[tokio::test]
async fn an_answer_has_a_bound_though_nobody_names_one_and_thoughts_that_are_broken_off_count() {
    let provider = Provider::start().await;
    let relay = limited(TestRelay::with(&provider)).start().await;
    let user = user(&relay).await;
    provider.once(costing(30));
    user.stream(json!({"input": "Go."})).await.done().await;
    assert_eq!(provider.last_request().body["max_tokens"], 4_096);
    let small = user.bot(json!({"context_size": 1_000})).await;
    provider.once(costing(30));
    user.stream(json!({"input": "Go.", "bot_id": small})).await.done().await;
    assert_eq!(provider.last_request().body["max_tokens"], 500, "half of it is for the prompt");

    let thinker = user.bot(json!({"context_size": 2 << 20, "reasoning": "high"})).await;
    let before = left(&user).await;
    provider.once(Script::new().stall());
    let body = json!({"input": "Go.", "bot_id": thinker, "max_tokens": ANSWER});
    let reading = user.stream(body).await;
    user.delete(&format!("/v1/streams/{}", reading.stream_id())).await;
    drop(reading);
    let after = comes_to(&user, |left| left < before).await;
    assert!(before - after >= ANSWER, "{before} {after}");
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

/// Answers at a time in the test below.
const ANSWERS: u64 = 9;

/// When the relay of the test below is killed: once so many answers have begun, and so many have come to their end.
const MOMENTS: [Seen; 9] = [
    Seen { begun: 0, ended: 0 },
    Seen { begun: 1, ended: 0 },
    Seen { begun: 5, ended: 0 },
    Seen { begun: 9, ended: 0 },
    Seen { begun: 9, ended: 1 },
    Seen { begun: 9, ended: 3 },
    Seen { begun: 9, ended: 6 },
    Seen { begun: 9, ended: 8 },
    Seen { begun: 9, ended: 9 },
];

/// How much the readers of some answers have seen.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    begun: u64,
    ended: u64,
}

/// Says something in the story, and reads the answer until its relay is gone.
async fn tell(user: &User, story: i64, seen: &watch::Sender<Seen>) {
    let body = json!({"conversation_id": story, "input": "Go.", "max_tokens": ANSWER});
    let request = user.request(Method::POST, "/v1/stream").body(body.to_string());
    let Ok(response) = request.send().await else { return };
    assert_eq!(response.status(), 200);
    seen.send_modify(|seen| seen.begun += 1);
    let mut reading = Reading::new(response);
    while let Some(event) = reading.next_if_whole().await {
        assert_ne!(event.name, "error", "{event:?}");
        seen.send_modify(|seen| seen.ended += u64::from(event.name == "done"));
    }
}

/// Each answer costs 30 if it comes to its end, and its prompt and a word if it does not.
#[tokio::test]
async fn a_relay_killed_at_any_moment_keeps_its_book() {
    let provider = Provider::start().await;
    let mut relay = limited(TestRelay::with(&provider)).start().await;
    let user = user(&relay).await;
    let (mut ended_at_all, mut was_cut) = (0, false);
    for moment in MOMENTS {
        let gate = Gate::new();
        provider.always(gated(&gate, 30));
        // New ones each time: a prompt grows with its story.
        let stories = join_all((0..ANSWERS).map(|_| user.conversation())).await;
        let before = left(&user).await;
        let seen = watch::Sender::new(Seen::default());
        let told = stories.iter().map(|story| tell(&user, *story, &seen));
        let kill = async {
            let mut seen = seen.subscribe();
            let mut until = async |reached: &dyn Fn(&Seen) -> bool| {
                let waited = timeout(PATIENCE, seen.wait_for(|seen| reached(seen))).await;
                assert!(waited.is_ok(), "{moment:?} never comes");
            };
            until(&|seen| seen.begun >= moment.begun).await;
            // One more than are waited for, so that one is about to end.
            for _ in 0..=moment.ended {
                gate.step();
            }
            until(&|seen| seen.ended >= moment.ended).await;
            relay.kill().await;
        };
        join(join_all(told), kill).await;
        relay.start_again().await;
        let spent = before - left(&user).await;
        let ended = seen.borrow().ended;
        assert!((30 * ended..=30 * ANSWERS).contains(&spent), "{spent}, {ended} ended: {moment:?}");
        ended_at_all += ended;
        was_cut |= ended < ANSWERS;
    }
    assert!(ended_at_all > 0 && was_cut, "{ended_at_all} ended");
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

#[tokio::test]
async fn anonymous_users_have_a_budget_of_their_own() {
    let provider = Provider::start().await;
    provider.always(costing(1_000));
    let relay = limited(TestRelay::with(&provider))
        .env("RELAY_ANONYMOUS_TOKENS_PER_DAY", "200000")
        .start()
        .await;
    let anonymous = relay.anonymous();
    prepare(&anonymous, json!({})).await;
    anonymous.stream(asked()).await.done().await;
    assert_eq!(left(&anonymous).await, 199_000);
    let signed_in = user(&relay).await;
    signed_in.stream(asked()).await.done().await;
    assert_eq!(left(&signed_in).await, LIMIT - 1_000);
    relay.finish().await;
}

#[tokio::test]
async fn what_never_fits_is_not_to_be_waited_for() {
    let provider = Provider::start().await;
    let relay = limited(TestRelay::with(&provider)).start().await;
    let user = user(&relay).await;
    let refused = async |tokens: u64| {
        let answer = user.post("/v1/stream", &json!({"input": "Go.", "max_tokens": tokens})).await;
        let message = answer.refused(429, "budget_exceeded").to_owned();
        (message, answer.headers.get("retry-after").map(|wait| wait.to_str().unwrap().to_owned()))
    };
    let (message, wait) = refused(LIMIT).await;
    assert!(message.contains("No day has so many") && wait.is_none(), "{message} {wait:?}");
    provider.once(costing(70_000));
    user.stream(asked()).await.done().await;
    let (message, wait) = refused(LIMIT - 70_000).await;
    let wait: u64 = wait.unwrap().parse().unwrap();
    assert!(message.contains("midnight") && (1..=86_400).contains(&wait), "{message} {wait}");
    relay.finish().await;
}
