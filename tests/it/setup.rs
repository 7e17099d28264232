//! Setting up: `migrate` and `check` as an operator runs them, the policies' own tests, and a pooler before the database.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::database::{Cluster, Database, Recipe, Server, file, free_port};
use crate::postgrest::Postgrest;
use crate::provider::{PATIENCE, Provider, Script};
use crate::relay::{self, Answer, ISSUER, MASTER_KEY, SECRET, TestRelay};

fn run(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_storytellr-relay"));
    command.args(arguments).env_clear().envs(env.iter().copied()).output().unwrap()
}

/// What `check` prints with those settings, and whether all is well.
async fn check(env: &[(&str, &str)]) -> (bool, String) {
    check_with(&["check"], env).await
}

async fn check_with(arguments: &[&str], env: &[(&str, &str)]) -> (bool, String) {
    let own = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    let arguments = own(arguments);
    let data = tempfile::TempDir::new().unwrap();
    let default = ("RELAY_DATA", data.path().to_str().unwrap());
    let env: Vec<_> = std::iter::once(&default)
        .chain(env)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    // The servers that it asks are tasks of this process.
    let output = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        run(&arguments, &env)
    });
    let output = output.await.unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn a_plain_postgres_is_migrated_once() {
    let database = Cluster::start().database().await;
    let said = database.migrate();
    assert!(said.contains("plain Postgres") && said.contains("applied: "), "{said}");
    let again = database.migrate();
    assert!(!again.contains("applied: ") && again.contains("was there: "), "{again}");
    assert!(again.contains("ready"), "{again}");
}

#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    let database = Cluster::start().database().await;
    database
        .admin()
        .await
        .batch_execute("create table public.relay_variants (mine text)")
        .await
        .unwrap();
    let url = database.url("postgres");
    let output = run(&["migrate"], &[("RELAY_DATABASE_URL", &url)]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("nothing was changed"), "{errors}");
    assert!(errors.contains("relay_variants"), "{errors}");
    let tables = database.count("select count(*) from pg_tables where tablename like 'relay%' or schemaname = 'supabase_migrations'").await;
    assert_eq!(tables, 1);
    let output = run(&["migrate"], &[("RELAY_DATABASE_URL", "sqlite:x.db")]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("RELAY_DATABASE_URL must be"));
}

#[tokio::test]
async fn policies_pass_their_own_tests() {
    let database = Database::migrated().await;
    database.admin().await.batch_execute("create extension pgtap").await.unwrap();
    let folder = fs::read_dir(file("supabase/tests/database")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "sql")).collect();
    files.sort();
    assert!(!files.is_empty());
    for test in files {
        let said = database.psql(&["--file", test.to_str().unwrap()]);
        let is_planned = said.lines().any(|line| line.starts_with("1.."));
        let is_fine =
            said.lines().filter(|line| !line.starts_with('#')).all(|line| !line.contains("not ok"));
        assert!(
            is_planned && is_fine && !said.contains("# Looks like"),
            "{}: {said}",
            test.display()
        );
    }
}

#[tokio::test]
async fn check_says_that_all_is_well() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    provider.always(
        Script::answer(200, "content-type: application/json\r\n").raw(br#"{"data": []}"#).end(),
    );
    let (providers, url) = (format!("scripted={}", provider.base_url()), database.url("relay"));
    let rest = format!("http://127.0.0.1:{}", Postgrest::shared().await);
    let common = [
        ("SUPABASE_JWT_SECRET", SECRET),
        ("RELAY_JWT_ISSUERS", ISSUER),
        ("RELAY_PROVIDERS", providers.as_str()),
        ("SCRIPTED_API_KEY", "sk-canary"),
        ("RELAY_MASTER_KEYS", MASTER_KEY),
    ];
    for store in [("RELAY_DATABASE_URL", url.as_str()), ("SUPABASE_REST_URL", rest.as_str())] {
        let (is_well, said) = check(&[&common[..], &[store]].concat()).await;
        assert!(is_well, "{said}");
        for line in [
            "ok    settings",
            "ok    database",
            "ok    token",
            "database accepts it",
            "ok    sealing    users' keys are sealed under the master key `first`",
            "ok    provider",
        ] {
            assert!(said.contains(line), "{line} in {said}");
        }
        assert!(
            !said.contains("WRONG") && !said.contains("canary") && !said.contains("eyJ"),
            "{said}"
        );
    }
    let head = provider.last_request().head;
    assert!(head.starts_with("GET /v1/models ") && head.contains("Bearer sk-canary"), "{head}");
}

#[tokio::test]
async fn check_says_what_is_wrong_and_what_to_do() {
    let (provider, database) = (Provider::start().await, Cluster::start().database().await);
    provider.always(Script::answer(401, "").end());
    let (providers, url) = (format!("scripted={}", provider.base_url()), database.url("postgres"));
    let keys = format!("{}/jwks", provider.base_url());
    let env = [
        ("SUPABASE_JWT_SECRET", SECRET),
        ("SUPABASE_JWKS_URL", keys.as_str()),
        ("RELAY_JWT_ISSUERS", ISSUER),
        ("RELAY_PROVIDERS", providers.as_str()),
        ("SCRIPTED_API_KEY", "sk-canary"),
        ("RELAY_DATABASE_URL", url.as_str()),
    ];
    let expired = json!({"exp": 1, "sub": Uuid::now_v7(), "aud": "authenticated", "role": "authenticated", "iss": ISSUER});
    let (is_well, said) = check_with(&["check", "--token", &relay::token(&expired)], &env).await;
    assert!(!is_well);
    for (part, advice) in [
        ("key set", "SUPABASE_JWKS_URL"),
        ("database", "migrat"),
        ("token", "Refresh"),
        ("provider", "Set another"),
    ] {
        let line = said.lines().find(|line| line.starts_with(&format!("WRONG {part}")));
        assert!(line.is_some_and(|line| line.contains(advice)), "{part} in {said}");
    }
    assert!(!said.contains("canary"));
    assert!(said.contains("note  sealing") && said.contains("RELAY_MASTER_KEYS"), "{said}");
    let (is_well, said) = check(&[("RELAY_DRAIN", "soon")]).await;
    assert!(!is_well && said.contains("RELAY_DRAIN") && said.contains("SUPABASE_URL"), "{said}");
}

#[tokio::test]
async fn check_says_why_a_database_cannot_be_reached() {
    let database = Database::shared().await;
    let (right, port) = (database.url("relay"), database.port());
    for (url, advice) in [
        (right.replace("relay@", "nobody@"), "Check the user"),
        (right.replace(database.name(), "nowhere"), "Check the user"),
        (right.replace(&port.to_string(), "1"), "refused"),
    ] {
        let env = [
            ("SUPABASE_JWT_SECRET", SECRET),
            ("RELAY_JWT_ISSUERS", ISSUER),
            ("RELAY_DATABASE_URL", url.as_str()),
        ];
        let (is_well, said) = check(&env).await;
        assert!(!is_well && said.contains(advice), "{advice} in {said}");
    }
}

/// What `check` says of a folder for the relay's data.
async fn check_data(folder: &Path) -> (bool, String) {
    let data = ("RELAY_DATA", folder.to_str().unwrap());
    check(&[("SUPABASE_JWT_SECRET", SECRET), ("RELAY_JWT_ISSUERS", ISSUER), data]).await
}

#[tokio::test]
async fn check_says_of_a_data_folder_whether_the_relay_could_start_on_it() {
    let provider = Provider::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "a file").unwrap();
    for data in [file.as_path(), &file.join("below"), Path::new("/proc/nothing")] {
        let (is_well, said) = check_data(data).await;
        let line = said.lines().find(|line| line.starts_with("WRONG data")).unwrap_or(&said);
        assert!(!is_well && line.contains("Set RELAY_DATA"), "{}: {said}", data.display());
        assert!(said.contains("WRONG database"), "{said}");
    }
    let new = folder.path().join("new/one");
    let (is_well, said) = check_data(&new).await;
    assert!(is_well && said.contains("will be made"), "{said}");
    assert_eq!(names(folder.path()), ["file"], "nothing is left");

    // Beside a relay that runs, and goes on with it.
    let mut relay = TestRelay::with(&provider).start().await;
    let before = names(relay.data());
    let (is_well, said) = check_data(relay.data()).await;
    assert!(is_well && said.contains("is there, and can be written"), "{said}");
    assert_eq!(names(relay.data()), before);
    relay.user().await.conversation().await;
    relay.restart().await;
    relay.kill().await;
    let journal = relay.data().join("journal.db");
    let whole = fs::read(&journal).unwrap();
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(relay.data().join(format!("journal.db{suffix}"))).unwrap();
    }
    fs::write(&journal, "Dear diary, ".repeat(1_000)).unwrap();
    let (is_well, said) = check_data(relay.data()).await;
    assert!(!is_well && said.contains("journal.db") && said.contains("Keep it"), "{said}");
    fs::write(&journal, whole).unwrap();
    relay.start_again().await;
    relay.finish().await;
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn check_tries_a_token_of_a_key_that_there_is_not() {
    let source = Provider::start().await;
    source.always(
        Script::answer(200, "content-type: application/json\r\n").raw(br#"{"keys": []}"#).end(),
    );
    let keys = format!("{}/jwks", source.base_url());
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"unknown"}"#);
    let token =
        format!("{header}.{}.{}", URL_SAFE_NO_PAD.encode("{}"), URL_SAFE_NO_PAD.encode([1; 64]));
    let env = [
        ("SUPABASE_JWKS_URL", keys.as_str()),
        ("RELAY_JWT_ISSUERS", ISSUER),
        ("RELAY_DATA", "memory"),
    ];
    let (is_well, said) = check_with(&["check", "--token", &token], &env).await;
    assert!(!is_well && said.contains("not among the project's"), "{said}");
}

/// Started before its database is set up, a relay says what is missing, and works as soon as it is there.
#[tokio::test]
async fn a_relay_may_be_started_before_its_database_is_migrated() {
    let (provider, database) = (Provider::start().await, Cluster::start().database().await);
    let relay = TestRelay::with(&provider)
        .env("RELAY_DATABASE_URL", database.url("postgres"))
        .start()
        .await;
    let ready = || async {
        Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await
    };
    assert_eq!(ready().await.json["store"], "down");
    assert!(relay.log().contains("storytellr-relay migrate"), "{}", relay.log());
    database.migrate();
    let since = Instant::now();
    while ready().await.status != 200 {
        assert!(since.elapsed() < PATIENCE, "{}", relay.log());
        sleep(Duration::from_millis(20)).await;
    }
    relay.finish().await;
}

/// PgBouncer, which hands a connection to whoever comes next after each transaction.
fn pooler(database: &Database, port: u16) -> Server {
    const PGBOUNCER: Recipe = Recipe {
        prepare: r#"own "$FOLDER""#,
        serve: r#"as_postgres /usr/sbin/pgbouncer -q "$FOLDER/pgbouncer.ini""#,
        probe: r#"pg_isready -q -h 127.0.0.1 -p "$PORT""#,
        end_by: "INT",
    };
    let settings = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\n",
        database.port()
    );
    // With `any` everybody is logged in as the user whom the database's line names.
    let settings = settings.replace("* = host", "* = user=relay host");
    Server::start(&PGBOUNCER, &[("PORT", &port.to_string())], &[("pgbouncer.ini", &settings)])
}

#[tokio::test]
async fn a_pooler_that_hands_out_connections_by_transaction_mixes_nothing_up() {
    let (provider, database) = (Provider::start().await, Database::shared().await);
    provider.always(Script::telling(&["text"]));
    let port = free_port();
    let _pooler = pooler(&database, port);
    let relay = TestRelay::with(&provider)
        .env("RELAY_DATABASE_URL", database.url_at("relay", port))
        .start()
        .await;
    let mut stories = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let user = relay.user().await;
        stories.spawn(async move {
            let story = user.conversation().await;
            for page in 0..5 {
                assert_eq!(user.told(story, &page.to_string()).await["saved"], true);
            }
            assert_eq!(user.story(story).await.len(), 10);
            assert_eq!(
                user.get("/v1/conversations").await.ok(200)["data"].as_array().unwrap().len(),
                1
            );
        });
    }
    while let Some(story) = stories.join_next().await {
        story.unwrap();
    }
    relay.finish().await;
}
