//! Nobody reads or writes without a valid token. Each claim's own test is beside the verifier.

use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
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

/// RFC 7235 has one space, and a scheme that may be written in any case.
#[tokio::test]
async fn the_header_has_one_form() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let good = relay::token(&relay::claims(Uuid::now_v7()));
    let send = async |value: &[u8]| {
        let value = http::HeaderValue::from_bytes(value).unwrap();
        let request = relay.client().get(relay.url("/auth/test")).header("authorization", value);
        Answer::of(request.send().await.unwrap()).await
    };
    for scheme in ["Bearer", "bearer", "BEARER"] {
        send(format!("{scheme} {good}").as_bytes()).await.ok(200);
        let answer = send(format!("{scheme} x").as_bytes()).await;
        assert!(answer.refused(401, "invalid_token").contains("`access_token`"));
    }
    for (wrong, code) in [
        (format!("Bearer  {good}"), "invalid_token"),
        ("Bearer  x".to_owned(), "invalid_token"),
        (format!("Bearer \t{good}"), "invalid_token"),
        (format!("Bearer {good} {good}"), "invalid_token"),
        (format!("Bearer {good}, Bearer {good}"), "invalid_token"),
        (format!("Bearer \"{good}\""), "invalid_token"),
        (format!("Bearer\t{good}"), "missing_token"),
        (format!("Bearer{good}"), "missing_token"),
        (format!("Bearer:{good}"), "missing_token"),
        (format!("Bearers {good}"), "missing_token"),
        (format!("Basic {good}"), "missing_token"),
        (good.clone(), "missing_token"),
        (format!("Bearer {good}\u{e9}"), "missing_token"),
    ] {
        let answer = send(wrong.as_bytes()).await;
        assert!(answer.refused(401, code).contains("access"), "{wrong}: {}", answer.json);
    }
    relay.finish().await;
}

/// What comes back on a connection of its own for a request with those bytes as its token.
async fn raw(relay: &TestRelay, token: &[u8]) -> String {
    let address = relay.url("").replace("http://", "");
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head =
        b"GET /auth/test HTTP/1.1\r\nhost: relay\r\nconnection: close\r\nauthorization: Bearer ";
    // It may be refused before it is all sent.
    let _sent = socket.write_all(&[head, token, b"\r\n\r\n"].concat()).await;
    let mut answer = Vec::new();
    let _read = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_token_that_no_header_can_hold_is_refused() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let good = relay::token(&relay::claims(Uuid::now_v7()));
    assert!(raw(&relay, good.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    // What is far too long, or has a NUL in it, is no HTTP: it ends before there is anything to answer in JSON.
    let wide: Vec<u8> = good.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let answer = raw(&relay, &wide).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // The answer may be lost, because the connection is reset while the rest still comes.
    let answer = raw(&relay, &vec![b'x'; 1 << 20]).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    // What is only longer than any token is.
    let answer = raw(&relay, &[b'x'; 17 << 10]).await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("longer than any"), "{answer}");
    assert!(raw(&relay, good.as_bytes()).await.starts_with("HTTP/1.1 200 "));
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
