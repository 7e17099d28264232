//! Limits in the memory of one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Limits, Permit, Quota, Rate};
use crate::auth::Principal;
use crate::error::{Code, Error};
use crate::id::UserId;

/// Generations at once in the whole process. Each holds two sockets and its text; at some 40 KiB each this many fit
/// into 512 MiB.
pub const GENERATIONS_MAX: usize = 12_000;

/// Past this many windows those that are over are forgotten, so that memory is bounded by the users of one window.
const WINDOWS_SWEEP_MIN: usize = 1_024;

/// What a caller over a limit of generations is told to wait: about as long as an answer takes.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Limits in the memory of one process.
#[derive(Debug)]
pub struct MemoryLimits {
    rate: Rate,
    streams_per_user: usize,
    windows: Mutex<Windows>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Windows {
    by_user: HashMap<UserId, Window>,
    /// The size at which the next sweep is due.
    sweep_at: usize,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    requests: u32,
}

/// Generations at once.
#[derive(Debug, Default)]
struct Counts {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    by_user: HashMap<UserId, usize>,
    total: usize,
}

impl MemoryLimits {
    /// No user has asked for anything yet.
    #[must_use]
    pub fn new(rate: Rate, streams_per_user: usize) -> Self {
        Self { rate, streams_per_user, windows: Mutex::default(), counts: Arc::default() }
    }
}

impl Limits for MemoryLimits {
    fn check(&self, caller: &Principal) -> Result<Quota, (Quota, Error)> {
        let now = Instant::now();
        let rate = self.rate;
        let mut windows = lock(&self.windows);
        windows.sweep(now, rate.window);
        let window =
            windows.by_user.entry(caller.user()).or_insert(Window { began: now, requests: 0 });
        if now.duration_since(window.began) >= rate.window {
            *window = Window { began: now, requests: 0 };
        }
        let resets_in = rate.window.saturating_sub(now.duration_since(window.began));
        if window.requests >= rate.requests {
            let quota = Quota { rate, remaining: 0, resets_in };
            let error = Error::new(
                Code::RateLimited,
                format!(
                    "More than {} requests in {} s. Wait for the time in `Retry-After`.",
                    rate.requests,
                    rate.window.as_secs()
                ),
            );
            return Err((quota, error.with_retry_after(resets_in)));
        }
        window.requests += 1;
        Ok(Quota { rate, remaining: rate.requests - window.requests, resets_in })
    }

    fn admit(&self, caller: &Principal) -> Result<Permit, Error> {
        let user = caller.user();
        let mut running = lock(&self.counts.running);
        if running.total >= GENERATIONS_MAX {
            return Err(Error::new(
                Code::Overloaded,
                "The relay writes as many answers as it can. Try again in a moment.",
            )
            .with_retry_after(RETRY_AFTER));
        }
        let of_user = running.by_user.entry(user).or_default();
        if *of_user >= self.streams_per_user {
            return Err(Error::new(
                Code::TooManyStreams,
                format!(
                    "You have {} answers being written. Wait for one to end, or stop one.",
                    self.streams_per_user
                ),
            )
            .with_retry_after(RETRY_AFTER));
        }
        *of_user += 1;
        running.total += 1;
        let counts = Arc::clone(&self.counts);
        Ok(Permit::new(move || counts.give_back(user)))
    }
}

impl Windows {
    fn sweep(&mut self, now: Instant, window: Duration) {
        if self.by_user.len() >= self.sweep_at.max(WINDOWS_SWEEP_MIN) {
            self.by_user.retain(|_, of_user| now.duration_since(of_user.began) < window);
            self.sweep_at = self.by_user.len() * 2;
        }
    }
}

impl Counts {
    fn give_back(&self, user: UserId) {
        let mut running = lock(&self.running);
        running.total -= 1;
        if let Some(of_user) = running.by_user.get_mut(&user) {
            *of_user -= 1;
            if *of_user == 0 {
                running.by_user.remove(&user);
            }
        }
    }
}

/// Nothing under these locks can panic half-way, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const RATE: Rate = Rate { requests: 60, window: Duration::from_secs(60) };

    fn user(number: u128) -> Principal {
        Principal::for_tests(UserId(Uuid::from_u128(number)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_has_so_many_requests_and_then_none_until_it_is_over() {
        let limits = MemoryLimits::new(RATE, 1);
        for remaining in (0..60).rev() {
            assert_eq!(limits.check(&user(1)).unwrap().remaining, remaining);
        }
        tokio::time::advance(Duration::from_secs(20)).await;
        let (quota, error) = limits.check(&user(1)).unwrap_err();
        assert_eq!(
            (quota.resets_in, error.retry_after()),
            (Duration::from_secs(40), Some(Duration::from_secs(40)))
        );
        assert!(limits.check(&user(2)).is_ok());
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(limits.check(&user(1)).unwrap().remaining, 59);
    }

    #[tokio::test(start_paused = true)]
    async fn users_of_past_windows_are_forgotten() {
        let limits = MemoryLimits::new(RATE, 1);
        for number in 0..10_000 {
            assert!(limits.check(&user(number)).is_ok());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(lock(&limits.windows).by_user.len() <= 2 * WINDOWS_SWEEP_MIN);
    }

    #[test]
    fn a_permit_comes_back_when_it_is_dropped() {
        let limits = MemoryLimits::new(RATE, 2);
        let held = [limits.admit(&user(1)).unwrap(), limits.admit(&user(1)).unwrap()];
        assert_eq!(limits.admit(&user(1)).unwrap_err().code(), Code::TooManyStreams);
        assert!(limits.admit(&user(2)).is_ok());
        drop(held);
        assert!(limits.admit(&user(1)).is_ok());
        assert_eq!(lock(&limits.counts.running).total, 0);
    }
}
