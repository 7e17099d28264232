//! Whatever a provider does wrong: one `error` at the end, the text so far is kept, and the reader is told what to do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::provider::{Provider, Script};
use crate::relay::{PROVIDER_KEY, TestRelay};

const SHORT: &str = "300ms";

/// Lets the provider answer with `script`, and checks the stream's end, what is saved, and that the story goes on.
async fn check(script: Script, text: &str, code: &str) {
    let provider = Provider::start().await;
    provider.always(script);
    check_at(&provider, text, code).await;
}

async fn check_at(provider: &Provider, text: &str, code: &str) {
    let relay = TestRelay::with(provider)
        .env("RELAY_FIRST_TOKEN_TIMEOUT", "5s")
        .env("RELAY_IDLE_TIMEOUT", SHORT)
        .start()
        .await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Begin.").await;
    let error = reading.error().await;
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(reading.text(), text);
    assert_eq!(error["saved"], true);
    let message = error["error"].as_str().unwrap();
    assert!(
        message.len() > 20 && !message.contains(PROVIDER_KEY) && !message.contains("sk-"),
        "{message}"
    );
    assert_eq!(error["stream_id"], reading.stream_id());
    check_saved(&user.tree(story).await, text, &error);

    provider.always(Script::telling(&["All is well."]));
    user.told(story, "Again.").await;
    assert_eq!(user.story(story).await, ["Begin.", "Again.", "All is well."]);
    relay.finish().await;
}

/// The text so far is a failed variant that is not shown; a reply without any text is gone.
fn check_saved(tree: &Value, text: &str, error: &Value) {
    let messages = tree["messages"].as_array().unwrap();
    assert_eq!(tree["path"], json!([messages[0]["id"]]), "the head must not move");
    if text.is_empty() {
        assert_eq!(messages.len(), 1, "{tree}");
        assert!(error["message_id"].is_null());
        return;
    }
    let reply = &messages[1];
    assert_eq!(reply["id"], error["message_id"]);
    assert!(reply["active_variant_id"].is_null());
    let variant = &reply["variants"][0];
    assert_eq!((&variant["status"], &variant["content"]), (&json!("failed"), &json!(text)));
    assert_eq!(
        (&variant["error"]["code"], &variant["error"]["message"]),
        (&error["code"], &error["error"])
    );
}

fn begun() -> Script {
    Script::new().token("Once").token(" upon")
}

#[tokio::test]
async fn a_body_that_ends_without_a_finish() {
    check(begun().end(), "Once upon", "provider_invalid").await;
}

#[tokio::test]
async fn a_body_that_ends_in_the_middle_of_an_event() {
    check(
        begun().raw(b"data: {\"choices\":[{\"delta\":{\"content\":\"lost").end(),
        "Once upon",
        "provider_invalid",
    )
    .await;
}

#[tokio::test]
async fn a_broken_chunk() {
    check(
        begun().raw(b"data: {\"choices\":[{\"delta\"\n\n").token("more").done(),
        "Once upon",
        "provider_invalid",
    )
    .await;
}

#[tokio::test]
async fn an_error_in_mid_stream_as_openai_has_it() {
    let error = json!({"error": {"message": format!("overloaded {PROVIDER_KEY}"), "type": "server_error", "param": null, "code": null}});
    check(begun().chunk(&error).done(), "Once upon", "provider_failed").await;
}

#[tokio::test]
async fn an_error_in_mid_stream_as_openrouter_has_it() {
    let error = json!({"id": "x", "error": {"code": 429, "message": "slow down"}, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]});
    check(begun().chunk(&error).end(), "Once upon", "provider_rate_limited").await;
}

#[tokio::test]
async fn a_finish_reason_that_is_an_error() {
    check(begun().finish("error").done(), "Once upon", "provider_failed").await;
}

#[tokio::test]
async fn a_reset() {
    check(begun().pause(Duration::from_millis(50)).reset(), "Once upon", "provider_unreachable")
        .await;
}

#[tokio::test]
async fn a_stall() {
    check(begun().stall(), "Once upon", "provider_timeout").await;
}

#[tokio::test]
async fn a_stall_behind_comments() {
    check(
        begun().repeat(b": keep-alive\n\n", Duration::from_millis(20)),
        "Once upon",
        "provider_timeout",
    )
    .await;
}

#[tokio::test]
async fn a_line_of_ten_megabytes() {
    check(begun().raw(&vec![b'x'; 10 << 20]).done(), "Once upon", "provider_invalid").await;
}

#[tokio::test]
async fn an_event_without_end() {
    check(
        begun().repeat(&[b"data: ".as_slice(), &[b'x'; 60_000], b"\n"].concat(), Duration::ZERO),
        "Once upon",
        "provider_invalid",
    )
    .await;
}

/// Each turn costs memory beside the text, of which a server that nobody knows could take a great deal.
#[tokio::test]
async fn an_answer_that_never_knows_whether_it_thinks_or_speaks() {
    let provider = Provider::start().await;
    let both = json!({"choices": [{"delta": {"reasoning_content": "t", "content": "s"}}]});
    provider.always(Script::new().repeat(format!("data: {both}\n\n").as_bytes(), Duration::ZERO));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"show_reasoning": true})).await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    assert_eq!(reading.error().await["code"], "answer_too_long");
    assert!(reading.text().len() <= 5_000, "{}", reading.text().len());
    relay.finish().await;
}

#[tokio::test]
async fn an_answer_without_end() {
    let provider = Provider::start().await;
    let token = json!({"choices": [{"delta": {"content": "x".repeat(100_000)}}]});
    provider.always(Script::new().repeat(format!("data: {token}\n\n").as_bytes(), Duration::ZERO));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    let error = reading.error().await;
    // Asked again unchanged, it would be as long again.
    assert_eq!((&error["code"], &error["retryable"]), (&json!("answer_too_long"), &json!(false)));
    assert!(reading.text().len() <= 4 << 20);
    relay.finish().await;
}

#[tokio::test]
async fn html_with_status_200() {
    check(
        Script::answer(200, "content-type: text/html\r\n").raw(b"<h1>Welcome</h1>").end(),
        "",
        "provider_invalid",
    )
    .await;
}

#[tokio::test]
async fn a_key_in_the_content_type() {
    let header = format!("content-type: text/{PROVIDER_KEY}\r\n");
    check(Script::answer(200, &header).end(), "", "provider_invalid").await;
}

#[tokio::test]
async fn an_error_with_status_200() {
    let error = json!({"error": {"message": format!("bad key {PROVIDER_KEY}")}}).to_string();
    check(
        Script::answer(200, "content-type: application/json\r\n").raw(error.as_bytes()).end(),
        "",
        "provider_failed",
    )
    .await;
}

#[tokio::test]
async fn no_content() {
    check(Script::answer(200, "content-type: text/event-stream\r\n").end(), "", "provider_invalid")
        .await;
    check(Script::new().raw(b"data: [DO").end(), "", "provider_invalid").await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Provider::start().await;
        let location = format!("location: {}/chat/completions\r\n", elsewhere.base_url());
        check(Script::answer(status, &location).end(), "", "provider_invalid").await;
        assert!(elsewhere.requests().is_empty(), "the redirect was followed");
    }
}

#[tokio::test]
async fn a_refused_key() {
    let echo = json!({"error": {"message": format!("Incorrect API key provided: {PROVIDER_KEY}"), "code": "invalid_api_key"}});
    for status in [401, 403] {
        let script = Script::answer(status, "content-type: application/json\r\n")
            .raw(echo.to_string().as_bytes());
        check(script.end(), "", "provider_key_refused").await;
    }
}

#[tokio::test]
async fn a_request_that_is_rejected_says_why_without_the_key() {
    let why = json!({"error": {"message": format!("max_tokens is too large for {PROVIDER_KEY} sk-ab***cd")}});
    let script = Script::answer(400, "content-type: application/json\r\n")
        .raw(why.to_string().as_bytes())
        .end();
    let provider = Provider::start().await;
    provider.always(script);
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let error = user.stream(json!({"input": "Go."})).await.error().await;
    assert_eq!(
        error["error"],
        "The provider `scripted` rejected the request (400). Check the bot's settings. It says: max_tokens is too large for [key] [key]"
    );
    assert!(!relay.log().contains("too large"), "whoever says that may quote the prompt");
    assert_eq!((&error["code"], &error["retryable"]), (&json!("provider_rejected"), &json!(false)));
    relay.finish().await;
}

#[tokio::test]
async fn a_provider_that_is_not_there() {
    let provider = Provider::start().await;
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let relay = TestRelay::with(&provider)
        .env("RELAY_PROVIDERS", format!("scripted=http://{unused}/v1"))
        .start()
        .await;
    let user = relay.user().await;
    let error = user.stream(json!({"input": "Go."})).await.error().await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("provider_unreachable"), &json!(true))
    );
    relay.finish().await;
}

#[tokio::test]
async fn comments_do_not_count_as_a_first_token() {
    let provider = Provider::start().await;
    provider.always(Script::new().repeat(b": processing\n\n", Duration::from_millis(20)));
    let relay = TestRelay::with(&provider).env("RELAY_FIRST_TOKEN_TIMEOUT", SHORT).start().await;
    let user = relay.user().await;
    let error = user.stream(json!({"input": "Go."})).await.error().await;
    assert_eq!(error["code"], "provider_timeout");
    provider.closed(0).await;
    relay.finish().await;
}

#[tokio::test]
async fn no_answer_at_all() {
    let provider = Provider::start().await;
    provider.always(Script::answer(200, "content-type: text/event-stream\r\n").stall());
    let relay = TestRelay::with(&provider).env("RELAY_FIRST_TOKEN_TIMEOUT", SHORT).start().await;
    let user = relay.user().await;
    assert_eq!(
        user.stream(json!({"input": "Go."})).await.error().await["code"],
        "provider_timeout"
    );
    relay.finish().await;
}

#[tokio::test]
async fn an_answer_may_not_take_for_ever() {
    let provider = Provider::start().await;
    let token = json!({"choices": [{"delta": {"content": "x"}}]});
    provider.always(
        Script::new().repeat(format!("data: {token}\n\n").as_bytes(), Duration::from_millis(10)),
    );
    let relay = TestRelay::with(&provider).env("RELAY_GENERATION_TIMEOUT", "500ms").start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    assert_eq!(reading.error().await["code"], "provider_timeout");
    let saved = user.saved(&reading.stream_id(), "failed").await;
    assert_eq!(saved["content"], reading.text());
    relay.finish().await;
}
