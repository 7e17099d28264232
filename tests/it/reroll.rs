//! Another telling of a page, and all that follows it stays.

use http::Method;
use serde_json::{Value, json};

use crate::provider::{Gate, Provider, Script};
use crate::relay::{TestRelay, User};

/// A story of ten messages: u0 a0 u1 a1 … u4 a4.
async fn story(user: &User, provider: &Provider) -> (i64, Value) {
    let story = user.conversation().await;
    for page in 0..5 {
        provider.once(Script::telling(&[&format!("a{page}")]));
        user.told(story, &format!("u{page}")).await;
    }
    (story, user.tree(story).await)
}

#[tokio::test]
async fn a_reroll_in_the_middle_changes_one_page_and_keeps_all_that_follows() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let (story, before) = story(&user, &provider).await;
    let message = &before["messages"][5];
    provider.once(Script::telling(&["another a2"]));
    let body = json!({"message_id": message["id"], "guidance": "darker", "system": "Night."});
    let mut reading = user.reroll(body).await;
    let done = reading.done().await;
    assert_eq!((&done["message_id"], &done["saved"]), (&message["id"], &json!(true)));
    assert!(done.get("alternative_id").is_none());
    assert_eq!(
        provider.last_request().prompt(),
        [
            "system: Night.\n\ndarker",
            "user: u0",
            "assistant: a0",
            "user: u1",
            "assistant: a1",
            "user: u2"
        ]
    );
    assert_eq!(
        user.story(story).await,
        ["u0", "a0", "u1", "a1", "u2", "another a2", "u3", "a3", "u4", "a4"]
    );
    let after = user.tree(story).await;
    assert_eq!((&after["path"], &after["head_id"]), (&before["path"], &before["head_id"]));
    for other in (0..10).filter(|other| *other != 5) {
        assert_eq!(after["messages"][other], before["messages"][other]);
    }
    assert_eq!(
        after["messages"][5]["variants"][0], message["variants"][0],
        "the old text is a variant"
    );

    let old = &message["variants"][0]["id"];
    user.put(&format!("/v1/messages/{}/active", message["id"]), &json!({"variant_id": old}))
        .await
        .ok(200);
    assert_eq!(user.story(story).await[5], "a2");
    relay.finish().await;
}

#[tokio::test]
async fn a_reroll_that_fails_leaves_the_old_text_active() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let (story, before) = story(&user, &provider).await;
    let id = &before["messages"][9]["id"];
    provider.once(Script::new().token("half").end());
    let error = user.reroll(json!({"message_id": id})).await.error().await;
    assert_eq!((&error["message_id"], &error["saved"]), (id, &json!(true)));
    provider.once(Script::answer(400, "").end());
    let error = user.reroll(json!({"message_id": id})).await.error().await;
    assert!(error["message_id"].is_null());
    assert_eq!(user.story(story).await[9], "a4");
    let variants = user.message(story, id).await["variants"].clone();
    let states: Vec<_> = variants
        .as_array()
        .unwrap()
        .iter()
        .map(|variant| variant["status"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["complete", "failed"], "one without text is not kept");
    relay.finish().await;
}

#[tokio::test]
async fn only_an_assistants_message_of_ones_own_can_be_rerolled() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let (_, tree) = story(&user, &provider).await;
    user.post("/v1/reroll", &json!({"message_id": tree["messages"][0]["id"]}))
        .await
        .refused(400, "not_rerollable");
    user.post("/v1/reroll", &json!({"message_id": 999})).await.refused(404, "message_not_found");
    let stranger = relay.user().await;
    for body in [
        json!({"message_id": tree["messages"][1]["id"]}),
        json!({"parent_message_id": tree["messages"][1]["id"]}),
        json!({"message_id": format!("temp-stream-{}", tree["messages"][1]["variants"][0]["stream_id"].as_str().unwrap())}),
    ] {
        stranger.post("/v1/reroll", &body).await.refused(404, "message_not_found");
    }
    relay.finish().await;
}

#[tokio::test]
async fn the_two_step_form_announces_and_then_writes() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let (story, before) = story(&user, &provider).await;
    let id = &before["messages"][5]["id"];
    let announced = user
        .post("/v1/reroll", &json!({"parent_message_id": id, "conversation_id": story}))
        .await
        .ok(200);
    let (alternative, stream_id) = (&announced["alternative_message"], &announced["stream_id"]);
    assert_eq!(
        alternative,
        &json!({
            "id": alternative["id"], "parent_message_id": id, "conversation_id": story, "content": "",
            "is_user_author": false, "is_streaming": true, "is_complete": false, "stream_id": stream_id, "is_active": true,
        })
    );
    let pending = user.message(story, id).await;
    assert_eq!(
        (&pending["variants"][1]["status"], &pending["active_variant_id"]),
        (&json!("pending"), &pending["variants"][0]["id"])
    );
    user.get(&format!("/v1/streams/{}", stream_id.as_str().unwrap()))
        .await
        .refused(404, "stream_not_found");

    provider.once(Script::telling(&["another a2"]));
    let body = json!({
        "is_alternative": true, "alternative_id": alternative["id"], "stream_id": stream_id, "conversation_id": story,
        "messages": [{"role": "user", "content": "my own context"}],
    });
    let mut reading = user.stream(body.clone()).await;
    let done = reading.done().await;
    assert_eq!(
        (&done["alternative_id"], &done["variant_id"], &done["saved"]),
        (&alternative["id"], &alternative["id"], &json!(true))
    );
    assert!(done.get("message_id").is_none());
    assert_eq!(provider.last_request().prompt(), ["user: my own context"]);
    assert_eq!(user.story(story).await[5], "another a2");
    assert_eq!(user.tree(story).await["path"], before["path"]);

    let again = user.stream(body).await.done().await;
    assert_eq!(again, done, "asked again it is the same");
    assert_eq!(provider.requests().len(), 6);
    relay.finish().await;
}

#[tokio::test]
async fn an_announced_variant_is_begun_once_by_its_own_stream() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let id = user.told(story, "Go.").await["message_id"].clone();
    let announce =
        async || user.post("/v1/reroll", &json!({"parent_message_id": id})).await.ok(200);
    let (one, two) = (announce().await, announce().await);
    let begin = |variant: &Value, stream: &Value| json!({"is_alternative": true, "alternative_id": variant["alternative_message"]["id"], "stream_id": stream["stream_id"]});
    user.post("/v1/stream", &begin(&one, &two)).await.refused(404, "variant_not_found");
    user.post("/v1/stream", &begin(&one, &json!({"stream_id": "other"})))
        .await
        .refused(404, "variant_not_found");
    relay
        .user()
        .await
        .post("/v1/stream", &begin(&one, &one))
        .await
        .refused(404, "variant_not_found");
    let stolen = json!({"conversation_id": story, "input": "x", "stream_id": one["stream_id"]});
    user.post("/v1/stream", &stolen).await.refused(409, "stream_id_reused");
    let elsewhere = user.conversation().await;
    let mut wrong = begin(&one, &one);
    wrong["conversation_id"] = json!(elsewhere);
    user.post("/v1/stream", &wrong).await.refused(404, "variant_not_found");
    user.stream(begin(&one, &one)).await.done().await;
    assert_eq!(
        provider.last_request().prompt(),
        ["user: Go."],
        "without messages: the path above the message"
    );
    user.stream(begin(&two, &two)).await.done().await;
    relay.finish().await;
}

#[tokio::test]
async fn a_message_can_be_named_by_the_stream_that_wrote_it() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading =
        user.stream(json!({"conversation_id": story, "input": "Go.", "stream_id": "first"})).await;
    let id = reading.done().await["message_id"].clone();
    let name = json!("temp-stream-first");
    let announced = user
        .post("/v1/reroll", &json!({"parent_message_id": name, "conversation_id": story}))
        .await
        .ok(200);
    assert_eq!(announced["alternative_message"]["parent_message_id"], id);
    assert_eq!(user.reroll(json!({"message_id": name})).await.done().await["message_id"], id);
    relay.finish().await;
}

#[tokio::test]
async fn clients_that_take_no_events_get_the_two_step_form() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let id = user.told(story, "Go.").await["message_id"].clone();
    let body = json!({"message_id": id}).to_string();
    let request = || user.request(Method::POST, "/v1/reroll").body(body.clone());
    let json = request().header("accept", "application/json").send().await.unwrap();
    assert!(json.headers()["content-type"].to_str().unwrap().starts_with("application/json"));
    user.reading(request().header("accept", "text/event-stream")).await.done().await;
    relay.finish().await;
}

#[tokio::test]
async fn wrong_settings_are_refused_in_one_step_and_in_two() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let id = user.told(story, "Go.").await["message_id"].clone();
    for name in ["message_id", "parent_message_id"] {
        for (setting, wrong) in [("max_tokens", 0), ("temperature", 3)] {
            let answer = user.post("/v1/reroll", &json!({name: id, setting: wrong})).await;
            assert!(answer.refused(400, "invalid_request").contains(setting), "{name}");
        }
    }
    relay.finish().await;
}

#[tokio::test]
async fn rerolls_of_one_message_may_run_side_by_side() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["first"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let id = user.told(story, "Go.").await["message_id"].clone();
    let gate = Gate::new();
    provider.once(Script::new().token("slow").gate(&gate).finish("stop").done());
    let mut slow = user.reroll(json!({"message_id": id})).await;
    slow.until("token").await;
    provider.once(Script::telling(&["quick"]));
    user.reroll(json!({"message_id": id})).await.done().await;
    assert_eq!(user.story(story).await[1], "quick");
    gate.open();
    slow.done().await;
    assert_eq!(user.story(story).await[1], "slow");
    assert_eq!(user.message(story, &id).await["variants"].as_array().unwrap().len(), 3);
    relay.finish().await;
}
