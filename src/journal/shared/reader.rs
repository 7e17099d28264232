//! What others write, told here: one call waits for news of every generation that is followed here, and for what others
//! want of this instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId as Entry, StreamReadReply};
use redis::{AsyncCommands, RedisResult};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{Shared, keys, wire};
use crate::event::Seq;
use crate::journal::log::Log;
use crate::journal::mirror::Heard;
use crate::outbox::Name;

/// How long one call waits for news. A generation that is followed anew meanwhile ends the wait.
const WAIT_TIME: Duration = Duration::from_secs(2);

/// What an answer may take beyond that before the connection counts as dead.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The wait after news: what comes within it comes with the next call.
const PAUSE: Duration = Duration::from_millis(10);

/// The wait before a connection that broke is made again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Entries of one generation that are read at once.
const ENTRIES_MAX: usize = 256;

/// Wishes that are kept for an instance that does not read them: for as long as its lease lasts at most.
const WISHES_MAX: usize = 10_000;

/// How long they are kept for one that is gone.
const WISHES_TIME: Duration = Duration::from_secs(60 * 60);

/// A generation that is written elsewhere and followed here.
pub(super) struct Mirror {
    pub(super) name: Name,
    pub(super) log: Arc<Log>,
    /// Who writes it, as far as is known.
    pub(super) holder: String,
    /// The last entry that was read.
    last_id: String,
    /// When somebody last followed it here.
    pub(super) read_at: Instant,
    /// When Redis last knew of it.
    pub(super) known_at: Instant,
}

/// The generations that are followed here, by their logs.
#[derive(Default)]
pub(super) struct Mirrors(Mutex<HashMap<String, Mirror>>);

impl Mirrors {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<String, Mirror>> {
        // Every change under this lock is one insertion, removal or assignment, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives all of them up, so that their followers ask again.
    pub(super) fn lose_all(&self) {
        for (_, mirror) in self.lock().drain() {
            mirror.log.lose();
        }
    }

    /// Takes in the entries of a log. What cannot be told on is given up, so that its followers ask again.
    fn hear(&self, log_id: &str, entries: &[Entry]) {
        let mut mirrors = self.lock();
        let Some(mirror) = mirrors.get_mut(log_id) else { return };
        match hear(&mirror.log, entries) {
            Heard::More => {
                if let Some(last) = entries.last() {
                    mirror.last_id.clone_from(&last.id);
                }
                mirror.known_at = Instant::now();
                return;
            }
            Heard::Last => {}
            Heard::Gap => {
                warn!(stream_id = %mirror.name.stream_id, "something is missing in a log of redis: its followers ask again");
                mirror.log.lose();
            }
        }
        mirrors.remove(log_id);
    }
}

/// Takes in entries up to the last, or the first after which there is no going on.
pub(super) fn hear(log: &Arc<Log>, entries: &[Entry]) -> Heard {
    for entry in entries {
        let heard = match wire::told(entry) {
            Some((seq, told)) => log.hear(seq, told),
            None => Heard::Gap,
        };
        if heard != Heard::More {
            return heard;
        }
    }
    Heard::More
}

/// The position that an entry's id holds; 0 for none.
pub(super) fn position(entries: &[Entry]) -> Seq {
    let id = entries.last().and_then(|entry| entry.id.split_once('-'));
    id.and_then(|(_, seq)| seq.parse().ok()).unwrap_or(0)
}

/// What one instance wants of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The generation is to be stopped.
    Stop,
    /// Somebody follows it.
    Follow,
    /// Nothing: only to be woken.
    Wake,
}

/// The generation that something is wanted of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) name: &'a Name,
    pub(super) log_id: &'a str,
}

impl Wish {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Follow => "follow",
            Self::Wake => "wake",
        }
    }

    /// Adds the call that tells `instance` of it.
    pub(super) fn tell(self, calls: &mut redis::Pipeline, to: &str, of: Of<'_>, from: &str) {
        calls.cmd("XADD").arg(keys::wishes(to)).arg("MAXLEN").arg("~").arg(WISHES_MAX).arg("*");
        calls.arg("wish").arg(self.as_str()).arg("generation").arg(keys::word(of.name));
        calls.arg("log").arg(of.log_id).arg("from").arg(from).ignore();
        // Whoever is gone does not see to it any more.
        calls.cmd("EXPIRE").arg(keys::wishes(to)).arg(WISHES_TIME.as_secs()).ignore();
    }
}

impl Shared {
    /// Follows `log`, which is written elsewhere, from what there is of it on.
    pub(super) fn mirror(&self, log: &Arc<Log>, log_id: &str, holder: &str, entries: &[Entry]) {
        log.be_mirror();
        let now = Instant::now();
        let mirror = Mirror {
            name: Name::of(log),
            log: Arc::clone(log),
            holder: holder.to_owned(),
            last_id: "0".to_owned(),
            read_at: now,
            known_at: now,
        };
        self.mirrors.lock().insert(log_id.to_owned(), mirror);
        self.mirrors.hear(log_id, entries);
    }

    /// Reads for as long as it is polled.
    pub(super) async fn read(&self) {
        let mut last_wish = "0".to_owned();
        loop {
            self.redis.up().await;
            match self.redis.open(Some(WAIT_TIME + ANSWER_TIME)).await {
                Ok(connection) => {
                    let error = self.read_from(connection, &mut last_wish).await;
                    debug!(?error, "reading from redis broke off");
                }
                Err(error) => debug!(%error, "connecting to redis failed"),
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn read_from(
        &self,
        mut connection: MultiplexedConnection,
        last_wish: &mut String,
    ) -> Option<redis::RedisError> {
        let wishes = keys::wishes(&self.instance);
        let options = redis::streams::StreamReadOptions::default()
            .block(usize::try_from(WAIT_TIME.as_millis()).unwrap_or(usize::MAX))
            .count(ENTRIES_MAX);
        loop {
            let (logs, ids): (Vec<_>, Vec<_>) = {
                let mirrors = self.mirrors.lock();
                mirrors.iter().map(|(id, mirror)| (id.clone(), mirror.last_id.clone())).unzip()
            };
            let streams: Vec<_> = std::iter::once(wishes.clone())
                .chain(logs.iter().map(|id| keys::log(id)))
                .collect();
            let ids: Vec<_> = std::iter::once(last_wish.clone()).chain(ids).collect();
            let read: RedisResult<Option<StreamReadReply>> =
                connection.xread_options(&streams, &ids, &options).await;
            let reply = match read {
                Ok(Some(reply)) => reply,
                Ok(None) => continue,
                Err(error) => return Some(error),
            };
            for stream in reply.keys {
                if stream.key == wishes {
                    for wish in &stream.ids {
                        last_wish.clone_from(&wish.id);
                        self.hear_wish(wish);
                    }
                } else if let Some(log_id) = keys::log_id(&stream.key) {
                    self.mirrors.hear(log_id, &stream.ids);
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn hear_wish(&self, entry: &Entry) {
        let field = |name| entry.get::<String>(name).unwrap_or_default();
        let name = keys::name(&field("generation"));
        let Some(publication) = name.and_then(|name| self.publisher.find(&name)) else { return };
        if publication.log_id() != field("log") {
            return;
        }
        match field("wish").as_str() {
            "stop" => publication.log().request_stop(),
            "follow" => publication.welcome(&field("from")),
            _ => {}
        }
    }
}
