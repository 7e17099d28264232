//! The relay on each of its stores, from end to end, and what happens when the database is away or its answers are lost.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::cutter::{Cuttable, Cutter};
use crate::database::Database;
use crate::postgrest::Postgrest;
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{self, Answer, Builder, OWN_KEY, TestRelay};

/// The relay's settings for Postgres behind that port.
fn on_postgres(provider: &Provider, database: &Database, port: u16) -> Builder {
    TestRelay::with(provider).env("RELAY_DATABASE_URL", database.url_at("relay", port))
}

/// The relay's settings for PostgREST behind that port.
fn on_postgrest(provider: &Provider, port: u16) -> Builder {
    TestRelay::with(provider).env("SUPABASE_REST_URL", format!("http://127.0.0.1:{port}"))
}

/// Stories that are told, rerolled in both ways, continued elsewhere, and read after a restart.
async fn stories_are_kept(provider: Provider, builder: Builder) {
    let mut relay = builder.start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    for page in 0..3 {
        provider.once(Script::telling(&["page ", &page.to_string(), " 🦊\n"]));
        let done = user.told(story, &format!("question {page}")).await;
        assert_eq!((&done["saved"], &done["status"]), (&json!(true), &json!("complete")));
    }
    let path = user.tree(story).await["path"].clone();
    provider.once(Script::telling(&["another"]));
    user.reroll(json!({"message_id": path[3]})).await.done().await;
    let said = ["question 0", "page 0 🦊\n", "question 1", "another", "question 2", "page 2 🦊\n"];
    assert_eq!(user.story(story).await, said);
    let prompt = ["user: question 0", "assistant: page 0 🦊\n", "user: question 1"];
    assert_eq!(provider.last_request().prompt(), prompt);

    let two_steps = json!({"parent_message_id": path[5], "conversation_id": story});
    let request =
        user.request(http::Method::POST, "/v1/reroll").header("accept", "application/json");
    let announced =
        Answer::of(request.body(two_steps.to_string()).send().await.unwrap()).await.ok(200);
    provider.once(Script::new().token("half").reset());
    let begin = json!({
        "is_alternative": true, "alternative_id": announced["alternative_message"]["id"],
        "stream_id": announced["stream_id"], "conversation_id": story,
        "messages": [{"role": "user", "content": "question 2"}],
    });
    let mut reading = user.stream(begin).await;
    assert_eq!(reading.error().await["saved"], true);
    assert_eq!(user.story(story).await, said, "a failure changes nothing that is shown");

    relay.restart().await;
    assert_eq!(user.story(story).await, said);
    let stream_id = announced["stream_id"].as_str().unwrap();
    let mut again = user.follow(stream_id, None).await;
    again.error().await;
    assert_eq!(again.text(), "half");
    user.saved(stream_id, "failed").await;
    relay.finish().await;
}

#[tokio::test]
async fn stories_are_kept_in_postgres() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    let builder = on_postgres(&provider, &database, database.port());
    stories_are_kept(provider, builder).await;
}

#[tokio::test]
async fn stories_are_kept_behind_postgrest() {
    let provider = Provider::start().await;
    let builder = on_postgrest(&provider, Postgrest::shared().await);
    stories_are_kept(provider, builder).await;
}

/// One call before the provider is asked and one after the answer, counted at the database.
async fn a_turn_costs_two_calls(provider: Provider, builder: Builder, database: &Database) {
    provider.always(Script::telling(&["text"]));
    let relay = builder.start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let key = json!({"provider": "scripted", "key": format!("{OWN_KEY}one")});
    user.post("/v1/keys", &key).await.ok(201);
    let asked_before = database.statements().len();
    let done = user.told(story, "question").await;
    user.reroll(json!({"message_id": done["message_id"]})).await.done().await;
    let statements = database.statements().split_off(asked_before);
    let calls = statements.iter().filter_map(|statement| {
        let function = statement.split_once("relay_")?.1;
        function.split(|character: char| !character.is_ascii_alphabetic()).next()
    });
    assert_eq!(
        calls.collect::<Vec<_>>(),
        ["begin", "finish", "begin", "finish"],
        "{statements:#?}"
    );
    relay.finish().await;
}

#[tokio::test]
async fn a_turn_costs_two_calls_to_postgres() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    database.write_down_statements().await;
    let builder = on_postgres(&provider, &database, database.port());
    a_turn_costs_two_calls(provider, builder, &database).await;
}

#[tokio::test]
async fn a_turn_costs_two_calls_through_postgrest() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    database.write_down_statements().await;
    let postgrest = Postgrest::on(&database);
    let builder = on_postgrest(&provider, postgrest.port());
    a_turn_costs_two_calls(provider, builder, &database).await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_one_row_in_postgres() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    let cutter = Cutter::before(database.port()).await;
    let builder = on_postgres(&provider, &database, cutter.port());
    a_commit_whose_answer_is_lost_is_one_row(provider, builder, cutter, "COMMIT").await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_one_row_behind_postgrest() {
    let provider = Provider::start().await;
    let cutter = Cutter::before(Postgrest::shared().await).await;
    let builder = on_postgrest(&provider, cutter.port());
    a_commit_whose_answer_is_lost_is_one_row(provider, builder, cutter, "HTTP/1.1 200").await;
}

async fn a_commit_whose_answer_is_lost_is_one_row(
    provider: Provider,
    builder: Builder,
    cutter: Cutter,
    committed: &'static str,
) {
    provider.always(Script::telling(&["once"]));
    let relay = builder.start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    for function in ["relay_begin", "relay_finish"] {
        cutter.lose_answers(function, committed, 2);
        let done = user.told(story, function).await;
        assert_eq!((&done["saved"], cutter.to_be_lost()), (&json!(true), 0));
    }
    assert_eq!(user.story(story).await, ["relay_begin", "once", "relay_finish", "once"]);
    assert_eq!(user.tree(story).await["messages"].as_array().unwrap().len(), 4);
    assert_eq!(provider.requests().len(), 2);
    relay.finish().await;
}

/// Nobody hears that the turn has begun. Its client is told that it has not, and that becomes true.
#[tokio::test]
async fn a_beginning_of_which_nobody_hears_is_taken_back() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    cutter.lose_answers("relay_begin", "COMMIT", 3);
    let turn = json!({"conversation_id": story, "input": "Go on.", "stream_id": "mine"});
    user.post("/v1/stream", &turn).await.refused(503, "store_unavailable");
    assert_eq!(cutter.to_be_lost(), 0);
    let since = Instant::now();
    while user.tree(story).await["messages"] != json!([]) {
        assert!(since.elapsed() < PATIENCE, "{}", user.tree(story).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(provider.requests().is_empty());
    user.stream(turn).await.done().await;
    assert_eq!(user.story(story).await, ["Go on.", "text"]);
    relay.finish().await;
}

/// What was never begun is left for some seconds to be sure of that, and says nothing of who asks again by the same name.
#[tokio::test]
async fn a_second_attempt_is_not_taken_for_the_first_that_never_began() {
    let (provider, database, gate) =
        (Provider::start().await, Database::migrated().await, Gate::new());
    provider.always(Script::new().token("text").gate(&gate).finish("stop").done());
    let mut relay = on_postgres(&provider, &database, database.port()).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    // With the story locked, a turn in it begins for as long as that lasts.
    let mut admin = database.admin().await;
    let lock = admin.transaction().await.unwrap();
    let locked = format!("select from public.relay_conversations where id = {story} for update");
    lock.batch_execute(&locked).await.unwrap();
    let turn = json!({"conversation_id": story, "input": "Go on.", "stream_id": "mine"});
    let asking = user.request(http::Method::POST, "/v1/stream").body(turn.to_string()).send();
    let asking = tokio::spawn(asking);
    let since = Instant::now();
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    while database.count(waiting).await == 0 {
        assert!(since.elapsed() < PATIENCE, "{}", relay.log());
        sleep(Duration::from_millis(10)).await;
    }
    relay.kill().await;
    assert!(asking.await.unwrap().is_err(), "it had been answered");
    // The database has not noticed, and would carry it out.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    database.admin().await.batch_execute(end).await.unwrap();
    lock.rollback().await.unwrap();
    relay.start_again().await;
    let mut reading = user.stream(turn).await;
    reading.until("token").await;
    let outbox = relay.run(&["outbox", "list"]);
    assert!(outbox.contains("\"mine\""), "the first attempt is still there: {outbox}");
    let known = user.get("/v1/message-by-stream-id?stream_id=mine").await.ok(200);
    assert_eq!((&known["status"], known.get("saved")), (&json!("streaming"), None), "{known}");
    gate.open();
    reading.done().await;
    assert_eq!(user.story(story).await, ["Go on.", "text"]);
    relay.finish().await;
}

/// A database that takes the text and never answers holds up its reader for some seconds and no longer.
#[tokio::test]
async fn a_save_that_hangs_goes_on_in_the_outbox() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    cutter.lose_answers("relay_finish", "no answer has this in it", 1);
    let mut reading = user.say(story, "Go on.").await;
    assert_eq!(reading.done().await["saved"], false);
    assert_eq!(user.saved(&reading.stream_id(), "complete").await["content"], "text");
    relay.finish().await;
}

/// Postgres cannot keep a NUL, wherever it comes from.
#[tokio::test]
async fn a_nul_is_kept_from_the_database() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    let error = json!({"error": {"message": "no\0t now"}});
    provider.once(Script::new().token("half\0").chunk(&error).end());
    let relay = on_postgres(&provider, &database, database.port()).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let mut reading = user.say(story, "a\0b").await;
    assert_eq!(reading.error().await["saved"], true);
    assert_eq!(user.saved(&reading.stream_id(), "failed").await["content"], "half");
    user.get("/v1/bots?cursor=%00").await.refused(400, "invalid_request");
    user.get("/v1/conversations?cursor=1-%00").await.refused(400, "invalid_request");
    let bot = json!({"name": "N", "provider": "custom", "model": "m", "base_url": "https://x.example/\0"});
    user.post("/v1/bots", &bot).await.ok(201);
    relay.finish().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_told_of_and_comes_back() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    cutter.shut();
    let refused = user.post("/v1/stream", &json!({"conversation_id": story, "input": "x"})).await;
    refused.refused(503, "store_unavailable");
    let ready = Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await;
    assert_eq!((ready.status, &ready.json["store"]), (503, &json!("down")));
    assert!(provider.requests().is_empty(), "a provider was paid for what cannot be saved");
    cutter.open();
    assert_eq!(user.told(story, "again").await["saved"], true);
    assert_eq!(user.story(story).await, ["again", "text"]);
    relay.finish().await;
}

/// A database that is away for a moment at the end of an answer is waited for.
#[tokio::test]
async fn a_short_absence_at_the_end_costs_nothing() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("text").gate(&gate).finish("stop").done());
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    let mut reading = user.say(story, "x").await;
    reading.until("token").await;
    cutter.shut();
    gate.open();
    let since = Instant::now();
    while !relay.log().contains("save failed, will be tried again") {
        assert!(since.elapsed() < PATIENCE, "{}", relay.log());
        sleep(Duration::from_millis(10)).await;
    }
    cutter.open();
    assert_eq!(reading.done().await["saved"], true);
    relay.finish().await;
}

/// Tokens are verified when they come; what they began is saved after their end.
async fn a_token_that_expires_in_mid_stream_saves_all_the_same(
    provider: Provider,
    builder: Builder,
    is_expired: impl AsyncFn(&str) -> bool,
) {
    let relay = builder.start().await;
    let gate = Gate::new();
    provider
        .once(Script::new().token("before").gate(&gate).token(" and after").finish("stop").done());
    let user = relay.user().await;
    let story = user.conversation().await;
    // A second is enough to begin, and PostgREST allows none beyond it.
    let mut claims = relay::claims(user.id);
    claims["exp"] = json!(jsonwebtoken::get_current_timestamp() + 3);
    let mut short = user.clone();
    short.token = relay::token(&claims);
    let mut reading = short.say(story, "x").await;
    reading.until("token").await;
    let since = Instant::now();
    while !is_expired(&short.token).await {
        assert!(since.elapsed() < PATIENCE, "the token does not expire");
        sleep(Duration::from_millis(50)).await;
    }
    gate.open();
    assert_eq!(reading.done().await["saved"], true);
    assert_eq!(user.story(story).await, ["x", "before and after"]);
    relay.finish().await;
}

#[tokio::test]
async fn a_token_that_expires_in_mid_stream_saves_all_the_same_behind_postgrest() {
    let provider = Provider::start().await;
    let database = Database::shared().await;
    let postgrest = Postgrest::on(&database);
    let builder = on_postgrest(&provider, postgrest.port());
    let is_expired = async |token: &str| {
        let (status, _) = postgrest
            .send(http::Method::POST, "/rpc/relay_list_bots", Some(token), &json!({"limit": 1}))
            .await;
        status == 401
    };
    a_token_that_expires_in_mid_stream_saves_all_the_same(provider, builder, is_expired).await;
}
