//! One run of one case: what is between is started, put under the load, and looked at.

use std::path::PathBuf;
use std::thread::sleep;

use serde_json::json;

use super::scenario::{Case, Load, Setup, Way};
use crate::Failure;
use crate::load::api::Api;
use crate::load::readers::{Job, Readers, Reading};
use crate::load::script::Script;
use crate::load::servers::{self, Server};
use crate::load::usage::{self, Cpu, LOOK, come_to_rest};

/// How long paced readers leave in their sockets what comes, in milliseconds: little of the ten between two tokens.
const LULL_MS: u64 = 2;

/// What a run has shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) reading: Reading,
    /// Processor time of what is between in microseconds for each token that the provider sent; absent of nothing.
    pub(super) cpu: Option<f64>,
    /// Its resident memory in MiB at most, and how much of it was there before.
    pub(super) memory: f64,
    pub(super) memory_before: f64,
}

/// What runs serve themselves of.
#[derive(Debug)]
pub(super) struct Bench {
    relay: PathBuf,
    other: Option<PathBuf>,
    token: String,
    provider: Server,
    /// Started when they are first needed.
    postgres: Option<Server>,
    postgrest: Option<Server>,
    redis: Option<Server>,
}

impl Bench {
    pub(super) fn new(relay: PathBuf, other: Option<PathBuf>) -> Result<Self, Failure> {
        rlimit::increase_nofile_limit(u64::MAX)?;
        let token = servers::access_token(&relay)?;
        let provider = servers::provider()?;
        Ok(Self { relay, other, token, provider, postgres: None, postgrest: None, redis: None })
    }

    pub(super) fn measure(&mut self, case: &Case) -> Result<Measured, Failure> {
        let server = match case.way {
            Way::Direct => None,
            Way::Nginx => Some(servers::nginx(self.provider.port)?),
            Way::Relay { setup, is_other } => Some(self.relay(setup, is_other)?),
        };
        let port = server.as_ref().unwrap_or(&self.provider).port;
        let pid = server.as_ref().map(Server::pid);
        // Connections, caches, and what is done once.
        let warm_up = Script { tokens: 5, ..case.load.script };
        let warm_up =
            Load { streams: 4, script: warm_up, followers: 0, is_resumed: false, ..case.load };
        read(&self.job(case.way, port, warm_up)?, pid)?;
        let job = self.job(case.way, port, case.load)?;
        come_to_rest(pid);
        if case.load.is_resumed {
            return self.resume(&job, pid);
        }
        let sent = (case.load.streams * case.load.script.tokens) as f64;
        let measured = read(&job, pid)?;
        let expected = (case.load.streams + case.load.followers) * case.load.script.tokens;
        if measured.reading.failed > 0 || measured.reading.tokens != expected as u64 {
            return Err(
                format!("{}: {expected} tokens were expected: {measured:?}", case.name).into()
            );
        }
        Ok(Measured { cpu: measured.cpu.map(|cpu| cpu / sent), ..measured })
    }

    fn relay(&mut self, setup: Setup, is_other: bool) -> Result<Server, Failure> {
        let binary = if is_other { self.other.as_ref() } else { None }.unwrap_or(&self.relay);
        let settings = match setup {
            Setup::Sqlite | Setup::Unsaved => vec![],
            Setup::JournalInMemory => vec![("RELAY_DATA", "memory".to_owned())],
            Setup::Postgres | Setup::Postgrest => {
                let postgres = started(&mut self.postgres, || servers::postgres(binary))?;
                if setup == Setup::Postgres {
                    vec![("RELAY_DATABASE_URL", servers::postgres_url("relay", postgres))]
                } else {
                    let port = started(&mut self.postgrest, || servers::postgrest(postgres))?;
                    vec![("SUPABASE_REST_URL", format!("http://127.0.0.1:{port}"))]
                }
            }
            Setup::Redis => {
                let port = started(&mut self.redis, servers::redis)?;
                vec![("RELAY_REDIS_URL", format!("redis://127.0.0.1:{port}"))]
            }
        };
        servers::relay(binary, self.provider.port, &settings)
    }

    fn job(&self, way: Way, port: u16, load: Load) -> Result<Job, Failure> {
        let Way::Relay { setup, .. } = way else {
            let body = json!({
                "model": load.script.to_string(), "stream": true,
                "messages": [{"role": "user", "content": "And then?"}],
            });
            let request = ("POST /v1/chat/completions".to_owned(), body.to_string());
            return Ok(self.readers(port, load, vec![request; load.streams]));
        };
        let api = Api { port, token: &self.token };
        let bot = api.bot(load.script)?;
        let bodies = if setup == Setup::Unsaved {
            let messages = json!([{"role": "user", "content": "And then?"}]);
            vec![json!({"bot_id": bot, "messages": messages}); load.streams]
        } else {
            let stories = api.stories(load.streams)?.into_iter().map(
                |story| json!({"bot_id": bot, "conversation_id": story, "input": "And then?"}),
            );
            stories.collect()
        };
        // Redis outlives the relay, and remembers names.
        let run = fastrand::u32(..);
        let mut requests = Vec::new();
        for (at, mut body) in bodies.into_iter().enumerate() {
            body["stream_id"] = json!(format!("bench-{run}-{at}"));
            requests.push(("POST /v1/stream".to_owned(), body.to_string()));
        }
        let follow = format!("/v1/streams/bench-{run}-0");
        Ok(Job { follow, ..self.readers(port, load, requests) })
    }

    fn readers(&self, port: u16, load: Load, requests: Vec<(String, String)>) -> Job {
        Job {
            port,
            requests,
            token: self.token.clone(),
            ramp_ms: load.ramp.as_millis() as u64,
            followers: load.followers,
            follow: String::new(),
            enough: None,
            is_paced: load.script.rate > 0,
            lull_ms: if load.script.rate > 0 { LULL_MS } else { 0 },
        }
    }

    /// Lets one reader make the text, and measures another who comes to it. Its cost is that of all the text.
    fn resume(&self, job: &Job, pid: Option<u32>) -> Result<Measured, Failure> {
        read(job, pid)?;
        come_to_rest(pid);
        let path = job.follow.clone();
        let requests = vec![(format!("GET {path}"), String::new())];
        let again = Job { port: job.port, requests, token: job.token.clone(), ..Job::default() };
        read(&again, pid)
    }
}

/// The port of a server that is started when it is first asked for.
fn started(
    server: &mut Option<Server>,
    start: impl FnOnce() -> Result<Server, Failure>,
) -> Result<u16, Failure> {
    match server {
        Some(server) => Ok(server.port),
        None => Ok(server.insert(start()?).port),
    }
}

/// Runs readers to their end. `cpu` is all that was used meanwhile, in microseconds.
fn read(job: &Job, pid: Option<u32>) -> Result<Measured, Failure> {
    let memory = || pid.map_or(0, usage::memory);
    let (mut cpu, memory_before) = (pid.map(Cpu::new), memory());
    let mut readers = Readers::start(job)?;
    let mut most = memory_before;
    while !readers.are_done()? {
        most = most.max(memory());
        if let Some(cpu) = &mut cpu {
            cpu.look();
        }
        sleep(LOOK);
    }
    let cpu = cpu.map(|mut cpu| {
        cpu.look();
        cpu.spent().as_secs_f64() * 1e6
    });
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(Measured {
        reading: readers.reading()?,
        cpu,
        memory: mib(most),
        memory_before: mib(memory_before),
    })
}
