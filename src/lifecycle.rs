//! The relay's tasks and their end: nothing runs that shutdown does not wait for.
//!
//! Shutdown has two steps. *Draining*: no new work begins, what runs may finish. *Ending*: what still runs is ended and
//! saved. A second signal goes straight to the second step.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::error::Error;

/// How long ended generations may take to save and to tell their followers before the process ends all the same.
/// A save is tried for five seconds before its text goes to the outbox.
const ENDING_TIME: Duration = Duration::from_secs(10);

/// All tasks of the process. Cloning gives another handle to the same.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    generations: TaskTracker,
    services: TaskTracker,
    draining: CancellationToken,
    ending: CancellationToken,
    ended: CancellationToken,
    failure: Arc<Failing>,
}

/// Why the process cannot go on.
#[derive(Debug, Default)]
struct Failing {
    happened: CancellationToken,
    error: OnceLock<Error>,
}

impl Tasks {
    /// Starts a generation, which shutdown waits for.
    pub fn spawn(&self, generation: impl Future<Output = ()> + Send + 'static) {
        self.generations.spawn(generation);
    }

    /// Starts what runs as long as the process does. It is dropped when all generations have ended.
    pub fn serve(&self, service: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.services.spawn(async move { ended.run_until_cancelled(service).await });
    }

    /// Ends the process: it cannot keep what it promises. It is better started anew, on what its disk really has.
    pub fn fail(&self, error: Error) {
        error!(error = error.to_operator(), "the process cannot go on");
        // The first is the cause of the others.
        let _first = self.failure.error.set(error);
        self.failure.happened.cancel();
    }

    /// Returns when the process cannot go on, and why.
    pub async fn failed(&self) -> Error {
        self.failure.happened.cancelled().await;
        self.failure.error.get().cloned().unwrap_or_else(|| Error::internal("no reason"))
    }

    /// Whether no new work may begin.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Cancelled when no new work may begin.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Cancelled when running generations have to end.
    #[must_use]
    pub fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// Lets no new work begin, gives running generations `drain` to finish, ends the rest, and returns when all are
    /// saved or their time is over. `hurry` cuts the first part short.
    pub async fn shut_down(&self, drain: Duration, hurry: impl Future<Output = ()>) {
        self.draining.cancel();
        self.generations.close();
        info!(generations = self.generations.len(), drain_s = drain.as_secs_f64(), "draining");
        tokio::select! {
            () = self.generations.wait() => {}
            () = tokio::time::sleep(drain) => {}
            () = hurry => {}
        }
        self.ending.cancel();
        if tokio::time::timeout(ENDING_TIME, self.generations.wait()).await.is_err() {
            warn!(generations = self.generations.len(), "generations did not end in time");
        }
        self.ended.cancel();
    }
}

/// Signals that ask the process to end.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on signals are noticed here and do not end the process by themselves.
    ///
    /// # Errors
    /// If the operating system does not let signals be noticed.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns at the next SIGTERM or SIGINT.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
