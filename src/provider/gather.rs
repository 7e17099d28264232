//! Passing on together what has come together.
//!
//! Each append to a journal wakes every follower, and each follower writes to its socket, which costs more than all else
//! on the path of a token. A provider that is quick, or a relay that is busy, has more than one token waiting: those go the
//! way together. A lone token waits for nobody but the tasks that can run at this moment.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;

use super::{Batch, Progress};
use crate::error::Error;

/// How many pieces go the way together at most.
const PIECES_MAX: usize = 64;

/// How much text does, in bytes: what a follower writes in one go.
const TEXT_LEN_MAX: usize = 16 << 10;

/// How long is gathered, which is less than a screen needs to show anything.
const GATHERING_TIME: Duration = Duration::from_millis(10);

/// Adds to `batch`, which has the first piece, what else is there already. `read` is polled for each next piece, and lets go
/// of nothing when it is not ready. Ends with what `read` said last, if that was not [`Progress::More`].
pub(super) async fn gather(
    batch: &mut Batch,
    mut read: impl FnMut(&mut Context<'_>, &mut Batch) -> Poll<Result<Progress, Error>>,
) -> Result<Progress, Error> {
    let until = Instant::now() + GATHERING_TIME;
    for _ in 1..PIECES_MAX {
        if batch.len() >= TEXT_LEN_MAX {
            break;
        }
        // The connection is read in a task of its own, which hands over one piece at a time: it is its turn.
        yield_now().await;
        let next = poll_fn(|context| Poll::Ready(read(context, batch))).await;
        match next {
            Poll::Ready(Ok(Progress::More)) if Instant::now() < until => {}
            Poll::Ready(progress) => return progress,
            Poll::Pending => break,
        }
    }
    Ok(Progress::More)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::future::Future;
    use std::pin::pin;

    use super::*;
    use crate::event::Kind;
    use crate::provider::Completed;

    /// What a provider has sent already: text, or how that ended.
    type Sent = VecDeque<Result<&'static str, Result<Progress, Error>>>;

    fn end() -> Progress {
        Progress::Completed(Completed { finish_reason: "stop".to_owned(), usage: None })
    }

    /// Gathers behind a first piece; what there is in the end, and what was said of it.
    async fn gathered(sent: &mut Sent) -> (String, Result<Progress, Error>) {
        let mut batch = Batch::new(true);
        batch.push(Kind::Token, "<");
        let progress = gather(&mut batch, |_, batch| match sent.pop_front() {
            None => Poll::Pending,
            Some(Ok(text)) => {
                batch.push(Kind::Token, text);
                Poll::Ready(Ok(Progress::More))
            }
            Some(Err(end)) => Poll::Ready(end),
        })
        .await;
        (batch.pieces().map(|(_, text)| text).collect(), progress)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_taken_in_order_and_nothing_is_waited_for() {
        let mut sent = Sent::from([Ok("a"), Ok("b"), Ok("c")]);
        let (text, progress) = gathered(&mut sent).await;
        assert_eq!((text.as_str(), progress.unwrap()), ("<abc", Progress::More));
        let (text, progress) = gathered(&mut Sent::new()).await;
        assert_eq!((text.as_str(), progress.unwrap()), ("<", Progress::More), "a lone token");
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_it_in_pieces_in_bytes_and_in_time() {
        let mut sent: Sent = (0..1_000).map(|_| Ok("x")).collect();
        assert_eq!(gathered(&mut sent).await.0.len(), PIECES_MAX);
        assert_eq!(sent.len(), 1_000 - (PIECES_MAX - 1), "and the rest is still there");

        let long: &str = "x".repeat(TEXT_LEN_MAX / 2).leak();
        let mut sent: Sent = (0..1_000).map(|_| Ok(long)).collect();
        assert_eq!(gathered(&mut sent).await.0.len(), 1 + TEXT_LEN_MAX);

        let (mut batch, reads) = (Batch::new(true), Cell::new(0));
        let slow = gather(&mut batch, |_, batch| {
            reads.set(reads.get() + 1);
            batch.push(Kind::Token, "x");
            Poll::Ready(Ok(Progress::More))
        });
        let mut slow = pin!(slow);
        // Whenever it lets others run, they take their time.
        while poll_fn(|context| Poll::Ready(slow.as_mut().poll(context))).await.is_pending() {
            tokio::time::advance(GATHERING_TIME / 2).await;
        }
        assert_eq!(reads.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_an_end_or_a_failure_is_kept() {
        let mut sent = Sent::from([Ok("a"), Ok("b"), Err(Ok(end())), Ok("c")]);
        let (text, progress) = gathered(&mut sent).await;
        assert_eq!((text.as_str(), progress.unwrap()), ("<ab", end()));
        let mut sent = Sent::from([Ok("a"), Err(Err(Error::internal("broken"))), Ok("c")]);
        let (text, progress) = gathered(&mut sent).await;
        assert_eq!((text.as_str(), progress.is_err()), ("<a", true));
    }
}
