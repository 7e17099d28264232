//! Who goes when places run out: a connection that asks for nothing, for each that comes.
//!
//! To refuse whoever comes would leave the places to those who came first, and they may have come only to take them. One
//! that has just been opened is not sent away, as its request may be under way; nor is one that has a request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::connection::Activity;

/// How many connections are looked at for one that may go. The next time it is the ones behind them, so that nobody is
/// overlooked for long, and no accepted connection costs more than this.
const LOOKS_MAX: usize = 64;

/// All connections that are served.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<Members>>);

#[derive(Debug, Default)]
struct Members {
    /// In the order in which they came.
    members: BTreeMap<u64, (Arc<Activity>, CancellationToken)>,
    next: u64,
    /// Who is looked at first the next time.
    hand: u64,
}

impl Crowd {
    /// Counts a connection in until what is returned is dropped.
    pub(super) fn join(&self, activity: &Arc<Activity>) -> Member {
        let mut crowd = self.lock();
        let (id, leave) = (crowd.next, CancellationToken::new());
        crowd.next += 1;
        crowd.members.insert(id, (Arc::clone(activity), leave.clone()));
        Member { crowd: self.clone(), id, leave }
    }

    /// Tells one of the next few to leave that has been without a request for `patience`, if there is one.
    pub(super) fn send_one_away(&self, patience: Duration) {
        let mut crowd = self.lock();
        let Members { members, hand, .. } = &mut *crowd;
        let ring = members.range(*hand..).chain(members.range(..*hand)).take(LOOKS_MAX);
        let mut found = None;
        let mut last = None;
        for (id, (activity, _)) in ring {
            last = Some(*id);
            if activity.idle_since().is_some_and(|since| since.elapsed() >= patience) {
                found = Some(*id);
                break;
            }
        }
        if let Some(last) = last {
            *hand = last + 1;
        }
        if let Some((_, leave)) = found.and_then(|id| members.remove(&id)) {
            leave.cancel();
        }
    }

    /// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of a crowd.
#[derive(Debug)]
pub(super) struct Member {
    crowd: Crowd,
    id: u64,
    leave: CancellationToken,
}

impl Member {
    /// Returns when the connection has to go.
    pub(super) async fn is_sent_away(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.crowd.lock().members.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::connection::InFlight;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn join(crowd: &Crowd) -> (Arc<Activity>, Member) {
        let activity = Arc::new(Activity::new());
        let member = crowd.join(&activity);
        (activity, member)
    }

    fn sent_away(members: &[(Arc<Activity>, Member)]) -> Vec<bool> {
        members.iter().map(|(_, member)| member.leave.is_cancelled()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_been_silent_for_longest_goes() {
        let crowd = Crowd::default();
        let mut members: Vec<_> = (0..4).map(|_| join(&crowd)).collect();
        let request = InFlight::begin(&members[0].0);
        crowd.send_one_away(PATIENCE);
        assert_eq!(sent_away(&members), [false; 4]);
        advance(PATIENCE).await;
        members.push(join(&crowd));
        crowd.send_one_away(PATIENCE);
        crowd.send_one_away(PATIENCE);
        // The hand has gone round since the first look.
        assert_eq!(sent_away(&members).iter().filter(|is_sent| **is_sent).count(), 2);
        for _ in 0..10 {
            crowd.send_one_away(PATIENCE);
        }
        assert_eq!(sent_away(&members), [false, true, true, true, false]);
        drop(request);
        advance(PATIENCE).await;
        crowd.send_one_away(PATIENCE);
        crowd.send_one_away(PATIENCE);
        assert_eq!(sent_away(&members), [true; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_busy_ones_is_looked_through_bit_by_bit() {
        let crowd = Crowd::default();
        let members: Vec<_> = (0..3 * LOOKS_MAX).map(|_| join(&crowd)).collect();
        let busy = &members[..members.len() - 1];
        let _requests: Vec<_> =
            busy.iter().map(|(activity, _)| InFlight::begin(activity)).collect();
        advance(PATIENCE).await;
        for looks in 1..=3 {
            crowd.send_one_away(PATIENCE);
            assert_eq!(sent_away(&members).contains(&true), looks == 3);
        }
        drop(members);
        assert!(crowd.lock().members.is_empty());
    }
}
