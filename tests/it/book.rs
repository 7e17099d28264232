//! The book of tokens where it was wrong once: what nobody saw, what was begun twice, what was said to be lost and was not.

use std::time::Duration;

use http::Method;
use serde_json::json;
use storytellr_relay::clock;
use storytellr_relay::limits::tokens::Day;
use tokio::time::{Instant, sleep};

use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::purse::{
    ANSWER, LIMIT, account, asked, away_from_midnight, comes_to, costing, gated, left, limited,
    prepare,
};
use crate::redis::{Pair, Redis, WAITS};
use crate::relay::{TestRelay, User};

fn taken(redis: &Redis, user: &User) -> u64 {
    redis.call::<Option<u64>>(&["HGET", &account(user), "taken"]).unwrap_or(0)
}

/// Lets a process hang, or go on.
fn signal(pid: &str, signal: &str) {
    let kill = std::process::Command::new("kill").args(["-s", signal, pid]).status();
    assert!(kill.unwrap().success());
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
    prepare(&user, json!({"reasoning": "high"})).await;
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

/// The script's answer where a relay calls it so.
fn run<T: redis::FromRedisValue>(redis: &Redis, script: &str, arguments: &[&str]) -> T {
    redis.call(&[&["EVAL", script, "1", "relay:tokens:somebody"], arguments].concat())
}

const RESERVE: &str = include_str!("../../src/limits/shared/scripts/reserve.lua");
const SETTLE: &str = include_str!("../../src/limits/shared/scripts/settle.lua");

/// The answer to any call may be lost, and calls that are late are carried out in any order.
#[tokio::test]
async fn what_redis_is_told_twice_or_too_late_counts_once() {
    let redis = Redis::start().await;
    away_from_midnight().await;
    let Day(day) = Day::of(clock::now());
    let (yesterday, day) = ((day - 1).to_string(), day.to_string());
    let reserve = |attempt: &str, tokens: &str| {
        run::<(bool, u64, i64, u64)>(&redis, RESERVE, &[attempt, tokens, "5", "1000", "0", "0"])
    };
    let told = |attempt: &str, tokens: &str, is_new: &str| {
        run::<u64>(&redis, SETTLE, &[attempt, &day, "counted", tokens, tokens, is_new])
    };
    // Set aside, but nobody heard of that, and so it is told of as new, and that twice.
    assert!(reserve("a", "30").0);
    assert_eq!(told("a", "300", "1"), 300);
    assert_eq!(told("a", "300", "1"), 300);
    // Told of before what was to be set aside for it is.
    assert_eq!(told("b", "100", "1"), 400);
    reserve("b", "200");
    assert_eq!(taken_of_somebody(&redis), 400);
    // Set aside twice is what the second one says, if there is room for it.
    assert!(reserve("c", "10").0);
    assert!(!reserve("c", "900").0);
    assert!(reserve("c", "20").0);
    assert_eq!(taken_of_somebody(&redis), 420);
    // Ended by another relay, which its own one does not hear of.
    run::<u64>(&redis, SETTLE, &["c", "", "counted", "15", "0", "0"]);
    assert_eq!(told("c", "15", "1"), 415);
    // Ended by another relay that tells of it later, when Redis is back, and its own one had not heard that it is set aside.
    assert!(reserve("d", "10").0);
    assert_eq!(told("d", "15", "0"), 430);
    assert_eq!(told("d", "15", "1"), 430);
    // Set aside before midnight and settled after it, which today's book has nothing to do with.
    assert!(reserve("e", "10").0);
    let settled: Option<u64> = run(&redis, SETTLE, &["e", &yesterday, "counted", "20", "0", "0"]);
    assert_eq!(settled, None);
    assert_eq!(taken_of_somebody(&redis), 440);
}

fn taken_of_somebody(redis: &Redis) -> u64 {
    redis.call(&["HGET", "relay:tokens:somebody", "taken"])
}

#[tokio::test]
async fn a_relay_started_again_settles_what_it_had_finished_but_not_saved() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    let (mut pair, database) = Pair::cuttable(&provider, limited).await;
    prepare(&pair.user, json!({})).await;
    provider.once(gated(&gate, 70_000));
    let body = json!({"conversation_id": pair.story, "input": "Go.", "max_tokens": ANSWER});
    let mut here = pair.user.stream(body).await;
    here.until("token").await;
    database.shut();
    gate.open();
    pair.first.logs("save failed").await;
    pair.first.kill().await;
    pair.first.start_again().await;
    pair.first.is_in_touch().await;
    database.open();
    comes_to(&pair.user, |left| left == LIMIT - 70_000).await;
    pair.finish().await;
}

/// A turn that its relay did not live to begin, and the same turn asked for again elsewhere, are two.
#[tokio::test]
async fn a_second_attempt_is_not_settled_for_the_first() {
    let provider = Provider::start().await;
    let (mut pair, database) = Pair::start_alone(&provider, limited).await;
    prepare(&pair.user, json!({})).await;
    let turn = json!({"conversation_id": pair.story, "input": "Go.", "max_tokens": ANSWER, "stream_id": "again"});
    let lock = pair.kill_beginning(&database, &turn).await;
    // The database hears of its death before it gets so far.
    let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where {WAITS}");
    lock.batch_execute(&end).await.unwrap();
    lock.batch_execute("rollback").await.unwrap();

    let gate = Gate::new();
    provider.always(gated(&gate, 1_000));
    let again = pair.away.request(Method::POST, "/v1/stream").body(turn.to_string());
    let mut second = pair.away.begins(again, (503, "store_unavailable")).await;
    second.until("token").await;
    // The first one is looked after until it is sure that it will never begin.
    let since = Instant::now();
    while !pair.second.log().contains("done with an entry of the outbox") {
        assert!(since.elapsed() < 2 * PATIENCE, "{}", pair.second.log());
        assert!(left(&pair.away).await < LIMIT - ANSWER, "set aside still");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(left(&pair.away).await < LIMIT - ANSWER, "set aside still");
    gate.open();
    second.done().await;
    assert_eq!(left(&pair.away).await, LIMIT - 1_000);
    pair.first.start_again().await;
    pair.finish().await;
}

/// Redis hangs, the relay goes by its own book and refuses, and then Redis carries out what it was asked.
#[tokio::test]
async fn what_a_hanging_redis_set_aside_too_late_is_given_back() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, limited).await;
    prepare(&pair.user, json!({})).await;
    provider.once(costing(1_000_000));
    pair.user.stream(asked()).await.done().await;
    // As if other relays had given something back meanwhile.
    pair.redis.call::<()>(&["HSET", &account(&pair.user), "taken", "0"]);
    // Asked before, because who hangs says nothing.
    let redis = pair.redis.pid();
    signal(&redis, "STOP");
    pair.user.post("/v1/stream", &asked()).await.refused(429, "budget_exceeded");
    signal(&redis, "CONT");
    pair.first.is_in_touch().await;
    comes_to(&pair.user, |left| left == LIMIT).await;
    // And what began by the relay's own book meanwhile counts once.
    provider.once(costing(1_000));
    signal(&redis, "STOP");
    pair.user.stream(asked()).await.done().await;
    signal(&redis, "CONT");
    pair.first.is_in_touch().await;
    comes_to(&pair.away, |left| left == LIMIT - 1_000).await;
    assert_eq!(taken(&pair.redis, &pair.user), 1_000);
    pair.finish().await;
}

#[tokio::test]
async fn a_flushed_redis_hears_from_each_relay_what_that_one_knew() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, limited).await;
    prepare(&pair.user, json!({})).await;
    provider.once(costing(500_000));
    pair.user.stream(asked()).await.done().await;
    pair.redis.call::<()>(&["FLUSHALL"]);
    assert_eq!(left(&pair.user).await, LIMIT - 500_000);
    let gate = Gate::new();
    provider.once(gated(&gate, 1_000));
    let mut reading = pair.user.stream(asked()).await;
    reading.until("token").await;
    assert!(left(&pair.away).await < LIMIT - 500_000 - ANSWER, "others hear of it");
    // What is running now nobody can settle any more: it stays set aside.
    pair.redis.call::<()>(&["FLUSHALL"]);
    gate.open();
    reading.done().await;
    assert!(left(&pair.user).await < LIMIT - 500_000 - ANSWER);
    assert!(left(&pair.away).await < LIMIT - 500_000 - ANSWER);
    pair.finish().await;
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_hears_of_what_was_before_as_well() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, limited).await;
    prepare(&pair.user, json!({})).await;
    provider.once(costing(500_000));
    pair.user.stream(asked()).await.done().await;
    pair.redis.cutter.shut();
    pair.first.says("\"redis\":\"down\"").await;
    provider.once(costing(1_000));
    pair.user.stream(asked()).await.done().await;
    pair.redis.crash();
    pair.redis.cutter.open();
    comes_to(&pair.away, |left| left == LIMIT - 501_000).await;
    pair.finish().await;
}
