//! Whoever comes to the database by its REST server, past the relay: what they read, write and learn is nothing.

use http::Method;
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::database::Database;
use crate::postgrest::Postgrest;
use crate::provider::{Provider, Script};
use crate::relay::{self, TestRelay};

/// What the relay has made, counted and told apart: any change shows.
async fn everything(admin: &Client, tables: &[String]) -> Vec<String> {
    let mut rows = Vec::new();
    for table in tables {
        let query = format!(
            "select coalesce(jsonb_agg(to_jsonb(t) order by id), '[]')::text from public.{table} t"
        );
        rows.push(admin.query_one(&query, &[]).await.unwrap().get(0));
    }
    rows
}

async fn names(admin: &Client, query: &str) -> Vec<String> {
    admin.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// All that the REST server offers, and the arguments of whoever tries it.
struct Doors {
    postgrest: Postgrest,
    tables: Vec<String>,
    functions: Vec<String>,
    /// Names rows of somebody else.
    theirs: Value,
    /// Names rows that do not exist.
    nobodys: Value,
    /// A row that somebody else is said to have.
    row: Value,
}

impl Doors {
    /// Tries every function with that token, but those that are left out.
    async fn call(&self, token: Option<&str>, left_out: &[&str]) {
        for function in self.functions.iter().filter(|name| !left_out.contains(&name.as_str())) {
            let path = format!("/rpc/{function}");
            let found = self.postgrest.send(Method::POST, &path, token, &self.theirs).await;
            let missing = self.postgrest.send(Method::POST, &path, token, &self.nobodys).await;
            assert_eq!(found, missing, "{function} tells what is there from what is not");
            assert!(!found.1.to_string().contains("canary"), "{function}: {found:?}");
        }
    }

    /// Tries to read, change, remove and add rows of every table.
    async fn touch(&self, token: Option<&str>) {
        let change = json!({"created_at": "2000-01-01T00:00:00Z"});
        for table in &self.tables {
            for (method, query) in [
                (Method::GET, "?select=*"),
                (Method::PATCH, "?id=gt.0"),
                (Method::DELETE, "?id=gt.0"),
            ] {
                let path = format!("/{table}{query}");
                let (status, answer) = self.postgrest.send(method, &path, token, &change).await;
                let is_nothing = answer == json!([]) || answer.is_null();
                assert!(is_nothing || status >= 400, "{path}: {status} {answer}");
            }
            let path = format!("/{table}");
            let (status, answer) = self.postgrest.send(Method::POST, &path, token, &self.row).await;
            assert!(status >= 400, "{path}: {status} {answer}");
        }
    }
}

/// Everything that could name rows, in every function's words.
fn arguments(
    conversation: i64,
    message: &Value,
    variant: &Value,
    stream: &Value,
    bot: &Value,
) -> Value {
    json!({
        "id": conversation, "message_id": message, "variant_id": variant, "stream_id": stream, "bot_id": bot,
        "conversation_id": conversation, "title": "mine now", "content": "mine now", "limit": 10,
        "write_token": "guessed", "outcome": "complete", "fingerprint": "f", "attempt": Uuid::now_v7(),
        "expires_at": "2100-01-01T00:00:00Z", "wants_path": true, "path_chars_per_token": 8,
        "place": {"kind": "reply", "conversation_id": conversation, "input": "mine now"},
        "patch": {"title": "mine now"}, "settings": {},
    })
}

#[tokio::test]
async fn nobody_reads_writes_or_learns_anything_of_others() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    let postgrest = Postgrest::on(&database);
    let rest = format!("http://127.0.0.1:{}", postgrest.port());
    let relay = TestRelay::with(&provider).env("SUPABASE_REST_URL", rest).start().await;
    provider.always(Script::telling(&["a canary's song"]));
    let owner = relay.user().await;
    let story = owner.conversation().await;
    let done = owner.told(story, "a canary's question").await;
    let bot = owner.get("/v1/bots").await.ok(200)["data"][0]["id"].clone();

    let admin = database.admin().await;
    let tables = "select tablename::text from pg_tables where schemaname = 'public' and tablename like 'relay%'";
    let functions = "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and proname like 'relay%'";
    let none = json!(999_999);
    let doors = Doors {
        postgrest,
        tables: names(&admin, tables).await,
        functions: names(&admin, functions).await,
        theirs: arguments(
            story,
            &done["message_id"],
            &done["variant_id"],
            &done["stream_id"],
            &bot,
        ),
        nobodys: arguments(999_999, &none, &none, &json!("nobodys"), &none),
        row: json!({
            "user_id": owner.id, "conversation_id": story, "message_id": done["message_id"], "role": "user",
            "status": "complete", "name": "x", "provider": "x", "model": "x", "stream_id": "x",
        }),
    };
    assert!(doors.tables.len() >= 5 && doors.functions.len() >= 17);
    let before = everything(&admin, &doors.tables).await;

    let (signed, _) = owner.token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", "A".repeat(43));
    let mut claims = relay::claims(owner.id);
    claims["role"] = json!("service_role");
    let stranger = relay.stranger().token;
    for token in [None, Some(forged), Some(relay::token(&claims))] {
        doors.call(token.as_deref(), &[]).await;
        doors.touch(token.as_deref()).await;
    }
    // With bots and stories of their own strangers may do as they like.
    doors.call(Some(&stranger), &["relay_create_bot", "relay_create_conversation"]).await;
    doors.touch(Some(&stranger)).await;
    assert_eq!(everything(&admin, &doors.tables).await, before);
    relay.finish().await;
}
