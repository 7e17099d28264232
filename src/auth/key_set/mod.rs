//! The project's public keys, kept fresh: fetched at the start, every ten minutes, and for a key that is not known.
//!
//! One task fetches. Whoever needs a key that is not there asks it and waits; whoever needs one that is there waits for
//! nothing. While the source is down the keys that are known go on working.

mod source;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};
use url::Url;

use super::jwks::{self, Keys, Set, Unusable};
use source::{Project, Source};

/// How old the keys may become. Supabase's own caches keep them as long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The least time between two fetches for keys that are not known: a flood of made-up ones costs the source no more.
const COOLDOWN: Duration = Duration::from_secs(30);

/// The wait before the next try as long as nothing has ever been fetched.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How long one fetch may take, and whoever waits for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of a project.
pub struct KeySet {
    url: Url,
    source: Box<dyn Source>,
    keys: RwLock<Arc<Keys>>,
    /// Somebody needs a key that is not there.
    wanted: Notify,
    /// The last fetch; absent until the first has ended.
    last: watch::Sender<Option<Fetched>>,
    /// The keys that were passed over in the last set, so that the operator is told once of each, not at every fetch.
    passed_over: Mutex<Vec<(usize, Unusable)>>,
}

#[derive(Debug, Clone, Copy)]
struct Fetched {
    /// Whether this fetch or an earlier one brought a set, which may be empty.
    has_set: bool,
    /// When a set was last fetched for a key that was not known.
    asked_for_at: Option<Instant>,
}

impl Fetched {
    /// Whether asking for another fetch would be of no use: it would not be heard yet, or the next try is near anyway.
    fn is_final(&self) -> bool {
        !self.has_set || self.asked_for_at.is_some_and(|at| at.elapsed() < COOLDOWN)
    }
}

impl KeySet {
    /// A set that is empty until [`KeySet::keep_fresh`] runs.
    ///
    /// # Errors
    /// If no TLS client can be made, for want of certificate authorities on this machine.
    pub fn new(url: Url) -> Result<Self, reqwest::Error> {
        let project = Project::new(url.clone(), FETCH_TIMEOUT)?;
        Ok(Self::of(url, Box::new(project)))
    }

    fn of(url: Url, source: Box<dyn Source>) -> Self {
        let last = watch::Sender::new(None);
        let (keys, passed_over) = (RwLock::default(), Mutex::default());
        Self { url, source, keys, wanted: Notify::new(), last, passed_over }
    }

    /// Keeps the set fresh for as long as it is polled.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut last = Fetched { has_set: false, asked_for_at: None };
        loop {
            match self.refresh().await {
                Ok(keys) => {
                    info!(keys, "key set fetched");
                    last.has_set = true;
                }
                Err(reason) => {
                    warn!(
                        host = self.url.host_str(),
                        reason, "key set cannot be fetched; known keys go on working"
                    );
                }
            }
            // Whoever asked while this fetch ran asks again if it did not help.
            let _asked = self.wanted.notified().now_or_never();
            self.last.send_replace(Some(last));
            let asked_for = async {
                // Asked for earlier, it is fetched when the time for it has come.
                if let Some(at) = last.asked_for_at {
                    sleep_until(at + COOLDOWN).await;
                }
                self.wanted.notified().await;
            };
            tokio::select! {
                () = asked_for => last.asked_for_at = Some(Instant::now()),
                () = sleep(if last.has_set { REFRESH_INTERVAL } else { FIRST_RETRY }) => {}
            }
        }
    }

    /// Fetches the set once, for whoever does not keep it fresh: it is taken for all there is. Returns how many usable
    /// keys it has.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn fetch_once(&self) -> Result<usize, String> {
        let fetched = self.refresh().await;
        let last = Fetched { has_set: fetched.is_ok(), asked_for_at: Some(Instant::now()) };
        self.last.send_replace(Some(last));
        fetched
    }

    /// How many usable keys there are now, or why the set cannot be had; the keys that were known are kept then.
    async fn refresh(&self) -> Result<usize, String> {
        let set = self.source.fetch().await?;
        let Set { keys, passed_over } = jwks::parse(&set).map_err(|error| error.to_string())?;
        let len = keys.len();
        for (at, reason) in self.news(passed_over) {
            warn!(at, %reason, "a key of the set is passed over");
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(len)
    }

    /// Where it is fetched.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Whether there is a set, however old.
    #[must_use]
    pub fn has_set(&self) -> bool {
        self.last.borrow().is_some_and(|last| last.has_set)
    }

    /// The keys, after a fetch if `kid` is not among them and a fetch is due.
    pub(super) async fn keys_for(&self, kid: &str) -> Arc<Keys> {
        let mut last = self.last.subscribe();
        let fetched = async {
            while !self.known().contains_key(kid)
                && !last.borrow_and_update().as_ref().is_some_and(Fetched::is_final)
            {
                self.wanted.notify_one();
                // The sender is in `self`, so it is not gone.
                let _changed = last.changed().await;
            }
        };
        // Without an answer in time the token is judged by what is known.
        let _elapsed = timeout(FETCH_TIMEOUT, fetched).await;
        self.known()
    }

    fn known(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the operator is to be told of keys that check nothing: all of it, unless the last set had the same.
    fn news(&self, passed_over: Vec<(usize, Unusable)>) -> Vec<(usize, Unusable)> {
        let mut told = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == passed_over {
            return Vec::new();
        }
        told.clone_from(&passed_over);
        passed_over
    }
}

#[cfg(test)]
impl KeySet {
    /// A key set for tests of what uses it: what `answer` says, fetched once.
    pub(crate) async fn of_answer(answer: Result<serde_json::Value, &'static str>) -> Arc<Self> {
        let set = tests::fetched_from([Some(answer)]);
        let _fetched = set.fetch_once().await;
        Arc::new(set)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
