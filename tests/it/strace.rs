//! Faults of the disk: injected by `strace` into the calls that the real binary makes, or made by a limit.

use std::path::{Path, PathBuf};

/// A fault of some calls on some files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// The calls, as `strace -e trace` has them.
    pub(crate) calls: &'static str,
    /// What happens to them, as `strace -e inject` has it: `error=EIO`, `signal=SIGKILL`, `delay_enter=1000`.
    pub(crate) fault: &'static str,
    /// The first that it happens to, counted from 1 by each thread for itself.
    pub(crate) first: usize,
    /// Whether it happens to all that come after, too.
    pub(crate) goes_on: bool,
    /// SQLite's files by their names in the data folder; the files beside them belong to them.
    pub(crate) files: &'static [&'static str],
}

impl Faults {
    /// The command that a relay with this data folder is started by.
    pub(crate) fn command(&self, data: &Path) -> Vec<String> {
        let Self { calls, fault, first, goes_on, files } = self;
        // The relay is the child and strace a grandchild, so that its end is seen and signals reach it.
        let mut command = strings(&["strace", "-D", "-f", "-qq"]);
        let mut option = |name: &str, value: String| command.extend([name.to_owned(), value]);
        option("-o", trace(data).to_str().unwrap().to_owned());
        option("-e", format!("trace={calls}"));
        let on = if *goes_on { "+" } else { "" };
        option("-e", format!("inject={calls}:{fault}:when={first}{on}"));
        for file in *files {
            for suffix in ["", "-wal", "-shm"] {
                option("-P", data.join(format!("{file}{suffix}")).to_str().unwrap().to_owned());
            }
        }
        command
    }
}

/// Whether the last relay on this data folder met a fault, and it is over.
pub(crate) fn has_struck(data: &Path) -> bool {
    let trace = std::fs::read_to_string(trace(data)).unwrap();
    ["INJECTED", "DELAYED"].iter().any(|mark| trace.contains(mark))
}

fn trace(data: &Path) -> PathBuf {
    data.join("strace")
}

/// The command that lets no file grow past `len` bytes: the write that would is cut short there, and the next one fails.
pub(crate) fn files_up_to(len: u64) -> Vec<String> {
    let limit = format!("--fsize={len}");
    // Past a limit there is a signal as well, which a full disk does not send.
    strings(&["sh", "-c", r#"trap "" XFSZ; exec "$@""#, "sh", "prlimit", &limit])
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
