//! The library of stories: lists, trees, branches, edits by hand, and what is forbidden while something is being written.

use serde_json::{Value, json};

use crate::provider::{Gate, Provider, Script};
use crate::relay::TestRelay;

#[tokio::test]
async fn conversations_are_made_listed_changed_and_deleted() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let made = user.post("/v1/conversations", &json!({"title": "The lighthouse"})).await.ok(201);
    assert_eq!(
        (&made["title"], &made["bot_id"], &made["head_id"]),
        (&json!("The lighthouse"), &json!(null), &json!(null))
    );
    assert!(made["created_at"].as_str().unwrap().ends_with('Z'));
    let id = made["id"].as_i64().unwrap();
    let tree = user.tree(id).await;
    assert_eq!(
        (&tree["path"], &tree["messages"], &tree["title"]),
        (&json!([]), &json!([]), &made["title"])
    );
    let bot = user.get("/v1/bots").await.ok(200)["data"][0]["id"].clone();
    let path = format!("/v1/conversations/{id}");
    let changed = user.patch(&path, &json!({"bot_id": bot})).await.ok(200);
    assert_eq!((&changed["title"], &changed["bot_id"]), (&made["title"], &bot));
    let changed = user.patch(&path, &json!({"bot_id": null, "title": ""})).await.ok(200);
    assert_eq!((&changed["title"], &changed["bot_id"]), (&json!(""), &json!(null)));
    user.patch(&path, &json!({"title": "x".repeat(501)})).await.refused(400, "invalid_request");
    user.delete(&path).await.ok(204);
    user.get(&path).await.refused(404, "conversation_not_found");
    user.delete(&path).await.refused(404, "conversation_not_found");
    relay.finish().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(user.conversation().await);
        user.bot(json!({})).await;
    }
    for (list, newest_first) in [("/v1/conversations", true), ("/v1/bots", false)] {
        let mut ids = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = user.get(&format!("{list}?limit=3{cursor}")).await.ok(200);
            ids.extend(
                page["data"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()),
            );
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        if newest_first {
            ids.reverse();
        }
        assert_eq!(ids.len(), 7, "{list}");
        assert!(ids.is_sorted(), "{list}: {ids:?}");
    }
    relay.finish().await;
}

#[tokio::test]
async fn an_answer_further_up_is_a_branch_and_the_head_chooses_the_path() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Yes."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let first = user.told(story, "One?").await["message_id"].clone();
    let second = user.told(story, "Two?").await["message_id"].clone();

    let body = json!({"conversation_id": story, "parent_id": first, "input": "Other?"});
    user.stream(body).await.done().await;
    assert_eq!(provider.last_request().prompt(), ["user: One?", "assistant: Yes.", "user: Other?"]);
    assert_eq!(
        user.story(story).await,
        ["One?", "Yes.", "Other?", "Yes."],
        "who writes there goes on there"
    );
    user.patch(&format!("/v1/conversations/{story}"), &json!({"head_id": second})).await.ok(200);
    assert_eq!(user.story(story).await, ["One?", "Yes.", "Two?", "Yes."]);
    assert_eq!(user.tree(story).await["messages"].as_array().unwrap().len(), 6);

    let elsewhere = user.conversation().await;
    let path = format!("/v1/conversations/{elsewhere}");
    user.patch(&path, &json!({"head_id": second})).await.refused(404, "message_not_found");
    let body = json!({"conversation_id": elsewhere, "parent_id": first, "input": "x"});
    user.post("/v1/stream", &body).await.refused(404, "message_not_found");
    relay.finish().await;
}

#[tokio::test]
async fn the_head_does_not_move_from_where_the_reader_put_it() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["Yes."]));
    let gate = Gate::new();
    provider.once(Script::new().token("Late.").gate(&gate).finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let first = user.told(story, "One?").await["message_id"].clone();
    let mut reading = user.say(story, "Two?").await;
    reading.until("token").await;
    user.patch(&format!("/v1/conversations/{story}"), &json!({"head_id": first})).await.ok(200);
    gate.open();
    let late = reading.done().await["message_id"].clone();
    assert_eq!(user.tree(story).await["head_id"], first);
    assert_eq!(user.message(story, &late).await["variants"][0]["content"], "Late.");
    relay.finish().await;
}

#[tokio::test]
async fn two_turns_at_once_are_both_kept_and_the_head_is_one_of_them() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Yes."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let (mut one, mut two) = tokio::join!(user.say(story, "One?"), user.say(story, "Two?"));
    let (one, two) = tokio::join!(one.done(), two.done());
    let tree = user.tree(story).await;
    assert_eq!(tree["messages"].as_array().unwrap().len(), 4);
    assert!([&one["message_id"], &two["message_id"]].contains(&&tree["head_id"]), "{tree}");
    relay.finish().await;
}

#[tokio::test]
async fn an_edit_is_a_variant_written_by_hand() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Yes."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let reply = user.told(story, "One?").await["message_id"].clone();
    let question = user.tree(story).await["path"][0].clone();
    for (id, text) in [(&question, "Won?"), (&reply, "No.\r\n\0")] {
        let message = user
            .post(&format!("/v1/messages/{id}/variants"), &json!({"content": text}))
            .await
            .ok(201);
        assert_eq!(message["active_variant_id"], message["variants"][1]["id"]);
        assert_eq!(
            (&message["variants"][1]["status"], &message["variants"][1]["stream_id"]),
            (&json!("complete"), &json!(null))
        );
    }
    assert_eq!(user.story(story).await, ["Won?", "No.\n"]);
    user.told(story, "Two?").await;
    assert_eq!(provider.last_request().prompt(), ["user: Won?", "assistant: No.\n", "user: Two?"]);
    let path = format!("/v1/messages/{reply}/variants");
    user.post(&path, &json!({"content": ""})).await.refused(400, "invalid_request");
    user.post(&path, &json!({})).await.refused(400, "invalid_request");
    relay.finish().await;
}

/// Whatever users have saved and however much of it is read at once, the relay's memory has a bound.
#[tokio::test]
async fn a_story_is_read_in_whole_up_to_a_length_that_no_reader_comes_to() {
    const MEBIBYTE: usize = 1 << 20;
    let provider = Provider::start().await;
    let long = "x".repeat(MEBIBYTE - 100);
    provider.always(Script::telling(&[long.as_str(); 4]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let reply = user.told(story, "Go.").await["message_id"].clone();
    assert_eq!(user.story(story).await[1].len(), 4 * long.len(), "a long one in whole");
    for _ in 0..8 {
        user.reroll(json!({"message_id": reply})).await.done().await;
    }
    let path = format!("/v1/conversations/{story}");
    user.get(&path).await.refused(409, "story_too_large");
    let variants = format!("/v1/messages/{reply}/variants");
    user.post(&variants, &json!({"content": "y"})).await.refused(409, "story_too_large");
    let other = user.conversation().await;
    assert_eq!(user.tree(other).await["messages"], json!([]), "and others as ever");
    user.told(story, "Go on.").await;
    user.delete(&format!("/v1/messages/{reply}")).await.ok(204);
    assert_eq!(user.story(story).await, ["Go."]);
    relay.finish().await;
}

#[tokio::test]
async fn a_variant_is_chosen_only_of_its_own_message() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Yes."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let one = user.told(story, "One?").await;
    let two = user.told(story, "Two?").await;
    let path = format!("/v1/messages/{}/active", one["message_id"]);
    user.put(&path, &json!({"variant_id": two["variant_id"]}))
        .await
        .refused(404, "variant_not_found");
    user.put(&path, &json!({})).await.refused(400, "invalid_request");
    let pending =
        user.post("/v1/reroll", &json!({"parent_message_id": one["message_id"]})).await.ok(200);
    let pending = json!({"variant_id": pending["alternative_message"]["id"]});
    user.put(&path, &pending).await.refused(404, "variant_not_found");
    relay
        .stranger()
        .put(&path, &json!({"variant_id": one["variant_id"]}))
        .await
        .refused(404, "message_not_found");
    relay.finish().await;
}

#[tokio::test]
async fn deleting_takes_all_that_follows_and_moves_the_head_up() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Yes."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    user.told(story, "One?").await;
    let second = user.told(story, "Two?").await;
    user.told(story, "Three?").await;
    let question = user.tree(story).await["path"][2].clone();
    user.delete(&format!("/v1/messages/{question}")).await.ok(204);
    assert_eq!(user.story(story).await, ["One?", "Yes."]);
    user.get(&format!(
        "/v1/message-by-stream-id?stream_id={}",
        second["stream_id"].as_str().unwrap()
    ))
    .await
    .refused(404, "stream_not_found");
    user.delete(&format!("/v1/messages/{question}")).await.refused(404, "message_not_found");
    relay.finish().await;
}

#[tokio::test]
async fn nothing_is_deleted_under_a_pen() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("x").gate(&gate).finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    let start = reading.until("token").await;
    let start = reading.seen.iter().find(|event| event.id < start.id).unwrap().json();
    for path in [
        format!("/v1/messages/{}", start["message_id"]),
        format!("/v1/messages/{}", start["user_message_id"]),
        format!("/v1/conversations/{story}"),
    ] {
        user.delete(&path).await.refused(409, "generation_running");
    }
    let active = format!("/v1/messages/{}/active", start["message_id"]);
    user.put(&active, &json!({"variant_id": start["variant_id"]}))
        .await
        .refused(409, "generation_running");
    gate.open();
    reading.done().await;
    user.delete(&format!("/v1/conversations/{story}")).await.ok(204);
    relay.finish().await;
}

#[tokio::test]
async fn stories_of_others_do_not_exist() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Secret."]));
    let relay = TestRelay::with(&provider).start().await;
    let (user, stranger) = (relay.user().await, relay.user().await);
    let story = user.conversation().await;
    let done = user.told(story, "Go.").await;
    let before = user.tree(story).await;
    let path = format!("/v1/conversations/{story}");
    let message = format!("/v1/messages/{}", done["message_id"]);
    stranger.get(&path).await.refused(404, "conversation_not_found");
    stranger.patch(&path, &json!({"title": "mine"})).await.refused(404, "conversation_not_found");
    stranger.delete(&path).await.refused(404, "conversation_not_found");
    stranger
        .post(&format!("{message}/variants"), &json!({"content": "mine"}))
        .await
        .refused(404, "message_not_found");
    stranger.delete(&message).await.refused(404, "message_not_found");
    for body in [
        json!({"conversation_id": story, "input": "x"}),
        json!({"conversation_id": story, "parent_id": done["message_id"]}),
        json!({"conversation_id": story, "messages": [{"role": "user", "content": "x"}]}),
    ] {
        stranger.post("/v1/stream", &body).await.refused(404, "conversation_not_found");
    }
    let own = stranger.conversation().await;
    let body = json!({"conversation_id": own, "parent_id": done["message_id"], "input": "x"});
    stranger.post("/v1/stream", &body).await.refused(404, "message_not_found");
    let listed: Value = stranger.get("/v1/conversations").await.ok(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(user.tree(story).await, before);
    relay.finish().await;
}
