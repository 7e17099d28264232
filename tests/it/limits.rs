//! How much one user may ask for, and that it does not cost another.

use futures_util::future::join_all;
use http::Method;
use serde_json::json;

use crate::provider::{Gate, Provider, Script};
use crate::redis::Pair;
use crate::relay::{Answer, TestRelay, User};

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

#[tokio::test]
async fn anonymous_users_have_limits_of_their_own() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(Script::new().token("x").gate(&gate).finish("stop").done());
    let relay = TestRelay::with(&provider)
        .env("RELAY_ANONYMOUS_RATE_LIMIT", "3/min")
        .env("RELAY_ANONYMOUS_MAX_STREAMS_PER_USER", "1")
        .start()
        .await;
    let anonymous = relay.anonymous();
    anonymous.bot(json!({})).await;
    let mut reading = anonymous.stream(json!({"input": "Go."})).await;
    let body = json!({"input": "Go."});
    anonymous.post("/v1/stream", &body).await.refused(429, "too_many_streams");
    let answer = anonymous.post("/v1/stream", &body).await;
    answer.refused(429, "rate_limited");
    assert_eq!(answer.headers["ratelimit-policy"], "\"requests\";q=3;w=60");
    let signed_in = relay.user().await;
    let mut two = [signed_in.stream(body.clone()).await, signed_in.stream(body).await];
    gate.open();
    reading.done().await;
    two[0].done().await;
    two[1].done().await;
    relay.finish().await;
}

/// Asks as a proxy does that heard of `client` from somebody.
async fn ask_for(relay: &TestRelay, client: &str) -> Answer {
    let request = relay.client().get(relay.url("/v1/bots")).header("x-forwarded-for", client);
    Answer::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn an_address_has_its_limit_before_anybody_is_known() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider)
        .env("RELAY_ADDRESS_RATE_LIMIT", "2/min")
        .env("RELAY_TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    // What stands before the address that the proxy adds is the client's own word.
    for word in ["", "198.51.100.1, "] {
        ask_for(&relay, &format!("{word}203.0.113.7")).await.refused(401, "missing_token");
    }
    let answer = ask_for(&relay, "198.51.100.2, 203.0.113.7").await;
    answer.refused(429, "rate_limited");
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(answer.headers["ratelimit-policy"], "\"address\";q=2;w=60");
    assert_eq!(answer.headers["ratelimit"], format!("\"address\";r=0;t={wait}"));

    // A customer of IPv6 has a network, not an address.
    for host in 1..=2 {
        ask_for(&relay, &format!("2001:db8:0:1::{host}")).await.refused(401, "missing_token");
    }
    ask_for(&relay, "2001:db8:0:1:ffff::1").await.refused(429, "rate_limited");
    ask_for(&relay, "2001:db8:0:2::1").await.refused(401, "missing_token");
    relay.finish().await;
}

#[tokio::test]
async fn nobody_says_where_he_comes_from_but_a_proxy_that_is_named() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).env("RELAY_ADDRESS_RATE_LIMIT", "1/min").start().await;
    for _ in 0..3 {
        // Else one user could use up another's.
        ask_for(&relay, "203.0.113.7").await.refused(401, "missing_token");
    }
    relay.finish().await;
}

/// Ends the relay; all that it has told.
async fn told_by(relay: &mut TestRelay) -> String {
    relay.terminate();
    relay.ended().await;
    // Its last word: whatever came before is there as well.
    relay.logs("\"message\":\"stopped\"").await;
    relay.log()
}

#[tokio::test]
async fn each_relay_counts_addresses_by_itself_and_asks_once_whether_one_is_a_proxy() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, |relay| {
        relay.env("RELAY_ADDRESS_RATE_LIMIT", "2/h").env("RELAY_TRUSTED_PROXIES", "127.0.0.0/8")
    });
    let mut pair = pair.await;
    for relay in [&mut pair.first, &mut pair.second] {
        for _ in 0..2 {
            ask_for(relay, "203.0.113.7").await.refused(401, "missing_token");
        }
        // It says nothing of others.
        ask_for(relay, "203.0.113.7").await.refused(429, "rate_limited");
        let proxied = ask_for(relay, "198.51.100.1, 203.0.113.7").await;
        proxied.refused(429, "rate_limited");
        ask_for(relay, "198.51.100.1, 203.0.113.7").await.refused(429, "rate_limited");
        let told = told_by(relay).await;
        let asked: Vec<_> =
            told.lines().filter(|line| line.contains("RELAY_TRUSTED_PROXIES")).collect();
        assert_eq!(asked.len(), 1, "{asked:#?}");
        assert!(asked[0].contains(proxied.headers["x-request-id"].to_str().unwrap()), "{asked:?}");
    }
    let keys: Vec<String> = pair.redis.call(&["KEYS", "relay:requests:203*"]);
    assert!(keys.is_empty(), "{keys:?}");
    pair.first.start_again().await;
    pair.second.start_again().await;
    pair.finish().await;
}

/// How many of `count` requests of a user, made at once at each relay, are served.
async fn served(users: &[&User], count: usize) -> usize {
    let asked = users.iter().flat_map(|user| (0..count).map(|_| user.get("/v1/bots")));
    let answers = join_all(asked).await;
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.refused(429, "rate_limited");
    }
    answers.iter().filter(|answer| answer.status == 200).count()
}

#[tokio::test]
async fn two_relays_count_a_users_requests_together() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, |relay| relay.env("RELAY_RATE_LIMIT", "20/h")).await;
    let here = pair.first.stranger();
    let there = pair.second.same(&here);
    assert_eq!(served(&[&here, &there], 40).await, 20);
    let left = there.get("/v1/bots").await.headers["ratelimit"].to_str().unwrap().to_owned();
    assert!(left.starts_with("\"requests\";r=0;"), "{left}");
    assert_eq!(served(&[&pair.second.stranger()], 21).await, 20);
    pair.finish_without_users().await;
}

#[tokio::test]
async fn with_redis_gone_each_relay_goes_on_from_what_it_knows() {
    let provider = Provider::start().await;
    let mut pair = Pair::start_with(&provider, |relay| relay.env("RELAY_RATE_LIMIT", "20/h")).await;
    let here = pair.first.stranger();
    let there = pair.second.same(&here);
    assert_eq!(served(&[&there], 8).await, 8);
    assert_eq!(served(&[&here], 1).await, 1);
    pair.redis.cutter.shut();
    pair.first.says("\"redis\":\"down\"").await;
    pair.second.says("\"redis\":\"down\"").await;
    assert_eq!(served(&[&here], 40).await, 11, "it had heard of nine");
    assert_eq!(served(&[&there], 40).await, 12, "it had heard of eight");
    pair.redis.cutter.open();
    pair.first.is_in_touch().await;
    pair.second.is_in_touch().await;
    let new = pair.first.stranger();
    assert_eq!(served(&[&new, &pair.second.same(&new)], 40).await, 20, "and they agree again");
    assert_eq!(told_by(&mut pair.first).await.matches("redis is away").count(), 1);
    pair.first.start_again().await;
    pair.finish_without_users().await;
}

/// It takes what it is sent and says nothing, for longer than any test waits.
#[tokio::test]
async fn a_redis_that_hangs_keeps_nobody_waiting() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let pair = Pair::start_with(&provider, |relay| relay.env("RELAY_RATE_LIMIT", "20/h")).await;
    pair.redis.call::<()>(&["CLIENT", "PAUSE", "600000", "ALL"]);
    assert_eq!(served(&[&pair.first.stranger()], 40).await, 20);
    pair.first.says("\"redis\":\"down\"").await;
    pair.user.told(pair.story, "Go.").await;
    pair.finish_without_users().await;
}

#[tokio::test]
async fn two_relays_count_running_answers_together_and_forget_those_of_a_killed_one() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(Script::new().token("x").gate(&gate).finish("stop").done());
    let mut pair =
        Pair::start_with(&provider, |relay| relay.env("RELAY_MAX_STREAMS_PER_USER", "2")).await;
    let body = json!({"input": "Go."});
    let mut here = pair.user.stream(body.clone()).await;
    let mut there = pair.away.stream(body.clone()).await;
    here.until("token").await;
    there.until("token").await;
    for user in [&pair.user, &pair.away] {
        user.post("/v1/stream", &body).await.refused(429, "too_many_streams");
    }
    pair.first.kill().await;
    let third = pair.away.request(Method::POST, "/v1/stream").body(body.to_string());
    let mut third = pair.away.begins(third, (429, "too_many_streams")).await;
    pair.away.post("/v1/stream", &body).await.refused(429, "too_many_streams");
    gate.open();
    there.done().await;
    third.done().await;
    // A place is free at once when its answer has ended.
    for _ in 0..5 {
        let mut two = [pair.away.stream(body.clone()).await, pair.away.stream(body.clone()).await];
        two[0].done().await;
        two[1].done().await;
    }
    pair.first.start_again().await;
    pair.finish().await;
}
