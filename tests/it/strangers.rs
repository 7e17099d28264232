//! Whoever comes to the database by its REST server, past the relay: what they read, write and learn is nothing.

use http::Method;
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::database::Database;
use crate::postgrest::Postgrest;
use crate::provider::{Provider, Script};
use crate::relay::{self, OWN_KEY, TestRelay, User};

/// For each table a column that users may change, and a value that is valid there.
fn changes() -> [(&'static str, &'static str, Value); 6] {
    [
        ("relay_bots", "name", json!("mine now")),
        ("relay_conversations", "title", json!("mine now")),
        ("relay_messages", "active_variant_id", json!(null)),
        ("relay_variants", "model", json!("mine now")),
        ("relay_generations", "fingerprint", json!("mine now")),
        ("relay_keys", "sealed", json!("mine now")),
    ]
}

/// Tables whose rows users remove by themselves.
const REMOVABLE: &[&str] = &["relay_bots", "relay_conversations", "relay_messages", "relay_keys"];

/// What names the rows of somebody, or of nobody.
#[derive(Clone)]
struct Ids {
    bot: i64,
    conversation: i64,
    message: i64,
    variant: i64,
    stream: String,
    announced_variant: i64,
    announced_stream: String,
    key: i64,
    sealed: String,
}

impl Ids {
    /// A user's story with an answer in it, of which a reroll is announced, and a key.
    async fn of(user: &User, canary: &str, admin: &Client) -> Self {
        let key = json!({"provider": "scripted", "key": format!("{OWN_KEY}of-a-user")});
        let key = user.post("/v1/keys", &key).await.ok(201)["id"].as_i64().unwrap();
        let sealed = "select sealed from public.relay_keys where id = $1";
        let sealed = admin.query_one(sealed, &[&key]).await.unwrap().get(0);
        let bot = user.bot(json!({"name": canary})).await;
        let story = json!({"title": canary, "bot_id": bot});
        let conversation = user.post("/v1/conversations", &story).await.ok(201)["id"].clone();
        let conversation = conversation.as_i64().unwrap();
        let done = user.told(conversation, canary).await;
        let announce =
            json!({"parent_message_id": done["message_id"], "conversation_id": conversation});
        let announced = user.post("/v1/reroll", &announce).await.ok(200);
        let stream = |json: &Value| json["stream_id"].as_str().unwrap().to_owned();
        Self {
            bot,
            conversation,
            message: done["message_id"].as_i64().unwrap(),
            variant: done["variant_id"].as_i64().unwrap(),
            stream: stream(&done),
            announced_variant: announced["alternative_message"]["id"].as_i64().unwrap(),
            announced_stream: stream(&announced),
            key,
            sealed,
        }
    }

    /// Older than every row, as parents must be.
    fn nobodys() -> Self {
        Self {
            bot: -1,
            conversation: -1,
            message: -1,
            variant: -1,
            stream: "nobodys".to_owned(),
            announced_variant: -1,
            announced_stream: "reroll-nobodys".to_owned(),
            key: -1,
            sealed: "nobodys".to_owned(),
        }
    }
}

type Call = (&'static str, Value);

fn begin(stream_id: &str, bot_id: Option<i64>, place: &Value) -> Call {
    let call = json!({
        "stream_id": stream_id, "fingerprint": "f", "attempt": Uuid::nil(), "bot_id": bot_id, "place": place,
        "expires_at": "2100-01-01T00:00:00Z", "wants_path": true, "path_chars_per_token": 8,
    });
    ("relay_begin", call)
}

/// Every function, and every way of naming rows to it. What removes comes last, so that their owner can do all of it.
fn calls(ids: &Ids) -> Vec<Call> {
    let Ids { bot, conversation, message, variant, stream, .. } = ids;
    let reply = json!({"kind": "reply", "conversation_id": conversation, "input": "mine now"});
    let below = json!({"kind": "reply", "conversation_id": conversation, "parent_id": message});
    let announced = json!({
        "kind": "announced", "conversation_id": conversation, "variant_id": ids.announced_variant,
    });
    let all = json!({"title": "mine now", "bot_id": bot, "head_id": message});
    vec![
        ("relay_tree", json!({"id": conversation})),
        ("relay_find_stream", json!({"stream_id": stream})),
        ("relay_read_bot", json!({"id": bot})),
        ("relay_select_variant", json!({"message_id": message, "variant_id": variant})),
        ("relay_write_variant", json!({"message_id": message, "content": "mine now"})),
        ("relay_update_bot", json!({"id": bot, "settings": {"name": "mine now"}})),
        ("relay_create_conversation", json!({"title": "mine now", "bot_id": bot})),
        ("relay_patch_conversation", json!({"id": conversation, "patch": {"title": "mine now"}})),
        ("relay_patch_conversation", json!({"id": conversation, "patch": all})),
        ("relay_announce_reroll", json!({"message_id": message, "conversation_id": conversation})),
        (
            "relay_announce_reroll",
            json!({"message_stream_id": stream, "conversation_id": conversation}),
        ),
        begin("strange-1", None, &reply),
        begin("strange-2", Some(*bot), &below),
        begin("strange-3", None, &json!({"kind": "reroll", "message_id": message})),
        begin("strange-4", None, &json!({"kind": "reroll", "message_stream_id": stream})),
        begin("strange-5", Some(*bot), &json!({"kind": "nowhere"})),
        begin(&ids.announced_stream, None, &announced),
        ("relay_reseal_key", json!({"id": ids.key, "old": ids.sealed, "new": "mine now"})),
        ("relay_delete_key", json!({"id": ids.key})),
        ("relay_delete_message", json!({"message_id": message})),
        ("relay_delete_conversation", json!({"id": conversation})),
        ("relay_delete_bot", json!({"id": bot})),
    ]
}

/// Functions that name no rows: what they answer is the caller's own, or nothing.
fn unnamed() -> [Call; 7] {
    let bot = json!({"name": "x", "provider": "x", "model": "x", "system_prompt": "",
        "context_size": 1, "show_reasoning": false, "is_default": false});
    [
        ("relay_list_conversations", json!({"limit": 10})),
        ("relay_list_bots", json!({"limit": 10})),
        ("relay_version", json!({})),
        ("relay_finish", json!({"write_token": "guessed", "outcome": "complete", "content": "x"})),
        ("relay_create_bot", json!({"settings": bot})),
        ("relay_list_keys", json!({})),
        (
            "relay_put_key",
            json!({"provider": "x", "origin": "", "last4": "", "sealed": "mine now"}),
        ),
    ]
}

/// Ways of tying rows of one's own to those of somebody else, by the functions.
fn ties(own: &Ids, ids: &Ids) -> Vec<Call> {
    let patch =
        |patch| ("relay_patch_conversation", json!({"id": own.conversation, "patch": patch}));
    let reply = json!({"kind": "reply", "conversation_id": own.conversation, "input": "x"});
    let below =
        json!({"kind": "reply", "conversation_id": own.conversation, "parent_id": ids.message});
    let announced = json!({
        "kind": "announced", "conversation_id": own.conversation, "variant_id": ids.announced_variant,
    });
    vec![
        patch(json!({"bot_id": ids.bot})),
        patch(json!({"head_id": ids.message})),
        ("relay_create_conversation", json!({"title": "x", "bot_id": ids.bot})),
        ("relay_select_variant", json!({"message_id": own.message, "variant_id": ids.variant})),
        (
            "relay_announce_reroll",
            json!({"message_id": ids.message, "conversation_id": own.conversation}),
        ),
        begin("tie-1", Some(ids.bot), &reply),
        begin("tie-2", None, &below),
        begin(&own.announced_stream, None, &announced),
        begin(&ids.announced_stream, None, &announced),
    ]
}

/// The same by the tables.
fn rows(own: &Ids, ids: &Ids) -> Vec<(Method, String, Value)> {
    let add = |table: &str, row| (Method::POST, format!("/{table}"), row);
    let change = |table: &str, id: i64, row| (Method::PATCH, format!("/{table}?id=eq.{id}"), row);
    vec![
        add("relay_conversations", json!({"title": "x", "bot_id": ids.bot})),
        add("relay_messages", json!({"conversation_id": ids.conversation, "role": "user"})),
        add(
            "relay_messages",
            json!({"conversation_id": own.conversation, "parent_id": ids.message, "role": "user"}),
        ),
        add(
            "relay_variants",
            json!({"message_id": ids.message, "content": "x", "status": "complete"}),
        ),
        add("relay_generations", json!({"stream_id": "tie-3", "variant_id": ids.variant})),
        change("relay_conversations", own.conversation, json!({"bot_id": ids.bot})),
        change("relay_conversations", own.conversation, json!({"head_id": ids.message})),
        change("relay_messages", own.message, json!({"active_variant_id": ids.variant})),
        change("relay_variants", own.variant, json!({"bot_id": ids.bot})),
    ]
}

/// A table with a row of the owner's in it.
struct Table {
    name: String,
    row: Value,
    /// The row as anybody could add it who had that user's name: what is left of it that users may say.
    new: Value,
    change: Value,
    change_back: Value,
}

/// All that the REST server offers, and whose rows strangers are after.
struct Doors {
    postgrest: Postgrest,
    admin: Client,
    tables: Vec<Table>,
    theirs: Ids,
}

impl Doors {
    async fn call(&self, token: Option<&str>, (function, arguments): &Call) -> (u16, Value) {
        let path = format!("/rpc/{function}");
        self.postgrest.send(Method::POST, &path, token, arguments).await
    }

    /// Tries that with somebody's rows and with nobody's, which must be refused alike.
    async fn learns_nothing(&self, token: Option<&str>, theirs: &[Call], nobodys: &[Call]) {
        for (theirs, nobodys) in theirs.iter().zip(nobodys) {
            let found = self.call(token, theirs).await;
            assert_eq!(found, self.call(token, nobodys).await, "{theirs:?} tells what is there");
            let is_nothing = found.1.is_null() && theirs.0 == "relay_find_stream";
            assert!(found.0 >= 400 || is_nothing, "{theirs:?}: {found:?}");
            assert!(!found.1.to_string().contains("canary"), "{theirs:?}: {found:?}");
        }
    }

    /// Tries to read, change, remove and add rows of every table. `reason` is why none can be added.
    async fn touch(&self, token: Option<&str>, reason: &str) {
        for Table { name, row, new, change, .. } in &self.tables {
            for query in ["id=gt.0".to_owned(), format!("id=eq.{}", row["id"])] {
                for method in [Method::GET, Method::PATCH, Method::DELETE] {
                    let path = format!("/{name}?{query}");
                    let (status, answer) =
                        self.postgrest.send(method.clone(), &path, token, change).await;
                    let is_nothing = answer == json!([]) || answer.is_null();
                    assert!(is_nothing || status >= 400, "{method} {path}: {status} {answer}");
                }
            }
            let path = format!("/{name}");
            let (status, answer) = self.postgrest.send(Method::POST, &path, token, new).await;
            let is_why = answer.to_string().contains(reason);
            assert!(status >= 400 && is_why, "{path}: {status} {answer}");
        }
    }

    /// Rows of somebody's own cannot be tied to the owner's, nor tell whether those are there.
    async fn cannot_be_tied_to(&self, stranger: &User, own: &Ids) {
        let (token, nobodys) = (Some(stranger.token.as_str()), Ids::nobodys());
        self.learns_nothing(token, &ties(own, &self.theirs), &ties(own, &nobodys)).await;
        for (theirs, nobodys) in rows(own, &self.theirs).into_iter().zip(rows(own, &nobodys)) {
            let (method, path, row) = theirs;
            let found = self.postgrest.send(method, &path, token, &row).await;
            let (method, path, row) = nobodys;
            let missing = self.postgrest.send(method, &path, token, &row).await;
            assert!(found.0 >= 400, "{path} {row}: {found:?}");
            let code = |answer: &(u16, Value)| (answer.0, answer.1["code"].clone());
            assert_eq!(code(&found), code(&missing), "{path} {row} tells what is there");
        }
        for table in &self.tables {
            let path = format!("/{}?select=user_id", table.name);
            let (_, seen) = self.postgrest.send(Method::GET, &path, token, &json!(null)).await;
            let seen = seen.as_array().unwrap();
            let is_own = |row: &Value| row["user_id"] == json!(stranger.id);
            assert!(!seen.is_empty() && seen.iter().all(is_own), "{path}: {seen:?}");
        }
    }

    /// The owner does what strangers try with the tables, and it is done: only whose rows they are keeps strangers out.
    async fn are_open_to(&self, owner: &User) {
        let token = Some(owner.token.as_str());
        let send = async |method, path: &str, body: &Value| {
            let (status, answer) = self.postgrest.send(method, path, token, body).await;
            assert!(status < 400, "{path}: {status} {answer}");
            answer
        };
        for Table { name, row, new, change, change_back } in &self.tables {
            let before = self.everything().await;
            let path = format!("/{name}?id=eq.{}", row["id"]);
            assert_eq!(send(Method::GET, &path, change).await[0]["id"], row["id"]);
            send(Method::PATCH, &path, change).await;
            assert_ne!(self.everything().await, before, "{name} was not changed");
            send(Method::PATCH, &path, change_back).await;
            assert_eq!(self.everything().await, before);

            send(Method::POST, &format!("/{name}"), new).await;
            assert_ne!(self.everything().await, before, "nothing was added to {name}");
            let newest = format!("select max(id) from public.{name}");
            let newest: i64 = self.admin.query_one(&newest, &[]).await.unwrap().get(0);
            let path = format!("/{name}?id=eq.{newest}");
            if REMOVABLE.contains(&name.as_str()) {
                send(Method::DELETE, &path, change).await;
            } else {
                let refused = self.postgrest.send(Method::DELETE, &path, token, change).await;
                assert_eq!(refused.1["code"], "42501", "{path}: {}", refused.1);
                let undo = format!("delete from public.{name} where id = {newest}");
                self.admin.execute(&undo, &[]).await.unwrap();
            }
            assert_eq!(self.everything().await, before);
        }
    }

    /// The owner makes the very calls that strangers were refused, and they are answered.
    async fn answer(&self, owner: &User) {
        let token = Some(owner.token.as_str());
        for call in calls(&self.theirs) {
            let (status, answer) = self.call(token, &call).await;
            assert_eq!(status, 200, "{call:?}: {answer}");
            if let Some(write_token) = answer["rows"]["write_token"].as_str() {
                let end =
                    json!({"write_token": write_token, "outcome": "complete", "content": "x"});
                assert_eq!(self.call(None, &("relay_finish", end)).await.0, 200);
            }
        }
    }

    /// Every row of every table: any change shows.
    async fn everything(&self) -> Vec<String> {
        let mut all = Vec::new();
        for table in &self.tables {
            let rows = "coalesce(jsonb_agg(to_jsonb(t) order by id), '[]')::text";
            let query = format!("select {rows} from public.{} t", table.name);
            all.push(self.admin.query_one(&query, &[]).await.unwrap().get(0));
        }
        all
    }
}

/// Each table counts from a number of its own, so that no row's id can stand for another's.
async fn count_apart(admin: &Client) {
    for (at, (table, ..)) in changes().iter().enumerate() {
        let restart =
            format!("alter table public.{table} alter column id restart with {}", 1000 * (at + 1));
        admin.batch_execute(&restart).await.unwrap();
    }
}

async fn names(admin: &Client, query: &str) -> Vec<String> {
    admin.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The owner's newest row of a table, what to change it to, and what to add.
async fn table(admin: &Client, owner: Uuid, name: String) -> Table {
    let newest = format!(
        "select to_jsonb(t)::text from public.{name} t where user_id = '{owner}' order by id desc limit 1"
    );
    let row = admin.query_one(&newest, &[]).await.unwrap().get::<_, String>(0);
    let row: Value = serde_json::from_str(&row).unwrap();
    let sayable = format!(
        "select attname::text from pg_attribute where attrelid = 'public.{name}'::regclass and attnum > 0
         and has_column_privilege('authenticated', attrelid, attnum, 'insert')"
    );
    let mut new: Value =
        names(admin, &sayable).await.into_iter().map(|at| (at.clone(), row[&at].clone())).collect();
    assert_eq!(new["user_id"], json!(owner));
    match name.as_str() {
        // These are one of a kind.
        "relay_generations" => {
            new["stream_id"] = json!("another");
            new["variant_id"] = json!(null);
        }
        "relay_keys" => new["provider"] = json!("another"),
        // Only what streams has a time by which it must have ended.
        "relay_variants" => new["status"] = json!("complete"),
        _ => {}
    }
    let changes = changes();
    let known = changes.iter().find(|(known, ..)| *known == name);
    let (_, column, value) = known.unwrap_or_else(|| panic!("nobody tries to change {name}"));
    let change_back = json!({*column: row[*column]});
    Table { name, change: json!({*column: value}), change_back, row, new }
}

async fn doors(database: &Database, postgrest: Postgrest, owner: &User, theirs: Ids) -> Doors {
    let admin = database.admin().await;
    let mut tables = Vec::new();
    let query = "select tablename::text from pg_tables where schemaname = 'public' and tablename like 'relay%'";
    for name in names(&admin, query).await {
        tables.push(table(&admin, owner.id, name).await);
    }
    assert_eq!(tables.len(), changes().len());
    let query = "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and proname like 'relay%'";
    let tried: Vec<_> = calls(&theirs).into_iter().chain(unnamed()).map(|(name, _)| name).collect();
    for function in names(&admin, query).await {
        assert!(tried.contains(&function.as_str()), "nobody tries {function}");
    }
    Doors { postgrest, admin, tables, theirs }
}

#[tokio::test]
async fn nobody_reads_writes_or_learns_anything_of_others() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    count_apart(&database.admin().await).await;
    let postgrest = Postgrest::on(&database);
    let rest = format!("http://127.0.0.1:{}", postgrest.port());
    let relay = TestRelay::with(&provider).env("SUPABASE_REST_URL", rest).start().await;
    provider.always(Script::telling(&["a canary's song"]));
    let (owner, stranger, newcomer) = (relay.stranger(), relay.stranger(), relay.stranger());
    let admin = database.admin().await;
    let theirs = Ids::of(&owner, "a canary's question", &admin).await;
    provider.always(Script::telling(&["a stranger's song"]));
    let own = Ids::of(&stranger, "a stranger's question", &admin).await;
    let doors = doors(&database, postgrest, &owner, theirs.clone()).await;
    doors.are_open_to(&owner).await;
    let before = doors.everything().await;

    let (signed, _) = owner.token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", "A".repeat(43));
    let of_role = |role: &str| {
        let mut claims = relay::claims(owner.id);
        claims["role"] = json!(role);
        relay::token(&claims)
    };
    let (theirs, nobodys) = (calls(&theirs), calls(&Ids::nobodys()));
    for token in [None, Some(forged), Some(of_role("service_role")), Some(of_role("anon"))] {
        let token = token.as_deref();
        doors.learns_nothing(token, &theirs, &nobodys).await;
        for call in unnamed().iter().filter(|(name, _)| *name != "relay_version") {
            let (status, answer) = doors.call(token, call).await;
            assert!(status >= 400, "{call:?}: {answer}");
        }
        doors.touch(token, "").await;
    }
    for stranger in [&stranger, &newcomer] {
        let token = Some(stranger.token.as_str());
        doors.learns_nothing(token, &theirs, &nobodys).await;
        let adds = |name: &str| matches!(name, "relay_create_bot" | "relay_put_key");
        for call in unnamed().iter().filter(|(name, _)| !adds(name)) {
            let (_, answer) = doors.call(token, call).await;
            assert!(!answer.to_string().contains("canary"), "{call:?}: {answer}");
        }
    }
    doors.cannot_be_tied_to(&stranger, &own).await;
    // Whoever has rows may do with those what the owner did.
    doors.touch(Some(&newcomer.token), "row-level security").await;
    assert_eq!(doors.everything().await, before);
    doors.answer(&owner).await;
    relay.finish().await;
}
