//! A story is streamed, saved, and still there after a restart: the same bytes everywhere.

use serde_json::json;

use crate::provider::{Provider, Script};
use crate::relay::TestRelay;

#[tokio::test]
async fn an_answer_is_streamed_and_saved() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["Once", " upon", " a time"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;

    let mut reading =
        user.stream(json!({"conversation_id": story, "input": "Begin.", "stream_id": "s-1"})).await;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("x-stream-id", "s-1"),
    ] {
        assert_eq!(reading.headers()[name], value);
    }
    assert!(reading.headers().contains_key("x-request-id"));
    let done = reading.done().await;

    let start = reading.seen[0].json();
    assert_eq!(reading.seen[0].name, "start");
    assert_eq!(start["stream_id"], "s-1");
    assert_eq!(start["conversation_id"], story);
    assert_eq!((&start["bot"]["name"], &start["model"]), (&json!("Narrator"), &json!("model-1")));
    assert_eq!(
        done,
        json!({
            "stream_id": "s-1", "message_id": start["message_id"], "variant_id": start["variant_id"],
            "status": "complete", "finish_reason": "stop", "saved": true,
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "estimated": true},
        })
    );
    assert_eq!(reading.text(), "Once upon a time");
    assert_eq!(user.story(story).await, ["Begin.", "Once upon a time"]);
    let tree = user.tree(story).await;
    assert_eq!(tree["path"], json!([start["user_message_id"], start["message_id"]]));
    let request = provider.last_request();
    assert!(request.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", request.head);
    assert_eq!(request.prompt(), ["user: Begin."]);
    assert_eq!(
        (&request.body["model"], &request.body["stream"]),
        (&json!("model-1"), &json!(true))
    );
    relay.finish().await;
}

#[tokio::test]
async fn text_of_any_kind_arrives_and_is_saved_as_it_is_however_it_is_cut() {
    const TOKENS: &[&str] = &[
        " leading",
        "\n",
        "\n\n",
        "a\nb\n",
        "data: x\n\n",
        "event: done\n",
        "[DONE]",
        "{\"error\":1}",
        "id: 9",
        ": c",
        "ä",
        "日本",
        "🦊",
        "👩‍👩‍👧",
        "\u{200f}שלום",
        "\u{2028}",
        "\u{feff}",
        "e\u{301}",
        "\t",
        "\u{1}",
        "'\"\\",
        "end ",
    ];
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    for line_end in ["\n", "\r\n", "\r"] {
        for piece_len in [1, 2, 3, 5, 7] {
            let script = TOKENS
                .iter()
                .fold(Script::new().line_ends(line_end), |script, token| script.token(token));
            provider.once(script.finish("stop").done().cut(piece_len));
            let story = user.conversation().await;
            let mut reading = user.say(story, "Anything.").await;
            reading.done().await;
            assert_eq!(reading.text(), TOKENS.concat(), "{line_end:?} {piece_len}");
            assert_eq!(user.story(story).await[1], TOKENS.concat(), "{line_end:?} {piece_len}");
        }
    }
    relay.finish().await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_cleaned_once_and_for_all() {
    let provider = Provider::start().await;
    let half = |escape: &str| {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{escape}\"}}}}]}}\n\n")
    };
    let script = Script::new()
        .token("a\0b\r\nc\rd")
        .raw(half("x\\ud83e").as_bytes())
        .raw(half("\\udd8ay").as_bytes())
        .raw(b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\xf0\x9f\"}}]}\n\n");
    provider.once(script.finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Nu\0l\r\n.").await;
    reading.done().await;
    assert_eq!(reading.text(), "ab\ncdx\u{fffd}\u{fffd}y\u{fffd}\u{fffd}");
    assert_eq!(user.story(story).await, ["Nul\n.", &reading.text()]);
    relay.finish().await;
}

#[tokio::test]
async fn reasoning_is_shown_only_by_bots_that_show_it_and_is_never_content() {
    let provider = Provider::start().await;
    provider.always(
        Script::new().reasoning("hm").reasoning(", so").token("Yes.").finish("stop").done(),
    );
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    for shows in [true, false] {
        let bot = user.bot(json!({"show_reasoning": shows})).await;
        let story = user.conversation().await;
        let mut reading =
            user.stream(json!({"conversation_id": story, "input": "Is it?", "bot_id": bot})).await;
        let done = reading.done().await;
        let expected = if shows { "hm, so" } else { "" };
        assert_eq!((reading.reasoning().as_str(), reading.text().as_str()), (expected, "Yes."));
        let message = user.message(story, &done["message_id"]).await;
        assert_eq!(
            (&message["variants"][0]["reasoning"], &message["variants"][0]["content"]),
            (&json!(expected), &json!("Yes."))
        );
    }
    relay.finish().await;
}

#[tokio::test]
async fn usage_is_taken_from_wherever_the_provider_puts_it() {
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15});
    let finish = json!({"index": 0, "delta": {}, "finish_reason": "length"});
    let on_the_last =
        Script::new().token("x").chunk(&json!({"choices": [finish], "usage": usage})).done();
    let on_an_extra = Script::new()
        .token("x")
        .finish("length")
        .chunk(&json!({"choices": [], "usage": usage}))
        .done();
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    for script in [on_the_last, on_an_extra] {
        provider.once(script);
        let done = user.told(story, "Go.").await;
        assert_eq!(
            done["usage"],
            json!({"prompt_tokens": 7, "completion_tokens": 8, "estimated": false})
        );
        assert_eq!(done["finish_reason"], "length");
    }
    assert_eq!(provider.last_request().body["stream_options"], json!({"include_usage": true}));
    relay.finish().await;
}

#[tokio::test]
async fn comments_and_unknown_fields_are_passed_over() {
    let provider = Provider::start().await;
    let script = Script::new()
        .raw(b": OPENROUTER PROCESSING\n\n:\n\nretry: 99999999999\nid: \0\nevent: whatever\n")
        .chunk(&json!({"id": "", "object": "x", "obfuscation": "abc", "choices": []}))
        .token("fine")
        .raw(b": keep-alive\n\n");
    provider.once(script.finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.done().await;
    let names: Vec<_> = reading.seen.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["start", "token", "done"]);
    relay.finish().await;
}

#[tokio::test]
async fn an_end_is_done_or_a_finish_reason_and_what_follows_it_does_not_count() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    for script in [
        Script::new().token("fine").raw(b"data:[DONE]\n\n").end(),
        Script::new().token("fine").finish("stop").end(),
        Script::new().token("fine").finish("stop").reset(),
        Script::new()
            .token("fine")
            .raw(b"data: [DONE]\n\n")
            .token("more")
            .raw(b"data: {broken\n\n")
            .end(),
        Script::new()
            .token("fine")
            .finish("stop")
            .chunk(&json!({"error": {"message": "late"}}))
            .finish("length")
            .done(),
    ] {
        provider.once(script);
        let mut reading = user.stream(json!({"input": "Go."})).await;
        assert_eq!(reading.done().await["finish_reason"], "stop");
        assert_eq!(reading.text(), "fine");
    }
    relay.finish().await;
}

#[tokio::test]
async fn without_a_conversation_nothing_is_saved() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": " Two."}]},
        {"role": "assistant", "content": "Three."},
    ]);
    let mut reading =
        user.stream(json!({"messages": messages, "input": "Four.", "stream_id": "gone"})).await;
    let done = reading.done().await;
    assert!(done.get("saved").is_none() && done.get("message_id").is_none(), "{done}");
    assert!(reading.seen[0].json()["conversation_id"].is_null());
    assert_eq!(
        provider.last_request().prompt(),
        ["system: Be brief.", "user: One. Two.", "assistant: Three.", "user: Four."]
    );
    user.get("/v1/message-by-stream-id?stream_id=gone").await.refused(404, "stream_not_found");
    relay.finish().await;
}

#[tokio::test]
async fn the_callers_own_messages_replace_the_path_and_only_the_answer_is_saved() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    user.told(story, "Saved.").await;
    let messages = json!([{"role": "user", "content": "Mine."}]);
    user.stream(json!({"conversation_id": story, "messages": messages})).await.done().await;
    assert_eq!(provider.last_request().prompt(), ["user: Mine."]);
    assert_eq!(user.story(story).await, ["Saved.", "fine", "fine"]);
    relay.finish().await;
}

#[tokio::test]
async fn a_story_is_the_same_after_a_restart() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Es war", " einmal 🦊\n", "…"]));
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Begin.").await;
    reading.done().await;
    let before = user.tree(story).await;
    relay.restart().await;
    assert_eq!(user.tree(story).await, before);
    assert_eq!(user.story(story).await[1], reading.text());
    relay.finish().await;
}

#[tokio::test]
async fn one_connection_to_the_provider_serves_one_answer_after_another() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    for _ in 0..5 {
        user.told(story, "Go.").await;
    }
    assert_eq!(provider.requests().len(), 5);
    assert!(provider.connections() < 5, "{} connections", provider.connections());
    relay.finish().await;
}
