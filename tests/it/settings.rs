//! The command line as an operator uses it. What each setting may look like is tested beside the settings.

use std::pin::pin;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::provider::{Provider, Script};
use crate::relay::{Answer, TestRelay};

fn run(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_storytellr-relay"));
    command.args(arguments).env_clear().envs(env.iter().copied()).output().unwrap()
}

#[test]
fn wrong_settings_stop_the_start_and_are_all_listed() {
    let output = run(
        &["serve"],
        &[
            ("RELAY_RATE_LIMIT", "much"),
            ("RELAY_DRAIN", "soon"),
            ("SUPABASE_JWT_SECRET", "short-canary"),
        ],
    );
    assert!(!output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    for name in ["RELAY_RATE_LIMIT", "RELAY_DRAIN", "SUPABASE_JWT_SECRET", "RELAY_JWT_ISSUERS"] {
        assert!(errors.contains(name), "{errors}");
    }
    assert!(!errors.contains("canary"));
}

#[test]
fn a_file_that_is_no_database_of_the_relays_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(
        &path,
        "not a database at all, but somebody's notes, long enough to be read as one".repeat(20),
    )
    .unwrap();
    let url = format!("sqlite:{}", path.display());
    let env = [
        ("RELAY_DATABASE_URL", url.as_str()),
        ("RELAY_DATA", folder.path().to_str().unwrap()),
        ("SUPABASE_JWT_SECRET", crate::relay::SECRET),
        ("RELAY_JWT_ISSUERS", "x"),
        ("RELAY_LISTEN", "127.0.0.1:0"),
    ];
    let output = run(&["serve"], &env);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("notes.txt"), "{errors}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"));
}

#[tokio::test]
async fn a_database_that_another_relay_uses_is_left_to_it() {
    let provider = Provider::start().await;
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shared.db").display());
    let relay = TestRelay::with(&provider).env("RELAY_DATABASE_URL", url.clone()).start().await;
    let env = [
        ("RELAY_DATABASE_URL", url.as_str()),
        ("SUPABASE_JWT_SECRET", crate::relay::SECRET),
        ("RELAY_JWT_ISSUERS", "x"),
        ("RELAY_LISTEN", "127.0.0.1:0"),
    ];
    let output = run(&["serve"], &env);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("another relay is using it"), "{errors}");
    relay.finish().await;
}

/// Somebody looks into the file with a tool of their own, and holds its lock for a moment.
#[tokio::test]
async fn a_lock_that_another_process_holds_is_waited_for() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let other = rusqlite::Connection::open(relay.data().join("relay.db")).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let mut told = pin!(user.told(story, "Go."));
    let waiting = tokio::time::timeout(Duration::from_millis(500), &mut told).await;
    assert!(waiting.is_err(), "saved under a lock");
    other.execute_batch("commit").unwrap();
    assert_eq!(told.await["saved"], true);
    relay.finish().await;
}

/// Without a disk nothing could be promised, so that has to be asked for.
#[test]
fn a_data_folder_that_cannot_be_written_stops_the_start() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("not-a-folder");
    std::fs::write(&file, "").unwrap();
    let env = [
        ("RELAY_DATA", file.to_str().unwrap()),
        ("RELAY_DATABASE_URL", "postgres://relay@127.0.0.1:1/x?sslmode=disable"),
        ("SUPABASE_JWT_SECRET", crate::relay::SECRET),
        ("RELAY_JWT_ISSUERS", "x"),
        ("RELAY_LISTEN", "127.0.0.1:0"),
    ];
    for command in [&["serve"][..], &["outbox", "list"]] {
        let output = run(command, &env);
        let errors = String::from_utf8(output.stderr).unwrap();
        let told = format!("{} is a file, and must be a folder. Set RELAY_DATA", file.display());
        assert!(!output.status.success() && errors.contains(&told), "{errors}");
    }
    // With a secret of its own, which is there as well.
    let output = run(&["dev"], &[("RELAY_DATA", file.to_str().unwrap())]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("must be a folder"), "{errors}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = TempDir::new().unwrap();
    let output = run(
        &["dev"],
        &[("RELAY_LISTEN", &address), ("RELAY_DATA", folder.path().to_str().unwrap())],
    );
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && errors.contains(&address) && errors.contains("RELAY_LISTEN"),
        "{errors}"
    );
}

#[test]
fn help_names_every_command() {
    let help = String::from_utf8(run(&["--help"], &[]).stdout).unwrap();
    for command in ["dev", "serve", "token"] {
        assert!(help.contains(command), "{help}");
    }
}

#[tokio::test]
async fn a_printed_token_is_accepted() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11";
    let env = [
        ("SUPABASE_JWT_SECRET", crate::relay::SECRET),
        ("RELAY_JWT_ISSUERS", crate::relay::ISSUER),
    ];
    let output = run(&["token", "--user", user, "--expires", "5m"], &env);
    let token = String::from_utf8(output.stdout).unwrap();
    let answer =
        relay.client().get(relay.url("/auth/test")).bearer_auth(token.trim()).send().await.unwrap();
    assert_eq!(Answer::of(answer).await.ok(200)["user_id"], user);
    assert!(!run(&["token", "--user", "root"], &env).status.success());
    assert!(!run(&["token", "--expires", "soon"], &env).status.success());
    relay.finish().await;
}

#[test]
fn dev_tokens_are_signed_with_a_secret_that_only_the_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let env = [("RELAY_DATA", folder.path().to_str().unwrap())];
    assert!(run(&["token"], &env).status.success());
    let secret = folder.path().join("jwt-secret");
    let first = std::fs::read_to_string(&secret).unwrap();
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(run(&["token"], &env).status.success());
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), first, "it is kept");
}

#[tokio::test]
async fn stories_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    relay.user().await.conversation().await;
    for file in ["relay.db", "relay.db-wal"] {
        let mode = std::fs::metadata(relay.data().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    relay.finish().await;
}

#[test]
fn a_token_that_no_relay_would_accept_is_not_printed() {
    let output = run(&["token"], &[("RELAY_DATA", "memory")]);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("SUPABASE_JWT_SECRET"));
}

/// The file alone is the whole database once the relay has ended, for whoever copies it.
#[tokio::test]
async fn a_relay_that_has_ended_leaves_one_file() {
    let provider = Provider::start().await;
    let mut relay = TestRelay::with(&provider).start().await;
    relay.user().await.conversation().await;
    relay.terminate();
    relay.ended().await;
    assert!(!relay.data().join("relay.db-wal").exists());
    relay.start_again().await;
    relay.finish().await;
}

#[tokio::test]
async fn health_and_readiness_need_no_token() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let get = |path: &str| relay.client().get(relay.url(path)).send();
    assert_eq!(
        Answer::of(get("/healthz").await.unwrap()).await.ok(200),
        Value::String("ok\n".to_owned())
    );
    let ready = Answer::of(get("/readyz").await.unwrap()).await.ok(200);
    assert_eq!(
        ready,
        serde_json::json!({
            "status": "ready", "store": "up", "keys": "up", "outbox": "up", "durable": true,
        })
    );
    relay.finish().await;

    let relay = TestRelay::with(&provider).env("RELAY_DATA", "memory").start().await;
    let ready =
        Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await.ok(200);
    assert_eq!(ready["durable"], false);
    assert!(relay.log().contains("RELAY_DATA is memory"), "{}", relay.log());
    let user = relay.user().await;
    user.conversation().await;
    relay.finish().await;
}
