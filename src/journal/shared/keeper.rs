//! Who is alive: this instance renews its lease, takes over from those that did not, and forgets what nobody needs here.

use std::time::Duration;

use redis::streams::StreamRangeReply;
use secrecy::SecretString;
use tokio::time::{Instant, sleep};
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

impl Shared {
    /// Looks after leases for as long as it is polled.
    pub(super) async fn keep(&self) {
        let mut up_for = Duration::ZERO;
        loop {
            if let Some(now_up_for) = self.redis.up_for() {
                // What happened to it while it was away is not known.
                if now_up_for < up_for || up_for.is_zero() {
                    self.publisher.doubt_all();
                }
                up_for = now_up_for;
                let _told_by_the_client: Result<(), Away> = self.look_after().await;
            }
            for publication in self.publisher.all() {
                publication.forget_guests(GUEST_TIME);
            }
            sleep(INTERVAL).await;
        }
    }

    async fn look_after(&self) -> Result<(), Away> {
        self.renew_lease().await?;
        self.look_after_mirrors().await
    }

    /// Takes over from instances that are gone, for as long as it is polled.
    pub(super) async fn take_over_from_the_dead(&self) {
        loop {
            // Those who were cut off from Redis as this one was must get to renew their leases first.
            if self.redis.up_for().is_some_and(|time| time >= LEASE) && self.is_settled() {
                let _told_by_the_client: Result<(), Away> = self.take_over_now().await;
            }
            sleep(INTERVAL).await;
        }
    }

    async fn take_over_now(&self) -> Result<(), Away> {
        for dead in self.dead_instances().await? {
            self.take_over(&dead).await?;
        }
        Ok(())
    }

    async fn renew_lease(&self) -> Result<(), Away> {
        let lease = keys::lease(&self.instance);
        let mut calls = redis::pipe();
        calls.cmd("EXISTS").arg(&lease);
        calls.cmd("SET").arg(&lease).arg(1).arg("PX").arg(LEASE.as_millis() as u64).ignore();
        calls.cmd("SADD").arg(keys::INSTANCES).arg(&self.instance).ignore();
        for key in [keys::wishes(&self.instance), keys::held(&self.instance)] {
            calls.cmd("EXPIRE").arg(key).arg(INSTANCE_TIME.as_secs()).ignore();
        }
        let (was_there,): (bool,) = self.redis.pipeline(&calls).await?;
        if !was_there {
            // This one was paused for too long, or Redis has lost what it had: others may have taken over, or will be told
            // anew of everything.
            self.unsettle();
            self.publisher.doubt_all();
        }
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

    /// Takes over everything of a dead instance that no other one takes first, as fast as it can be ended.
    async fn take_over(&self, dead: &str) -> Result<(), Away> {
        let mut taken = 0;
        loop {
            let mut calls = redis::pipe();
            calls.cmd("EXISTS").arg(keys::lease(dead));
            calls.cmd("SRANDMEMBER").arg(keys::held(dead)).arg(BATCH_LEN);
            let (is_alive, held): (bool, Vec<String>) = self.redis.pipeline(&calls).await?;
            if is_alive {
                break;
            }
            if held.is_empty() {
                let mut forget = redis::cmd("SREM");
                self.redis.call::<()>(forget.arg(keys::INSTANCES).arg(dead)).await?;
                break;
            }
            for word in held {
                // Room first: what has been taken has to be ended.
                let Ok(room) = self.orphans.reserve().await else { return Ok(()) };
                if let Some(orphan) = self.take(&word, dead, false).await? {
                    room.send(orphan);
                    taken += 1;
                }
            }
        }
        if taken > 0 {
            warn!(
                generations = taken,
                instance = dead,
                "ending what a relay that is gone was writing"
            );
        }
        Ok(())
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
        ]);
        call.arg(other).arg(&self.instance).arg(word).arg(u8::from(is_dead));
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
        Ok(Some(Orphan { writer: Writer::new(log), conclusion }))
    }

    /// Tells writers elsewhere of followers here, and gives up what nobody follows, or nobody knows any more.
    async fn look_after_mirrors(&self) -> Result<(), Away> {
        let Some(up_for) = self.redis.up_for() else { return Err(Away) };
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
                None if up_for.min(mirror.known_at.elapsed()) > UNKNOWN_TIME => {
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
