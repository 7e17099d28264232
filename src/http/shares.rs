//! Something of which there is so much for everybody together, and so much for one user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::UserId;

/// What there is, and who has how much of it.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    all_max: usize,
    own_max: usize,
    little: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of those who have something.
    own: HashMap<UserId, usize>,
}

/// What somebody has, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    user: UserId,
    amount: usize,
    taken: Arc<Mutex<Taken>>,
}

impl Shares {
    /// So much for everybody, and of it for one user. A little is for each user also where all is taken: a few must not leave
    /// nothing to the others.
    pub(super) fn new(all_max: usize, own_max: usize, little: usize) -> Self {
        Self { all_max, own_max, little, taken: Arc::default() }
    }

    /// So much for a user; `None` if it is more than is left for everybody, or for that one.
    pub(super) fn take(&self, user: UserId, amount: usize) -> Option<Share> {
        let mut taken = lock(&self.taken);
        let own = taken.own.get(&user).copied().unwrap_or_default();
        let is_left = |taken: usize, max: usize| amount <= max.saturating_sub(taken);
        let is_modest = is_left(own, self.little);
        if !is_left(own, self.own_max) || !(is_left(taken.all, self.all_max) || is_modest) {
            return None;
        }
        taken.all += amount;
        taken.own.insert(user, own + amount);
        Some(Share { user, amount, taken: Arc::clone(&self.taken) })
    }
}

impl Share {
    /// Gives back what is more than that.
    pub(super) fn shrink_to(&mut self, amount: usize) {
        let given_back = self.amount.saturating_sub(amount);
        let mut taken = lock(&self.taken);
        taken.all -= given_back;
        let own = taken.own.entry(self.user).or_default();
        *own -= given_back;
        if *own == 0 {
            taken.own.remove(&self.user);
        }
        self.amount -= given_back;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Numbers, whatever a panic leaves.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_takes_no_more_than_is_his_and_all_no_more_than_there_is() {
        let shares = Shares::new(10, 4, 0);
        let take = |user, amount| shares.take(UserId(Uuid::from_u128(user)), amount);
        assert!(take(1, 5).is_none());
        let first = take(1, 3).unwrap();
        assert!(take(1, 2).is_none());
        let _second = take(1, 1).unwrap();
        let _others = [take(2, 4).unwrap(), take(3, 2).unwrap()];
        assert!(take(4, 1).is_none());
        assert!(take(4, 0).is_some());
        drop(first);
        assert!(take(4, 4).is_none());
        let _rest = take(4, 3).unwrap();
        assert!(take(1, 1).is_none());
    }

    #[test]
    fn where_all_is_taken_there_is_a_little_for_each() {
        let shares = Shares::new(10, 10, 2);
        let take = |user, amount| shares.take(UserId(Uuid::from_u128(user)), amount);
        let _all = take(1, 10).unwrap();
        assert!(take(2, 3).is_none());
        let _little = [take(2, 1).unwrap(), take(2, 1).unwrap()];
        assert!(take(2, 1).is_none());
        assert!(take(1, 1).is_none());
    }

    #[test]
    fn who_has_nothing_is_forgotten() {
        let shares = Shares::new(10, 10, 0);
        for user in 0..10 {
            drop(shares.take(UserId(Uuid::from_u128(user)), 10).unwrap());
        }
        let mut share = shares.take(UserId(Uuid::nil()), 10).unwrap();
        share.shrink_to(12);
        assert_eq!(lock(&shares.taken).all, 10);
        share.shrink_to(3);
        assert_eq!(lock(&shares.taken).all, 3);
        drop(share);
        let taken = lock(&shares.taken);
        assert_eq!((taken.all, taken.own.len()), (0, 0));
    }
}
