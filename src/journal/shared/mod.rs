//! The journal that several relays share: each keeps its own generations in memory, as ever, and tells the others of them
//! through Redis.
//!
//! Redis holds a copy, which others follow; nobody here waits for it, and while it is away every relay goes on by itself.
//! A generation has one *holder*, the instance that writes it, under a lease and an epoch: an instance that lost its lease
//! is taken for dead, another takes its generations over with the next epoch, and whatever the first still sends is of
//! an epoch that is over, and refused. An entry's id is `<epoch>-<position>`, so it could not be added either.

mod keeper;
mod keys;
mod publisher;
mod reader;
mod wire;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redis::streams::StreamRangeReply;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use self::keeper::LEASE;
use self::publisher::Publisher;
use self::reader::{Mirrors, Of, Wish};
use super::memory::MemoryJournal;
use super::{Claim, Estate, Hold, Journal, Log, Opening, Orphan, Reach, Roll, Running};
use crate::clock;
use crate::error::{Code, Error};
use crate::event::Start;
use crate::id::{StreamId, UserId, call_id};
use crate::outbox::Name;
use crate::redis_client::{Away, Redis, Script};
use crate::store::Conclusion;

/// How long an ended generation can still be followed from Redis; after that the database answers.
const RETENTION: Duration = Duration::from_secs(10 * 60);

/// The epoch of whoever begins a generation.
const FIRST_EPOCH: u64 = 1;

/// How long what the last process left is for the outbox to find: it looks at the start.
const INHERITANCE_TIME: Duration = Duration::from_secs(5);

/// Orphans that have been taken over and wait to be ended.
const ORPHANS_MAX: usize = 64;

/// What a caller is told to wait while Redis is away.
const RETRY_AFTER_AWAY: Duration = Duration::from_secs(2);

/// How long the end of the process waits for Redis to be told of everything.
const CLOSING_TIME: Duration = Duration::from_secs(2);

struct Scripts {
    claim: Script,
    append: Script,
    take: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    claim: Script::new(include_str!("scripts/claim.lua")),
    append: Script::new(include_str!("scripts/append.lua")),
    take: Script::new(include_str!("scripts/take.lua")),
});

/// What Redis has to be taught for this journal.
pub(crate) fn scripts() -> Vec<&'static Script> {
    vec![&SCRIPTS.claim, &SCRIPTS.append, &SCRIPTS.take]
}

/// The journal that several relays share.
pub struct SharedJournal {
    local: MemoryJournal,
    shared: Shared,
    orphaned: tokio::sync::Mutex<mpsc::Receiver<Orphan>>,
}

/// What goes through Redis.
struct Shared {
    redis: Arc<Redis>,
    /// This process among all that have ever shared this Redis.
    instance: String,
    publisher: Publisher,
    mirrors: Mirrors,
    orphans: mpsc::Sender<Orphan>,
    /// Until when what Redis does not know may be known to others.
    unsettled_until: Mutex<Instant>,
    /// The instance that was here before, with the same data folder.
    predecessor: Option<String>,
    started_at: Instant,
}

impl Shared {
    /// From now on, for the time of a lease, Redis does not know everything: others have to tell it anew.
    fn unsettle(&self) {
        *self.unsettled_until.lock().unwrap_or_else(PoisonError::into_inner) =
            Instant::now() + LEASE;
    }

    /// Whether what that instance left is in this one's outbox, which may know more of it and comes first.
    fn is_heir_of(&self, dead: &str) -> bool {
        self.predecessor.as_deref() == Some(dead) && self.started_at.elapsed() < INHERITANCE_TIME
    }

    fn is_settled(&self) -> bool {
        *self.unsettled_until.lock().unwrap_or_else(PoisonError::into_inner) <= Instant::now()
    }
}

/// A log that waits to be filled from elsewhere: given up if that does not come to pass.
struct Unfollowed<'a>(Option<&'a Arc<Log>>);

impl Unfollowed<'_> {
    fn followed(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfollowed<'_> {
    fn drop(&mut self) {
        if let Some(log) = self.0 {
            log.lose();
        }
    }
}

/// Where a generation comes from, as Redis has it.
struct Origin {
    fingerprint: String,
    started_at: Timestamp,
}

impl Origin {
    fn of(fingerprint: Option<&str>, started_at: Option<&str>) -> Self {
        let started_at =
            started_at.and_then(|at| Timestamp::from_millisecond(at.parse().ok()?).ok());
        Self {
            fingerprint: fingerprint.unwrap_or_default().to_owned(),
            started_at: started_at.unwrap_or_else(clock::now),
        }
    }
}

impl SharedJournal {
    /// A journal that is shared through `redis`, whether that is there yet or not. `live_time` is how long a generation may
    /// last; `predecessor` is the instance whose data folder this one has taken over.
    pub(crate) fn new(
        redis: Arc<Redis>,
        instance: Uuid,
        live_time: Duration,
        predecessor: Option<Uuid>,
    ) -> Self {
        let instance = instance.to_string();
        let (orphans, orphaned) = mpsc::channel(ORPHANS_MAX);
        let shared = Shared {
            publisher: Publisher::new(Arc::clone(&redis), instance.clone(), live_time),
            redis,
            instance,
            mirrors: Mirrors::default(),
            orphans,
            unsettled_until: Mutex::new(Instant::now()),
            predecessor: predecessor.map(|instance| instance.to_string()),
            started_at: Instant::now(),
        };
        Self {
            local: MemoryJournal::default(),
            shared,
            orphaned: tokio::sync::Mutex::new(orphaned),
        }
    }

    /// Follows what another instance writes. `None` if Redis has no such generation, or is away.
    async fn look_up(&self, name: &Name) -> Option<Arc<Log>> {
        let mut call = redis::cmd("HMGET");
        call.arg(keys::generation(name));
        call.arg(&["log", "holder", "fingerprint", "started_at"]);
        let found: Vec<Option<String>> = self.shared.redis.call(&call).await.ok()?;
        let [Some(log_id), Some(holder), fingerprint, started_at] = &found[..] else { return None };
        let origin = Origin::of(fingerprint.as_deref(), started_at.as_deref());
        let opening = Opening {
            owner: name.owner,
            stream_id: name.stream_id.clone(),
            fingerprint: origin.fingerprint,
            started_at: origin.started_at,
            write_token: None,
        };
        match self.local.claim(opening).await.ok()? {
            Claim::Existing(log) => Some(log),
            Claim::New(writer) => {
                let log = writer.give_away();
                self.follow(&log, log_id, holder).await.ok()?;
                Some(log)
            }
        }
    }

    /// Fills `log` with what Redis has, and follows it from then on.
    async fn follow(&self, log: &Arc<Log>, log_id: &str, holder: &str) -> Result<(), Away> {
        let Shared { redis, instance, .. } = &self.shared;
        // Whoever asks may hang up at any time.
        let unfollowed = Unfollowed(Some(log));
        let name = Name::of(log);
        let of = Of { name: &name, log_id };
        let mut calls = redis::pipe();
        Wish::Follow.tell(&mut calls, holder, of, instance);
        calls.cmd("XRANGE").arg(keys::log(log_id)).arg("-").arg("+");
        match redis.pipeline::<(StreamRangeReply,)>(&calls).await {
            Ok((entries,)) => {
                self.shared.mirror(log, log_id, holder, &entries.ids);
                unfollowed.followed();
                let mut calls = redis::pipe();
                if log.is_to_stop() {
                    Wish::Stop.tell(&mut calls, holder, of, instance);
                }
                // So that the next wait for news is for this one's, too.
                Wish::Wake.tell(&mut calls, instance, of, instance);
                redis.pipeline::<()>(&calls).await
            }
            Err(Away) => Err(Away),
        }
    }

    /// The generations of a user that Redis knows of.
    async fn running_anywhere(&self, owner: UserId) -> Result<Vec<Running>, Away> {
        let redis = &self.shared.redis;
        let mut members = redis::cmd("SMEMBERS");
        let streams: Vec<String> = redis.call(members.arg(keys::running(owner))).await?;
        let mut calls = redis::pipe();
        for stream_id in streams.iter().filter_map(|id| id.parse().ok()) {
            let name = Name { owner, stream_id };
            calls.cmd("HMGET").arg(keys::generation(&name)).arg(&[
                "start",
                "started_at",
                "is_over",
            ]);
        }
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let found: Vec<Vec<Option<String>>> = redis.pipeline(&calls).await?;
        let running = |found: Vec<Option<String>>| {
            let [Some(start), Some(started_at), None] = &found[..] else { return None };
            let start: Start = serde_json::from_str(start).ok()?;
            Some(Running {
                stream_id: start.stream_id,
                conversation_id: start.conversation_id,
                message_id: start.message_id,
                variant_id: start.variant_id,
                started_at: Timestamp::from_millisecond(started_at.parse().ok()?).ok()?,
            })
        };
        Ok(found.into_iter().filter_map(running).collect())
    }
}

#[async_trait]
impl Journal for SharedJournal {
    async fn claim(&self, opening: Opening) -> Result<Claim, Error> {
        let writer = match self.local.claim(opening).await? {
            Claim::Existing(log) => return Ok(Claim::Existing(log)),
            Claim::New(writer) => writer,
        };
        let (log, log_id) = (Arc::clone(writer.log()), call_id().to_string());
        let publisher = &self.shared.publisher;
        // One that was refused a moment ago leaves its name to this one, as soon as Redis knows.
        if let Some(refused) = publisher.find(&Name::of(&log)) {
            publisher.free(&refused).await;
        }
        match publisher.claim(&log, &log_id, FIRST_EPOCH).await.as_deref() {
            // Redis may be back before the generation has ended, and is told of it then.
            Err(Away) => {}
            Ok([known, ..]) if *known == log_id => {}
            Ok([_, fingerprint, ..]) if fingerprint != log.fingerprint() => {
                writer.refuse(Error::stream_id_reused());
                return Err(Error::stream_id_reused());
            }
            Ok([known, _, _, holder]) => {
                let log = writer.give_away();
                // Away: whoever attached is told to ask again.
                let _followed = self.follow(&log, known, holder).await;
                return Ok(Claim::Existing(log));
            }
            Ok(_) => return Err(Error::internal("a script of redis answered in another form")),
        }
        publisher.publish(&log, log_id, FIRST_EPOCH, 0);
        Ok(Claim::New(writer))
    }

    async fn find(&self, owner: UserId, stream_id: &StreamId) -> Option<Arc<Log>> {
        match self.local.find(owner, stream_id).await {
            Some(log) => Some(log),
            None => self.look_up(&Name { owner, stream_id: stream_id.clone() }).await,
        }
    }

    async fn running(&self, owner: UserId) -> Roll {
        let Roll { mut running, .. } = self.local.running(owner).await;
        let anywhere = self.running_anywhere(owner).await;
        // While Redis is away, what is known here has to do; when it is back, it has to be told anew.
        let is_complete = anywhere.is_ok() && self.shared.is_settled();
        for elsewhere in anywhere.unwrap_or_default() {
            if running.iter().all(|known| known.stream_id != elsewhere.stream_id) {
                running.push(elsewhere);
            }
        }
        running.sort_by(|a, b| (a.started_at, &a.stream_id).cmp(&(b.started_at, &b.stream_id)));
        Roll { running, is_complete }
    }

    async fn stop(&self, log: &Arc<Log>) -> Result<(), Error> {
        let mut calls = redis::pipe();
        {
            let mirrors = self.shared.mirrors.lock();
            let Some((log_id, mirror)) =
                mirrors.iter().find(|(_, mirror)| Arc::ptr_eq(&mirror.log, log))
            else {
                log.request_stop();
                return Ok(());
            };
            let of = Of { name: &mirror.name, log_id };
            Wish::Stop.tell(&mut calls, &mirror.holder, of, &self.shared.instance);
        }
        self.shared.redis.pipeline(&calls).await.map_err(|Away| {
            Error::new(
                Code::StoreUnavailable,
                "This stream is written by another relay, which cannot be reached. Try again in a moment.",
            )
            .with_retry_after(RETRY_AFTER_AWAY)
        })
    }

    async fn seal(&self, log: &Arc<Log>, conclusion: &Conclusion) -> Hold {
        let publisher = &self.shared.publisher;
        match publisher.find(&Name::of(log)) {
            Some(publication) => publisher.seal(&publication, conclusion).await,
            None => Hold::Held,
        }
    }

    async fn orphan(&self) -> Orphan {
        match self.orphaned.lock().await.recv().await {
            Some(orphan) => orphan,
            // The sender is here, so it does not end.
            None => std::future::pending().await,
        }
    }

    async fn inherit(&self, name: &Name, write_token: &SecretString) -> Estate {
        let mut call = redis::cmd("HMGET");
        call.arg(keys::generation(name)).arg(&["holder", "write_token"]);
        let found: Vec<Option<String>> = match self.shared.redis.call(&call).await {
            Ok(found) => found,
            Err(Away) => return Estate::Unknown,
        };
        let [Some(holder), Some(known)] = &found[..] else { return Estate::Unknown };
        if !is_same(known, write_token) {
            return Estate::Unknown;
        }
        if Some(holder) != self.shared.predecessor.as_ref() {
            return Estate::Elsewhere;
        }
        match self.shared.take(&keys::word(name), holder, true).await {
            Ok(Some(orphan)) => Estate::Taken(Box::new(orphan)),
            Ok(None) => Estate::Elsewhere,
            Err(Away) => Estate::Unknown,
        }
    }

    /// One that cannot reach Redis may write what nobody else knows of.
    fn knows_all(&self) -> bool {
        false
    }

    fn reach(&self) -> Option<Reach> {
        Some(match self.shared.redis.up_since() {
            Some(_) => Reach::Everywhere,
            None => Reach::Degraded,
        })
    }

    async fn in_touch(&self) {
        self.shared.redis.up().await;
    }

    async fn run(&self) {
        tokio::join!(self.shared.publisher.run(), self.shared.read(), self.shared.keep());
    }

    async fn close(&self) {
        // Their readers go on elsewhere.
        self.shared.mirrors.lose_all();
        self.shared.publisher.flush_within(CLOSING_TIME).await;
        self.shared.end_lease().await;
    }
}

/// Compares by hashes: how long that takes says nothing of how much of two secrets is the same.
fn is_same(known: &str, write_token: &SecretString) -> bool {
    Sha256::digest(known) == Sha256::digest(write_token.expose_secret())
}
