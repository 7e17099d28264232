//! Storytellr as it is: its tables, and what its frontend does with them, through the relay; and the way out of them.

use http::Method;
use serde_json::{Value, json};

use crate::database::{Cluster, Database, file};
use crate::provider::{Provider, Script};
use crate::relay::{Answer, OWN_KEY, TestRelay, User};

impl Database {
    /// Storytellr's present tables, with nothing of the relay's.
    async fn of_storytellr() -> Self {
        let database = Cluster::start().database().await;
        database.apply("src/migrate/plain.sql");
        database.apply("tests/fixtures/storytellr-v0-schema.sql");
        database.psql(&[
            "--command",
            "create role relay login noinherit; grant anon, authenticated to relay",
        ]);
        database
    }

    fn apply(&self, path: &str) -> String {
        self.psql(&["--file", file(path).to_str().unwrap()])
    }

    /// The rows of a query, as JSON.
    async fn rows(&self, query: &str) -> Value {
        let query = format!("select coalesce(jsonb_agg(to_jsonb(t)), '[]')::text from ({query}) t");
        let rows: String = self.admin().await.query_one(&query, &[]).await.unwrap().get(0);
        serde_json::from_str(&rows).unwrap()
    }
}

/// A relay on the adapter, and a user with a bot and a conversation that the app has made.
struct Storytellr {
    relay: TestRelay,
    database: Database,
    user: User,
    conversation: i64,
}

/// The user's own key, which stands in the bot's row and must go nowhere.
const ROW_KEY: &str = "sk-in-the-row";

impl Storytellr {
    async fn start(provider: &Provider) -> Self {
        let database = Database::of_storytellr().await;
        database.apply("supabase/adapters/storytellr-v0.sql");
        let relay = TestRelay::with(provider)
            .env("RELAY_DATABASE_URL", database.url("relay"))
            .env("RELAY_UPSTREAM_ALLOW", "127.0.0.1")
            .start()
            .await;
        let user = relay.stranger();
        let (id, base_url) = (user.id, provider.base_url());
        let rows = format!(
            "insert into users values ('{id}');
             insert into characters (user_id) values ('{id}');
             insert into personas (user_id) values ('{id}');
             insert into bots (name, model, access_path, access_key, user_id) values ('Bot', 'model-1', '{base_url}', '{ROW_KEY}', '{id}');
             insert into conversations (character_id, persona_id, user_id) values (1, 1, '{id}');"
        );
        database.admin().await.batch_execute(&rows).await.unwrap();
        Self { relay, database, user, conversation: 1 }
    }

    /// What the frontend does before it asks: it saves the user's message itself.
    async fn saves(&self, content: &str) {
        let sql = format!(
            "insert into messages (conversation_id, content, is_user_author, user_id) values ({}, '{content}', true, '{}')",
            self.conversation, self.user.id
        );
        self.database.admin().await.batch_execute(&sql).await.unwrap();
    }

    /// What it sends then: the whole context.
    fn asks(&self, stream_id: &str, content: &str) -> Value {
        json!({
            "conversation_id": self.conversation, "stream_id": stream_id,
            "messages": [{"role": "system", "content": "You are a lighthouse."}, {"role": "user", "content": content}],
        })
    }

    async fn messages(&self) -> Value {
        self.database
            .rows("select content, is_user_author, is_active, is_streaming, is_complete, stream_id from messages order by t, id")
            .await
    }

    async fn alternatives(&self) -> Value {
        self.database
            .rows("select id, parent_message_id, content, is_user_author, is_active, is_streaming, is_complete, stream_id from message_alternatives order by id")
            .await
    }

    async fn announces(&self, message: &Value) -> Value {
        let body = json!({"parent_message_id": message, "conversation_id": self.conversation});
        let request =
            self.user.request(Method::POST, "/v1/reroll").header("accept", "application/json");
        Answer::of(request.body(body.to_string()).send().await.unwrap()).await.ok(200)
    }

    fn begins(&self, announced: &Value) -> Value {
        let mut body = self.asks(announced["stream_id"].as_str().unwrap(), "Who is there?");
        body["is_alternative"] = json!(true);
        body["alternative_id"] = announced["alternative_message"]["id"].clone();
        body
    }

    async fn finish(self) {
        // The frontend's own rows are not the relay's to be at rest.
        self.relay.finish_without_users().await;
    }
}

fn answer(content: &str, is_complete: bool, stream_id: &str) -> Value {
    json!({"content": content, "is_user_author": false, "is_active": true, "is_streaming": false,
        "is_complete": is_complete, "stream_id": stream_id})
}

#[tokio::test]
async fn a_plain_answer_leaves_the_row_that_the_old_relay_left() {
    let provider = Provider::start().await;
    let app = Storytellr::start(&provider).await;
    app.saves("Who is there?").await;
    provider.once(Script::telling(&["The ", "keeper 🦊"]));
    let done = app.user.stream(app.asks("s-1", "Who is there?")).await.done().await;
    assert_eq!(done["saved"], true);
    let question = json!({"content": "Who is there?", "is_user_author": true, "is_active": true,
        "is_streaming": false, "is_complete": true, "stream_id": null});
    assert_eq!(app.messages().await, json!([question, answer("The keeper 🦊", true, "s-1")]));
    assert_eq!(
        provider.last_request().prompt(),
        ["system: You are a lighthouse.", "user: Who is there?"]
    );
    assert!(!provider.last_request().head.contains(ROW_KEY), "a key from a row was sent");

    let saved = app.user.get("/v1/message-by-stream-id?stream_id=s-1").await.ok(200);
    assert_eq!((&saved["id"], &saved["content"]), (&done["message_id"], &json!("The keeper 🦊")));
    assert_eq!(app.user.story(app.conversation).await, ["Who is there?", "The keeper 🦊"]);

    // Where the old relay saved a failure as a complete message, or none at all.
    provider.once(Script::new().token("Half of ").reset());
    app.user.stream(app.asks("s-2", "And then?")).await.error().await;
    assert_eq!(app.messages().await[2], answer("Half of ", false, "s-2"));
    provider.once(Script::answer(401, "").end());
    app.user.stream(app.asks("s-3", "And then?")).await.error().await;
    assert_eq!(app.messages().await.as_array().unwrap().len(), 3);
    app.finish().await;
}

#[tokio::test]
async fn a_reroll_in_two_steps_leaves_the_row_that_the_old_relay_left() {
    let provider = Provider::start().await;
    let app = Storytellr::start(&provider).await;
    app.saves("Who is there?").await;
    provider.once(Script::telling(&["The keeper"]));
    let done = app.user.stream(app.asks("s-1", "Who is there?")).await.done().await;

    let announced = app.announces(&json!("temp-stream-s-1")).await;
    let alternative = &announced["alternative_message"];
    assert_eq!(alternative["parent_message_id"], done["message_id"]);
    let stream_id = announced["stream_id"].as_str().unwrap();
    assert!(stream_id.starts_with("reroll-"));
    let row = |content: &str, is_active, is_streaming, is_complete| {
        json!([{"id": alternative["id"], "parent_message_id": done["message_id"], "content": content,
            "is_user_author": false, "is_active": is_active, "is_streaming": is_streaming, "is_complete": is_complete,
            "stream_id": stream_id}])
    };
    assert_eq!(app.alternatives().await, row("", true, true, false));
    assert_eq!(
        app.user.story(app.conversation).await[1],
        "The keeper",
        "an empty text is not shown"
    );

    provider.once(Script::telling(&["Nobody"]));
    let done = app.user.stream(app.begins(&announced)).await.done().await;
    assert_eq!((&done["alternative_id"], &done["saved"]), (&alternative["id"], &json!(true)));
    assert_eq!(app.alternatives().await, row("Nobody", true, false, true));
    assert_eq!(app.user.story(app.conversation).await[1], "Nobody");

    let announced = app.announces(&alternative["parent_message_id"]).await;
    provider.once(Script::new().token("Half").reset());
    app.user.stream(app.begins(&announced)).await.error().await;
    assert_eq!(app.user.story(app.conversation).await[1], "Nobody", "a failure hides no text");
    app.finish().await;
}

#[tokio::test]
async fn what_the_tables_cannot_hold_is_refused_in_words() {
    let provider = Provider::start().await;
    let app = Storytellr::start(&provider).await;
    let bot = json!({"name": "n", "provider": "demo", "model": "m"});
    for refused in [
        app.user.post("/v1/bots", &bot).await,
        app.user.post("/v1/conversations", &json!({})).await,
    ] {
        refused.refused(400, "unsupported");
    }
    app.finish().await;
}

/// The keys in the app's rows are left alone; one that is given to the relay is used, and goes along when stories move.
#[tokio::test]
async fn a_key_is_kept_beside_the_apps_tables_and_moved() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let mut app = Storytellr::start(&provider).await;
    let key = format!("{OWN_KEY}one");
    let body = json!({"provider": "custom", "key": key, "base_url": provider.base_url()});
    let shown = app.user.post("/v1/keys", &body).await.ok(201);
    app.user.stream(app.asks("s-1", "Who is there?")).await.done().await;
    let bearer = format!("Bearer {key}");
    assert!(provider.last_request().head.contains(&bearer));

    app.relay.terminate();
    app.relay.ended().await;
    app.database.apply("supabase/adapters/storytellr-v0-drop.sql");
    app.database.migrate();
    let said = app.database.apply("supabase/adapters/storytellr-v0-move.sql");
    assert!(said.contains("moved: 1 sealed keys"), "{said}");
    app.relay.start_again().await;
    app.user.stream(json!({"input": "And now?"})).await.done().await;
    assert!(provider.last_request().head.contains(&bearer));
    let mut listed = app.user.get("/v1/keys").await.ok(200)["data"][0].clone();
    listed["id"] = shown["id"].clone();
    assert_eq!(listed, shown);
    app.user.delete("/v1/keys/1").await.ok(204);
    let said = app.database.apply("supabase/adapters/storytellr-v0-move.sql");
    assert!(said.contains("moved: 0 sealed keys"), "what was deleted stays deleted: {said}");
    app.finish().await;
}

#[tokio::test]
async fn the_adapter_and_the_relays_own_tables_exclude_each_other() {
    let database = Database::of_storytellr().await;
    database.apply("supabase/adapters/storytellr-v0.sql");
    database.apply("supabase/adapters/storytellr-v0.sql");
    let url = database.url("postgres");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_storytellr-relay"))
        .arg("migrate")
        .env("RELAY_DATABASE_URL", &url)
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("storytellr-v0-drop.sql"), "{errors}");
    database.apply("supabase/adapters/storytellr-v0-drop.sql");
    assert!(database.migrate().contains("ready"));
}

/// The script compares every text itself; here it is held to the counts, to a story as its reader saw it, and to doing
/// nothing the second time.
#[tokio::test]
async fn a_thousand_stories_are_moved_once() {
    let database = Database::of_storytellr().await;
    database.apply("tests/fixtures/storytellr-v0-stories.sql");
    database.migrate();
    let said = database.apply("supabase/adapters/storytellr-v0-move.sql");
    let counts = "select (select count(*) from relay_bots) as bots, (select count(*) from relay_conversations) as conversations,
        (select count(*) from relay_messages) as messages, (select count(*) from relay_variants) as variants";
    let moved = database.rows(counts).await;
    let whole = database
        .rows("select (select count(*) from bots where user_id is not null) as bots,
            (select count(*) from conversations where user_id is not null) as conversations,
            count(*) as messages, (select count(*) from message_alternatives a join messages m on m.id = a.parent_message_id
                join conversations c on c.id = m.conversation_id
                where c.user_id is not null and coalesce(m.user_id, c.user_id) = c.user_id
                  and coalesce(a.user_id, c.user_id) = c.user_id) + count(*) as variants
            from messages m join conversations c on c.id = m.conversation_id
            where c.user_id is not null and coalesce(m.user_id, c.user_id) = c.user_id")
        .await;
    assert_eq!(moved, whole, "{said}");
    assert!(moved[0]["conversations"].as_i64().unwrap() > 900, "{moved}");
    let trunk = "with recursive path as (
          select m.id, m.parent_id, 0 as depth from relay_conversations c join relay_messages m on m.id = c.head_id where c.id = 2
          union all
          select m.id, m.parent_id, p.depth + 1 from path p join relay_messages m on m.id = p.parent_id)
        select id from path order by depth desc";
    let by_time = "select m.id from messages m join conversations c on c.id = m.conversation_id
        where c.id = 2 and coalesce(m.user_id, c.user_id) = c.user_id order by m.t nulls first, m.id";
    let trunk = database.rows(trunk).await;
    assert!(trunk.as_array().unwrap().len() > 10);
    assert_eq!(trunk, database.rows(by_time).await);
    database.apply("supabase/adapters/storytellr-v0-move.sql");
    assert_eq!(database.rows(counts).await, moved);
}
