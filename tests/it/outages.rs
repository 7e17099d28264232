//! The database away, for as long as it takes: what was told is saved once it is back, once, and nobody is told otherwise.
//!
//! `RELAY_TEST_OUTAGE=60` keeps it away for so many seconds, instead of as long as the streams need to end, and lets the
//! whole of a full outbox drain.

use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backlog::Backlog;
use crate::cutter::{Cuttable, Cutter};
use crate::database::Database;
use crate::oracle::{TEXT, gated};
use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{Answer, TestRelay, User};

/// Streams that have told their whole text while the database is away.
async fn told_without_database(
    user: &User,
    story: i64,
    gate: &Gate,
    cutter: &Cutter,
    count: usize,
) -> Vec<String> {
    let mut readers = JoinSet::new();
    for _ in 0..count {
        let user = user.clone();
        readers.spawn(async move {
            let mut reading = user.say(story, "Go on.").await;
            reading.until("token").await;
            reading
        });
    }
    let readings = readers.join_all().await;
    cutter.shut();
    gate.open();
    let mut ended = JoinSet::new();
    for mut reading in readings {
        ended.spawn(async move {
            let done = reading.done().await;
            assert_eq!((&done["saved"], reading.text().as_str()), (&json!(false), TEXT));
            reading.stream_id()
        });
    }
    ended.join_all().await
}

fn outage() -> Option<Duration> {
    let seconds = std::env::var("RELAY_TEST_OUTAGE").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// Readers of streams that end meanwhile have all of their text, and it is saved within ten seconds of the database's
/// return; also if the relay is killed and started again before.
async fn what_ends_while_the_database_is_away_is_saved_once_when_it_is_back(is_killed: bool) {
    const STREAMS: usize = 200;
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, mut relay, user, story } = Cuttable::start(&provider).await;
    let until = Instant::now() + outage().unwrap_or_default();
    let streams = told_without_database(&user, story, &gate, &cutter, STREAMS).await;
    sleep_until(until).await;
    if is_killed {
        relay.kill().await;
        relay.start_again().await;
    }
    cutter.open();
    let back = Instant::now();
    for stream in &streams {
        assert_eq!(user.saved(stream, "complete").await["content"], TEXT);
    }
    println!("all {STREAMS} were saved {:?} after the database's return", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    let tree = user.tree(story).await;
    assert_eq!(tree["messages"].as_array().unwrap().len(), 2 * STREAMS);
    for stream in &streams {
        let mut follower = user.follow(stream, None).await;
        follower.done().await;
        assert_eq!(follower.text(), TEXT);
    }
    if !is_killed {
        check_told_once(&relay.log(), STREAMS);
    }
    relay.finish().await;
}

/// An outage is told when it begins and when it ends, and not again with every answer that it touches.
fn check_told_once(log: &str, kept: usize) {
    let is_of_it = |line: &&str| {
        line.contains("\"level\":\"WARN\"")
            && (line.contains("database") || line.contains("stream"))
    };
    let warnings: Vec<_> = log.lines().filter(is_of_it).collect();
    assert!(
        warnings.len() == 1 && warnings[0].contains("the database does not answer"),
        "{warnings:#?}"
    );
    let end =
        format!("the database answers again; {kept} answers were kept in the outbox meanwhile");
    assert_eq!(log.matches(&end).count(), 1, "{log}");
}

#[tokio::test]
async fn what_ends_while_the_database_is_away_is_saved_when_it_is_back() {
    what_ends_while_the_database_is_away_is_saved_once_when_it_is_back(false).await;
}

#[tokio::test]
async fn what_ends_while_the_database_is_away_survives_the_relay() {
    what_ends_while_the_database_is_away_is_saved_once_when_it_is_back(true).await;
}

/// A save that is broken off after any part of it has been sent is one row, and the whole text.
#[tokio::test]
async fn a_save_that_is_cut_off_anywhere_is_one_row() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&[TEXT]));
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    let lens: Vec<usize> = (1..9).map(|part| part * 100).collect();
    for len in &lens {
        cutter.cut_request("relay_finish", *len);
        assert_eq!(user.told(story, "Go on.").await["saved"], true);
    }
    assert!(cutter.cuts() >= lens.len() / 2, "requests are shorter than that");
    let tree = user.tree(story).await;
    assert_eq!(tree["messages"].as_array().unwrap().len(), 2 * lens.len());
    assert_eq!(tree.to_string().matches("\"status\":\"complete\"").count(), 2 * lens.len());
    relay.finish().await;
}

async fn ready(relay: &TestRelay) -> Value {
    Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await.json
}

/// Past its bound the outbox keeps what it has, and takes what runs already, but nothing new begins.
#[tokio::test]
async fn past_the_bound_of_the_outbox_nothing_new_begins_and_nothing_is_lost() {
    const WAITING: usize = 20_000 - 2;
    const RUNNING: usize = 5;
    let drained = if outage().is_some() { WAITING } else { 500 };
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, mut relay, user, story } = Cuttable::start(&provider).await;
    relay.kill().await;
    let database = Database::shared().await;
    let backlog = Backlog { user: user.id, count: WAITING, text_len: 200 };
    backlog.begin_in_postgres(&database, drained).await;
    backlog.fill_outbox(relay.data());
    relay.start_again().await;
    let streams = told_without_database(&user, story, &gate, &cutter, RUNNING).await;
    let turn = json!({"conversation_id": story, "input": "Go on."});
    let refused = user.post("/v1/stream", &turn).await;
    assert!(refused.refused(503, "overloaded").contains("database"), "{}", refused.json);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(ready(&relay).await["outbox"], "full");
    backlog.let_be_tried(relay.data(), drained);
    cutter.open();
    let mut progress = (0, Instant::now());
    while progress.0 < drained {
        let saved = backlog.saved_in_postgres(&database).await;
        if saved > progress.0 {
            progress = (saved, Instant::now());
        }
        assert!(progress.1.elapsed() < PATIENCE, "{saved} are saved");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ready(&relay).await["status"], "ready");
    assert_eq!(user.told(story, "Go on.").await["saved"], true);
    for stream in &streams {
        assert_eq!(user.saved(stream, "complete").await["content"], TEXT);
    }
    relay.finish().await;
}

#[tokio::test]
async fn who_comes_back_before_the_database_has_the_answer_is_not_told_another() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, mut relay, user, story } = Cuttable::start(&provider).await;
    let streams = told_without_database(&user, story, &gate, &cutter, 1).await;
    let reason = listed_with_reason(&relay).await["reason"].clone();
    assert!(reason.as_str().unwrap().starts_with("the database does not answer: "), "{reason}");
    relay.kill().await;
    relay.start_again().await;
    let path = format!("/v1/streams/{}", streams[0]);
    user.get(&path).await.refused(503, "store_unavailable");
    cutter.open();
    let again = user.request(http::Method::GET, &path);
    let mut answer = user.begins(again, (503, "store_unavailable")).await;
    answer.done().await;
    assert_eq!(answer.text(), TEXT);
    relay.finish().await;
}

#[tokio::test]
async fn what_the_database_refuses_for_good_is_set_aside_and_blocks_nobody() {
    let (provider, gate) = (Provider::start().await, Gate::new());
    provider.always(gated(&gate));
    let Cuttable { cutter, relay, user, story } = Cuttable::start(&provider).await;
    let doomed = user.conversation().await;
    let lost = told_without_database(&user, doomed, &gate, &cutter, 1).await;
    // Somebody deletes the story while its last page is on its way.
    let delete = format!("delete from relay_conversations where id = {doomed}");
    Database::shared().await.admin().await.batch_execute(&delete).await.unwrap();
    cutter.open();
    let since = Instant::now();
    let outbox = loop {
        let listed = relay.run(&["outbox", "list"]);
        if listed.contains("set_aside_at\":\"") {
            break listed;
        }
        assert!(since.elapsed() < PATIENCE, "{listed}");
        sleep(Duration::from_millis(50)).await;
    };
    let entry: Value = serde_json::from_str(outbox.trim()).unwrap();
    assert_eq!((&entry["stream_id"], &entry["user_id"]), (&json!(lost[0]), &json!(user.id)));
    assert!(
        entry["reason"].as_str().unwrap().contains("deleted") && !outbox.contains("lighthouse"),
        "{outbox}"
    );
    assert_eq!(user.told(story, "Go on.").await["saved"], true);
    let unknown = relay.run_in_vain(&["outbox", "retry", "4096"]);
    assert!(unknown.contains("4096") && unknown.contains("outbox list"), "{unknown}");
    assert!(relay.run(&["outbox", "retry"]).starts_with("1 "));
    // It is refused again, which the log tells as the error that it is.
    relay.finish_with_errors().await;
}

/// The entries of the outbox as `list` has them, once there is one of which a reason is known.
async fn listed_with_reason(relay: &TestRelay) -> Value {
    let since = Instant::now();
    loop {
        let listed = relay.run(&["outbox", "list"]);
        if listed.contains("\"reason\":\"") {
            assert!(!listed.contains("lighthouse"), "a text: {listed}");
            return serde_json::from_str(listed.trim()).unwrap();
        }
        assert!(since.elapsed() < PATIENCE, "{listed}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A rule of the operator's own, as databases have them.
const RULE: &str =
    "alter table public.relay_variants add constraint short_answers check (length(content) < 50)";

#[tokio::test]
async fn what_a_rule_of_the_database_refuses_is_told_with_the_rule_and_waits_for_it_to_go() {
    let (provider, database) = (Provider::start().await, Database::migrated().await);
    provider.always(Script::telling(&[TEXT]));
    let relay = TestRelay::with(&provider).env("RELAY_DATABASE_URL", database.url("relay"));
    let mut relay = relay.start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    assert_eq!(relay.run(&["outbox", "retry"]), "nothing is set aside\n");
    database.admin().await.batch_execute(RULE).await.unwrap();
    let mut reading = user.say(story, "Go on.").await;
    assert_eq!(reading.done().await["saved"], false);
    let entry = listed_with_reason(&relay).await;
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.starts_with("23514: ") && reason.contains("short_answers"), "{reason}");
    let waiting = relay.run(&["outbox", "retry", &entry["id"].to_string()]);
    assert!(waiting.contains("is not set aside"), "{waiting}");

    // Meanwhile it is read from the outbox, also by who comes back after a restart.
    let stream_id = reading.stream_id();
    let path = format!("/v1/message-by-stream-id?stream_id={stream_id}");
    let kept = user.get(&path).await.ok(200);
    assert_eq!(
        (&kept["status"], &kept["content"], &kept["saved"]),
        (&json!("complete"), &json!(TEXT), &json!(false))
    );
    relay.kill().await;
    relay.start_again().await;
    let mut again = user.follow(&stream_id, None).await;
    let done = again.done().await;
    assert_eq!((&done["saved"], &done["finish_reason"]), (&json!(false), &json!("stop")));
    assert_eq!(again.text(), TEXT);

    database
        .admin()
        .await
        .batch_execute("alter table public.relay_variants drop constraint short_answers")
        .await
        .unwrap();
    assert_eq!(user.saved(&stream_id, "complete").await["content"], TEXT);
    relay.finish().await;
}

/// The same in a SQLite database, whose rule may also end the transaction that others share.
async fn what_a_rule_of_sqlite_refuses_is_set_aside(raise: &str) {
    let provider = Provider::start().await;
    provider.always(Script::telling(&[TEXT]));
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let rule = format!(
        "create trigger no_fox before update on variants when new.content like '%🦊%'
         begin select raise({raise}, 'no fox here'); end"
    );
    let stories = || Connection::open(relay.data().join("relay.db")).unwrap();
    stories().execute_batch(&rule).unwrap();
    let mut reading = user.say(story, "Go on.").await;
    assert_eq!(reading.done().await["saved"], false);
    let entry = listed_with_reason(&relay).await;
    assert!(entry["reason"].as_str().unwrap().ends_with("SQLite 1811: no fox here"), "{entry}");
    relay.logs("the database refuses an answer").await;
    assert!(!relay.log().contains("the database does not answer"), "{}", relay.log());
    provider.always(Script::telling(&["No animals."]));
    assert_eq!(user.told(story, "Go on.").await["saved"], true);

    // Its last attempt, some four minutes later.
    let journal = Connection::open(relay.data().join("journal.db")).unwrap();
    let since = Instant::now();
    while journal
        .execute("update outbox set attempts = 8, due_at = 0 where attempts between 1 and 7", [])
        .unwrap()
        == 0
    {
        assert!(since.elapsed() < PATIENCE, "no attempt was counted");
        sleep(Duration::from_millis(20)).await;
    }
    relay.logs("it is set aside in the outbox").await;
    let entry = listed_with_reason(&relay).await;
    assert!(entry["set_aside_at"].is_string() && entry["attempts"] == 9, "{entry}");

    stories().execute_batch("drop trigger no_fox").unwrap();
    assert!(relay.run(&["outbox", "retry"]).starts_with("1 "));
    assert_eq!(user.saved(&reading.stream_id(), "complete").await["content"], TEXT);
    relay.finish_with_errors().await;
}

#[tokio::test]
async fn what_a_rule_of_sqlite_refuses_for_good_is_set_aside_with_the_rule() {
    what_a_rule_of_sqlite_refuses_is_set_aside("abort").await;
}

#[tokio::test]
async fn what_a_rule_of_sqlite_rolls_back_is_set_aside_and_takes_nothing_with_it() {
    what_a_rule_of_sqlite_refuses_is_set_aside("rollback").await;
}
