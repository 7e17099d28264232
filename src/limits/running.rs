//! Running generations, counted in memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::refusal::{overloaded, too_many_streams};
use crate::error::Error;
use crate::id::{StreamId, UserId};
use crate::outbox::Name;

/// Generations at once in the whole process. Each holds two sockets and its text; at some 40 KiB each this many fit
/// into 512 MiB.
const GENERATIONS_MAX: usize = 12_000;

/// What is running here.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    by_user: HashMap<UserId, HashSet<StreamId>>,
    total: usize,
}

impl Running {
    /// Counts one more, if there may be `max` of its user.
    ///
    /// # Errors
    /// `TooManyStreams`, `Overloaded`.
    pub(super) fn enter(&self, name: &Name, max: usize) -> Result<(), Error> {
        let mut names = self.lock();
        if names.total >= GENERATIONS_MAX {
            return Err(overloaded());
        }
        let of_user = names.by_user.entry(name.owner).or_default();
        if of_user.len() >= max {
            return Err(too_many_streams(max));
        }
        if of_user.insert(name.stream_id.clone()) {
            names.total += 1;
        }
        Ok(())
    }

    /// Counts it no more.
    pub(super) fn leave(&self, name: &Name) {
        let mut names = self.lock();
        let Some(of_user) = names.by_user.get_mut(&name.owner) else { return };
        let was_there = of_user.remove(&name.stream_id);
        if of_user.is_empty() {
            names.by_user.remove(&name.owner);
        }
        names.total -= usize::from(was_there);
    }

    /// Everything that runs, by user.
    pub(super) fn all(&self) -> Vec<(UserId, Vec<StreamId>)> {
        let names = self.lock();
        let of_user = |(user, streams): (&UserId, &HashSet<StreamId>)| {
            (*user, streams.iter().cloned().collect())
        };
        names.by_user.iter().map(of_user).collect()
    }

    /// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::error::Code;

    fn name(user: u128, stream: &str) -> Name {
        Name { owner: UserId(Uuid::from_u128(user)), stream_id: stream.parse().unwrap() }
    }

    #[test]
    fn a_place_comes_back_when_it_is_left_once() {
        let running = Running::default();
        running.enter(&name(1, "a"), 2).unwrap();
        running.enter(&name(1, "b"), 2).unwrap();
        assert_eq!(running.enter(&name(1, "c"), 2).unwrap_err().code(), Code::TooManyStreams);
        running.enter(&name(2, "a"), 2).unwrap();
        running.leave(&name(1, "a"));
        running.leave(&name(1, "a"));
        running.enter(&name(1, "c"), 2).unwrap();
        assert_eq!(running.enter(&name(1, "d"), 2).unwrap_err().code(), Code::TooManyStreams);
        for name in [name(1, "b"), name(1, "c"), name(2, "a")] {
            running.leave(&name);
        }
        assert!(running.all().is_empty());
        assert_eq!(running.lock().total, 0);
    }

    #[test]
    fn a_user_who_is_refused_leaves_nothing() {
        let running = Running::default();
        for stream in 0..GENERATIONS_MAX {
            running.enter(&name(stream as u128, "a"), 1).unwrap();
        }
        assert_eq!(running.enter(&name(u128::MAX, "a"), 1).unwrap_err().code(), Code::Overloaded);
        assert_eq!(running.all().len(), GENERATIONS_MAX);
    }
}
