//! What tests of budgets share: a budget, answers that cost what they are told to, and what a user has left.

use std::time::Duration;

use serde_json::{Value, json};
use storytellr_relay::clock;
use storytellr_relay::limits::tokens::Day;
use tokio::time::{Instant, sleep};

use crate::provider::{Gate, PATIENCE, Script};
use crate::relay::{Builder, User};

/// The budget of the tests.
pub(crate) const LIMIT: u64 = 1_050_000;

/// What an answer may have. With its prompt of some tokens there is room for ten.
pub(crate) const ANSWER: u64 = 100_000;

pub(crate) fn limited(relay: Builder) -> Builder {
    relay.env("RELAY_TOKENS_PER_DAY", LIMIT.to_string())
}

/// Returns when midnight is not near: all books begin anew then, and no test expects that.
pub(crate) async fn away_from_midnight() {
    let rest = Day::rest(clock::now());
    if rest < 3 * PATIENCE {
        sleep(rest).await;
    }
}

/// Gives the user a bot that takes any context, with those settings different as well, for a test that begins now.
pub(crate) async fn prepare(user: &User, mut settings: Value) {
    away_from_midnight().await;
    settings["context_size"] = json!(2 << 20);
    user.bot(settings).await;
}

/// Says something that may cost [`ANSWER`].
pub(crate) fn asked() -> Value {
    json!({"input": "Go.", "max_tokens": ANSWER})
}

/// An answer that the provider says took so many tokens, prompt and all.
pub(crate) fn costing(tokens: u64) -> Script {
    let gate = Gate::new();
    gate.open();
    gated(&gate, tokens)
}

/// The same, when the gate is open.
pub(crate) fn gated(gate: &Gate, tokens: u64) -> Script {
    Script::new().token("x").gate(gate).finish("stop").usage(9, tokens - 9).done()
}

/// What the user has left, as who asks for a little too much is told.
pub(crate) async fn left(user: &User) -> u64 {
    let body = json!({"input": "Go.", "max_tokens": LIMIT - 1});
    let answer = user.post("/v1/stream", &body).await;
    let message = answer.refused(429, "budget_exceeded").to_owned();
    let (_, rest) = message.split_once("tokens, and ").unwrap();
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

/// What the user has left, once it is as expected.
pub(crate) async fn comes_to(user: &User, expected: impl Fn(u64) -> bool) -> u64 {
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

/// Where Redis has what the user has taken.
pub(crate) fn account(user: &User) -> String {
    format!("relay:tokens:{}", user.id)
}
