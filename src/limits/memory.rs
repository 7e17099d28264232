//! Limits of one process: requests and running generations in its memory, tokens in its book.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::permit::{Dropped, Left};
use super::refusal::{over_budget, too_many_requests};
use super::running::Running;
use super::tokens::{Attempt, Day, Estimate, Held, Ledger, Used, Wish};
use super::windows::Windows;
use super::{Allowances, Limits, Quota, TooMany};
use crate::auth::Principal;
use crate::clock;
use crate::error::Error;
use crate::id::UserId;
use crate::outbox::Name;

/// Limits of one process.
pub struct MemoryLimits {
    pub(super) allowances: Allowances,
    pub(super) users: Windows<UserId>,
    /// Apart from the users, so that nobody's addresses crowd these out.
    addresses: Windows<IpAddr>,
    pub(super) running: Running,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) dropped: Dropped,
}

impl MemoryLimits {
    /// Nobody has asked for anything yet, but for what is in the book.
    #[must_use]
    pub fn new(allowances: Allowances, ledger: Arc<dyn Ledger>) -> Self {
        Self {
            allowances,
            users: Windows::new(),
            addresses: Windows::new(),
            running: Running::default(),
            ledger,
            dropped: Dropped::default(),
        }
    }
}

#[async_trait]
impl Limits for MemoryLimits {
    async fn check_address(&self, address: IpAddr) -> Result<Quota, TooMany> {
        self.addresses.count(address, self.allowances.address).map_err(too_many_requests)
    }

    async fn check(&self, caller: &Principal) -> Result<Quota, TooMany> {
        let rate = self.allowances.of(caller).rate;
        self.users.count(caller.user(), rate).map_err(too_many_requests)
    }

    async fn enter(&self, caller: &Principal, name: &Name) -> Result<(), Error> {
        self.running.enter(name, self.allowances.of(caller).streams)
    }

    async fn leave(&self, name: &Name) {
        self.running.leave(name);
    }

    fn leave_soon(&self, left: Left) {
        self.running.leave(&left.attempt.name);
        self.dropped.push(left);
    }

    fn has_budget(&self, caller: &Principal) -> bool {
        self.allowances.of(caller).tokens_per_day.is_some()
    }

    async fn reserve(
        &self,
        caller: &Principal,
        attempt: &Attempt,
        estimate: Estimate,
    ) -> Result<Option<Held>, Error> {
        let Some(limit) = self.allowances.of(caller).tokens_per_day else { return Ok(None) };
        let (now, attempt) = (clock::now(), attempt.clone());
        let day = Day::of(now);
        let wish = Wish { attempt, day, estimate, limit, elsewhere: 0, is_shared: false };
        match self.ledger.reserve(wish).await? {
            Ok(()) => Ok(Some(Held::Here)),
            Err(taken) => Err(over_budget(estimate, limit, taken, Day::rest(now))),
        }
    }

    async fn settle(&self, attempt: &Attempt, _held: Held, used: Used) -> Result<(), Error> {
        self.ledger.settle(attempt, used).await
    }

    async fn run(&self) -> Error {
        loop {
            for Left { attempt, held } in self.dropped.next().await {
                if held.is_some()
                    && let Err(error) = self.ledger.settle(&attempt, Used::All).await
                {
                    return error;
                }
            }
        }
    }
}
