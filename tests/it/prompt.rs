//! What the provider is told.

use serde_json::json;

use crate::provider::{Provider, Script};
use crate::relay::{TestRelay, User};

/// A page of some twenty tokens that begins with its number.
fn page(number: usize) -> String {
    format!("{number}{}", " one".repeat(20))
}

async fn long_story(user: &User, provider: &Provider, pages: usize) -> i64 {
    let story = user.conversation().await;
    for number in 0..pages {
        provider.once(Script::telling(&[&format!("reply {number}{}", " two".repeat(20))]));
        user.told(story, &page(number)).await;
    }
    story
}

#[tokio::test]
async fn system_texts_and_the_path_come_in_order() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Yes."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"system_prompt": "You are a pirate."})).await;
    let story = user.conversation().await;
    user.told(story, "One?").await;
    let body = json!({"conversation_id": story, "input": "Two?", "system": "It is night."});
    user.stream(body).await.done().await;
    assert_eq!(
        provider.last_request().prompt(),
        [
            "system: You are a pirate.\n\nIt is night.",
            "user: One?",
            "assistant: Yes.",
            "user: Two?"
        ]
    );
    relay.finish().await;
}

#[tokio::test]
async fn a_long_story_is_trimmed_from_its_oldest_turn() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"system_prompt": "Be brief.", "context_size": 200, "max_tokens": 50})).await;
    let story = long_story(&user, &provider, 12).await;
    provider.once(Script::telling(&["fine"]));
    user.told(story, "And now?").await;
    let prompt = provider.last_request().prompt();
    assert_eq!(prompt[0], "system: Be brief.");
    assert_eq!(prompt.last().unwrap(), "user: And now?");
    assert!(prompt[1].starts_with("user: 10 one"), "{prompt:?}");
    let tokens: usize = provider.last_request().body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            4 + storytellr_relay::prompt::count_tokens(
                message["content"].as_str().unwrap(),
                usize::MAX,
            )
        })
        .sum();
    assert!((100..=150).contains(&tokens), "{tokens} of 200 less 50 for the answer");
    relay.finish().await;
}

#[tokio::test]
async fn what_cannot_be_trimmed_must_fit() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"context_size": 200})).await;
    let story = long_story(&user, &provider, 2).await;
    let before = user.tree(story).await["messages"].clone();
    let body = json!({"conversation_id": story, "input": " one".repeat(300), "stream_id": "long"});
    user.post("/v1/stream", &body).await.refused(400, "context_too_long");
    let after = user.tree(story).await;
    assert_eq!(after["messages"], before, "nothing is left of a turn that was refused");
    assert_eq!(after["head_id"], after["messages"].as_array().unwrap().last().unwrap()["id"]);
    let body = json!({"conversation_id": story, "input": "Short.", "max_tokens": 199});
    user.post("/v1/stream", &body).await.refused(400, "context_too_long");
    relay.finish().await;
}

#[tokio::test]
async fn an_input_of_megabytes_is_refused_quickly() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    for hostile in [
        "a".repeat(4_000_000),
        format!("{}x", " ".repeat(4_000_000)),
        "🦊".repeat(1_000_000),
        "a1".repeat(2_000_000),
    ] {
        user.post("/v1/stream", &json!({"input": hostile})).await.refused(400, "context_too_long");
    }
    relay.finish().await;
}
