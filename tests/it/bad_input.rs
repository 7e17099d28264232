//! Whatever is sent: a fitting status, and a sentence that helps.

use http::Method;
use serde_json::{Value, json};

use crate::provider::{Provider, Script};
use crate::relay::{Answer, TestRelay, User};

async fn post(user: &User, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    Answer::of(user.request(Method::POST, path).body(body).send().await.unwrap()).await
}

#[tokio::test]
async fn bodies_that_are_no_json_object() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    for body in [
        "x",
        "null",
        "[]",
        "[1]",
        "\"x\"",
        "1",
        "{",
        "{\"input\":",
        "{}{}",
        "{} x",
        "\u{feff}{}",
        "{\"input\": 1e999}",
    ] {
        let answer = post(&user, "/v1/stream", body).await;
        assert_eq!(answer.status, 400, "{body}");
        answer.refused(400, "invalid_request");
    }
    post(&user, "/v1/stream", vec![b'{', 0xFF, b'}']).await.refused(400, "invalid_request");
    let nested = format!("{{\"x\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    post(&user, "/v1/stream", nested).await.refused(400, "invalid_request");
    relay.finish().await;
}

#[tokio::test]
async fn fields_of_the_wrong_type_are_named() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let wrong: &[(&str, Value)] = &[
        ("conversation_id", json!("one")),
        ("conversation_id", json!(-1)),
        ("conversation_id", json!(0)),
        ("conversation_id", json!(1.5)),
        ("conversation_id", json!(9_007_199_254_740_992_i64)),
        ("parent_id", json!([])),
        ("input", json!(7)),
        ("messages", json!("x")),
        ("messages[0].role", json!([{"role": "king", "content": "x"}])),
        ("messages[0].content", json!([{"role": "user", "content": 7}])),
        (
            "messages[0].content",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ),
        ("messages[1]", json!([{"role": "user", "content": "x"}, 7])),
        ("system", json!({})),
        ("bot_id", json!("x")),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("temperature", json!("hot")),
        ("temperature", json!(2.1)),
        ("stream_id", json!("a b")),
        ("stream_id", json!("")),
        ("stream_id", json!("x".repeat(129))),
        ("stream_id", json!(1)),
        ("is_alternative", json!("yes")),
        ("alternative_id", json!(-5)),
    ];
    for (path, value) in wrong {
        let field = path.split(['[', '.']).next().unwrap();
        let mut body = json!({"input": "Go."});
        body[field] = value.clone();
        let answer = user.post("/v1/stream", &body).await;
        let message = answer.refused(400, "invalid_request").to_owned();
        assert!(message.contains(path), "{path}: {message}");
    }
    relay.finish().await;
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_null_is_absent() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let body = json!({"input": "Go.", "conversation_id": null, "bot_id": null, "from_the_future": {"x": [1]}});
    user.stream(body).await.done().await;
    relay.finish().await;
}

#[tokio::test]
async fn whole_numbers_may_be_written_with_a_point() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let bot = user.bot(json!({"context_size": 5000.0, "max_tokens": 1e2})).await;
    let made = user.get(&format!("/v1/bots/{bot}")).await.ok(200);
    assert_eq!((&made["context_size"], &made["max_tokens"]), (&json!(5000), &json!(100)));
    let story = user.conversation().await;
    let body = json!({
        "conversation_id": story as f64, "bot_id": bot as f64, "input": "Go.", "max_tokens": 50.0
    });
    let done = user.stream(body).await.done().await;
    assert_eq!(provider.last_request().body["max_tokens"], 50);
    let message = done["message_id"].as_f64().unwrap();
    user.reroll(json!({"message_id": message, "max_tokens": 50.0})).await.done().await;
    relay.finish().await;
}

#[tokio::test]
async fn requests_that_ask_for_nothing_say_what_is_missing() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    for (body, missing) in [
        (json!({}), "`input`"),
        (json!({"conversation_id": story}), "`parent_id`"),
        (json!({"parent_id": 1}), "`conversation_id`"),
        (json!({"input": "  "}), "`input`"),
        (json!({"input": "\0\r"}), "`input`"),
        (json!({"messages": []}), "`messages`"),
        (json!({"is_alternative": true}), "`alternative_id`"),
        (json!({"is_alternative": true, "alternative_id": 1}), "`stream_id`"),
    ] {
        let answer = user.post("/v1/stream", &body).await;
        assert!(answer.refused(400, "invalid_request").contains(missing), "{}", answer.json);
    }
    assert!(
        post(&user, "/v1/stream", "").await.refused(400, "invalid_request").contains("`input`")
    );
    assert!(
        user.post("/v1/reroll", &json!({}))
            .await
            .refused(400, "invalid_request")
            .contains("`message_id`")
    );
    relay.finish().await;
}

#[tokio::test]
async fn twenty_megabytes_are_too_much() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let body = json!({"input": "x".repeat(20 << 20)}).to_string();
    let request =
        user.request(Method::POST, "/v1/stream").header("expect", "100-continue").body(body);
    // The relay answers before it has read everything, so the client may see the connection close instead.
    if let Ok(response) = request.send().await {
        Answer::of(response).await.refused(413, "body_too_large");
    }
    let body = json!({"input": "x".repeat(5 << 20)}).to_string();
    let chunked = reqwest::Body::from(body);
    if let Ok(response) = user.request(Method::POST, "/v1/stream").body(chunked).send().await {
        Answer::of(response).await.refused(413, "body_too_large");
    }
    relay.finish().await;
}

#[tokio::test]
async fn ids_in_paths_and_queries() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    for id in
        ["0", "-1", "x", "1.5", "+1", "9007199254740992", "99999999999999999999999", "%20", "1%00"]
    {
        user.get(&format!("/v1/conversations/{id}")).await.refused(400, "invalid_request");
        user.delete(&format!("/v1/messages/{id}")).await.refused(400, "invalid_request");
        user.get(&format!("/v1/bots/{id}")).await.refused(400, "invalid_request");
        user.get(&format!("/auth/test?bot_id={id}")).await.refused(400, "invalid_request");
    }
    user.get("/v1/conversations/9007199254740991").await.refused(404, "conversation_not_found");
    user.get("/v1/streams/a%20b").await.refused(400, "invalid_request");
    user.get("/v1/streams/a..b").await.refused(404, "stream_not_found");
    user.get("/v1/message-by-stream-id").await.refused(400, "invalid_request");
    user.get("/v1/conversations?limit=x").await.refused(400, "invalid_request");
    for cursor in ["x", "1", "1-x", "-", "1-2-3"] {
        user.get(&format!("/v1/conversations?cursor={cursor}"))
            .await
            .refused(400, "invalid_request");
    }
    user.get("/v1/bots?cursor=x").await.refused(400, "invalid_request");
    relay.finish().await;
}

#[tokio::test]
async fn routes_and_methods_that_there_are_not() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    for path in ["/nowhere", "/v1", "/v1/", "/v1/stream/", "//v1/bots", "/v1/../v1/nowhere"] {
        user.get(path).await.refused(404, "route_not_found");
    }
    user.get("/v1/stream").await.refused(405, "method_not_allowed");
    user.delete("/v1/bots").await.refused(405, "method_not_allowed");
    relay.finish().await;
}

#[tokio::test]
async fn a_request_id_is_taken_over_if_it_is_harmless() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let get =
        |id: String| relay.client().get(relay.url("/healthz")).header("x-request-id", id).send();
    let answered = |answer: Answer| answer.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answered(Answer::of(get("abc-1".to_owned()).await.unwrap()).await), "abc-1");
    for harmful in ["a b".to_owned(), "x".repeat(129), "a\"b".to_owned()] {
        assert_ne!(answered(Answer::of(get(harmful.clone()).await.unwrap()).await), harmful);
    }
    relay.finish().await;
}
