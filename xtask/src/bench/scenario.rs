//! What is measured.

use std::time::Duration;

use crate::load::script::Script;

/// Cases that are compared with the first of them.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) about: String,
    pub(super) cases: Vec<Case>,
}

/// A load, and what is put under it.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) way: Way,
    pub(super) load: Load,
}

/// What is between the readers and the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Nginx,
    Relay { setup: Setup, is_other: bool },
}

/// What a relay stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setup {
    /// The default: stories in SQLite, the journal on the disk.
    Sqlite,
    /// The same, and nothing is saved because the stream belongs to no story.
    Unsaved,
    /// Stories in SQLite, the journal in memory alone.
    JournalInMemory,
    Postgres,
    Postgrest,
    Redis,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) streams: usize,
    /// More readers of the first stream.
    pub(super) followers: usize,
    pub(super) script: Script,
    /// Over how much time streams begin.
    pub(super) ramp: Duration,
    /// Whether a second reader comes when the text is there, and it is that one who is measured.
    pub(super) is_resumed: bool,
}

/// How many streams begin in a second where there are thousands.
const STARTS_PER_SECOND: usize = 250;

const SQLITE: Way = Way::Relay { setup: Setup::Sqlite, is_other: false };

/// All of them, with runs of so many seconds. With `other`, another relay is measured beside.
pub(super) fn all(seconds: usize, other: bool) -> Vec<Scenario> {
    let mut all = vec![
        beside_nginx("paced-1", "1 stream at 100 tokens a second", paced(1, seconds), other),
        beside_nginx("paced-50", "50 streams at 100 tokens a second", paced(50, seconds), other),
        beside_nginx("paced-250", "250 streams at 100 tokens a second", paced(250, seconds), other),
        beside_nginx("paced-500", "500 streams at 100 tokens a second", paced(500, seconds), other),
        beside_nginx("fast-1", "1 stream as fast as it goes", fast(1, seconds), other),
        beside_nginx("fast-50", "50 streams as fast as it goes", fast(50, seconds), other),
    ];
    // Begun one after another, as readers do: what a start costs whoever it is, beside streams that run.
    let starts = Load { ramp: Duration::from_secs(seconds as u64) / 2, ..paced(50, seconds) };
    let about = "50 streams at 100 tokens a second, begun one after another over half the time";
    all.push(beside_nginx("starts", about, starts, other));
    // What an answer costs whatever its length.
    let burst = Load { ramp: Duration::from_secs(8), ..load(2_000, script(10, 100)) };
    all.push(beside_nginx("burst", "2000 answers of 10 tokens, 250 begun a second", burst, other));
    all.push(Scenario {
        name: "followers",
        about: "one stream at 100 tokens a second, and how many follow it".to_owned(),
        cases: [1, 10, 100]
            .map(|followers| Case {
                name: format!("{followers}"),
                way: SQLITE,
                load: Load { followers: followers - 1, ..paced(1, seconds) },
            })
            .into(),
    });
    let script = Script { prelude: 1 << 20, ..script(200, 100) };
    let load = Load { is_resumed: true, script, ..paced(1, seconds) };
    all.push(Scenario {
        name: "resume",
        about: "a reader comes to a stream of 1 MiB; CPU for all of it, and the first token stands behind it".to_owned(),
        cases: vec![Case { name: "relay".to_owned(), way: SQLITE, load }],
    });
    all.push(setups(
        "stores",
        "50 streams at 100 tokens a second, by where stories are saved",
        &[
            ("none", Setup::Unsaved),
            ("sqlite", Setup::Sqlite),
            ("postgres", Setup::Postgres),
            ("postgrest", Setup::Postgrest),
        ],
        seconds,
    ));
    all.push(setups(
        "journals",
        "50 streams at 100 tokens a second, by where the journal is (memory: the stories, too)",
        &[("memory", Setup::JournalInMemory), ("disk", Setup::Sqlite), ("redis", Setup::Redis)],
        seconds,
    ));
    let open = open(seconds);
    let about = format!("{} streams open at 1 token a second, 5 kB of text in each", open.streams);
    all.push(beside_nginx("open", &about, open, other));
    all
}

fn beside_nginx(name: &'static str, about: &str, load: Load, other: bool) -> Scenario {
    let mut ways = vec![("nginx", Way::Nginx), ("direct", Way::Direct), ("relay", SQLITE)];
    if other {
        ways.push(("other relay", Way::Relay { setup: Setup::Sqlite, is_other: true }));
    }
    let case = |(name, way): (&str, Way)| Case { name: name.to_owned(), way, load };
    Scenario { name, about: about.to_owned(), cases: ways.into_iter().map(case).collect() }
}

fn setups(name: &'static str, about: &str, setups: &[(&str, Setup)], seconds: usize) -> Scenario {
    let case = |(name, setup): &(&str, Setup)| Case {
        name: (*name).to_owned(),
        way: Way::Relay { setup: *setup, is_other: false },
        load: paced(50, seconds),
    };
    Scenario { name, about: about.to_owned(), cases: setups.iter().map(case).collect() }
}

fn script(tokens: usize, rate: usize) -> Script {
    Script { thinking: Duration::from_millis(20), prelude: 0, tokens, rate }
}

fn load(streams: usize, script: Script) -> Load {
    Load { streams, followers: 0, script, ramp: Duration::ZERO, is_resumed: false }
}

fn paced(streams: usize, seconds: usize) -> Load {
    load(streams, script(100 * seconds, 100))
}

/// As many tokens in all whatever the number of streams, but no more than one answer may have.
fn fast(streams: usize, seconds: usize) -> Load {
    load(streams, script((100_000 * seconds / streams).min(400_000), 0))
}

/// As many as the limit of open files allows a process that needs two for each, up to ten thousand.
fn open(seconds: usize) -> Load {
    let files = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(1_024, |(_, hard)| hard);
    let most = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(1_000) / 2;
    let streams = most.min(10_000);
    // Answers are not asked for all at once, and each costs the store's disk something; all are open for a while together.
    let ramp = streams / STARTS_PER_SECOND;
    let script = Script { prelude: 5_000, ..script(ramp + 2 * seconds, 1) };
    Load { ramp: Duration::from_secs(ramp as u64), ..load(streams, script) }
}
