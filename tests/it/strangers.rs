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

#[tokio::test]
async fn nobody_reads_writes_or_learns_anything_of_others() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    let postgrest = Postgrest::on(&database);
    let relay = TestRelay::with(&provider)
        .env("SUPABASE_REST_URL", format!("http://127.0.0.1:{}", postgrest.port()))
        .start()
        .await;
    provider.always(Script::telling(&["a canary's song"]));
    let owner = relay.user().await;
    let story = owner.conversation().await;
    let done = owner.told(story, "a canary's question").await;
    let stranger = relay.stranger();
    let forged =
        owner.token.rsplit_once('.').map(|(rest, _)| format!("{rest}.{}", "A".repeat(43))).unwrap();
    let service_role = json!({"role": "service_role", "sub": Uuid::now_v7(), "exp": relay::claims(owner.id)["exp"]});

    let admin = database.admin().await;
    let tables = names(&admin, "select tablename::text from pg_tables where schemaname = 'public' and tablename like 'relay%' order by 1").await;
    let functions = names(&admin, "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and proname like 'relay%' order by 1").await;
    assert!(tables.len() >= 5 && functions.len() >= 17, "{tables:?} {functions:?}");
    let before = everything(&admin, &tables).await;

    // Everything that could name the owner's rows, for a row that is there and for one that is not.
    let arguments = |conversation: &Value,
                     message: &Value,
                     variant: &Value,
                     stream: &Value,
                     bot: &Value| {
        json!({
            "id": conversation, "message_id": message, "variant_id": variant, "stream_id": stream, "bot_id": bot,
            "conversation_id": conversation, "message_stream_id": null, "title": "mine now", "content": "mine now",
            "write_token": "guessed", "outcome": "complete", "limit": 10, "fingerprint": "f",
            "attempt": Uuid::now_v7(), "expires_at": "2100-01-01T00:00:00Z", "wants_path": true, "path_chars_per_token": 8,
            "place": {"kind": "reply", "conversation_id": conversation, "input": "mine now"},
            "patch": {"title": "mine now"}, "settings": {},
        })
    };
    let bot = owner.get("/v1/bots").await.ok(200)["data"][0]["id"].clone();
    let theirs = arguments(
        &json!(story),
        &done["message_id"],
        &done["variant_id"],
        &done["stream_id"],
        &bot,
    );
    let nobodys = arguments(
        &json!(999_999),
        &json!(999_999),
        &json!(999_999),
        &json!("nobodys"),
        &json!(999_999),
    );
    for token in [None, Some(&stranger.token), Some(&forged), Some(&relay::token(&service_role))] {
        let token = token.map(String::as_str);
        for function in &functions {
            // With a bot or a story of their own a stranger may do as they like.
            if matches!(function.as_str(), "relay_create_bot" | "relay_create_conversation")
                && token == Some(&stranger.token)
            {
                continue;
            }
            let path = format!("/rpc/{function}");
            let found = postgrest.send(Method::POST, &path, token, &theirs).await;
            let missing = postgrest.send(Method::POST, &path, token, &nobodys).await;
            assert_eq!(found, missing, "{function} tells what is there from what is not");
            assert!(!found.1.to_string().contains("canary"), "{function}: {found:?}");
        }
        for table in &tables {
            for (method, query) in [
                (Method::GET, "?select=*"),
                (Method::PATCH, "?id=gt.0"),
                (Method::DELETE, "?id=gt.0"),
            ] {
                let body = json!({"created_at": "2000-01-01T00:00:00Z"});
                let (status, answer) =
                    postgrest.send(method.clone(), &format!("/{table}{query}"), token, &body).await;
                let is_nothing = answer == json!([]) || answer.is_null();
                assert!(is_nothing || status >= 400, "{method} {table}: {status} {answer}");
            }
            let row = json!({"user_id": owner.id, "conversation_id": story, "message_id": done["message_id"],
                "role": "user", "status": "complete", "name": "x", "provider": "x", "model": "x", "stream_id": "x"});
            let (status, answer) =
                postgrest.send(Method::POST, &format!("/{table}"), token, &row).await;
            assert!(status >= 400, "{table}: {status} {answer}");
        }
    }
    assert_eq!(everything(&admin, &tables).await, before);
    relay.finish().await;
}
