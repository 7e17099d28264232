//! Waiting for a time that moves on: to be silent for so long, or to take so long for so much.
//!
//! A timer that is set again, or only looked at, for each token or each piece of a body costs more than what it watches over.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Made when it is first needed, and set again only when it fires.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Set>);

#[derive(Debug)]
struct Set {
    sleep: Pin<Box<Sleep>>,
    /// Whom it wakes; nobody until it has been polled.
    waker: Option<Waker>,
}

impl Timer {
    /// Ready once it is `due`. That may be another time with each call, later than that of the call before.
    pub(super) fn poll(&mut self, due: Instant, context: &mut Context<'_>) -> Poll<()> {
        let set =
            self.0.get_or_insert_with(|| Set { sleep: Box::pin(sleep_until(due)), waker: None });
        loop {
            let now = Instant::now();
            let is_known = |waker: &Waker| waker.will_wake(context.waker());
            if now < set.sleep.deadline() && set.waker.as_ref().is_some_and(is_known) {
                return Poll::Pending;
            }
            set.waker = Some(context.waker().clone());
            ready!(set.sleep.as_mut().poll(context));
            if due <= now {
                return Poll::Ready(());
            }
            set.sleep.as_mut().reset(due);
            set.waker = None;
        }
    }
}
