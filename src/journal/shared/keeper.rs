//! Who is alive: this instance renews its lease, takes over from those that did not, and forgets what nobody needs here.

use std::collections::HashSet;
use std::time::Duration;

use redis::streams::StreamRangeReply;
use secrecy::SecretString;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::reader::{Of, Wish, hear, position};
use super::{Origin, SCRIPTS, Shared, keys};
use crate::journal::log::Log;
use crate::journal::{Opening, Orphan, Writer};
use crate::outbox::Name;
use crate::redis_client::Away;

/// How long an instance counts as alive after it was last heard of. Whoever is paused for longer is taken for dead.
pub(super) const LEASE: Duration = Duration::from_secs(6);

/// How often the lease is renewed and the others' are looked at. With the lease this makes some eight seconds from a
/// relay's death to the end of its generations.
const INTERVAL: Duration = Duration::from_millis(1_500);

/// The interval while there is more to take over than can be ended at once.
const SHORT_INTERVAL: Duration = Duration::from_millis(50);

/// What a lease says that was renewed. One that says something else was made anew, with a claim.
const KEPT: &str = "kept";

/// How long an instance counts as following a generation after it was last heard of that.
const GUEST_TIME: Duration = Duration::from_secs(6);

/// How long a generation that is written elsewhere is kept here with nobody following.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// How long a generation may be unknown to Redis before its followers here are cut off: one that lost its data is told
/// anew by those that write, within less.
const UNKNOWN_TIME: Duration = Duration::from_secs(12);

/// Generations of a dead instance that are taken over at once.
const BATCH_LEN: usize = 64;

/// How long what only living instances need is kept after they were last heard of.
const INSTANCE_TIME: Duration = Duration::from_secs(60 * 60);

/// What is remembered from one look to the next.
#[derive(Default)]
struct Looks {
    /// Since when Redis was up at the last one.
    up_since: Option<Instant>,
    /// What this instance held then, and did not write.
    stray: HashSet<String>,
}

/// Whether there is more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

impl Shared {
    /// Looks after leases for as long as it is polled.
    pub(super) async fn keep(&self) {
        let mut looks = Looks::default();
        loop {
            let Ok(()) = timeout(INTERVAL, self.redis.up()).await else {
                self.publisher.forget_ended();
                continue;
            };
            let wait = match self.look_after(&mut looks).await {
                Ok(More::Yes) => SHORT_INTERVAL,
                // The client has told that it is away.
                Ok(More::No) | Err(Away) => INTERVAL,
            };
            sleep(wait).await;
        }
    }

    /// One look. The lease comes first: whoever was paused may have been taken for dead, and must not take others for dead
    /// by what it knew before.
    async fn look_after(&self, looks: &mut Looks) -> Result<More, Away> {
        let up_since = self.redis.up_since().ok_or(Away)?;
        if looks.up_since.replace(up_since) != Some(up_since) {
            // What happened to Redis while it was away is not known.
            self.publisher.doubt_all();
        }
        self.renew_lease().await?;
        self.look_after_mirrors(up_since).await?;
        if up_since.elapsed() >= GUEST_TIME {
            self.publisher
                .all()
                .iter()
                .for_each(|publication| publication.forget_guests(GUEST_TIME));
        }
        self.publisher.forget_ended();
        // Those who were cut off from Redis as this one was must get to renew their leases first.
        if up_since.elapsed() < LEASE || !self.is_settled() {
            return Ok(More::No);
        }
        self.take_strays(looks).await?;
        for dead in self.dead_instances().await? {
            if self.take_over(&dead).await? == More::Yes {
                return Ok(More::Yes);
            }
        }
        Ok(More::No)
    }

    async fn renew_lease(&self) -> Result<(), Away> {
        let lease = keys::lease(&self.instance);
        let mut calls = redis::pipe();
        calls.cmd("SET").arg(&lease).arg(KEPT).arg("PX").arg(LEASE.as_millis() as u64).arg("GET");
        calls.cmd("SADD").arg(keys::INSTANCES).arg(&self.instance).ignore();
        for key in [keys::wishes(&self.instance), keys::held(&self.instance)] {
            calls.cmd("EXPIRE").arg(key).arg(INSTANCE_TIME.as_secs()).ignore();
        }
        let (lease,): (Option<String>,) = self.redis.pipeline(&calls).await?;
        if lease.as_deref() != Some(KEPT) {
            // This one was paused for too long, or Redis has lost what it had: others may have taken over, or will be told
            // anew of everything.
            self.unsettle();
            self.publisher.doubt_all();
        }
        Ok(())
    }

    /// Takes what this instance holds and does not write: it was taken or claimed by a call whose answer did not come.
    async fn take_strays(&self, looks: &mut Looks) -> Result<(), Away> {
        let mut members = redis::cmd("SMEMBERS");
        let held: Vec<String> = self.redis.call(members.arg(keys::held(&self.instance))).await?;
        let is_stray = |word: &String| {
            keys::name(word).is_none_or(|name| self.publisher.find(&name).is_none())
        };
        let strays: HashSet<String> = held.into_iter().filter(is_stray).collect();
        // What is about to be written looks like one for a moment.
        for word in strays.intersection(&looks.stray) {
            let Ok(room) = self.orphans.try_reserve() else { break };
            if let Some(orphan) = self.take(word, &self.instance, true).await? {
                room.send(orphan);
            }
        }
        looks.stray = strays;
        Ok(())
    }

    async fn dead_instances(&self) -> Result<Vec<String>, Away> {
        let mut members = redis::cmd("SMEMBERS");
        let instances: Vec<String> = self.redis.call(members.arg(keys::INSTANCES)).await?;
        let others: Vec<_> = instances.into_iter().filter(|id| *id != self.instance).collect();
        if others.is_empty() {
            return Ok(others);
        }
        let mut calls = redis::pipe();
        for other in &others {
            calls.cmd("EXISTS").arg(keys::lease(other));
        }
        let alive: Vec<bool> = self.redis.pipeline(&calls).await?;
        Ok(others.into_iter().zip(alive).filter_map(|(id, alive)| (!alive).then_some(id)).collect())
    }

    /// Takes over what a dead instance holds and no other one takes first, as far as there is room to end it.
    async fn take_over(&self, dead: &str) -> Result<More, Away> {
        if self.is_heir_of(dead) {
            return Ok(More::No);
        }
        let mut taken = 0;
        let more = loop {
            let mut calls = redis::pipe();
            calls.cmd("EXISTS").arg(keys::lease(dead));
            calls.cmd("SRANDMEMBER").arg(keys::held(dead)).arg(BATCH_LEN);
            let (is_alive, held): (bool, Vec<String>) = self.redis.pipeline(&calls).await?;
            if is_alive {
                break More::No;
            }
            if held.is_empty() {
                let mut forget = redis::cmd("SREM");
                self.redis.call::<()>(forget.arg(keys::INSTANCES).arg(dead)).await?;
                break More::No;
            }
            for word in held {
                // Room first: what has been taken has to be ended.
                let Ok(room) = self.orphans.try_reserve() else { return Ok(More::Yes) };
                if let Some(orphan) = self.take(&word, dead, false).await? {
                    room.send(orphan);
                    taken += 1;
                }
            }
        };
        if taken > 0 {
            warn!(
                generations = taken,
                instance = dead,
                "ending what a relay that is gone was writing"
            );
        }
        Ok(more)
    }

    /// Takes one generation over from another instance, unless it is alive.
    pub(super) async fn take(
        &self,
        word: &str,
        other: &str,
        is_dead: bool,
    ) -> Result<Option<Orphan>, Away> {
        let Some(name) = keys::name(word) else {
            let mut forget = redis::cmd("SREM");
            self.redis.call::<()>(forget.arg(keys::held(other)).arg(word)).await?;
            return Ok(None);
        };
        let mut call = SCRIPTS.take.call(&[
            &keys::generation(&name),
            &keys::lease(other),
            &keys::held(other),
            &keys::held(&self.instance),
            keys::INSTANCES,
            &keys::lease(&self.instance),
        ]);
        call.arg(other).arg(&self.instance).arg(word).arg(u8::from(is_dead));
        call.arg(LEASE.as_millis() as u64);
        let Some(estate) = self.redis.call::<Option<Vec<Option<String>>>>(&call).await? else {
            return Ok(None);
        };
        let [Some(log_id), Some(epoch), fingerprint, started_at, write_token, conclusion] =
            &estate[..]
        else {
            return Ok(None);
        };
        let mut range = redis::cmd("XRANGE");
        let entries: StreamRangeReply =
            self.redis.call(range.arg(keys::log(log_id)).arg("-").arg("+")).await?;
        let origin = Origin::of(fingerprint.as_deref(), started_at.as_deref());
        let write_token = write_token.as_deref().filter(|token| !token.is_empty());
        let log = Log::new(Opening {
            owner: name.owner,
            stream_id: name.stream_id,
            fingerprint: origin.fingerprint,
            started_at: origin.started_at,
            write_token: write_token.map(SecretString::from),
        });
        // What is behind a gap cannot be told on; nothing writes gaps.
        hear(&log, &entries.ids);
        let epoch = epoch.parse().unwrap_or(u64::MAX);
        self.publisher.publish(&log, log_id.clone(), epoch, position(&entries.ids));
        let conclusion = conclusion.as_deref().and_then(|json| serde_json::from_str(json).ok());
        Ok(Some(Orphan { writer: Writer::inherited(log), conclusion }))
    }

    /// Tells writers elsewhere of followers here, and gives up what nobody follows, or nobody knows any more.
    async fn look_after_mirrors(&self, up_since: Instant) -> Result<(), Away> {
        let now = Instant::now();
        let mut followed: Vec<(String, Name)> = Vec::new();
        let mut calls = redis::pipe();
        self.mirrors.lock().retain(|log_id, mirror| {
            if mirror.log.has_readers() {
                mirror.read_at = now;
                let of = Of { name: &mirror.name, log_id };
                Wish::Follow.tell(&mut calls, &mirror.holder, of, &self.instance);
            }
            let is_followed = now.duration_since(mirror.read_at) < IDLE_TIME;
            if is_followed {
                followed.push((log_id.clone(), mirror.name.clone()));
            } else {
                mirror.log.lose();
            }
            is_followed
        });
        if followed.is_empty() {
            return Ok(());
        }
        for (_, name) in &followed {
            calls.cmd("HMGET").arg(keys::generation(name)).arg("log").arg("holder");
        }
        let found: Vec<(Option<String>, Option<String>)> = self.redis.pipeline(&calls).await?;
        let mut mirrors = self.mirrors.lock();
        for ((log_id, _), (found_id, holder)) in followed.into_iter().zip(found) {
            let Some(mirror) = mirrors.get_mut(&log_id) else { continue };
            match holder.filter(|_| found_id.as_ref() == Some(&log_id)) {
                Some(holder) => {
                    mirror.known_at = now;
                    mirror.holder = holder;
                }
                // While Redis is away nobody can tell it anything.
                None if mirror.known_at.max(up_since).elapsed() > UNKNOWN_TIME => {
                    mirror.log.lose();
                    mirrors.remove(&log_id);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Ends the lease, so that nobody waits for it to run out.
    pub(super) async fn end_lease(&self) {
        let mut calls = redis::pipe();
        calls
            .cmd("DEL")
            .arg(keys::lease(&self.instance))
            .arg(keys::wishes(&self.instance))
            .ignore();
        // What is held still is ended by another instance, which forgets this one then.
        let _told_by_the_client: Result<(), Away> = self.redis.pipeline(&calls).await;
    }
}
