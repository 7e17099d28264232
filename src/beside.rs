//! A future that waits beside a busier one, and is polled only when it has been woken itself.
//!
//! A task is polled whatever woke it, and a `select!` in it asks all of its futures then. Who passes tokens on would ask, for
//! every token, timers that fire in minutes and signals that come once in a process, some of them behind a lock that all
//! tasks share.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Such a future.
#[derive(Debug)]
pub(crate) struct Beside<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    /// The bell's.
    waker: Waker,
}

#[derive(Debug)]
struct Bell {
    has_rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future> Beside<F> {
    /// The same future, which is polled the first time as if it had been woken.
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::new(Bell { has_rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&bell)), bell }
    }
}

impl<F: Future> Future for Beside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // In this order: whoever rings in between is either heard now or wakes the task.
        self.bell.task.register(context.waker());
        let has_rung = &self.bell.has_rung;
        if !(has_rung.load(Ordering::Acquire) && has_rung.swap(false, Ordering::AcqRel)) {
            return Poll::Pending;
        }
        let this = &mut *self;
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_first_and_when_it_was_woken_and_not_otherwise() {
        let (sender, mut receiver) = oneshot::channel();
        let polls = Cell::new(0);
        let mut beside = Beside::new(poll_fn(|context| {
            polls.set(polls.get() + 1);
            Pin::new(&mut receiver).poll(context)
        }));
        for _ in 0..10 {
            tokio::select! {
                biased;
                _ = &mut beside => panic!("nothing was sent"),
                () = yield_now() => {}
            }
        }
        assert_eq!(polls.get(), 1);
        sender.send("now").unwrap();
        assert_eq!(beside.await, Ok("now"));
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_lost() {
        for _ in 0..1_000 {
            let (sender, receiver) = oneshot::channel();
            let mut sending = tokio::task::JoinSet::new();
            sending.spawn(async move { sender.send(()) });
            // Ends, or the test does not.
            Beside::new(receiver).await.unwrap();
        }
    }
}
