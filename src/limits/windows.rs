//! Requests in a window of time, counted in memory, for as many users or addresses as there is room for.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Quota, Rate};

/// Past this many windows those that are over are forgotten, so that memory is that of the users of one window.
const SWEEP_MIN: usize = 1_024;

/// Windows at most, some 25 MiB of them: addresses cost nothing, so there may be any number in one window. Where more than
/// half as many are not over, all are forgotten: a limit by address stops nobody who has a hundred thousand of them.
const LEN_MAX: usize = 1 << 18;

/// The windows of everybody who has asked lately.
#[derive(Debug)]
pub(super) struct Windows<K>(Mutex<Known<K>>);

#[derive(Debug)]
struct Known<K> {
    by_key: HashMap<K, Window>,
    /// The size at which the next sweep is due.
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    ends: Instant,
    requests: u32,
}

impl Window {
    fn quota(self, rate: Rate, now: Instant) -> Quota {
        Quota {
            rate,
            remaining: rate.requests.saturating_sub(self.requests),
            resets_in: self.ends.saturating_duration_since(now),
        }
    }
}

impl<K: Copy + Eq + Hash> Windows<K> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Known { by_key: HashMap::new(), sweep_at: SWEEP_MIN }))
    }

    /// Counts one request, unless it is one too many.
    pub(super) fn count(&self, key: K, rate: Rate) -> Result<Quota, Quota> {
        let now = Instant::now();
        let mut known = self.lock();
        let window = known.window(key, rate.window, now);
        if window.requests >= rate.requests {
            return Err(window.quota(rate, now));
        }
        window.requests += 1;
        Ok(window.quota(rate, now))
    }

    /// Whether it is known, without counting, that a request is one too many.
    pub(super) fn is_over(&self, key: K, rate: Rate) -> Option<Quota> {
        let now = Instant::now();
        let window = self.lock().by_key.get(&key).copied();
        let is_over = |window: &Window| window.ends > now && window.requests >= rate.requests;
        window.filter(is_over).map(|window| window.quota(rate, now))
    }

    /// Takes over what was counted elsewhere, as far as that is more than what is known here.
    pub(super) fn learn(&self, key: K, requests: u32, resets_in: Duration) {
        let now = Instant::now();
        let mut known = self.lock();
        let window = known.window(key, resets_in, now);
        if requests > window.requests {
            *window = Window { ends: now + resets_in, requests };
        }
    }

    /// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Known<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Known<K> {
    /// The key's window at `now`: a new one of that length, if there is none or it is over.
    fn window(&mut self, key: K, len: Duration, now: Instant) -> &mut Window {
        if self.by_key.len() >= self.sweep_at {
            self.by_key.retain(|_, window| window.ends > now);
            if self.by_key.len() > LEN_MAX / 2 {
                self.by_key.clear();
            }
            self.sweep_at = (self.by_key.len() * 2).max(SWEEP_MIN);
        }
        let window = self.by_key.entry(key).or_insert(Window { ends: now, requests: 0 });
        if window.ends <= now {
            *window = Window { ends: now + len, requests: 0 };
        }
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { requests: 60, window: Duration::from_secs(60) };

    #[tokio::test(start_paused = true)]
    async fn a_window_has_so_many_requests_and_then_none_until_it_is_over() {
        let windows = Windows::new();
        for remaining in (0..60).rev() {
            assert_eq!(windows.count(1, RATE).unwrap().remaining, remaining);
        }
        tokio::time::advance(Duration::from_secs(20)).await;
        let quota = windows.count(1, RATE).unwrap_err();
        assert_eq!((quota.remaining, quota.resets_in), (0, Duration::from_secs(40)));
        assert_eq!(windows.is_over(1, RATE), Some(quota));
        assert!(windows.count(2, RATE).is_ok());
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(windows.is_over(1, RATE), None);
        assert_eq!(windows.count(1, RATE).unwrap().remaining, 59);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_elsewhere_counts_here_until_its_window_is_over() {
        let windows = Windows::new();
        assert!(windows.count(1, RATE).is_ok());
        windows.learn(1, 59, Duration::from_secs(30));
        windows.learn(1, 58, Duration::from_secs(30));
        assert_eq!(windows.count(1, RATE).unwrap().remaining, 0);
        assert_eq!(windows.count(1, RATE).unwrap_err().resets_in, Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(windows.count(1, RATE).unwrap().remaining, 59);
    }

    #[tokio::test(start_paused = true)]
    async fn those_of_past_windows_are_forgotten() {
        let windows = Windows::new();
        for key in 0..10_000 {
            assert!(windows.count(key, RATE).is_ok());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(windows.lock().by_key.len() <= 2 * SWEEP_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_so_many_windows_and_no_more() {
        let windows = Windows::new();
        for key in 0..2 * LEN_MAX {
            assert!(windows.count(key, RATE).is_ok());
            assert!(windows.lock().by_key.len() <= LEN_MAX);
        }
    }
}
