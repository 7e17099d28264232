//! A generation that is written elsewhere, told here event by event.
//!
//! What tells it may repeat itself, in other pieces than before, and may have lost something: an event is taken as far as
//! it is new, and one that does not join what is here is said to be a gap, never passed over.

use std::sync::Arc;

use tokio::time::Instant;

use super::log::{Log, Phase};
use crate::error::Error;
use crate::event::{End, Kind, SEQ_START, Seq, Start};
use crate::text::discreet;

/// One event of a generation, as it is told.
#[derive(Clone, PartialEq)]
pub(super) enum Told {
    Start(Start),
    Text(Kind, String),
    End(End),
    /// It could not begin, and never will.
    Refused(Refusal),
    /// How it goes on is not told here any more.
    Gone,
}

discreet!(Told {});

/// Why a generation could not begin. Equal to nothing but itself, because errors are not compared.
#[derive(Debug, Clone)]
pub(super) struct Refusal(pub(super) Error);

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        self.0.code() == other.0.code() && self.0.message() == other.0.message()
    }
}

/// What became of an event that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// There may be more.
    More,
    /// It was the last.
    Last,
    /// Something before it is missing.
    Gap,
}

impl Log {
    /// From now on it is written elsewhere.
    pub(super) fn be_mirror(&self) {
        self.lock().is_mirror = true;
    }

    /// Takes the event at `seq` as far as it is new, and wakes followers.
    pub(super) fn hear(self: &Arc<Self>, seq: Seq, told: Told) -> Heard {
        let (heard, waiting) = {
            let mut state = self.lock();
            let heard = state.hear(seq, told);
            (heard, state.followers.take_waiting())
        };
        for follower in waiting {
            follower.wake();
        }
        heard
    }
}

impl super::log::State {
    fn hear(&mut self, seq: Seq, told: Told) -> Heard {
        let text_end = SEQ_START + self.text.len() as Seq;
        match (told, &self.phase) {
            (_, Phase::Ended(..) | Phase::Refused(_) | Phase::Lost) => Heard::Last,
            (Told::Gone, _) => {
                self.phase = Phase::Lost;
                Heard::Last
            }
            (Told::Refused(Refusal(error)), Phase::Opening) => {
                self.phase = Phase::Refused(error);
                Heard::Last
            }
            (Told::Start(start), Phase::Opening) => {
                self.phase = Phase::Open(Arc::new(start));
                Heard::More
            }
            (Told::Start(_), Phase::Open(_)) => Heard::More,
            (Told::Text(kind, text), Phase::Open(_)) => self.hear_text(seq, kind, &text),
            (Told::End(end), Phase::Open(start)) if seq == text_end + 1 => {
                self.phase = Phase::Ended(Arc::clone(start), Arc::new(end), Instant::now());
                self.text.shrink_to_fit();
                Heard::Last
            }
            (Told::Text(..) | Told::End(_) | Told::Refused(_), _) => Heard::Gap,
        }
    }

    /// `seq` is where the text ends.
    fn hear_text(&mut self, seq: Seq, kind: Kind, text: &str) -> Heard {
        let text_end = SEQ_START + self.text.len() as Seq;
        let Some(begin) = seq.checked_sub(text.len() as Seq).filter(|begin| *begin <= text_end)
        else {
            return Heard::Gap;
        };
        if seq <= text_end {
            return Heard::More;
        }
        // At most the length of a string in memory, so it fits.
        let known = usize::try_from(text_end - begin).unwrap_or(text.len());
        match text.get(known..) {
            Some(new) => {
                self.push(kind, new);
                Heard::More
            }
            // Not the text that is here, then.
            None => Heard::Gap,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::journal::Opening;

    fn opened() -> Arc<Log> {
        let log = Log::new(Opening::for_tests());
        assert_eq!(log.hear(SEQ_START, Told::Start(Start::for_tests())), Heard::More);
        log
    }

    fn token(text: &str) -> Told {
        Told::Text(Kind::Token, text.to_owned())
    }

    fn text(log: &Log) -> String {
        log.lock().text_of(Kind::Token)
    }

    #[test]
    fn what_is_missing_is_never_passed_over() {
        let log = opened();
        assert_eq!(log.hear(1 + 4, token("Once")), Heard::More);
        assert_eq!(log.hear(1 + 9, token("upon")), Heard::Gap);
        assert_eq!(log.hear(1 + 11, Told::Gone), Heard::Last);
        assert_eq!(text(&log), "Once");
        assert!(log.is_void(), "its followers ask again");
    }

    #[test]
    fn text_that_is_not_what_is_here_is_a_gap() {
        let log = opened();
        assert_eq!(log.hear(1 + 2, token("ab")), Heard::More);
        assert_eq!(log.hear(1 + 5, token("🦊c")), Heard::Gap, "cut in the middle of a character");
    }

    proptest! {
        /// The same text in two cuts, the second one beginning anywhere before the end of what was heard of the first.
        #[test]
        fn repetitions_in_other_pieces_add_nothing(
            whole in "[a🦊\n]{1,30}", first in 0..30usize, again in 0..30usize, cuts in proptest::collection::vec(1..5usize, 30),
        ) {
            let bounds: Vec<usize> = whole.char_indices().map(|(at, _)| at).chain([whole.len()]).collect();
            let (first, again) = (bounds[first % bounds.len()], bounds[again % bounds.len()]);
            let again = again.min(first);
            let log = opened();
            let heard = log.hear(1 + first as Seq, token(&whole[..first]));
            prop_assert_eq!(heard, Heard::More);
            let mut begin = again;
            for cut in cuts {
                let at = bounds.iter().position(|bound| *bound == begin).unwrap();
                let end = bounds[(at + cut).min(bounds.len() - 1)];
                prop_assert_eq!(log.hear(1 + end as Seq, token(&whole[begin..end])), Heard::More);
                begin = end;
            }
            prop_assert_eq!(text(&log), &whole[..begin.max(first)]);
        }
    }
}
