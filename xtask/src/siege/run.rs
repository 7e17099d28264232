//! One case of one attack: the user asks at a steady pace, and the relay is looked at.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::attack::{Account, Attack, LONG, Target};
use crate::Failure;
use crate::load::api::{Api, Reader};
use crate::load::readers::{Job, Readers, Reading};
use crate::load::script::Script;
use crate::load::servers::{self, Decoy, Server};
use crate::load::usage::{self, Cpu, LOOK, come_to_rest};

/// The cases of a round.
pub(super) const CASES: [Case; 3] = [Case::Calm, Case::Besieged, Case::Elsewhere];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Calm,
    /// The relay is attacked.
    Besieged,
    /// nginx is, beside the relay.
    Elsewhere,
}

/// What the user asks for in a second: lists of bots, each on a connection of its own, and answers.
pub(super) const LISTS_PER_SECOND: usize = 40;
pub(super) const ANSWERS_PER_SECOND: usize = 20;

/// How many stories the answers go to, in turn.
const STORIES: usize = 64;

/// When memory counts as come back: a tenth above what there was, or four MiB.
const NEAR: f64 = 1.1;
const NEAR_MIB: f64 = 4.0;

/// How long is waited for that.
const RETURN_PATIENCE: Duration = Duration::from_secs(60);

/// What a case has shown.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) lists: Reading,
    pub(super) answers: Reading,
    /// Processors that the relay used while the user asked.
    pub(super) cpu: f64,
    /// Resident memory of the relay in MiB: before, at most, when it had come back or was waited for long enough.
    pub(super) before: f64,
    pub(super) most: f64,
    pub(super) after: f64,
    /// How long it took to come back, in seconds; absent: longer than was waited.
    pub(super) back_after: Option<f64>,
    pub(super) account: Account,
}

/// A relay and what is beside it.
#[derive(Debug)]
pub(super) struct Siege {
    relay: Server,
    decoy: Decoy,
    token: String,
    seconds: usize,
    bot: i64,
    stories: Vec<i64>,
    _long: Reader,
    _provider: Server,
}

impl Siege {
    /// All that runs the whole time, warmed up.
    pub(super) fn new(binary: &Path, seconds: usize) -> Result<Self, Failure> {
        let token = servers::access_token(binary)?;
        let provider = servers::provider()?;
        let relay = servers::relay(binary, provider.port, &[])?;
        let decoy = servers::decoy(provider.port, LONG)?;
        let api = Api { port: relay.port, token: &token };
        let slow = Script { thinking: Duration::ZERO, prelude: 1 << 20, tokens: 100_000, rate: 20 };
        let id = LONG.rsplit('/').next();
        let long = json!({
            "bot_id": api.bot(slow)?, "stream_id": id,
            "messages": [{"role": "user", "content": "And then?"}],
        });
        let long = api.stream(&long)?;
        let thinking = Duration::from_millis(20);
        let bot = api.bot(Script { thinking, prelude: 0, tokens: 10, rate: 100 })?;
        let stories = api.stories(STORIES)?;
        let siege =
            Self { bot, stories, token, seconds, decoy, relay, _long: long, _provider: provider };
        siege.user(|| ())?;
        Ok(siege)
    }

    pub(super) fn measure(&self, attack: &Attack, case: Case) -> Result<Seen, Failure> {
        let pid = self.relay.pid();
        come_to_rest(Some(pid));
        let mut seen = Seen { before: memory(pid), ..Seen::default() };
        seen.most = seen.before;
        let target = match case {
            Case::Calm => None,
            Case::Besieged => {
                Some(Target { port: self.relay.port, http2: self.relay.port, token: &self.token })
            }
            Case::Elsewhere => Some(Target {
                port: self.decoy.server.port,
                http2: self.decoy.http2,
                token: &self.token,
            }),
        };
        let time = Duration::from_secs(self.seconds as u64);
        let underway = target.map(|target| attack.start(target, time)).transpose()?;
        if underway.is_some() {
            let since = Instant::now();
            while since.elapsed() < attack.lead() {
                seen.most = seen.most.max(memory(pid));
                sleep(LOOK);
            }
        }
        let (since, mut cpu) = (Instant::now(), Cpu::new(pid));
        (seen.lists, seen.answers) = self.user(|| {
            seen.most = seen.most.max(memory(pid));
            cpu.look();
        })?;
        seen.cpu = cpu.spent().as_secs_f64() / since.elapsed().as_secs_f64();
        if let Some(underway) = underway {
            seen.account = underway.account()?;
            attack.check(&seen.account)?;
        }
        let since = Instant::now();
        let near = (seen.before * NEAR).max(seen.before + NEAR_MIB);
        while memory(pid) > near && since.elapsed() < RETURN_PATIENCE {
            sleep(LOOK);
        }
        seen.after = memory(pid);
        seen.back_after = (seen.after <= near).then(|| since.elapsed().as_secs_f64());
        Ok(seen)
    }

    /// Lets the user ask at the usual pace; what was read of lists and of answers.
    fn user(&self, mut look: impl FnMut()) -> Result<(Reading, Reading), Failure> {
        let lists =
            vec![("GET /v1/bots".to_owned(), String::new()); LISTS_PER_SECOND * self.seconds];
        let run = fastrand::u64(..);
        let answer = |(at, story): (usize, &i64)| {
            let body = json!({
                "bot_id": self.bot, "conversation_id": story, "input": "And then?",
                "stream_id": format!("siege-{run}-{at}"),
            });
            ("POST /v1/stream".to_owned(), body.to_string())
        };
        let stories = self.stories.iter().cycle().take(ANSWERS_PER_SECOND * self.seconds);
        let answers = stories.enumerate().map(answer).collect();
        let mut both = [Readers::start(&self.job(lists))?, Readers::start(&self.job(answers))?];
        loop {
            look();
            let [lists, answers] = &mut both;
            if lists.are_done()? && answers.are_done()? {
                break;
            }
            sleep(LOOK);
        }
        let [lists, answers] = both;
        Ok((lists.reading()?, answers.reading()?))
    }

    fn job(&self, requests: Vec<(String, String)>) -> Job {
        Job {
            port: self.relay.port,
            requests,
            token: self.token.clone(),
            ramp_ms: self.seconds as u64 * 1_000,
            is_paced: true,
            ..Job::default()
        }
    }
}

fn memory(pid: u32) -> f64 {
    usage::memory(pid) as f64 / 1024.0
}
