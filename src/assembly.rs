//! Turns for assembling prompts, beside the threads that stream.
//!
//! Counting tokens takes a processor a millisecond for some ten thousand characters, and a prompt may have millions. Short ones
//! are assembled as they come; long ones take turns, so that half of the machine streams on whatever is asked.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{Code, Error};

/// How long a short prompt is at most, in bytes: some six milliseconds of counting.
const SHORT_LEN_MAX: usize = 64 << 10;

/// How long a turn is waited for: as long as some thirty of the longest prompts take.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// Whose turn it is.
#[derive(Debug)]
pub struct Assembly {
    long: Arc<Semaphore>,
}

impl Default for Assembly {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, NonZero::get);
        Self { long: Arc::new(Semaphore::new((processors / 2).max(1))) }
    }
}

impl Assembly {
    /// Runs `assemble`, which makes a prompt of so many bytes, on a thread where it may take its time. Dropped meanwhile, it
    /// has its turn until it is done all the same.
    ///
    /// # Errors
    /// Those of `assemble`; `Overloaded` if no turn comes.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        len: usize,
        assemble: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = if len > SHORT_LEN_MAX {
            let turn = timeout(TURN_TIMEOUT, Arc::clone(&self.long).acquire_owned()).await;
            Some(turn.map_err(|_| overloaded())?.map_err(Error::internal)?)
        } else {
            None
        };
        let work = move || {
            // Until it is done: nobody may be waiting for it any more.
            let _turn = turn;
            assemble()
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
    }
}

fn overloaded() -> Error {
    Error::new(Code::Overloaded, "Too many long prompts are being counted. Try again in a moment.")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn long_prompts_take_turns_and_short_ones_do_not_wait() {
        let assembly = Assembly { long: Arc::new(Semaphore::new(1)) };
        let (go, wait) = mpsc::channel::<()>();
        let mut first =
            Box::pin(assembly.run(SHORT_LEN_MAX + 1, move || wait.recv().map_err(Error::internal)));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(assembly.run(SHORT_LEN_MAX + 1, || Ok(())));
        assert!(second.as_mut().now_or_never().is_none());
        assembly.run(SHORT_LEN_MAX, || Ok(())).await.unwrap();
        assert!(second.as_mut().now_or_never().is_none(), "the first has its turn");
        go.send(()).unwrap();
        first.await.unwrap();
        second.await.unwrap();
    }
}
