//! What is written here, told to the others: every generation has a follower that copies its events to Redis, in batches,
//! and nobody who writes or reads here waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use redis::Cmd;
use secrecy::ExposeSecret;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::keeper::LEASE;
use super::wire::Field;
use super::{RETENTION, SCRIPTS, keys};
use crate::event::Seq;
use crate::journal::log::{Log, Presence, Seat};
use crate::journal::{Follower, Hold};
use crate::outbox::Name;
use crate::redis_client::{Away, Redis};
use crate::store::Conclusion;

/// How long events may wait to be told: what others are behind, and what can be lost of an unfinished answer when its
/// relay dies and does not come back.
const BATCH_TIME: Duration = Duration::from_millis(50);

/// The most text of one generation that is told at once, in bytes.
const BATCH_LEN_MAX: usize = 1 << 20;

/// Generations that are told of in one round trip, and about how much text at most, in bytes: it has a second.
const SIDE_BY_SIDE: usize = 256;
const PIPELINE_LEN_MAX: usize = 4 << 20;

/// How many calls may be made to tell the rest of a generation at its end: more than its longest text needs.
const CALLS_MAX: usize = 16;

/// A generation that is written here, as the others see it.
pub(super) struct Publication {
    name: Name,
    log: Arc<Log>,
    /// Tells this generation from every other one that has had its name.
    log_id: String,
    epoch: u64,
    /// How far it has been told.
    cursor: Arc<tokio::sync::Mutex<Follower>>,
    queue: Arc<Queue>,
    is_queued: AtomicBool,
    /// Whether Redis is to be asked whether it still has it, though there may be nothing new.
    is_doubtful: AtomicBool,
    /// Whether nothing more is told of it.
    is_forgotten: AtomicBool,
    /// Instances whose readers follow it, and when that was last heard of each.
    guests: Mutex<HashMap<String, (Seat, Instant)>>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Vec<Arc<Publication>>>,
    filled: Notify,
}

impl Wake for Publication {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            lock(&self.queue.waiting).push(Arc::clone(&self));
            self.queue.filled.notify_one();
        }
    }
}

/// Every change under these locks is one insertion or removal, so a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Publication {
    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn log_id(&self) -> &str {
        &self.log_id
    }

    /// Notes that readers of that instance follow it.
    pub(super) fn welcome(&self, instance: &str) {
        let seat = Seat::take(&self.log, Presence::Reader);
        lock(&self.guests).insert(instance.to_owned(), (seat, Instant::now()));
    }

    /// Forgets instances that have not been heard of for that long.
    pub(super) fn forget_guests(&self, after: Duration) {
        lock(&self.guests).retain(|_, (_, heard_at)| heard_at.elapsed() < after);
    }
}

/// The generations that are written here.
pub(super) struct Publisher {
    redis: Arc<Redis>,
    instance: String,
    /// How long Redis keeps what nobody ends.
    live_time: Duration,
    by_name: Mutex<HashMap<Name, Arc<Publication>>>,
    queue: Arc<Queue>,
}

/// Events that are to be told with one call.
struct Batch {
    call: Cmd,
    /// The position before them, and that of the last.
    after: Seq,
    last: Seq,
    /// How much text it has, in bytes.
    len: usize,
    /// Whether it says how the generation is about to end.
    is_seal: bool,
    leaves: Leaves,
}

/// How a batch leaves the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Open,
    /// With its end, to be followed for some time yet.
    Ended,
    /// Without anything that could be followed.
    Gone,
}

/// What Redis said of a batch.
enum Reply {
    /// The log ends there now.
    Tail(Seq),
    /// Redis knows nothing of the generation.
    Missing,
    /// Its name belongs to another generation.
    Other,
    /// Another instance has it.
    Lost,
}

impl Reply {
    fn of(reply: &str) -> Self {
        match reply {
            "missing" => Self::Missing,
            "other" => Self::Other,
            tail => tail.parse().map_or(Self::Lost, Self::Tail),
        }
    }
}

impl Publisher {
    pub(super) fn new(redis: Arc<Redis>, instance: String, live_time: Duration) -> Self {
        let (by_name, queue) = (Mutex::default(), Arc::default());
        Self { redis, instance, live_time, by_name, queue }
    }

    /// From now on the events of `log` behind `after` are told, for as long as nobody else has a higher epoch.
    pub(super) fn publish(&self, log: &Arc<Log>, log_id: String, epoch: u64, after: Seq) {
        let publication = Arc::new(Publication {
            name: Name::of(log),
            log: Arc::clone(log),
            log_id,
            epoch,
            cursor: Arc::new(tokio::sync::Mutex::new(Follower::copying(log, after))),
            queue: Arc::clone(&self.queue),
            is_queued: AtomicBool::new(false),
            is_doubtful: AtomicBool::new(false),
            is_forgotten: AtomicBool::new(false),
            guests: Mutex::default(),
        });
        lock(&self.by_name).insert(publication.name.clone(), Arc::clone(&publication));
        // Its first look registers it to be woken.
        publication.wake();
    }

    /// The generation of that name, if it is written here.
    pub(super) fn find(&self, name: &Name) -> Option<Arc<Publication>> {
        lock(&self.by_name).get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Publication>> {
        lock(&self.by_name).values().cloned().collect()
    }

    /// Asks Redis of every generation whether it still has it all.
    pub(super) fn doubt_all(&self) {
        for publication in self.all() {
            publication.is_doubtful.store(true, Ordering::Release);
            publication.wake();
        }
    }

    /// Tells what there is to tell, for as long as it is polled.
    pub(super) async fn run(&self) {
        loop {
            self.queue.filled.notified().await;
            sleep(BATCH_TIME).await;
            self.redis.up().await;
            self.flush().await;
        }
    }

    /// Tells what there is to tell now, and gives up after `time`.
    pub(super) async fn flush_within(&self, time: Duration) {
        let told = timeout(time, async {
            while !lock(&self.queue.waiting).is_empty() && self.redis.up_since().is_some() {
                self.flush().await;
                // What somebody else is telling of at this moment is in the queue again.
                tokio::task::yield_now().await;
            }
        });
        if told.await.is_err() {
            warn!("redis was not told of everything before the end");
        }
    }

    async fn flush(&self) {
        let waiting = std::mem::take(&mut *lock(&self.queue.waiting));
        for publications in waiting.chunks(SIDE_BY_SIDE) {
            self.tell(publications).await;
        }
    }

    async fn tell(&self, publications: &[Arc<Publication>]) {
        let (mut calls, mut told, mut len) = (redis::pipe(), Vec::new(), 0);
        for publication in publications {
            // Whoever has it at the moment tells of the generation, too; what comes later is told the next time.
            let cursor = Arc::clone(&publication.cursor).try_lock_owned();
            let Some(mut cursor) = cursor.ok().filter(|_| len < PIPELINE_LEN_MAX) else {
                publication.is_queued.store(false, Ordering::Release);
                Arc::clone(publication).wake();
                continue;
            };
            if let Some(batch) = self.batch(publication, &mut cursor, None) {
                len += batch.len;
                calls.add_command(batch.call.clone());
                told.push((publication, cursor, batch));
            }
        }
        if told.is_empty() {
            return;
        }
        match self.redis.pipeline::<Vec<String>>(&calls).await {
            Ok(replies) => {
                for ((publication, mut cursor, batch), reply) in told.into_iter().zip(replies) {
                    self.hear(publication, &mut cursor, &batch, &Reply::of(&reply)).await;
                }
            }
            Err(Away) => {
                for (publication, mut cursor, batch) in told {
                    again(publication, &mut cursor, batch.after);
                }
            }
        }
    }

    /// Tells everything that there is of the generation, with how it is about to end, so that whoever finds it ends it in
    /// the same way. While Redis is away nothing is told, and the generation counts as held.
    pub(super) async fn seal(
        &self,
        publication: &Arc<Publication>,
        conclusion: &Conclusion,
    ) -> Hold {
        let Ok(conclusion) = serde_json::to_string(conclusion) else { return Hold::Held };
        let mut cursor: OwnedMutexGuard<_> = Arc::clone(&publication.cursor).lock_owned().await;
        for _ in 0..CALLS_MAX {
            let told = self.tell_one(publication, &mut cursor, Some(&conclusion)).await;
            match told {
                Some((Reply::Lost, _)) => return Hold::Lost,
                Some((Reply::Tail(tail), batch)) if tail == batch.last && batch.is_seal => break,
                Some((Reply::Tail(_) | Reply::Missing, _)) => {}
                Some((Reply::Other, _)) | None => break,
            }
        }
        Hold::Held
    }

    /// Tells now of a generation that was refused, so that its name is free.
    pub(super) async fn free(&self, refused: &Arc<Publication>) {
        let mut cursor: OwnedMutexGuard<_> = Arc::clone(&refused.cursor).lock_owned().await;
        self.tell_one(refused, &mut cursor, None).await;
    }

    /// Tells of one generation. `None` if there is nothing to tell, or Redis is away.
    async fn tell_one(
        &self,
        publication: &Arc<Publication>,
        cursor: &mut Follower,
        conclusion: Option<&str>,
    ) -> Option<(Reply, Batch)> {
        let batch = self.batch(publication, cursor, conclusion)?;
        let Ok(reply) = self.redis.call::<String>(&batch.call).await else {
            again(publication, cursor, batch.after);
            return None;
        };
        let reply = Reply::of(&reply);
        self.hear(publication, cursor, &batch, &reply).await;
        Some((reply, batch))
    }

    /// What is to be told of the generation now, if there is anything.
    fn batch(
        &self,
        publication: &Arc<Publication>,
        cursor: &mut Follower,
        conclusion: Option<&str>,
    ) -> Option<Batch> {
        publication.is_queued.store(false, Ordering::Release);
        if publication.is_forgotten.load(Ordering::Acquire) {
            return None;
        }
        let is_doubtful = publication.is_doubtful.swap(false, Ordering::AcqRel);
        let (after, mut events, mut len) = (cursor.after(), Vec::new(), 0);
        let waker = Waker::from(Arc::clone(publication));
        let mut context = Context::from_waker(&waker);
        let mut is_tellable = publication.log.is_ordered();
        while is_tellable && len < BATCH_LEN_MAX {
            let took = cursor.poll(&mut context, |at, view| match Field::of(&view) {
                Some(field) => {
                    len += field.value.len();
                    events.push((at.seq(), field));
                }
                None => is_tellable = false,
            });
            if took != std::task::Poll::Ready(true) {
                break;
            }
        }
        // Said only with the last of the text: whoever finds it takes the text for whole.
        let conclusion = conclusion.filter(|_| len < BATCH_LEN_MAX);
        if len >= BATCH_LEN_MAX {
            waker.wake_by_ref();
        }
        let mut leaves = if cursor.is_done() { Leaves::Ended } else { Leaves::Open };
        if let Some(error) = publication.log.refusal() {
            (leaves, events) = (Leaves::Gone, vec![(after + 1, Field::refused(&error))]);
        } else if !is_tellable || publication.log.is_void() {
            (leaves, events) = (Leaves::Gone, vec![(after + 1, Field::gone())]);
        }
        if events.is_empty() && !is_doubtful && conclusion.is_none() {
            return None;
        }
        let last = events.last().map_or(after, |(seq, _)| *seq);
        let mut call = self.append(publication, after, conclusion.unwrap_or_default(), leaves);
        for (seq, field) in events {
            call.arg(seq).arg(field.name).arg(field.value);
        }
        Some(Batch { call, after, last, len, is_seal: conclusion.is_some(), leaves })
    }

    fn append(
        &self,
        publication: &Publication,
        after: Seq,
        conclusion: &str,
        leaves: Leaves,
    ) -> Cmd {
        let state = match leaves {
            Leaves::Open => "open",
            Leaves::Ended => "ended",
            Leaves::Gone => "gone",
        };
        let Publication { name, log_id, epoch, .. } = publication;
        let mut call = SCRIPTS.append.call(&[
            &keys::generation(name),
            &keys::log(log_id),
            &keys::held(&self.instance),
            &keys::running(name.owner),
        ]);
        call.arg(log_id).arg(epoch).arg(after).arg(conclusion).arg(state);
        call.arg(keys::word(name)).arg(name.stream_id.as_str());
        call.arg(self.live_time.as_secs()).arg(RETENTION.as_secs());
        call
    }

    async fn hear(
        &self,
        publication: &Arc<Publication>,
        cursor: &mut Follower,
        batch: &Batch,
        reply: &Reply,
    ) {
        let stream_id = &publication.name.stream_id;
        match reply {
            Reply::Tail(tail) if *tail == batch.last => {
                if batch.leaves != Leaves::Open {
                    self.forget(publication);
                }
            }
            Reply::Tail(tail) => {
                debug!(%stream_id, tail, after = batch.after, "redis has another end of the log");
                again(publication, cursor, *tail);
            }
            Reply::Missing if batch.leaves == Leaves::Gone => self.forget(publication),
            Reply::Missing => match self.claim_again(publication).await {
                Ok(true) => again(publication, cursor, 0),
                Ok(false) => self.leave_to_itself(publication),
                Err(Away) => again(publication, cursor, batch.after),
            },
            Reply::Other => self.leave_to_itself(publication),
            Reply::Lost => {
                if !publication.log.is_void() {
                    warn!(%stream_id, "another relay has taken this generation over");
                }
                self.forget(publication);
                publication.log.lose();
            }
        }
    }

    /// Tells a Redis that knows nothing of the generation, because it was away or has lost what it had. Returns whether the
    /// name is still the generation's.
    async fn claim_again(&self, publication: &Publication) -> Result<bool, Away> {
        let (name, log_id) = (&publication.name, &publication.log_id);
        let claimed = self.claim(&publication.log, log_id, publication.epoch).await?;
        debug!(stream_id = %name.stream_id, "told redis anew of a generation");
        Ok(claimed.first() == Some(log_id))
    }

    /// Claims the generation's name for this log. Returns the log, the fingerprint and the time of whose it is.
    pub(super) async fn claim(
        &self,
        log: &Log,
        log_id: &str,
        epoch: u64,
    ) -> Result<Vec<String>, Away> {
        let (opening, name) = (log.opening(), Name::of(log));
        let mut call = SCRIPTS.claim.call(&[
            &keys::generation(&name),
            &keys::held(&self.instance),
            &keys::running(name.owner),
            keys::INSTANCES,
            &keys::lease(&self.instance),
        ]);
        let write_token = opening.write_token.as_ref().map_or("", |token| token.expose_secret());
        call.arg(log_id).arg(&self.instance).arg(epoch).arg(write_token);
        call.arg(&opening.fingerprint).arg(opening.started_at.as_millisecond());
        call.arg(keys::word(&name)).arg(name.stream_id.as_str()).arg(self.live_time.as_secs());
        call.arg(LEASE.as_millis() as u64);
        self.redis.call(&call).await
    }

    /// Somebody else has claimed the name in a Redis that did not know of it: the generation goes on, and only here.
    fn leave_to_itself(&self, publication: &Arc<Publication>) {
        if !publication.log.is_void() {
            let stream_id = &publication.name.stream_id;
            warn!(%stream_id, "the name belongs to another generation in redis: this one is not shared");
        }
        self.forget(publication);
    }

    /// Forgets what ended so long ago that nobody would be told of it any more, had Redis been there.
    pub(super) fn forget_ended(&self) {
        for publication in self.all() {
            if publication.log.ended_at().is_some_and(|at| at.elapsed() > RETENTION) {
                self.forget(&publication);
            }
        }
        let is_known =
            |publication: &Arc<Publication>| !publication.is_forgotten.load(Ordering::Acquire);
        lock(&self.queue.waiting).retain(is_known);
    }

    fn forget(&self, publication: &Arc<Publication>) {
        publication.is_forgotten.store(true, Ordering::Release);
        let mut by_name = lock(&self.by_name);
        // The name may have been claimed again since.
        if by_name.get(&publication.name).is_some_and(|known| Arc::ptr_eq(known, publication)) {
            by_name.remove(&publication.name);
        }
        drop(by_name);
        lock(&publication.guests).clear();
    }
}

/// What comes after that position is to be told once more.
fn again(publication: &Arc<Publication>, cursor: &mut Follower, after: Seq) {
    cursor.go_to(after);
    Arc::clone(publication).wake();
}
