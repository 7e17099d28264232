//! Users' own provider keys: kept so that nobody reads them, sent where they may be sent and nowhere else.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::database::Database;
use crate::provider::{PATIENCE, Provider, Script};
use crate::relay::{Builder, MASTER_KEY, OWN_KEY, PROVIDER_KEY, TestRelay, User};

const SECOND_MASTER_KEY: &str = "second:Y2FuYXJ5LW1hc3Rlci1rZXktb2YtdGhlLXRlc3RzLTI=";

/// Nothing of a key is in the log even if everything is logged, by the libraries too.
fn verbose(provider: &Provider) -> Builder {
    TestRelay::with(provider).env("RELAY_LOG", "trace,mio=warn")
}

/// A key that the harness watches.
fn own(name: &str) -> String {
    format!("{OWN_KEY}{name}")
}

impl User {
    /// Gives the relay a key, with those fields beside it; what is shown of it.
    async fn gives(&self, provider: &str, key: &str, more: Value) -> Value {
        let mut body = json!({"provider": provider, "key": key});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let shown = self.post("/v1/keys", &body).await.ok(201);
        assert!(!shown.to_string().contains(key), "{shown}");
        shown
    }

    async fn keys(&self) -> Value {
        let keys = self.get("/v1/keys").await.ok(200);
        assert!(!keys.to_string().contains("canary") && keys["next"].is_null(), "{keys}");
        keys["data"].clone()
    }

    async fn asks(&self, bot: i64) {
        self.stream(json!({"input": "Go.", "bot_id": bot})).await.done().await;
    }
}

impl Provider {
    /// The key of the last request.
    fn last_key(&self) -> Option<String> {
        let head = self.last_request().head;
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        let (_, value) = fields.find(|(name, _)| name.eq_ignore_ascii_case("authorization"))?;
        Some(value.strip_prefix("Bearer ").unwrap().to_owned())
    }
}

fn telling() -> Script {
    Script::telling(&["text"])
}

/// The sealed forms that are in a relay's SQLite database, by their ids.
fn sealed(relay: &TestRelay) -> Vec<String> {
    let database = rusqlite::Connection::open(relay.data().join("relay.db")).unwrap();
    let mut statement = database.prepare("select sealed from keys order by id").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn an_own_key_is_used_replaced_and_deleted() {
    let provider = Provider::start().await;
    provider.always(telling());
    let relay = verbose(&provider).start().await;
    let (user, other) = (relay.stranger(), relay.stranger());
    let (bot, others) = (user.bot(json!({})).await, other.bot(json!({})).await);
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), PROVIDER_KEY, "without one of their own");

    let shown = user.gives("scripted", &own("one"), json!({})).await;
    assert_eq!(shown["last4"], "-one");
    assert_eq!((&shown["provider"], &shown["base_url"]), (&json!("scripted"), &json!(null)));
    assert!(shown["created_at"].as_str().unwrap().ends_with('Z') && shown["id"].is_i64());
    assert_eq!(user.keys().await, json!([shown]));
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), own("one"));
    other.asks(others).await;
    assert_eq!(provider.last_key().unwrap(), PROVIDER_KEY, "another user's is not theirs");
    assert_eq!(other.keys().await, json!([]));

    let shown = user.gives("scripted", &own("two"), json!({"base_url": null})).await;
    assert_eq!(user.keys().await, json!([shown]), "it replaces the one that there was");
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), own("two"));

    let path = format!("/v1/keys/{}", shown["id"]);
    other.delete(&path).await.refused(404, "key_not_found");
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), own("two"));
    user.delete(&path).await.ok(204);
    user.delete(&path).await.refused(404, "key_not_found");
    assert_eq!(user.keys().await, json!([]));
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), PROVIDER_KEY);
    assert!(relay.log().contains("\"level\":\"TRACE\""), "nothing was there to be seen");
    relay.finish().await;
}

/// Where the operator has no key, everybody needs one.
#[tokio::test]
async fn a_provider_without_the_operators_key_asks_for_the_users() {
    let provider = Provider::start().await;
    provider.always(telling());
    let relay = TestRelay::with(&provider)
        .env("RELAY_PROVIDERS", format!("deepseek={}", provider.base_url()))
        .start()
        .await;
    let user = relay.stranger();
    let bot = user.bot(json!({"provider": "deepseek"})).await;
    let asked = json!({"input": "Go.", "bot_id": bot});
    let refused = user.post("/v1/stream", &asked).await;
    assert!(refused.refused(402, "no_provider_key").contains("/v1/keys"));
    user.gives("deepseek", &own("deepseek"), json!({})).await;
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), own("deepseek"));
    relay.finish().await;
}

#[tokio::test]
async fn a_key_for_a_custom_address_goes_to_its_origin_alone() {
    let (north, south) = (Provider::start().await, Provider::start().await);
    north.always(telling());
    south.always(telling());
    let relay = verbose(&north)
        .env("RELAY_UPSTREAM_ALLOW", "127.0.0.1")
        .env("CUSTOM_API_KEY", "sk-canary-of-the-operator")
        .start()
        .await;
    let user = relay.stranger();
    let bot = user.bot(json!({"provider": "custom", "base_url": north.base_url()})).await;
    let move_to = async |base_url: String| {
        user.patch(&format!("/v1/bots/{bot}"), &json!({"base_url": base_url})).await.ok(200);
        user.asks(bot).await;
    };
    user.gives("scripted", &own("scripted"), json!({})).await;
    user.asks(bot).await;
    assert_eq!(north.last_key(), None, "neither the operator's nor one for another provider");

    let pasted = json!({"base_url": format!("\u{a0}{}", north.base_url())});
    let shown = user.gives("custom", &own("north"), pasted).await;
    assert_eq!(shown["base_url"], north.base_url());
    user.asks(bot).await;
    assert_eq!(north.last_key().unwrap(), own("north"));
    move_to(north.base_url().replace("/v1", "/v2/deeper")).await;
    assert_eq!(north.last_key().unwrap(), own("north"), "the origin is the same");
    move_to(south.base_url()).await;
    assert_eq!(south.last_key(), None, "another port is another origin");
    move_to(format!("\u{a0}{} ", south.base_url())).await;
    assert_eq!(south.last_key(), None, "however it was pasted");

    // Whoever lives there wants a key: the user is asked for it.
    south.once(Script::answer(401, "").end());
    let mut asked = user.stream(json!({"input": "Go.", "bot_id": bot})).await;
    let error = asked.error().await;
    assert_eq!(error["code"], "no_provider_key");
    assert!(error["error"].as_str().unwrap().contains("POST /v1/keys"), "{error}");
    user.gives("custom", &own("south"), json!({"base_url": south.base_url()})).await;
    user.asks(bot).await;
    assert_eq!(south.last_key().unwrap(), own("south"));
    move_to(north.base_url()).await;
    assert_eq!(north.last_key().unwrap(), own("north"), "each origin has its own");
    let log = relay.log();
    assert!(!log.contains("sk-canary-of-the-operator"));
    assert!(log.contains("hyper_util::client"), "the client's own words were not there to be seen");
    relay.finish().await;
}

#[tokio::test]
async fn what_is_no_key_is_refused_in_words_that_name_the_field() {
    let provider = Provider::start().await;
    let relay = verbose(&provider).start().await;
    let user = relay.stranger();
    let key = own("x");
    let custom = |base_url: &str| json!({"provider": "custom", "key": key, "base_url": base_url});
    let with = |key: Value| json!({"provider": "openai", "key": key});
    for (body, field) in [
        (json!({}), "provider"),
        (json!({"provider": "openai"}), "key"),
        (json!({"key": key}), "provider"),
        (json!({"provider": "nobody", "key": key}), "`provider`"),
        (json!({"provider": "demo", "key": key}), "`provider`"),
        (json!({"provider": key, "key": key}), "`provider`"),
        (json!({"provider": 7, "key": key}), "`provider`"),
        (with(json!("")), "`key`"),
        (with(json!(format!("{key} "))), "`key`"),
        (with(json!(format!("{key}\n"))), "`key`"),
        (with(json!(format!("{OWN_KEY} x"))), "`key`"),
        (with(json!(format!("{key}ä"))), "`key`"),
        (with(json!(format!("{key}\0"))), "`key`"),
        (with(json!(format!("{OWN_KEY}{}", "x".repeat(4_096)))), "`key`"),
        (with(json!(null)), "`key`"),
        (with(json!(75_757_575)), "`key`"),
        (with(json!([key])), "`key`"),
        (with(json!({"value": key})), "`key`"),
        (json!({"provider": "openai", "key": key, "base_url": "https://x.example"}), "`base_url`"),
        (json!({"provider": "custom", "key": key}), "`base_url`"),
        (custom(""), "`base_url`"),
        (custom("x.example/v1"), "`base_url`"),
        (custom("http://x.example/v1"), "`base_url`"),
        (custom("ftp://x.example/v1"), "`base_url`"),
        (custom("https://user@x.example/v1"), "`base_url`"),
        (custom("https://x.example/v1?key=x"), "`base_url`"),
        (custom("https://x.example/v1#x"), "`base_url`"),
        (custom(&format!("https://x.example/{}", "x".repeat(2_000))), "`base_url`"),
    ] {
        let answer = user.post("/v1/keys", &body).await;
        let message = answer.refused(400, "invalid_request");
        assert!(message.contains(field), "{body}: {message}");
        assert!(!message.contains(OWN_KEY) && !message.contains("75757575"), "{message}");
    }
    assert!(!relay.log().contains("75757575"));
    assert_eq!(user.keys().await, json!([]));
    user.delete("/v1/keys/x").await.refused(400, "invalid_request");
    user.get("/v1/keys/1").await.refused(405, "method_not_allowed");

    let short = user.gives("openai", "sk-short", json!({})).await;
    assert_eq!(short["last4"], "", "four characters would be half of it");
    user.gives("custom", &own("here"), json!({"base_url": "https://llm.example/v1"})).await;
    for at in 0..30 {
        let base_url = json!({"base_url": format!("https://llm-{at}.example")});
        user.gives("custom", &own("here"), base_url).await;
    }
    let one_more = user.post("/v1/keys", &custom("https://one-more.example")).await;
    one_more.refused(409, "too_many_keys");
    relay.finish().await;
}

#[tokio::test]
async fn a_key_that_a_provider_refuses_and_echoes_is_told_to_nobody() {
    let provider = Provider::start().await;
    let relay = verbose(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let key = "Canary1234567890wordless";
    user.gives("scripted", key, json!({})).await;
    let partly = "Canary12****wordless";
    let mut seen = String::new();
    for script in [
        Script::answer(401, "content-type: application/json\r\n").raw(
            format!(r#"{{"error": {{"message": "Incorrect API key provided: {key}."}}}}"#)
                .as_bytes(),
        ),
        Script::answer(400, "content-type: application/json\r\n")
            .raw(format!(r#"{{"error": "bad key {partly}"}}"#).as_bytes()),
        Script::answer(200, &format!("content-type: {key}\r\n")),
        Script::new().chunk(&json!({"error": {"code": key, "message": format!("key={key}&x")}})),
        Script::new().token("half").chunk(&json!({"error": {"message": partly}})),
        Script::new().chunk(&json!({"choices": key})),
        Script::new().raw(format!("data: {key}\n\n").as_bytes()),
    ] {
        provider.once(script.end());
        let error = user.say(story, "Go.").await.error().await;
        seen.push_str(&error.to_string());
    }
    assert!(seen.contains("provider_key_refused") && seen.contains("refused your key"), "{seen}");
    seen.push_str(&user.tree(story).await.to_string());
    let saved = std::fs::read(relay.data().join("relay.db-wal")).unwrap();
    for (what, text) in [
        ("answers", seen),
        ("log", relay.log()),
        ("database", String::from_utf8_lossy(&saved).into_owned()),
    ] {
        let text = text.to_ascii_lowercase();
        for piece in [key, "Canary12", "wordless"] {
            let found = text.find(&piece.to_ascii_lowercase());
            let around = found.map(|at| text.get(at.saturating_sub(200)..at + 100));
            // What is shown of a key are its last four characters.
            assert!(found.is_none(), "{piece} in the {what}: {around:?}");
        }
    }
    relay.finish().await;
}

/// Waits until the only key is sealed under that master key.
async fn is_sealed_under(relay: &TestRelay, master_key: &str) {
    let since = Instant::now();
    while !sealed(relay)[0].starts_with(&format!("v1.{master_key}.")) {
        assert!(since.elapsed() < PATIENCE, "{:?}", sealed(relay));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn master_keys_are_rotated_without_anybody_entering_a_key_again() {
    let provider = Provider::start().await;
    provider.always(telling());
    let mut relay = verbose(&provider).start().await;
    let (user, idle) = (relay.stranger(), relay.stranger());
    let bots = (user.bot(json!({})).await, idle.bot(json!({})).await);
    let shown = user.gives("scripted", &own("one"), json!({})).await;
    idle.gives("scripted", &own("idle"), json!({})).await;
    is_sealed_under(&relay, "first").await;

    relay.set("RELAY_MASTER_KEYS", &format!("{SECOND_MASTER_KEY},{MASTER_KEY}"));
    relay.restart().await;
    is_sealed_under(&relay, "first").await;
    user.asks(bots.0).await;
    assert_eq!(provider.last_key().unwrap(), own("one"));
    is_sealed_under(&relay, "second").await;
    assert!(sealed(&relay)[1].starts_with("v1.first."), "not used yet: {:?}", sealed(&relay));
    assert_eq!(user.keys().await, json!([shown]), "nothing that is shown has changed");

    relay.set("RELAY_MASTER_KEYS", SECOND_MASTER_KEY);
    relay.restart().await;
    user.asks(bots.0).await;
    assert_eq!(provider.last_key().unwrap(), own("one"));

    // The old master key was dropped before this one was used. It is not passed over for the operator's.
    let asked = provider.requests().len();
    let turn = json!({"input": "Go.", "bot_id": bots.1});
    let refused = idle.post("/v1/stream", &turn).await;
    assert!(refused.refused(402, "no_provider_key").contains("Enter it again"));
    assert_eq!(provider.requests().len(), asked);
    assert!(relay.log().contains("master key `first`"), "the operator is told why");
    idle.gives("scripted", &own("again"), json!({})).await;
    idle.asks(bots.1).await;
    assert_eq!(provider.last_key().unwrap(), own("again"));
    relay.finish().await;
}

#[tokio::test]
async fn a_sealed_key_opens_for_its_own_user_provider_and_origin_alone() {
    let provider = Provider::start().await;
    provider.always(telling());
    let url = provider.base_url();
    let relay = TestRelay::with(&provider)
        .env("RELAY_PROVIDERS", format!("scripted={url},other={url}"))
        .env("RELAY_UPSTREAM_ALLOW", "127.0.0.1,localhost")
        .start()
        .await;
    let (user, thief) = (relay.stranger(), relay.stranger());
    user.gives("scripted", &own("theirs"), json!({})).await;
    let there = json!({"base_url": "https://127.0.0.1/v1"});
    user.gives("custom", &own("elsewhere"), there).await;
    let database = rusqlite::Connection::open(relay.data().join("relay.db")).unwrap();
    database.busy_timeout(PATIENCE).unwrap();
    let origin = url.trim_end_matches("/v1");
    let copy = |whose: &User, provider: &str, to_origin: &str, of_provider: &str| {
        let sql = "insert or replace into keys (user_id, provider, origin, last4, sealed, created_at)
            select ?1, ?2, ?3, last4, sealed, created_at from keys where user_id = ?4 and provider = ?5";
        let user_id = user.id.to_string();
        let values = (whose.id.to_string(), provider, to_origin, user_id, of_provider);
        assert_eq!(database.execute(sql, values).unwrap(), 1);
    };
    copy(&thief, "scripted", "", "scripted");
    copy(&user, "other", "", "scripted");
    copy(&user, "custom", origin, "custom");
    for (who, bot) in [
        (&thief, json!({"provider": "scripted"})),
        (&user, json!({"provider": "other"})),
        (&user, json!({"provider": "custom", "base_url": url})),
    ] {
        let bot = who.bot(bot).await;
        let refused = who.post("/v1/stream", &json!({"input": "Go.", "bot_id": bot})).await;
        assert!(refused.refused(402, "no_provider_key").contains("Enter it again"));
    }
    let tampered =
        "update keys set sealed = substr(sealed, 1, length(sealed) - 1) || 'A' where user_id = ?1";
    database.execute(tampered, [thief.id.to_string()]).unwrap();
    let bot = thief.bot(json!({})).await;
    for sealed in [
        None,
        Some(""),
        Some("v1.first"),
        Some("v2.first.AAAA"),
        Some("v1.first.\u{e4}"),
        Some("v1..AAAA"),
    ] {
        if let Some(sealed) = sealed {
            let change = "update keys set sealed = ?2 where user_id = ?1";
            database.execute(change, [&thief.id.to_string(), sealed]).unwrap();
        }
        let refused = thief.post("/v1/stream", &json!({"input": "Go.", "bot_id": bot})).await;
        refused.refused(402, "no_provider_key");
    }
    assert!(provider.requests().is_empty());
    relay.finish().await;
}

#[tokio::test]
async fn a_relay_without_master_keys_says_what_is_missing() {
    let provider = Provider::start().await;
    provider.always(telling());
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let shown = user.gives("scripted", &own("one"), json!({})).await;
    relay.set("RELAY_MASTER_KEYS", "");
    relay.restart().await;
    let key = json!({"provider": "scripted", "key": own("two")});
    let refused = user.post("/v1/keys", &key).await;
    assert!(refused.refused(400, "unsupported").contains("RELAY_MASTER_KEYS"));
    assert_eq!(user.keys().await, json!([shown]));
    let refused = user.post("/v1/stream", &json!({"input": "Go."})).await;
    assert!(refused.refused(402, "no_provider_key").contains("RELAY_MASTER_KEYS"));
    assert!(provider.requests().is_empty());
    user.delete(&format!("/v1/keys/{}", shown["id"])).await.ok(204);
    user.stream(json!({"input": "Go."})).await.done().await;
    assert_eq!(provider.last_key().unwrap(), PROVIDER_KEY);
    relay.finish().await;
}

/// The whole way over a database that others see too, and what they see there.
#[tokio::test]
async fn a_key_in_postgres_is_sealed_and_sealed_anew() {
    let provider = Provider::start().await;
    provider.always(telling());
    let database = Database::shared().await;
    let mut relay =
        verbose(&provider).env("RELAY_DATABASE_URL", database.url("relay")).start().await;
    let user = relay.stranger();
    let bot = user.bot(json!({})).await;
    let story = user.conversation().await;
    user.gives("scripted", &own("one"), json!({})).await;
    user.told(story, "Go.").await;
    assert_eq!(provider.last_key().unwrap(), own("one"));
    relay.set("RELAY_MASTER_KEYS", &format!("{SECOND_MASTER_KEY},{MASTER_KEY}"));
    relay.restart().await;
    user.asks(bot).await;
    let under = async |master_key: &str| {
        let user = user.id;
        let count = format!(
            "select count(*) from relay_keys where user_id = '{user}' and sealed like 'v1.{master_key}.%'"
        );
        database.count(&count).await
    };
    let since = Instant::now();
    while under("second").await == 0 {
        assert!(since.elapsed() < PATIENCE, "it is not sealed anew");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(under("first").await, 0);
    relay.set("RELAY_MASTER_KEYS", SECOND_MASTER_KEY);
    relay.restart().await;
    user.asks(bot).await;
    assert_eq!(provider.last_key().unwrap(), own("one"));
    let everything =
        "select count(*) from relay_keys k where to_jsonb(k)::text like '%canary-own%'";
    assert_eq!(database.count(everything).await, 0);
    relay.finish().await;
}

#[test]
fn wrong_master_keys_stop_the_start_and_are_not_told() {
    let secret = MASTER_KEY.split_once(':').unwrap().1;
    let wrong =
        format!("{secret},k1:{secret}x,k2:dG9vIHNob3J0,k 3:{secret},k4:{secret},k4:{secret}");
    let output = Command::new(env!("CARGO_BIN_EXE_storytellr-relay"))
        .arg("serve")
        .env_clear()
        .env("RELAY_MASTER_KEYS", wrong)
        .env("RELAY_DRAIN", "soon")
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("RELAY_DRAIN"), "{errors}");
    for pair in [1, 2, 3, 4, 6] {
        let named = format!("RELAY_MASTER_KEYS is wrong: pair {pair} ");
        assert!(errors.contains(&named), "{named} in {errors}");
    }
    assert!(!errors.contains(&secret[..12]), "{errors}");
}

/// As a developer meets it: nothing is set, and keys are kept over a restart.
#[tokio::test]
async fn dev_makes_a_master_key_that_only_the_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let provider = Provider::start().await;
    provider.always(telling());
    let mut relay =
        TestRelay::with(&provider).env("RELAY_MASTER_KEYS", "").command("dev").start().await;
    let user = relay.user().await;
    user.gives("scripted", &own("one"), json!({})).await;
    let file = relay.data().join("master-keys");
    let made = std::fs::read_to_string(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(made.starts_with("dev:") && !relay.log().contains(&made[4..]));
    relay.restart().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), made, "it is kept");
    user.stream(json!({"input": "Go."})).await.done().await;
    assert_eq!(provider.last_key().unwrap(), own("one"));
    relay.finish().await;
}
