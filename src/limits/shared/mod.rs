//! The limits that several relays share: they count in Redis, by Redis's clock, one script for each step.
//!
//! Each relay counts for itself as well. What Redis says is taken over there, so that a relay whose Redis goes away goes
//! on from what was last known, and so that whoever has asked too much is refused without asking Redis again.
//!
//! | key | what |
//! |---|---|
//! | `relay:requests:<user>` | the requests of a window, gone when it is over |
//! | `relay:streams:<user>` | sorted set: running generations as `<instance>:<stream>`, by when they run out |
//! | `relay:tokens:<user>` | hash, gone when its day is over: that `day`, tokens `taken` (spent and set aside), how many of them are `estimated`, `for:<stream>:<attempt>` what is set aside for each, `told:<stream>:<attempt>` that it is settled |

mod book;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use uuid::Uuid;

use self::book::Book;
use super::memory::MemoryLimits;
use super::permit::Left;
use super::refusal::{too_many_requests, too_many_streams};
use super::tokens::{Attempt, Estimate, Held, Used};
use super::{Limits, Quota, TooMany};
use crate::auth::Principal;
use crate::error::Error;
use crate::id::UserId;
use crate::outbox::Name;
use crate::redis_client::{Away, Redis, Script};

/// How long a generation counts as running after its relay was last heard of: what a user may have to wait after a relay
/// has died. Its generations are ended by another within as long.
const LEASE: Duration = Duration::from_secs(9);

/// How often that is renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3);

/// Users whose generations are told of in one round trip.
const SIDE_BY_SIDE: usize = 256;

struct Scripts {
    count: Script,
    enter: Script,
    renew: Script,
    reserve: Script,
    settle: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    count: Script::new(include_str!("scripts/count.lua")),
    enter: Script::new(include_str!("scripts/enter.lua")),
    renew: Script::new(include_str!("scripts/renew.lua")),
    reserve: Script::new(include_str!("scripts/reserve.lua")),
    settle: Script::new(include_str!("scripts/settle.lua")),
});

/// What Redis has to be taught for these limits.
pub(crate) fn scripts() -> Vec<&'static Script> {
    let Scripts { count, enter, renew, reserve, settle } = &*SCRIPTS;
    vec![count, enter, renew, reserve, settle]
}

/// The limits that several relays share.
pub struct SharedLimits {
    local: MemoryLimits,
    redis: Arc<Redis>,
    /// This process among all that have ever shared this Redis.
    instance: String,
    book: Book,
}

impl SharedLimits {
    /// Limits that are counted in `redis`, and as in `local` while that is away.
    pub(crate) fn new(local: MemoryLimits, redis: Arc<Redis>, instance: Uuid) -> Self {
        let instance = instance.to_string();
        let book = Book::new(Arc::clone(&redis), Arc::clone(&local.ledger));
        Self { local, redis, instance, book }
    }

    /// The generation among those of its user that run anywhere.
    fn member(&self, stream_id: impl std::fmt::Display) -> String {
        format!("{}:{stream_id}", self.instance)
    }

    async fn tell_of_leaving(&self, names: impl Iterator<Item = &Name>) {
        let mut calls = redis::pipe();
        for name in names {
            let member = self.member(&name.stream_id);
            calls.cmd("ZREM").arg(streams(name.owner)).arg(member).ignore();
        }
        // A Redis that is away lets them run out.
        let _told_by_the_client: Result<(), Away> = self.redis.pipeline(&calls).await;
    }

    /// Settles for permits that were dropped, for as long as it is polled, or until the book fails, which is returned.
    async fn settle_dropped(&self) -> Error {
        loop {
            let dropped = self.local.dropped.next().await;
            for left in dropped.chunks(SIDE_BY_SIDE) {
                self.tell_of_leaving(left.iter().map(|left| &left.attempt.name)).await;
            }
            for Left { attempt, held } in dropped {
                if let Some(held) = held
                    && let Err(error) = self.book.settle(&attempt, held, Used::All).await
                {
                    return error;
                }
            }
        }
    }

    /// Renews leases for as long as it is polled.
    async fn renew(&self) {
        let mut told = None;
        loop {
            self.redis.up().await;
            let up_since = self.redis.up_since();
            // Not each time: what is left at this moment would be back for as long as a lease.
            let is_anew = std::mem::replace(&mut told, up_since) != up_since;
            for users in self.local.running.all().chunks(SIDE_BY_SIDE) {
                let mut calls = redis::pipe();
                for (user, stream_ids) in users {
                    let mut call = SCRIPTS.renew.call(&[&streams(*user)]);
                    call.arg(LEASE.as_millis() as u64).arg(is_anew);
                    for stream_id in stream_ids {
                        call.arg(self.member(stream_id));
                    }
                    calls.add_command(call).ignore();
                }
                let _told_by_the_client: Result<(), Away> = self.redis.pipeline(&calls).await;
            }
            sleep(RENEWAL_INTERVAL).await;
        }
    }
}

fn streams(user: UserId) -> String {
    format!("relay:streams:{user}")
}

#[async_trait]
impl Limits for SharedLimits {
    /// Each relay by itself: whoever has many addresses would fill Redis, and nobody known has to wait for it.
    async fn check_address(&self, address: IpAddr) -> Result<Quota, TooMany> {
        self.local.check_address(address).await
    }

    /// Counts it in Redis, unless it is known to be one too many, and takes over what Redis says.
    async fn check(&self, caller: &Principal) -> Result<Quota, TooMany> {
        let (user, rate) = (caller.user(), self.local.allowances.of(caller).rate);
        let windows = &self.local.users;
        if let Some(quota) = windows.is_over(user, rate) {
            return Err(too_many_requests(quota));
        }
        let mut call = SCRIPTS.count.call(&[&format!("relay:requests:{user}")]);
        call.arg(rate.requests).arg(rate.window.as_millis() as u64);
        let Ok((requests, left, counts)) = self.redis.call::<(u32, u64, bool)>(&call).await else {
            return windows.count(user, rate).map_err(too_many_requests);
        };
        let resets_in = Duration::from_millis(left);
        windows.learn(user, requests, resets_in);
        let quota = Quota { rate, remaining: rate.requests.saturating_sub(requests), resets_in };
        if counts { Ok(quota) } else { Err(too_many_requests(quota)) }
    }

    async fn enter(&self, caller: &Principal, name: &Name) -> Result<(), Error> {
        // What runs here runs: there is no need to ask whether that is too much.
        self.local.enter(caller, name).await?;
        let max = self.local.allowances.of(caller).streams;
        let mut call = SCRIPTS.enter.call(&[&streams(name.owner)]);
        call.arg(self.member(&name.stream_id)).arg(max).arg(LEASE.as_millis() as u64);
        if let Ok(false) = self.redis.call::<bool>(&call).await {
            self.local.running.leave(name);
            return Err(too_many_streams(max));
        }
        Ok(())
    }

    async fn leave(&self, name: &Name) {
        self.local.running.leave(name);
        self.tell_of_leaving(std::iter::once(name)).await;
    }

    fn leave_soon(&self, left: Left) {
        self.local.leave_soon(left);
    }

    fn has_budget(&self, caller: &Principal) -> bool {
        self.local.has_budget(caller)
    }

    async fn reserve(
        &self,
        caller: &Principal,
        attempt: &Attempt,
        estimate: Estimate,
    ) -> Result<Option<Held>, Error> {
        match self.local.allowances.of(caller).tokens_per_day {
            Some(limit) => self.book.reserve(attempt, limit, estimate).await.map(Some),
            None => Ok(None),
        }
    }

    async fn settle(&self, attempt: &Attempt, held: Held, used: Used) -> Result<(), Error> {
        self.book.settle(attempt, held, used).await
    }

    fn share_budgets(&self) -> bool {
        self.local.allowances.have_budgets()
    }

    async fn settle_for(&self, attempt: &Attempt, used: Used) -> Result<(), Error> {
        self.book.tell(attempt, None, used).await
    }

    async fn run(&self) -> Error {
        tokio::select! {
            error = self.settle_dropped() => error,
            error = self.book.pay() => error,
            () = self.renew() => Error::internal("the renewal of leases has ended"),
        }
    }
}
