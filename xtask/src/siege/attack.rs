//! The attacks: slowhttptest in each of its modes, and what it has no mode for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::attacker::{self, Doing};
use crate::Failure;

/// How much longer an attack lasts than the user is looked at.
const TAIL: Duration = Duration::from_secs(2);

/// One way to tie a server up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    kind: Kind,
    connections: usize,
    /// How many of them begin in a second.
    rate: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// slowhttptest, with those options, at that path.
    Program { options: &'static [&'static str], path: &'static str },
    /// [`attacker`], from so many addresses.
    Own { doing: Doing, addresses: u8 },
}

/// Who is attacked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) port: u16,
    /// The port that takes HTTP/2 with prior knowledge.
    pub(super) http2: u16,
    pub(super) token: &'a str,
}

/// The path of a stream that runs as long as the relay, with more text than a socket holds.
pub(super) const LONG: &str = "/v1/streams/long";

pub(super) fn all() -> Vec<Attack> {
    let program = |name, about, options, path| Attack {
        name,
        about,
        kind: Kind::Program { options, path },
        connections: 2_000,
        // It has one on the way at a time, so it does not come to more.
        rate: 400,
    };
    let own = |name, about, doing, addresses, connections| Attack {
        name,
        about,
        kind: Kind::Own { doing, addresses },
        connections,
        rate: 4_000,
    };
    vec![
        program(
            "slow-headers",
            "slowhttptest -H (slowloris), 2,000 connections",
            &["-H", "-i", "2", "-x", "24", "-t", "GET"],
            "/v1/bots",
        ),
        program(
            "slow-bodies",
            "slowhttptest -B (R-U-Dead-Yet), 2,000 connections",
            &["-B", "-i", "2", "-x", "10", "-s", "8192", "-t", "POST", "-f", "application/json"],
            "/v1/stream",
        ),
        program(
            "ranges",
            "slowhttptest -R (Apache killer), 2,000 connections",
            &["-R", "-a", "5", "-b", "2000", "-t", "HEAD"],
            "/v1/bots",
        ),
        program(
            "slow-readers",
            "slowhttptest -X (slow read) of a running stream, 2,000 connections",
            &["-X", "-n", "5", "-w", "512", "-y", "1024", "-z", "32"],
            LONG,
        ),
        own("silent", "10,000 silent connections from 100 addresses", Doing::Nothing, 100, 10_000),
        own("silent-one", "10,000 silent connections from one address", Doing::Nothing, 1, 10_000),
        own(
            "full",
            "18,500 silent connections, which are more than there may be; what is closed comes again after a second",
            Doing::Nothing,
            100,
            18_500,
        ),
        own(
            "resets",
            "HTTP/2 requests that are reset at once, as fast as it goes, on 4 connections that come again at once",
            Doing::Resetting,
            1,
            4,
        ),
        own(
            "unread",
            "1,000 readers of a running stream that never read",
            Doing::NotReading,
            1,
            1_000,
        ),
    ]
}

impl Attack {
    /// How long it takes until all connections have begun.
    pub(super) fn lead(&self) -> Duration {
        Duration::from_secs_f64(self.connections as f64 / self.rate as f64 + 1.0)
    }

    /// Fails if so few connections came about that nothing can be said of the attack.
    pub(super) fn check(&self, account: &Account) -> Result<(), Failure> {
        let count = |name: &str| account.get(name).copied().unwrap_or_default();
        let made = match self.kind {
            // Those that are over, and those that it still has.
            Kind::Program { .. } => count("closed") + count("connected"),
            Kind::Own { .. } => count("opened"),
        };
        if made < self.connections as u64 / 2 {
            return Err(format!(
                "{}: only {made} of {} connections came about: {account:?}",
                self.name, self.connections
            )
            .into());
        }
        Ok(())
    }

    /// Begins, and goes on for `time` and the lead. What sends as fast as it can has the least of priorities, because the
    /// machine is the relay's, too; slowhttptest, which waits most of its time, would come to nothing with that.
    pub(super) fn start(&self, target: Target<'_>, time: Duration) -> Result<Underway, Failure> {
        let time = self.lead() + time + TAIL;
        let Target { port, http2, token } = target;
        let (connections, rate) = (self.connections, self.rate);
        let folder = TempDir::new()?;
        let mut command = Command::new("nice");
        let input = match self.kind {
            Kind::Program { options, path } => {
                // It has no option for a header of one's own, but does not mind one in the address.
                let path = format!("{path} HTTP/1.1\r\nauthorization: Bearer {token}\r\nx-rest:");
                command
                    .args(["-n", "0", "slowhttptest"])
                    .args(options)
                    .args(["-g", "-v", "0", "-o"]);
                command.arg(folder.path().join("account"));
                command.args(["-c", &connections.to_string(), "-r", &rate.to_string()]);
                command.args(["-l", &time.as_secs().to_string()]);
                command.args(["-u", &format!("http://127.0.0.1:{port}{path}")]);
                String::new()
            }
            Kind::Own { doing, addresses } => {
                command.args(["-n", "19"]).arg(std::env::current_exe()?).arg("attacker");
                let port = if doing == Doing::Resetting { http2 } else { port };
                let token = token.to_owned();
                let time_ms = time.as_millis() as u64;
                let job =
                    attacker::Job { doing, port, addresses, connections, rate, token, time_ms };
                serde_json::to_string(&job)?
            }
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("the attacker does not start: {error}"))?;
        child.stdin.take().ok_or("no input")?.write_all(input.as_bytes())?;
        Ok(Underway { child, folder })
    }
}

/// An attack that goes on, and ends when it is dropped.
#[derive(Debug)]
pub(super) struct Underway {
    child: Child,
    folder: TempDir,
}

/// What became of an attack's connections.
pub(super) type Account = BTreeMap<String, u64>;

impl Underway {
    /// Waits for its end.
    pub(super) fn account(mut self) -> Result<Account, Failure> {
        let mut said = String::new();
        self.child.stdout.take().ok_or("no output")?.read_to_string(&mut said)?;
        self.child.wait()?;
        let csv = self.folder.path().join("account.csv");
        if !csv.exists() {
            return Ok(serde_json::from_str(&said)
                .map_err(|_| format!("the attacker did not come to an end: {said}"))?);
        }
        // What slowhttptest saw in each second, below names.
        let csv = fs::read_to_string(csv)?;
        let mut lines = csv.lines();
        let names = lines.next().unwrap_or_default().split(',');
        let last = lines.next_back().ok_or("slowhttptest is not installed, or saw nothing")?;
        let is_count = |name: &str| !matches!(name, "Seconds" | "Service Available");
        let counts = names.zip(last.split(',')).filter(|(name, _)| is_count(name));
        Ok(counts
            .filter_map(|(name, count)| Some((name.to_lowercase(), count.parse().ok()?)))
            .collect())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}
