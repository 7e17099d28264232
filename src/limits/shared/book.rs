//! Tokens a day in Redis: set aside and settled under the attempt's name, so that whoever ends it settles it.
//!
//! While Redis is away a relay keeps its own book, beginning from what Redis last said, and tells it afterwards what that
//! came to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::SCRIPTS;
use crate::clock;
use crate::error::Error;
use crate::id::UserId;
use crate::limits::refusal::over_budget;
use crate::limits::tokens::{Attempt, Day, Debt, Estimate, Held, Ledger, Used, Wish};
use crate::redis_client::Redis;

/// Debts that are told in one round trip.
const BATCH_LEN: u32 = 256;

/// Users of whom it is remembered what Redis last said, some 15 MiB of them. Past it another one is forgotten for each that
/// is new: while Redis is away, those begin anew.
const KNOWN_MAX: usize = 1 << 18;

pub(super) struct Book {
    redis: Arc<Redis>,
    ledger: Arc<dyn Ledger>,
    known: Mutex<Known>,
    owes: Notify,
}

/// What users had spent and set aside that day when Redis last said so.
struct Known {
    day: Day,
    by_user: HashMap<UserId, u64>,
}

impl Book {
    pub(super) fn new(redis: Arc<Redis>, ledger: Arc<dyn Ledger>) -> Self {
        let known = Mutex::new(Known { day: Day(0), by_user: HashMap::new() });
        Self { redis, ledger, known, owes: Notify::new() }
    }

    pub(super) async fn reserve(
        &self,
        attempt: &Attempt,
        limit: u64,
        estimate: Estimate,
    ) -> Result<Held, Error> {
        let user = attempt.name.owner;
        let mut call = SCRIPTS.reserve.call(&[&account(user)]);
        let (known_day, known) = self.known_of(user);
        call.arg(field(attempt)).arg(estimate.total()).arg(estimate.prompt).arg(limit);
        call.arg(known).arg(known_day.0);
        // It may be carried out though its answer does not come.
        let is_asked = self.redis.up_since().is_some();
        let Ok((granted, taken, day, left)) = self.redis.call::<(bool, u64, i64, u64)>(&call).await
        else {
            let reserved = self.reserve_here(attempt, limit, estimate).await;
            if is_asked && reserved.is_err() {
                self.give_back(attempt).await?;
            }
            return reserved;
        };
        self.learn(user, Day(day), Some(taken));
        if granted {
            Ok(Held::Shared(Day(day)))
        } else {
            Err(over_budget(estimate, limit, taken, Duration::from_secs(left)))
        }
    }

    async fn reserve_here(
        &self,
        attempt: &Attempt,
        limit: u64,
        estimate: Estimate,
    ) -> Result<Held, Error> {
        let now = clock::now();
        let day = Day::of(now);
        let (known_day, known) = self.known_of(attempt.name.owner);
        let elsewhere = if known_day == day { known } else { 0 };
        let attempt = attempt.clone();
        let wish = Wish { attempt, day, estimate, limit, elsewhere, is_shared: true };
        match self.ledger.reserve(wish).await? {
            Ok(()) => Ok(Held::Here),
            Err(taken) => Err(over_budget(estimate, limit, taken, Day::rest(now))),
        }
    }

    /// Gives back, as soon as Redis can be told, what may have been set aside there though it did not say so.
    async fn give_back(&self, attempt: &Attempt) -> Result<(), Error> {
        let (attempt, day) = (attempt.clone(), Day::of(clock::now()));
        self.ledger.owe(Debt { attempt, day, used: Used::NOTHING, is_new: true }).await?;
        self.owes.notify_one();
        Ok(())
    }

    pub(super) async fn settle(
        &self,
        attempt: &Attempt,
        held: Held,
        used: Used,
    ) -> Result<(), Error> {
        match held {
            Held::Here => {
                self.ledger.settle(attempt, used).await?;
                self.owes.notify_one();
                Ok(())
            }
            Held::Shared(day) => self.tell(attempt, Some(day), used).await,
        }
    }

    /// Settles what was set aside in Redis, now or as soon as it is back.
    pub(super) async fn tell(
        &self,
        attempt: &Attempt,
        day: Option<Day>,
        used: Used,
    ) -> Result<(), Error> {
        let call = self.settling(attempt, day, used, false);
        let day = day.unwrap_or_else(|| Day::of(clock::now()));
        if let Ok(taken) = self.redis.call::<Option<u64>>(&call).await {
            self.learn(attempt.name.owner, day, taken);
            return Ok(());
        }
        self.ledger.owe(Debt { attempt: attempt.clone(), day, used, is_new: false }).await?;
        self.owes.notify_one();
        Ok(())
    }

    /// Tells Redis what it does not know, for as long as it is polled, or until the book fails, which is returned.
    pub(super) async fn pay(&self) -> Error {
        loop {
            self.redis.up().await;
            let debts = match self.ledger.debts(BATCH_LEN).await {
                Ok(debts) => debts,
                Err(error) => return error,
            };
            if debts.is_empty() {
                self.owes.notified().await;
                continue;
            }
            let mut calls = redis::pipe();
            for (_, Debt { attempt, day, used, is_new }) in &debts {
                calls.add_command(self.settling(attempt, Some(*day), *used, *is_new));
            }
            // Else the client has told that it is away.
            if let Ok(taken) = self.redis.pipeline::<Vec<Option<u64>>>(&calls).await {
                for ((_, debt), taken) in debts.iter().zip(taken) {
                    self.learn(debt.attempt.name.owner, debt.day, taken);
                }
                // Told twice, if the process dies before, which changes nothing.
                let ids = debts.iter().map(|(id, _)| *id).collect();
                if let Err(error) = self.ledger.paid(ids).await {
                    return error;
                }
            }
        }
    }

    /// The call that settles so.
    fn settling(
        &self,
        attempt: &Attempt,
        day: Option<Day>,
        used: Used,
        is_new: bool,
    ) -> redis::Cmd {
        let mut call = SCRIPTS.settle.call(&[&account(attempt.name.owner)]);
        call.arg(field(attempt));
        call.arg(day.map(|Day(day)| day.to_string()).unwrap_or_default());
        // What was set aside is known there alone.
        let nothing = Estimate { prompt: 0, answer: 0 };
        let word = match used {
            Used::Counted { .. } => "counted",
            Used::Answer(_) => "answer",
            Used::All => "all",
        };
        let spent = used.of(nothing);
        call.arg(word).arg(spent.tokens).arg(spent.estimated).arg(is_new);
        let (known_day, known) = self.known_of(attempt.name.owner);
        call.arg(known).arg(known_day.0);
        call
    }

    /// Remembers what Redis said, unless it has lost the account: what is remembered is what is left of it then.
    fn learn(&self, user: UserId, day: Day, taken: Option<u64>) {
        let Some(taken) = taken else { return };
        // Every change under this lock is one insertion or removal, so a panic leaves nothing half done.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if day < known.day {
            return;
        }
        if day > known.day {
            *known = Known { day, by_user: HashMap::new() };
        }
        if known.by_user.len() >= KNOWN_MAX
            && !known.by_user.contains_key(&user)
            && let Some(any) = known.by_user.keys().next().copied()
        {
            known.by_user.remove(&any);
        }
        known.by_user.insert(user, taken);
    }

    /// What the user had spent and set aside when Redis last said so, and the day of that.
    fn known_of(&self, user: UserId) -> (Day, u64) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.day, known.by_user.get(&user).copied().unwrap_or(0))
    }
}

fn account(user: UserId) -> String {
    format!("relay:tokens:{user}")
}

/// What an attempt goes by in its user's account.
fn field(attempt: &Attempt) -> String {
    format!("{}:{}", attempt.name.stream_id, attempt.id)
}
