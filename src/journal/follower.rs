//! Reading a generation: everything after a cursor, merged into few events, then live; no gap and no repeat.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::log::{Log, Phase, Presence, Seat, State};
use crate::event::{Cursor, End, Kind, SEQ_START, Seq, Start};
use crate::text::{self, discreet};

/// The most text that one event carries, in bytes: what a follower hands over at once is what its socket must hold, so
/// a reader that comes late to a long text gets it in parts as it reads them.
const EVENT_TEXT_LEN_MAX: usize = 64 << 10;

/// How far a mirror may be behind what it mirrors, in bytes: what is written in the tenth of a second that it takes to be
/// told is far less. A cursor beyond that is wrong.
const AHEAD_MAX: Seq = 64 << 10;

/// One event as a follower sees it, borrowed from the log.
pub enum View<'a> {
    /// The generation has begun.
    Start(&'a Start),
    /// The cursor could not be honoured: this replaces all text that the reader has.
    Sync {
        /// All content so far.
        content: &'a str,
        /// All reasoning so far.
        reasoning: &'a str,
    },
    /// More text.
    Text(Kind, &'a str),
    /// The generation has ended; nothing follows.
    End(&'a End),
}

discreet!(View<'_> {});

/// A place in a generation. As long as a reader has one, the generation is not deserted.
#[derive(Debug)]
pub struct Follower {
    seat: Seat,
    /// What has been handed over.
    after: Cursor,
    is_done: bool,
}

impl Follower {
    /// A follower that goes on after `after`, or begins with `start`.
    #[must_use]
    pub fn new(log: &Arc<Log>, after: Option<Cursor>) -> Self {
        Self::at(Seat::take(log, Presence::Reader), after.unwrap_or_default())
    }

    /// A follower that nobody reads: what it is handed is copied elsewhere.
    pub(super) fn copying(log: &Arc<Log>, after: Seq) -> Self {
        Self::at(Seat::take(log, Presence::Copy), Cursor::at(after))
    }

    fn at(seat: Seat, after: Cursor) -> Self {
        Self { seat, after, is_done: false }
    }

    /// The position of the last event that was handed over; 0: none.
    pub(super) fn after(&self) -> Seq {
        self.after.seq()
    }

    /// Goes on after that position, forwards or back.
    pub(super) fn go_to(&mut self, after: Seq) {
        self.after = Cursor::at(after);
        self.is_done = false;
    }

    /// Whether the end has been handed over.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Hands the next event to `on_event`, with where it brings the reader, or registers to be woken when there is one.
    /// Ready with `false` when the end has been handed over, and in a generation that was refused or is lost, which has no
    /// further events.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        on_event: impl FnOnce(Cursor, View<'_>),
    ) -> Poll<bool> {
        if self.is_done {
            return Poll::Ready(false);
        }
        let place = self.seat.place();
        let log = Arc::clone(self.seat.log());
        let mut state = log.lock();
        match &state.phase {
            Phase::Opening => {}
            Phase::Refused(_) | Phase::Lost => return Poll::Ready(false),
            Phase::Open(start) | Phase::Ended(start, ..) => {
                if let Some(after) = self.hand_over(&state, start, on_event) {
                    self.is_done = after.has_end();
                    self.after = after;
                    return Poll::Ready(true);
                }
            }
        }
        state.followers.wait(place, context.waker());
        Poll::Pending
    }

    /// Where the event that was handed over has brought the reader, if there was one.
    fn hand_over(
        &self,
        state: &State,
        start: &Start,
        on_event: impl FnOnce(Cursor, View<'_>),
    ) -> Option<Cursor> {
        let hand = |after: Cursor, view: View<'_>| {
            on_event(after, view);
            Some(after)
        };
        let after = self.after.seq();
        if after < SEQ_START {
            return hand(self.after.moved_to(SEQ_START), View::Start(start));
        }
        let text_end = SEQ_START + state.text.len() as Seq;
        if self.is_ahead(state, text_end) {
            return None;
        }
        if !self.can_go_on(state, text_end) {
            let (content, reasoning) = (state.text_of(Kind::Token), state.text_of(Kind::Reasoning));
            let view = View::Sync { content: &content, reasoning: &reasoning };
            return hand(self.after.replaced_by(text_end), view);
        }
        if after < text_end {
            // Below the length of a string in memory, so it fits.
            let from = usize::try_from(after - SEQ_START).ok()?;
            let (kind, run_end) = state.run_at(from);
            let piece = text::prefix(&state.text[from..run_end], EVENT_TEXT_LEN_MAX);
            let piece_end = after + piece.len() as Seq;
            return hand(self.after.moved_to(piece_end), View::Text(kind, piece));
        }
        // A reader that has seen the end and asks all the same gets it again, so that it need not guess.
        match &state.phase {
            Phase::Ended(_, end, _) => hand(self.after.ended_at(text_end), View::End(end)),
            Phase::Opening | Phase::Refused(_) | Phase::Open(_) | Phase::Lost => None,
        }
    }

    /// Whether the cursor may well be right, and only not have come here yet.
    fn is_ahead(&self, state: &State, text_end: Seq) -> bool {
        state.is_mirror
            && matches!(state.phase, Phase::Open(_))
            && (text_end + 1..=text_end + AHEAD_MAX).contains(&self.after.seq())
    }

    /// Whether a reader at the cursor has exactly the text before it.
    fn can_go_on(&self, state: &State, text_end: Seq) -> bool {
        let after = self.after.seq();
        // A copy is told only how many it has, and not which is the last.
        if self.after.has_end() || self.seat.presence() == Presence::Copy && after > text_end {
            return after == state.tail() && after > text_end;
        }
        if after == SEQ_START || after == text_end {
            return true;
        }
        !state.is_order_lost
            && after < text_end
            && usize::try_from(after - SEQ_START).is_ok_and(|at| state.text.is_char_boundary(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::task::Waker;

    use super::*;
    use crate::journal::{Opening, Writer};

    fn writer() -> Writer {
        let writer = Writer::new(Log::new(Opening::for_tests()));
        writer.open(Start::for_tests());
        writer
    }

    /// What a client has put together: reasoning, content, how far it has come, and how many ends it has seen.
    #[derive(Debug, Default, Clone, PartialEq)]
    struct Client {
        reasoning: String,
        content: String,
        after: Option<Cursor>,
        ends: usize,
    }

    impl Client {
        /// Takes all that there is to take now.
        fn read(&mut self, follower: &mut Follower) {
            let mut context = Context::from_waker(Waker::noop());
            loop {
                let took = follower.poll(&mut context, |after, view| {
                    let known = self.after.replace(after).map(Cursor::id);
                    // The end is told again to whoever has it and asks all the same.
                    let is_known = matches!(view, View::End(_)) && known == Some(after.id());
                    assert!(known < Some(after.id()) || is_known, "ids grow: {known:?} {after:?}");
                    assert_eq!(Cursor::from_id(after.id()), after, "an id says it all");
                    match view {
                        View::Start(_) => {}
                        View::Sync { content, reasoning } => {
                            content.clone_into(&mut self.content);
                            reasoning.clone_into(&mut self.reasoning);
                        }
                        View::Text(Kind::Reasoning, text) => self.reasoning.push_str(text),
                        View::Text(Kind::Token, text) => self.content.push_str(text),
                        View::End(_) => self.ends += 1,
                    }
                });
                if took != Poll::Ready(true) {
                    return;
                }
            }
        }
    }

    proptest! {
        /// Clients that read now and then, and now and then come back with their last position to a new follower.
        #[test]
        fn every_client_puts_the_same_together(
            pieces in proptest::collection::vec((any::<bool>(), "[a🦊\n]{0,5}"), 0..30),
            habits in proptest::collection::vec(proptest::collection::vec((any::<bool>(), any::<bool>()), 30), 1..5),
        ) {
            let writer = writer();
            let mut clients: Vec<_> =
                habits.iter().map(|_| (Client::default(), Follower::new(writer.log(), None))).collect();
            for (at, (is_reasoning, text)) in pieces.iter().enumerate() {
                let kind = if *is_reasoning { Kind::Reasoning } else { Kind::Token };
                writer.append([(kind, text.as_str())].into_iter()).unwrap();
                for (habit, (client, follower)) in habits.iter().zip(&mut clients) {
                    let (reads, comes_back) = habit[at];
                    if reads {
                        client.read(follower);
                    }
                    if comes_back {
                        *follower = Follower::new(writer.log(), client.after);
                    }
                }
            }
            let (reasoning, content) = writer.texts();
            writer.end(End::for_tests());
            for (mut client, mut follower) in clients {
                client.read(&mut follower);
                prop_assert_eq!((&client.reasoning, &client.content, client.ends), (&reasoning, &content, 1));
            }
        }
    }

    #[test]
    fn a_reader_who_is_ahead_of_a_mirror_waits_for_it() {
        let writer = writer();
        writer.append([(Kind::Token, "Once ")].into_iter()).unwrap();
        writer.log().be_mirror();
        let after = Some(Cursor::at(10));
        let known = Client { content: "Once upon".to_owned(), after, ..Client::default() };
        let (mut client, mut follower) = (known.clone(), Follower::new(writer.log(), after));
        client.read(&mut follower);
        assert_eq!(client, known, "neither told to forget what it has, nor told it again");
        writer.append([(Kind::Token, "upon a time")].into_iter()).unwrap();
        client.read(&mut follower);
        assert_eq!(client.content, "Once upon a time");

        let mut wrong = Client { content: "Twice".to_owned(), ..Client::default() };
        let mut follower = Follower::new(writer.log(), Some(Cursor::at(AHEAD_MAX * 2)));
        wrong.read(&mut follower);
        assert_eq!(wrong.content, "Once upon a time", "a cursor beyond all that can be");
    }

    proptest! {
        /// Readers who had more or less of a text, or all of it with its end, and come back to what there is of it now.
        #[test]
        fn a_reader_with_another_text_is_told_to_replace_it(
            had in "[a🦊]{0,4}", lost in "[a🦊]{0,3}", more in "[b]{0,3}",
            saw_end: bool, is_over: bool,
        ) {
            let had_all = format!("{had}{lost}");
            let before = writer();
            before.append([(Kind::Token, had_all.as_str())].into_iter()).unwrap();
            let (mut client, mut follower) = (Client::default(), Follower::new(before.log(), None));
            client.read(&mut follower);
            if saw_end {
                before.end(End::for_tests());
                client.read(&mut follower);
            }

            let now = writer();
            let text = if lost.is_empty() { format!("{had}{more}") } else { had };
            now.append([(Kind::Token, text.as_str())].into_iter()).unwrap();
            let log = Arc::clone(now.log());
            let _still_written = if is_over {
                now.end(End::for_tests());
                None
            } else {
                Some(now)
            };
            client.read(&mut Follower::new(&log, client.after));
            prop_assert_eq!(&client.content, &text);
            prop_assert_eq!(client.ends, usize::from(saw_end) + usize::from(is_over));
        }
    }

    #[test]
    fn a_writer_that_is_lost_ends_its_generation_once() {
        let writer = writer();
        writer.append([(Kind::Token, "Once")].into_iter()).unwrap();
        let mut follower = Follower::new(writer.log(), None);
        drop(writer);
        let mut client = Client::default();
        client.read(&mut follower);
        assert_eq!((client.content.as_str(), client.ends), ("Once", 1));
    }
}
