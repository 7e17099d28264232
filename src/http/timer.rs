//! Waiting for a time that moves on: to be silent for so long, or to take so long for so much.
//!
//! A timer that is set again, or only looked at, for each token or each piece of a body costs more than what it watches over.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::task::coop;
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
            // A task that has done too much in one go is asked again, and its timer has not been heard of until then.
            set.waker = coop::has_budget_remaining().then(|| context.waker().clone());
            ready!(set.sleep.as_mut().poll(context));
            if due <= now {
                return Poll::Ready(());
            }
            set.sleep.as_mut().reset(due);
            set.waker = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use tokio::task::yield_now;
    use tokio::time::{advance, timeout};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets a second go by. Returns how often somebody was woken in it.
    async fn second(count: &Count) -> usize {
        advance(Duration::from_secs(1)).await;
        yield_now().await;
        count.0.swap(0, Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asked_last_is_woken_when_it_is_due() {
        let (first, last) = (Arc::<Count>::default(), Arc::<Count>::default());
        let (firsts, lasts) = (Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&last)));
        let (mut first_context, mut context) =
            (Context::from_waker(&firsts), Context::from_waker(&lasts));
        let (mut timer, began) = (Timer::default(), Instant::now());
        let due = |seconds| began + Duration::from_secs(seconds) - Duration::from_millis(10);
        assert!(timer.poll(due(2), &mut first_context).is_pending());
        assert!(timer.poll(due(2), &mut context).is_pending());
        assert_eq!(second(&last).await, 0);
        // It moves on, so it fires for nothing once, and is set again.
        for _ in 0..3 {
            assert!(timer.poll(due(3), &mut context).is_pending());
        }
        assert_eq!(second(&last).await, 1);
        for _ in 0..3 {
            assert!(timer.poll(due(3), &mut context).is_pending());
        }
        assert_eq!(second(&last).await, 1);
        assert!(timer.poll(due(3), &mut context).is_ready());
        assert!(timer.poll(due(4), &mut context).is_pending());
        assert_eq!(second(&last).await, 1);
        assert!(timer.poll(due(4), &mut context).is_ready());
        assert_eq!(first.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_has_done_too_much_is_woken_all_the_same() {
        let (mut timer, due) = (Timer::default(), Instant::now() + Duration::from_secs(1));
        let mut is_first = true;
        let waiting = poll_fn(move |context| {
            if std::mem::take(&mut is_first) {
                while let Poll::Ready(budget) = coop::poll_proceed(context) {
                    budget.made_progress();
                }
            }
            timer.poll(due, context)
        });
        // Beside another task, which has a budget of its own to see that it takes too long.
        let waited = tokio::task::JoinSet::from_iter([waiting]).join_all();
        timeout(Duration::from_secs(60), waited).await.expect("it is not woken");
    }
}
