//! A journal that is damaged, foreign or out of reach when the relay is started: it says what is wrong and what to do, and
//! changes nothing; or it goes on with all that can be read.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::oracle::{Cut, TEXT, Told, check, tell_and_count, telling};
use crate::provider::Provider;
use crate::relay::{TestRelay, User};
use crate::strace::Faults;

/// A relay that was killed in the middle of a stream, so that its journal has something to lose.
struct Killed {
    relay: TestRelay,
    user: User,
    story: i64,
    told: Told,
    _provider: Provider,
}

impl Killed {
    async fn start() -> Self {
        let provider = Provider::start().await;
        provider.always(telling(Cut::Words, Duration::from_millis(400)));
        let mut relay = TestRelay::with(&provider).start().await;
        let user = relay.user().await;
        let story = user.conversation().await;
        let (sender, mut count) = tokio::sync::watch::channel(0);
        let told = tokio::spawn(tell_and_count(user.clone(), story, "mine".to_owned(), sender));
        count.wait_for(|count| *count >= TEXT.len() / 2).await.unwrap();
        relay.kill().await;
        Self { relay, user, story, told: told.await.unwrap(), _provider: provider }
    }

    fn journal(&self) -> PathBuf {
        self.relay.data().join("journal.db")
    }

    fn log(&self) -> PathBuf {
        self.relay.data().join("journal.db-wal")
    }

    /// Moves all that is in the log into the file itself.
    fn settle(&self) {
        let connection = Connection::open(self.journal()).unwrap();
        let busy: i64 =
            connection.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0);
    }

    /// What is in the file and in its log. An empty log is as good as none.
    fn files(&self) -> (Option<Vec<u8>>, Vec<u8>) {
        (fs::read(self.journal()).ok(), fs::read(self.log()).unwrap_or_default())
    }

    /// `check` says that it would not start, and leaves the file and its log as they were.
    fn fails_its_check(&self, why: &str, advice: &str) {
        let before = self.files();
        let words = self.relay.run_in_vain(&["check"]);
        assert!(words.contains(why) && words.contains(advice), "{words}");
        assert!(self.files() == before, "it has changed them");
    }

    /// It does not start, says why, and leaves the file and its log as they were.
    async fn refuses(&mut self, why: &str, advice: &str) {
        let before = self.files();
        assert!(!self.relay.start_under(&[]).await, "it has started");
        let words = self.relay.failed().await;
        let path = self.journal();
        assert!(words.contains(path.to_str().unwrap()), "{words}");
        assert!(words.contains(why) && words.contains(advice), "{words}");
        assert!(self.files() == before, "it has changed them");
    }

    /// It starts, and the stream is what the oracle allows.
    async fn recovers(mut self) -> String {
        self.relay.start_again().await;
        let status = check(&self.user, self.story, self.told).await;
        self.relay.finish().await;
        status
    }
}

const DAMAGE: &str = "Keep it";
const ELSEWHERE: &str = "Set RELAY_DATA";

#[tokio::test]
async fn a_journal_that_is_cut_short() {
    let mut killed = Killed::start().await;
    killed.settle();
    let whole = fs::read(killed.journal()).unwrap();
    for len in [whole.len() / 2, whole.len() - 4096, 1000, 17] {
        fs::write(killed.journal(), &whole[..len]).unwrap();
        killed.refuses("", DAMAGE).await;
    }
    fs::write(killed.journal(), &whole).unwrap();
    assert_eq!(killed.recovers().await, "interrupted");
}

#[tokio::test]
async fn a_journal_with_broken_pages() {
    let mut killed = Killed::start().await;
    killed.settle();
    let whole = fs::read(killed.journal()).unwrap();
    for page in 0..whole.len() / 4096 {
        let mut broken = whole.clone();
        broken[page * 4096..][..8].iter_mut().for_each(|byte| *byte ^= 0xff);
        fs::write(killed.journal(), &broken).unwrap();
        killed.refuses("", DAMAGE).await;
    }
    fs::write(killed.journal(), &whole).unwrap();
    assert_eq!(killed.recovers().await, "interrupted");
}

#[tokio::test]
async fn a_file_of_another_program() {
    let mut killed = Killed::start().await;
    killed.settle();
    let whole = fs::read(killed.journal()).unwrap();
    fs::write(killed.journal(), "Dear diary, ".repeat(1_000)).unwrap();
    killed.refuses("not a database", DAMAGE).await;
    fs::remove_file(killed.journal()).unwrap();
    let foreign = Connection::open(killed.journal()).unwrap();
    foreign.execute_batch("create table diary (page text)").unwrap();
    drop(foreign);
    killed.fails_its_check("another program", ELSEWHERE);
    killed.refuses("another program", ELSEWHERE).await;
    fs::write(killed.journal(), &whole).unwrap();
    assert_eq!(killed.recovers().await, "interrupted");
}

#[tokio::test]
async fn a_journal_of_a_newer_version() {
    let mut killed = Killed::start().await;
    let journal = killed.journal();
    let set = |version: i64| {
        let connection = Connection::open(&journal).unwrap();
        // What a killed relay leaves has its log beside it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        let known = connection
            .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
            .unwrap();
        connection.pragma_update(None, "user_version", version).unwrap();
        known
    };
    let known = set(99);
    assert!(fs::metadata(killed.log()).unwrap().len() > 0);
    killed.fails_its_check("newer version", "Start that version");
    killed.refuses("newer version", "Start that version").await;
    set(known);
    assert_eq!(killed.recovers().await, "interrupted");
}

#[tokio::test]
async fn a_folder_where_the_journal_should_be() {
    let mut killed = Killed::start().await;
    killed.settle();
    let aside = killed.relay.data().join("aside");
    fs::rename(killed.journal(), &aside).unwrap();
    fs::create_dir(killed.journal()).unwrap();
    killed.refuses("directory", ELSEWHERE).await;
    fs::remove_dir(killed.journal()).unwrap();
    fs::rename(&aside, killed.journal()).unwrap();
    assert_eq!(killed.recovers().await, "interrupted");
}

/// Permissions mean nothing to root, so it is the call that is refused.
#[tokio::test]
async fn a_journal_that_may_not_be_written() {
    let mut killed = Killed::start().await;
    let refused = Faults {
        calls: "openat",
        fault: "error=EACCES",
        first: 1,
        goes_on: true,
        files: &["journal.db"],
    };
    assert!(!killed.relay.start_under(&refused.command(killed.relay.data())).await);
    let words = killed.relay.failed().await;
    assert!(words.contains("Permission denied") && words.contains(ELSEWHERE), "{words}");
    assert_eq!(killed.recovers().await, "interrupted");
}

/// The end of the log is what a crash tears: what is whole before it counts.
#[tokio::test]
async fn a_log_with_a_torn_end() {
    for cut in [1, 100, 4_096, 5_000] {
        let killed = Killed::start().await;
        let len = fs::metadata(killed.log()).unwrap().len();
        fs::OpenOptions::new().write(true).open(killed.log()).unwrap().set_len(len - cut).unwrap();
        assert_eq!(killed.recovers().await, "interrupted", "{cut}");
    }
}

#[tokio::test]
async fn a_log_with_flipped_bits() {
    let killed = Killed::start().await;
    let mut log = fs::read(killed.log()).unwrap();
    let middle = log.len() / 2;
    log[middle] ^= 1;
    fs::write(killed.log(), log).unwrap();
    assert_eq!(killed.recovers().await, "interrupted");
}

/// Whoever deletes the log deletes what was in it; nothing is made up for it.
#[tokio::test]
async fn a_log_that_is_gone() {
    let killed = Killed::start().await;
    fs::remove_file(killed.log()).unwrap();
    assert_eq!(killed.recovers().await, "interrupted");
}
