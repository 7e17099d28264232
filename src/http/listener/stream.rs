//! The streams of an HTTP/2 connection: each a task, and none that waits for ever for its reader.
//!
//! A reader of one stream can stop reading while the connection goes on (its flow-control window is empty), so the
//! socket notices nothing, and the other streams, which may be other users' behind a proxy, must not either. hyper has no
//! time-out here and does not ask a body for more meanwhile, so the body cannot notice: the task does.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::debug;

tokio::task_local! {
    /// Since when hyper has had something of this stream's body to write, and has not come back for more.
    static UNREAD_SINCE: Cell<Option<Instant>>;
}

/// Notes that a body was asked for more, and whether it had something. Outside of HTTP/2 it is the socket that counts.
pub(super) fn note(has_more: bool) {
    let since = has_more.then(Instant::now);
    let _no_stream = UNREAD_SINCE.try_with(|unread_since| unread_since.set(since));
}

/// Runs streams, and resets those of which nothing is read for `patience`.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor {
    pub(super) tasks: TaskTracker,
    pub(super) patience: Duration,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let patience = self.patience;
        let until_unread = async move {
            tokio::select! {
                biased;
                _ended = stream => {}
                () = unread(patience) => debug!("nothing was read of a stream"),
            }
        };
        self.tasks.spawn(UNREAD_SINCE.scope(Cell::new(None), until_unread));
    }
}

/// Returns when nothing of this task's stream has been read for so long.
async fn unread(patience: Duration) {
    loop {
        match UNREAD_SINCE.with(Cell::get) {
            Some(since) if since.elapsed() >= patience => return,
            Some(since) => sleep_until(since + patience).await,
            None => sleep(patience).await,
        }
    }
}
