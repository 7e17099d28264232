//! Which bot answers, and what a bot can be.

use serde_json::{Value, json};

use crate::provider::{Provider, Script};
use crate::relay::{TestRelay, User};

/// The name of the bot that answers in the conversation.
async fn answers(user: &User, story: i64, bot_id: Option<i64>) -> String {
    let body = json!({"conversation_id": story, "input": "Who?", "bot_id": bot_id});
    let mut reading = user.stream(body).await;
    reading.done().await;
    reading.seen[0].json()["bot"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_first_that_exists_answers() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["I."]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let story = user.conversation().await;
    let who = json!({"conversation_id": story, "input": "Who?"});
    user.post("/v1/stream", &who).await.refused(403, "no_bot");
    assert_eq!(
        user.tree(story).await["messages"],
        json!([]),
        "nothing is saved of a turn without a bot"
    );

    let first = user.bot(json!({"name": "first"})).await;
    let second = user.bot(json!({"name": "second"})).await;
    assert_eq!(answers(&user, story, None).await, "second", "the most recently updated");
    user.patch(&format!("/v1/bots/{first}"), &json!({"temperature": 1})).await.ok(200);
    assert_eq!(answers(&user, story, None).await, "first", "the most recently updated");

    user.patch(&format!("/v1/bots/{second}"), &json!({"is_default": true})).await.ok(200);
    user.patch(&format!("/v1/bots/{first}"), &json!({"temperature": 2})).await.ok(200);
    assert_eq!(answers(&user, story, None).await, "second", "the default");
    user.patch(&format!("/v1/bots/{first}"), &json!({"is_default": true})).await.ok(200);
    assert_eq!(
        answers(&user, story, None).await,
        "first",
        "of several defaults the most recently updated"
    );

    let bound = user.bot(json!({"name": "bound"})).await;
    user.patch(&format!("/v1/conversations/{story}"), &json!({"bot_id": bound})).await.ok(200);
    assert_eq!(answers(&user, story, None).await, "bound", "the conversation's");
    assert_eq!(answers(&user, story, Some(second)).await, "second", "the request's");

    user.delete(&format!("/v1/bots/{bound}")).await.ok(204);
    assert_eq!(
        answers(&user, story, None).await,
        "first",
        "a conversation's bot that was deleted falls through"
    );
    relay.finish().await;
}

#[tokio::test]
async fn a_named_bot_that_is_not_mine_is_an_error_and_no_fallback() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let others = relay.stranger().bot(json!({})).await;
    let story = user.conversation().await;
    for bot in [others, 123_456] {
        let body = json!({"conversation_id": story, "input": "Who?", "bot_id": bot});
        user.post("/v1/stream", &body).await.refused(403, "bot_not_found");
        user.patch(&format!("/v1/conversations/{story}"), &json!({"bot_id": bot}))
            .await
            .refused(403, "bot_not_found");
        user.post("/v1/conversations", &json!({"bot_id": bot})).await.refused(403, "bot_not_found");
        let path = format!("/v1/bots/{bot}");
        user.get(&path).await.refused(403, "bot_not_found");
        user.patch(&path, &json!({"name": "mine"})).await.refused(403, "bot_not_found");
        user.delete(&path).await.refused(403, "bot_not_found");
    }
    assert_eq!(user.tree(story).await["messages"], json!([]));
    relay.finish().await;
}

#[tokio::test]
async fn a_bots_settings_reach_the_provider() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"system_prompt": "Be a pirate.", "temperature": 0.5, "max_tokens": 77, "reasoning": "low"})).await;
    user.stream(json!({"input": "Go."})).await.done().await;
    let body = provider.last_request().body;
    assert_eq!(provider.last_request().prompt(), ["system: Be a pirate.", "user: Go."]);
    assert_eq!(
        (&body["temperature"], &body["max_tokens"], &body["reasoning_effort"]),
        (&json!(0.5), &json!(77), &json!("low"))
    );
    user.stream(json!({"input": "Go.", "temperature": 1, "max_tokens": 5})).await.done().await;
    let body = provider.last_request().body;
    assert_eq!((&body["temperature"], &body["max_tokens"]), (&json!(1.0), &json!(5)));
    relay.finish().await;
}

#[tokio::test]
async fn each_provider_is_asked_in_its_own_way() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let url = provider.base_url();
    let relay = TestRelay::with(&provider)
        .env("RELAY_PROVIDERS", format!("openai={url},mistral={url},deepseek={url}"))
        .env("OPENAI_API_KEY", "sk-canary-openai")
        .env("MISTRAL_API_KEY", "sk-canary-mistral")
        .env("DEEPSEEK_API_KEY", "sk-canary-deepseek")
        .start()
        .await;
    let user = relay.stranger();
    let mut asked = Vec::new();
    for name in ["openai", "mistral", "deepseek"] {
        let bot = user.bot(json!({"provider": name, "max_tokens": 9, "reasoning": "off"})).await;
        user.stream(json!({"input": "Go.", "bot_id": bot})).await.done().await;
        asked.push(provider.last_request().body);
    }
    let fields = |body: &Value, names: &[&str]| {
        names.iter().map(|name| body.get(*name).is_some()).collect::<Vec<_>>()
    };
    let names = ["max_tokens", "max_completion_tokens", "stream_options", "thinking"];
    assert_eq!(fields(&asked[0], &names), [false, true, true, false]);
    assert_eq!(fields(&asked[1], &names), [true, false, false, false]);
    assert_eq!(fields(&asked[2], &names), [true, false, true, true]);
    relay.finish().await;
}

#[tokio::test]
async fn a_bot_is_made_read_changed_and_deleted() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let made = user
        .post("/v1/bots", &json!({"name": "N", "provider": "scripted", "model": "m", "system_prompt": null, "is_default": null}))
        .await
        .ok(201);
    for (field, default) in [
        ("base_url", json!(null)),
        ("system_prompt", json!("")),
        ("temperature", json!(null)),
        ("max_tokens", json!(null)),
        ("context_size", json!(10_000)),
        ("reasoning", json!(null)),
        ("show_reasoning", json!(false)),
        ("is_default", json!(false)),
    ] {
        assert_eq!(made[field], default, "{field}");
    }
    let path = format!("/v1/bots/{}", made["id"]);
    assert_eq!(user.get(&path).await.ok(200), made);
    let changed =
        user.patch(&path, &json!({"name": "M", "max_tokens": 5, "unknown": 1})).await.ok(200);
    assert_eq!(
        (&changed["name"], &changed["max_tokens"], &changed["model"]),
        (&json!("M"), &json!(5), &json!("m"))
    );
    assert_eq!(
        user.patch(&path, &json!({"max_tokens": null})).await.ok(200)["max_tokens"],
        json!(null)
    );
    user.patch(&path, &json!({"is_default": true, "context_size": 500})).await.ok(200);
    let kept = json!({"is_default": null, "context_size": null, "name": null});
    let kept = user.patch(&path, &kept).await.ok(200);
    assert_eq!((&kept["is_default"], &kept["context_size"]), (&json!(true), &json!(500)));
    user.patch(&path, &json!({"name": "\0"})).await.refused(400, "invalid_request");
    assert_eq!(user.get("/v1/bots").await.ok(200)["data"].as_array().unwrap().len(), 1);
    user.delete(&path).await.ok(204);
    user.get(&path).await.refused(403, "bot_not_found");
    assert_eq!(user.get("/v1/bots").await.ok(200), json!({"data": [], "next": null}));
    relay.finish().await;
}

#[tokio::test]
async fn bots_that_could_not_answer_are_refused() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let good = json!({"name": "N", "provider": "scripted", "model": "m"});
    for (field, value) in [
        ("name", json!(null)),
        ("name", json!("")),
        ("name", json!("x".repeat(201))),
        ("provider", json!("nobody")),
        ("model", json!(" ")),
        ("base_url", json!("https://example.com/v1")),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(10_000)),
        ("context_size", json!(0)),
        ("context_size", json!(-5)),
        ("context_size", json!(2_097_153)),
        ("context_size", json!(99_999_999_999_i64)),
        ("reasoning", json!("extreme")),
        ("show_reasoning", json!("yes")),
        ("system_prompt", json!("x".repeat(300 << 10))),
    ] {
        let mut bot = good.clone();
        bot[field] = value;
        let answer = user.post("/v1/bots", &bot).await;
        assert!(answer.refused(400, "invalid_request").contains(field), "{}", answer.json);
    }
    for base_url in [
        json!(null),
        json!("x"),
        json!("ftp://x"),
        json!("http://x.example/v1"),
        json!("https://user:pass@x/v1"),
        json!("https://x.example/v1?key=secret"),
        json!("https://x.example/v1#"),
        json!("https://x.example:22/v1"),
        json!(format!("https://{}", "x".repeat(2_000))),
    ] {
        let bot = json!({"name": "N", "provider": "custom", "model": "m", "base_url": base_url});
        assert!(
            user.post("/v1/bots", &bot).await.refused(400, "invalid_request").contains("base_url")
        );
    }
    relay.finish().await;
}

#[tokio::test]
async fn the_demo_answers_without_key_or_network() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.bot(json!({"provider": "demo", "max_tokens": 5})).await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "Go.").await;
    let done = reading.done().await;
    assert_eq!((&done["finish_reason"], &done["saved"]), (&json!("length"), &json!(true)));
    assert_eq!(user.story(story).await[1], reading.text());
    assert_eq!(reading.text().split_whitespace().count(), 5);
    relay.finish().await;
}

#[tokio::test]
async fn a_page_of_long_prompts_ends_early_and_the_next_goes_on() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    let prompt = "x".repeat(256 << 10);
    let mut made = Vec::new();
    for _ in 0..20 {
        made.push(user.bot(json!({"system_prompt": prompt})).await);
    }
    let (mut listed, mut lens, mut next) = (Vec::new(), Vec::new(), Value::Null);
    loop {
        let cursor = next.as_str().map(|next| format!("&cursor={next}")).unwrap_or_default();
        let page = user.get(&format!("/v1/bots?limit=200{cursor}")).await.ok(200);
        let bots = page["data"].as_array().unwrap();
        lens.push(bots.len());
        listed.extend(bots.iter().map(|bot| bot["id"].as_i64().unwrap()));
        next = page["next"].clone();
        if next.is_null() {
            break;
        }
    }
    assert_eq!(lens, [16, 4], "4 MiB, and the rest");
    listed.sort_unstable();
    made.sort_unstable();
    assert_eq!(listed, made);
    relay.finish().await;
}
