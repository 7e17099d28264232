//! What PostgREST and the gateway before it may answer besides success, from a scripted one: each is told apart, tried
//! again where that does no harm, and told to the client or the operator in words that help.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::{Value, json};
use storytellr_relay::auth::Principal;
use storytellr_relay::bot::BotSettings;
use storytellr_relay::error::{Code, Error};
use storytellr_relay::store::functions::FunctionStore;
use storytellr_relay::store::functions::postgrest::PostgrestFunctions;
use storytellr_relay::store::{Begin, Begun, Cursor, Finish, Outcome, Place, Store};
use uuid::Uuid;

use crate::provider::{Provider, Script};
use crate::relay::principal;

fn store(postgrest: &Provider, key: Option<&str>) -> impl Store {
    let url = postgrest.base_url().parse().unwrap();
    FunctionStore::new(PostgrestFunctions::new(&url, key.map(SecretString::from)).unwrap(), None)
}

fn user() -> Principal {
    principal(Uuid::now_v7())
}

fn answer(status: u16, headers: &str, body: &Value) -> Script {
    Script::answer(status, &format!("content-type: application/json; charset=utf-8\r\n{headers}"))
        .raw(body.to_string().as_bytes())
        .end()
}

/// An error as PostgREST words it.
fn error(status: u16, code: &str, message: &str) -> Script {
    answer(status, "", &json!({"code": code, "details": null, "hint": null, "message": message}))
}

fn bots() -> Script {
    answer(200, "", &json!({"data": [], "next": null}))
}

async fn read(store: &impl Store) -> Result<(), Error> {
    store.list_bots(&user(), &Cursor { after: None, limit: 1 }).await.map(drop)
}

/// A call that meets `script` each time: what comes of it, and how often it is made.
async fn meets(script: Script) -> (Code, String, usize) {
    let postgrest = Provider::start().await;
    postgrest.always(script);
    let store = store(&postgrest, Some("sb_publishable_x"));
    let error = store.read_bot(&user(), 7.try_into().unwrap()).await.unwrap_err();
    (error.code(), error.to_string(), postgrest.requests().len())
}

#[tokio::test]
async fn every_error_is_told_apart() {
    let future = "JWT issued at future";
    for (script, code, tries, says) in [
        // The function's own refusals.
        (error(404, "PT404", "conversation_not_found"), Code::ConversationNotFound, 1, ""),
        (error(403, "PT403", "bot_not_found"), Code::BotNotFound, 1, ""),
        (error(409, "PT409", "generation_running"), Code::GenerationRunning, 1, ""),
        (error(418, "PT418", "teapot"), Code::Internal, 1, "teapot"),
        // The token.
        (error(401, "PGRST301", "No suitable key"), Code::InvalidToken, 1, "Refresh"),
        (error(401, "PGRST303", "JWT expired"), Code::InvalidToken, 1, "Refresh"),
        (error(401, "PGRST303", future), Code::StoreUnavailable, 3, "future"),
        // The set-up.
        (error(404, "PGRST202", "Could not find the function"), Code::Internal, 1, "migrat"),
        (error(403, "42501", "permission denied for function"), Code::Internal, 1, "42501"),
        (error(401, "42501", "permission denied for function"), Code::Internal, 1, "42501"),
        (
            answer(401, "", &json!({"message": "Invalid API key"})),
            Code::Internal,
            1,
            "SUPABASE_PUBLISHABLE_KEY",
        ),
        (
            answer(404, "", &json!({"message": "no Route matched"})),
            Code::Internal,
            1,
            "SUPABASE_URL",
        ),
        // The database.
        (error(503, "PGRST001", "Database connection error"), Code::StoreUnavailable, 3, ""),
        (error(504, "PGRST003", "Timed out acquiring connection"), Code::StoreUnavailable, 3, ""),
        (
            error(500, "57014", "canceling statement due to statement timeout"),
            Code::StoreUnavailable,
            1,
            "",
        ),
        (error(500, "40001", "could not serialize access"), Code::StoreUnavailable, 3, ""),
        (error(503, "53300", "too many connections"), Code::StoreUnavailable, 3, ""),
        (error(503, "57P01", "terminating connection"), Code::StoreUnavailable, 3, ""),
        (error(400, "22P02", "invalid input syntax"), Code::Internal, 1, "22P02"),
        // The gateway.
        (
            Script::answer(502, "").raw(b"<html>Bad Gateway</html>").end(),
            Code::StoreUnavailable,
            3,
            "",
        ),
        (Script::answer(504, "").raw(b"upstream timed out").end(), Code::StoreUnavailable, 3, ""),
        (Script::answer(429, "").end(), Code::StoreUnavailable, 3, ""),
        (
            Script::answer(307, "location: http://127.0.0.1:1/\r\n").end(),
            Code::Internal,
            1,
            "SUPABASE_URL",
        ),
        // The connection.
        (Script::answer(200, "").reset(), Code::StoreUnavailable, 3, ""),
        (Script::answer(200, "").raw(b"{\"id\": 7, \"na").reset(), Code::StoreUnavailable, 3, ""),
        (Script::answer(200, "").raw(b"<html></html>").end(), Code::Internal, 1, "relay_read_bot"),
    ] {
        let (found, told, tried) = meets(script).await;
        assert_eq!((found, tried), (code, tries), "{told}");
        assert!(told.contains(says), "{told}");
        assert!(!told.contains("eyJ") && !told.contains("sb_publishable"), "{told}");
    }
}

#[tokio::test]
async fn what_passes_is_waited_for() {
    for passing in [
        error(503, "PGRST002", "Could not query the database for the schema cache"),
        answer(503, "retry-after: 1\r\n", &json!({"code": "PGRST000", "message": "No connection"})),
        error(401, "PGRST303", "JWT issued at future"),
        Script::answer(200, "").raw(b"{\"data\": [").reset(),
    ] {
        let postgrest = Provider::start().await;
        postgrest.once(passing);
        postgrest.always(bots());
        read(&store(&postgrest, None)).await.unwrap();
        assert_eq!(postgrest.requests().len(), 2);
    }
}

#[tokio::test]
async fn who_asks_for_a_long_wait_is_not_waited_for() {
    let postgrest = Provider::start().await;
    postgrest.always(answer(
        503,
        "retry-after: 30\r\n",
        &json!({"code": "PGRST000", "message": "No connection"}),
    ));
    let error = read(&store(&postgrest, None)).await.unwrap_err();
    assert_eq!(
        (error.code(), error.retry_after()),
        (Code::StoreUnavailable, Some(Duration::from_secs(30)))
    );
    assert_eq!(postgrest.requests().len(), 1);
}

/// What changes something each time it is done is done once, even if nobody knows whether it was.
#[tokio::test]
async fn what_would_be_done_twice_is_not_tried_again() {
    let postgrest = Provider::start().await;
    postgrest.always(Script::answer(200, "").reset());
    let error =
        store(&postgrest, None).create_bot(&user(), &BotSettings::demo()).await.unwrap_err();
    assert_eq!((error.code(), postgrest.requests().len()), (Code::StoreUnavailable, 1));
    postgrest.always(error_503());
    let error =
        store(&postgrest, None).create_bot(&user(), &BotSettings::demo()).await.unwrap_err();
    assert_eq!((error.code(), postgrest.requests().len()), (Code::StoreUnavailable, 4));
}

fn error_503() -> Script {
    error(503, "PGRST000", "Database connection error")
}

/// `relay_begin` says in each try whose call it is, so that the database can tell a repetition from another turn.
#[tokio::test]
async fn a_begin_whose_answer_is_lost_is_repeated_as_the_same_call() {
    let postgrest = Provider::start().await;
    let bot = json!({
        "id": 1, "name": "n", "provider": "demo", "model": "m", "context_size": 100,
        "created_at": Timestamp::UNIX_EPOCH, "updated_at": Timestamp::UNIX_EPOCH,
    });
    postgrest.once(Script::answer(200, "").reset());
    postgrest.once(error_503());
    postgrest.always(answer(200, "", &json!({"bot": bot, "path": []})));
    let begin = Begin {
        stream_id: "s".parse().unwrap(),
        fingerprint: "f".to_owned(),
        place: Place::Nowhere,
        bot_id: None,
        wants_path: false,
        expires_at: Timestamp::MAX,
        write_token: SecretString::from("token"),
    };
    let (begun, _) = store(&postgrest, None).begin(&user(), &begin).await.unwrap();
    assert!(matches!(begun, Begun::New(_)));
    let attempts: Vec<_> =
        postgrest.requests().iter().map(|request| request.body["attempt"].clone()).collect();
    assert_eq!(attempts.len(), 3);
    assert!(attempts[0].is_string() && attempts.iter().all(|attempt| *attempt == attempts[0]));
}

/// The user's token acts for the user; the key opens the gateway and nothing else. `relay_finish` needs no user.
#[tokio::test]
async fn each_call_carries_what_it_needs_and_no_more() {
    let postgrest = Provider::start().await;
    let header = |name: &str| {
        let head = postgrest.requests().pop().unwrap().head;
        let line =
            head.lines().find_map(|line| line.split_once(':').filter(|(found, _)| *found == name));
        line.map(|(_, value)| value.trim().to_owned())
    };
    let user = user();
    let finish = Finish {
        write_token: SecretString::from("token"),
        outcome: Outcome::Complete,
        content: String::new(),
        reasoning: String::new(),
        finish_reason: None,
        usage: None,
        failure: None,
        model: String::new(),
    };
    let legacy = "eyJhbGciOiJIUzI1NiJ9.e30.x";
    for (key, anonymous) in [
        (Some("sb_publishable_x"), None),
        (Some(legacy), Some(format!("Bearer {legacy}"))),
        (None, None),
    ] {
        let store = store(&postgrest, key);
        postgrest.always(bots());
        store.list_bots(&user, &Cursor { after: None, limit: 1 }).await.unwrap();
        assert_eq!(header("apikey").as_deref(), key);
        assert!(header("authorization").unwrap().starts_with("Bearer eyJ"));
        assert_ne!(header("authorization"), anonymous);
        postgrest.always(answer(200, "", &json!({"message_id": 1, "variant_id": 2})));
        store.finish(&finish).await.unwrap();
        assert_eq!((header("apikey").as_deref(), header("authorization")), (key, anonymous));
    }
}

#[tokio::test]
async fn functions_of_another_version_are_not_used() {
    let postgrest = Provider::start().await;
    postgrest.always(answer(200, "", &json!({"version": 99})));
    let error = store(&postgrest, None).ping().await.unwrap_err();
    assert!(error.to_string().contains("99") && error.to_string().contains("migrat"), "{error}");
}
