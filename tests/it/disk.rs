//! A disk that fails: whatever call on the relay's files fails, and whenever, no receipt is false, the relay ends with an
//! error that says what to do, and it starts again on what the disk has.
//!
//! `RELAY_TEST_FAULTS=1` lets every single call fail, instead of some.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::database::Database;
use crate::oracle::{Cut, Endings, TEXT, check, tell, tell_and_count, telling};
use crate::provider::{Provider, Script};
use crate::relay::{Answer, Builder, TestRelay, User};
use crate::strace::{Faults, files_up_to, has_struck};

const JOURNAL: &[&str] = &["journal.db"];
const STORIES: &[&str] = &["relay.db"];
const BOTH: &[&str] = &["journal.db", "relay.db"];

const FLUSHES: &str = "fsync,fdatasync";

const KILLED: Faults =
    Faults { calls: FLUSHES, fault: "signal=SIGKILL", first: 1, goes_on: false, files: JOURNAL };

const BROKEN: Faults =
    Faults { calls: FLUSHES, fault: "error=EIO", first: 1, goes_on: false, files: JOURNAL };

const FULL: Faults =
    Faults { calls: "pwrite64", fault: "error=ENOSPC", first: 1, goes_on: true, files: BOTH };

/// Streams that are told at once when the relay is killed, and while its disk fails.
const STREAMS: usize = 3;

/// A relay that is started on a bad disk again and again.
struct Victim {
    relay: TestRelay,
    /// What takes no answer while the disk is bad, so that all go to the outbox.
    database: Option<Database>,
    user: User,
    endings: Endings,
    runs: usize,
}

impl Victim {
    async fn start(builder: Builder, provider: &Provider) -> Self {
        provider.always(telling(Cut::Words, Duration::from_millis(80)));
        let relay = builder.start().await;
        let user = relay.user().await;
        Self { relay, database: None, user, endings: Endings::default(), runs: 0 }
    }

    async fn on_sqlite(provider: &Provider) -> Self {
        Self::start(TestRelay::with(provider), provider).await
    }

    async fn on_postgres(provider: &Provider) -> Self {
        let database = Database::migrated().await;
        let builder = TestRelay::with(provider).env("RELAY_DATABASE_URL", database.url("relay"));
        Self { database: Some(database), ..Self::start(builder, provider).await }
    }

    async fn refuse_answers(&self, is_refusing: bool) {
        if let Some(database) = &self.database {
            database.refuse_answers(is_refusing).await;
        }
    }

    /// Kills it in the middle of streams, starts it by the command `under`, tells more, ends it if it does not end by
    /// itself, starts it again as usual, and holds the streams to the oracle. Returns how it ended, which was with good
    /// advice if it was a failure.
    async fn meet(&mut self, under: &[String]) -> ExitStatus {
        self.runs += 1;
        let story = self.user.conversation().await;
        self.refuse_answers(true).await;
        let (relay, user) = (&mut self.relay, &self.user);
        let (told, mut count) = watch::channel(0);
        let mut readers = JoinSet::new();
        for reader in 0..STREAMS {
            let stream_id = format!("{}-before-{reader}", self.runs);
            readers.spawn(tell_and_count(user.clone(), story, stream_id, told.clone()));
        }
        drop(told);
        drop(count.wait_for(|count| *count >= TEXT.len()).await);
        relay.kill().await;
        let mut told = readers.join_all().await;
        let mut readers = JoinSet::new();
        if relay.start_under(under).await {
            for reader in 0..STREAMS {
                let stream_id = format!("{}-{reader}", self.runs);
                readers.spawn(tell(user.clone(), story, stream_id));
            }
        }
        told.extend(readers.join_all().await);
        relay.terminate();
        let status = relay.exited().await;
        if status.code() == Some(1) {
            has_good_advice(relay).await;
        }
        self.refuse_answers(false).await;
        self.relay.start_again().await;
        for told in told {
            self.endings.count(check(&self.user, story, told).await);
        }
        status
    }

    /// Lets it meet the fault at the first call, at one some calls later, and so on, until no thread makes so many.
    async fn sweep(mut self, faults: Faults, step: usize) {
        let (mut ended, mut went_on) = (0, 0);
        let step = if std::env::var("RELAY_TEST_FAULTS").is_ok() { 1 } else { step };
        for first in (1..).step_by(step) {
            let faults = Faults { first, ..faults };
            let status = self.meet(&faults.command(self.relay.data())).await;
            match (status.code(), status.signal()) {
                (Some(0), _) if !has_struck(self.relay.data()) => break,
                // What is only moved from one file to the other may wait for the next time.
                (Some(0), _) => went_on += 1,
                (Some(1), _) => ended += 1,
                (_, Some(9)) if faults.fault == "signal=SIGKILL" => ended += 1,
                _ => panic!("{faults:?}: {status}"),
            }
        }
        println!("{faults:?}: ended {ended}, went on {went_on}; streams: {:?}", self.endings);
        assert!(ended > 0, "nothing was hit");
        self.relay.finish_with_errors().await;
    }
}

/// What the relay said last names the file, and what to do.
async fn has_good_advice(relay: &mut TestRelay) {
    let words = relay.failed().await;
    let data = relay.data().to_str().unwrap();
    assert!(words.contains(data) && words.contains("Check that its disk has room"), "{words}");
}

#[tokio::test]
async fn a_kill_at_any_flush_of_the_journal_on_sqlite() {
    let provider = Provider::start().await;
    Victim::on_sqlite(&provider).await.sweep(KILLED, 6).await;
}

#[tokio::test]
async fn a_kill_at_any_flush_of_the_stories_on_sqlite() {
    let provider = Provider::start().await;
    let faults = Faults { files: STORIES, ..KILLED };
    Victim::on_sqlite(&provider).await.sweep(faults, 4).await;
}

#[tokio::test]
async fn a_kill_at_any_flush_of_the_outbox_on_postgres() {
    let provider = Provider::start().await;
    Victim::on_postgres(&provider).await.sweep(KILLED, 6).await;
}

#[tokio::test]
async fn an_error_at_any_flush_of_the_journal_on_sqlite() {
    let provider = Provider::start().await;
    Victim::on_sqlite(&provider).await.sweep(BROKEN, 6).await;
}

/// It does not try for ever to work off what it found.
#[tokio::test]
async fn a_journal_that_fails_while_it_is_recovered() {
    let provider = Provider::start().await;
    let mut victim = Victim::on_sqlite(&provider).await;
    for first in 1..4 {
        let faults = Faults { first, goes_on: true, ..BROKEN };
        let status = victim.meet(&faults.command(victim.relay.data())).await;
        assert_eq!(status.code(), Some(1), "{first}");
    }
    victim.relay.finish_with_errors().await;
}

#[tokio::test]
async fn an_error_at_any_flush_of_the_stories_on_sqlite() {
    let provider = Provider::start().await;
    let faults = Faults { files: STORIES, ..BROKEN };
    Victim::on_sqlite(&provider).await.sweep(faults, 4).await;
}

#[tokio::test]
async fn an_error_at_any_flush_of_the_outbox_on_postgres() {
    let provider = Provider::start().await;
    Victim::on_postgres(&provider).await.sweep(BROKEN, 6).await;
}

#[tokio::test]
async fn an_error_at_any_write_on_sqlite() {
    let provider = Provider::start().await;
    let faults = Faults { fault: "error=EIO", goes_on: false, ..FULL };
    Victim::on_sqlite(&provider).await.sweep(faults, 45).await;
}

#[tokio::test]
async fn a_disk_that_is_full_after_any_write_on_sqlite() {
    let provider = Provider::start().await;
    Victim::on_sqlite(&provider).await.sweep(FULL, 45).await;
}

#[tokio::test]
async fn a_disk_that_is_full_after_any_write_on_postgres() {
    let provider = Provider::start().await;
    Victim::on_postgres(&provider).await.sweep(FULL, 45).await;
}

/// The last write before a disk is full is often a short one.
async fn short_writes(mut victim: Victim) {
    let runs = if std::env::var("RELAY_TEST_FAULTS").is_ok() { 40 } else { 2 };
    let mut failed = 0;
    for run in 0..runs {
        let files = std::fs::read_dir(victim.relay.data()).unwrap();
        let longest = files.map(|file| file.unwrap().metadata().unwrap().len()).max();
        let len = longest.unwrap().max(32 << 10) + 1_000 + run * 7_777;
        failed += usize::from(!victim.meet(&files_up_to(len)).await.success());
    }
    println!("short writes: {failed} of {runs} failed; streams: {:?}", victim.endings);
    assert!(failed > 0);
    victim.relay.finish_with_errors().await;
}

#[tokio::test]
async fn short_writes_on_sqlite() {
    let provider = Provider::start().await;
    short_writes(Victim::on_sqlite(&provider).await).await;
}

#[tokio::test]
async fn short_writes_on_postgres() {
    let provider = Provider::start().await;
    short_writes(Victim::on_postgres(&provider).await).await;
}

/// A supervisor starts it again and again: it says each time why it cannot, and loses nothing by it.
#[tokio::test]
async fn a_start_on_a_full_disk_says_so() {
    let provider = Provider::start().await;
    let mut victim = Victim::on_sqlite(&provider).await;
    let story = victim.user.conversation().await;
    victim.user.told(story, "Go on.").await;
    let before = victim.user.story(story).await;
    for _ in 0..3 {
        let status = victim.meet(&FULL.command(victim.relay.data())).await;
        assert_eq!(status.code(), Some(1));
    }
    assert_eq!(victim.user.story(story).await, before);
    victim.relay.finish_with_errors().await;
}

async fn ready(relay: &TestRelay) -> Answer {
    Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await
}

/// Nothing begins that the disk may have no room for, so that what runs can end; what is there can be read.
#[tokio::test]
async fn with_little_room_on_the_disk_nothing_new_begins() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let mut relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    user.told(story, "question").await;
    assert_eq!(ready(&relay).await.ok(200)["outbox"], "up");
    relay.kill().await;
    // `statfs` fills a structure whose fifth number is that of the blocks that are free for this user.
    let free = "poke_exit=@arg2=0000000000000000001000000000000000100000000000000010000000000000ff03000000000000";
    let faults = Faults { calls: "statfs", fault: free, first: 1, goes_on: true, files: JOURNAL };
    assert!(relay.start_under(&faults.command(relay.data())).await);
    let full = ready(&relay).await;
    assert_eq!((full.status, &full.json["outbox"]), (503, &json!("disk full")), "{}", full.json);
    let refused = user.post("/v1/stream", &json!({"conversation_id": story, "input": "x"})).await;
    assert!(refused.refused(503, "overloaded").contains("disk"), "{}", refused.json);
    assert_eq!(user.story(story).await, ["question", "text"]);
    relay.kill().await;
    relay.start_again().await;
    assert_eq!(ready(&relay).await.ok(200)["outbox"], "up");
    user.told(story, "another").await;
    relay.finish().await;
}

/// Whatever file is the slower one: a power cut would take what is paid for already.
#[tokio::test]
async fn no_provider_is_asked_and_nobody_told_before_the_turn_is_on_the_disk() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    for files in [JOURNAL, STORIES] {
        let mut relay = TestRelay::with(&provider).start().await;
        let user = relay.user().await;
        relay.kill().await;
        // The start flushes both once, and in the journal once more; a new story is one flush of the stories.
        let slow = "delay_enter=500000";
        let slow = Faults { calls: FLUSHES, fault: slow, first: 2, goes_on: false, files };
        assert!(relay.start_under(&slow.command(relay.data())).await);
        let story = user.conversation().await;
        let asked = provider.requests().len() + 1;
        assert!(!has_struck(relay.data()));
        let (told, ()) = tokio::join!(user.told(story, "question"), async {
            provider.asked(asked).await;
            assert!(has_struck(relay.data()), "{files:?}: it was asked before");
        });
        assert_eq!(told["saved"], true);
        relay.finish().await;
    }
}

/// Stories that cannot be written while the journal can are a database that is away.
#[tokio::test]
async fn stories_on_a_disk_of_their_own_that_is_full_are_a_database_that_is_away() {
    let provider = Provider::start().await;
    let mut victim = Victim::on_sqlite(&provider).await;
    let story = victim.user.conversation().await;
    victim.relay.kill().await;
    // The start writes some pages; the thread that writes then counts its own.
    let faults = Faults { first: 40, files: STORIES, ..FULL };
    assert!(victim.relay.start_under(&faults.command(victim.relay.data())).await);
    let turn = json!({"conversation_id": story, "input": "Go on."});
    let answer = loop {
        let answer = victim.user.post("/v1/stream", &turn).await;
        if answer.status != 200 {
            break answer;
        }
    };
    answer.refused(503, "store_unavailable");
    let down = ready(&victim.relay).await;
    assert_eq!((down.status, &down.json["store"]), (503, &json!("down")), "{}", down.json);
    victim.relay.kill().await;
    victim.relay.start_again().await;
    assert_eq!(ready(&victim.relay).await.status, 200);
    assert_eq!(victim.user.told(story, "Go on.").await["saved"], true);
    victim.relay.finish().await;
}
