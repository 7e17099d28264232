//! Nobody reads or writes without a valid token. Each claim's own test is beside the verifier.

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::provider::Provider;
use crate::relay::{self, Answer, TestRelay};

/// Every personal route, with ids that would be somebody's.
const ROUTES: &[(Method, &str)] = &[
    (Method::POST, "/v1/stream"),
    (Method::POST, "/v1/reroll"),
    (Method::GET, "/v1/streams"),
    (Method::GET, "/v1/streams/x"),
    (Method::DELETE, "/v1/streams/x"),
    (Method::GET, "/v1/message-by-stream-id?stream_id=x"),
    (Method::GET, "/v1/conversations"),
    (Method::POST, "/v1/conversations"),
    (Method::GET, "/v1/conversations/1"),
    (Method::PATCH, "/v1/conversations/1"),
    (Method::DELETE, "/v1/conversations/1"),
    (Method::PUT, "/v1/messages/1/active"),
    (Method::POST, "/v1/messages/1/variants"),
    (Method::DELETE, "/v1/messages/1"),
    (Method::GET, "/v1/bots"),
    (Method::POST, "/v1/bots"),
    (Method::GET, "/v1/bots/1"),
    (Method::PATCH, "/v1/bots/1"),
    (Method::DELETE, "/v1/bots/1"),
    (Method::GET, "/auth/test"),
];

#[tokio::test]
async fn every_personal_route_wants_a_token() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    for (method, path) in ROUTES {
        let request = || relay.client().request(method.clone(), relay.url(path)).body("{}");
        let answer = Answer::of(request().send().await.unwrap()).await;
        answer.refused(401, "missing_token");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        for wrong in ["Basic eA==", "Bearer", "Bearer ", "token", "\tBearer x"] {
            let answer =
                Answer::of(request().header("authorization", wrong).send().await.unwrap()).await;
            assert_eq!(answer.status, 401, "{method} {path} {wrong:?}");
        }
        let answer = Answer::of(request().bearer_auth("x.y.z").send().await.unwrap()).await;
        answer.refused(401, "invalid_token");
    }
    relay.finish().await;
}

#[tokio::test]
async fn a_token_must_be_good_in_every_respect() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let id = Uuid::now_v7();
    let good = relay::claims(id);
    let send =
        |token: String| relay.client().get(relay.url("/auth/test")).bearer_auth(token).send();
    let answer = Answer::of(send(relay::token(&good)).await.unwrap()).await;
    assert_eq!(answer.ok(200), json!({"user_id": id, "bot": null}));
    let wrong: [(&str, Value, &str); 5] = [
        ("exp", json!(1_000_000_000), "expired"),
        ("iss", json!("https://other.supabase.co/auth/v1"), "iss"),
        ("aud", json!("anon"), "aud"),
        ("role", json!("service_role"), "role"),
        ("sub", json!("root"), "sub"),
    ];
    for (claim, value, reason) in wrong {
        let mut claims = good.clone();
        claims[claim] = value;
        let answer = Answer::of(send(relay::token(&claims)).await.unwrap()).await;
        assert!(answer.refused(401, "invalid_token").contains(reason));
    }
    let twice = relay
        .client()
        .get(relay.url("/auth/test"))
        .bearer_auth(relay::token(&good))
        .bearer_auth("x");
    Answer::of(twice.send().await.unwrap()).await.refused(401, "invalid_token");
    relay.finish().await;
}

#[tokio::test]
async fn a_token_in_the_address_is_none() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let url = relay.url(&format!("/v1/bots?access_token={}", user.token));
    Answer::of(relay.client().get(url).send().await.unwrap()).await.refused(401, "missing_token");
    relay.finish().await;
}

#[tokio::test]
async fn auth_test_tells_whether_a_bot_is_mine() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let (user, stranger) = (relay.stranger(), relay.stranger());
    let bot = user.bot(json!({"name": "Mine"})).await;
    let path = format!("/auth/test?bot_id={bot}");
    assert_eq!(user.get(&path).await.ok(200)["bot"]["name"], "Mine");
    stranger.get(&path).await.refused(403, "bot_not_found");
    relay.finish().await;
}
