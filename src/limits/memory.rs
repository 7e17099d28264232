//! Limits in the memory of one process.

use std::net::IpAddr;

use async_trait::async_trait;

use super::refusal::too_many_requests;
use super::running::Running;
use super::windows::Windows;
use super::{Allowances, Limits, Quota, TooMany};
use crate::auth::Principal;
use crate::error::Error;
use crate::id::UserId;
use crate::outbox::Name;

/// Limits in the memory of one process.
#[derive(Debug)]
pub struct MemoryLimits {
    pub(super) allowances: Allowances,
    pub(super) users: Windows<UserId>,
    /// Apart from the users, so that nobody's addresses crowd these out.
    pub(super) addresses: Windows<IpAddr>,
    pub(super) running: Running,
}

impl MemoryLimits {
    /// Nobody has asked for anything yet.
    #[must_use]
    pub fn new(allowances: Allowances) -> Self {
        Self {
            allowances,
            users: Windows::new(),
            addresses: Windows::new(),
            running: Running::default(),
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

    fn leave_soon(&self, name: Name) {
        self.running.leave(&name);
    }
}
