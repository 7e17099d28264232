//! The events of one generation in memory, and everybody who waits for the next one.
//!
//! The text is one string and a position is a number of its bytes (see [`crate::event`]), so a thousand tokens cost the
//! bytes of their text and no more, whoever reads at whatever pace. Locks are held for the time of a copy and never
//! across an await; whoever is to be woken is woken after the lock is gone, so that it does not wake up to wait for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::recorder::{BATCH_LEN, Piece, Recorder, Recording};
use super::{Opening, Running};
use crate::error::{Code, Error};
use crate::event::{End, Kind, SEQ_START, Seq, Start};
use crate::id::{StreamId, UserId};
use crate::text::{self, discreet};

/// The most text of one generation, in bytes of reasoning and content together. No model writes as much in one answer;
/// a provider that does is broken or hostile.
pub const TEXT_LEN_MAX: usize = 4 << 20;

/// What is told to wait who followed a generation that another relay goes on with.
const RETRY_AFTER_MOVE: Duration = Duration::from_secs(1);

/// How long somebody waits for a generation to begin that another relay was asked for. That takes a moment; if it takes
/// longer, the other relay may be gone, which is known for certain only when its lease is over.
const OPENING_TIME_ELSEWHERE: Duration = Duration::from_secs(2);

/// A generation that is over, as the database has it.
pub struct Ended {
    /// Its first event.
    pub start: Start,
    /// All its reasoning.
    pub reasoning: String,
    /// All its content.
    pub content: String,
    /// Its last event.
    pub end: End,
}

discreet!(Ended { start, end });

/// One generation, shared by its writer and its followers.
#[derive(Debug)]
pub struct Log {
    opening: Opening,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Reasoning and content in the order in which they came.
    pub(super) text: String,
    /// Where in `text` each stretch of one kind begins.
    pub(super) runs: Vec<Run>,
    /// Of a log rebuilt from the database: the order of reasoning and content is not known, so no position in between is.
    pub(super) is_order_lost: bool,
    /// Whether it is written elsewhere, and may be behind.
    pub(super) is_mirror: bool,
    pub(super) followers: Followers,
    pub(super) stop_requested: bool,
    /// Whoever watches for the writer what followers want.
    pub(super) writer: Option<Waker>,
    /// Absent where nothing survives the process.
    pub(super) recording: Option<Recording>,
}

discreet!(State { phase });

#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Claimed; whether it can begin is being found out.
    Opening,
    /// It could not begin. Everybody who attached gets this answer.
    Refused(Error),
    /// It is being written.
    Open(Arc<Start>),
    /// It has ended, then.
    Ended(Arc<Start>, Arc<End>, Instant),
    /// It is not written here any more, and nobody knows here how it goes on: whoever asks again is told.
    Lost,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) begin: usize,
    pub(super) kind: Kind,
}

/// Who reads, and since when nobody does.
#[derive(Debug)]
pub(super) struct Followers {
    /// One place for each follower; `None` where nobody waits at the moment.
    places: Vec<Option<Waker>>,
    vacant: Vec<usize>,
    /// Followers that somebody reads.
    present: usize,
    deserted_since: Option<Instant>,
}

/// Whether somebody reads what a follower follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// A reader, for whom a generation is written.
    Reader,
    /// A copy, for which alone it is not.
    Copy,
}

impl Followers {
    fn new() -> Self {
        Self {
            places: Vec::new(),
            vacant: Vec::new(),
            present: 0,
            deserted_since: Some(Instant::now()),
        }
    }

    fn join(&mut self, presence: Presence) -> usize {
        if presence == Presence::Reader {
            self.present += 1;
            self.deserted_since = None;
        }
        self.vacant.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        })
    }

    /// Whether that was the last reader.
    fn leave(&mut self, place: usize, presence: Presence) -> bool {
        self.places[place] = None;
        self.vacant.push(place);
        if presence == Presence::Copy {
            return false;
        }
        self.present -= 1;
        if self.present == 0 {
            self.deserted_since = Some(Instant::now());
        }
        self.present == 0
    }

    pub(super) fn wait(&mut self, place: usize, waker: &Waker) {
        match &mut self.places[place] {
            Some(known) => known.clone_from(waker),
            vacant @ None => *vacant = Some(waker.clone()),
        }
    }

    /// Everybody who waits, to be woken when the lock is gone.
    #[must_use]
    pub(super) fn take_waiting(&mut self) -> Vec<Waker> {
        self.places.iter_mut().filter_map(Option::take).collect()
    }

    pub(super) fn deserted_since(&self) -> Option<Instant> {
        self.deserted_since
    }
}

impl State {
    /// The position of the last event there is; 0 if there is none.
    pub(super) fn tail(&self) -> Seq {
        let text_end = SEQ_START + self.text.len() as Seq;
        match self.phase {
            Phase::Opening | Phase::Refused(_) | Phase::Lost => 0,
            Phase::Open(_) => text_end,
            Phase::Ended(..) => text_end + 1,
        }
    }

    /// All text of one kind.
    pub(super) fn text_of(&self, kind: Kind) -> String {
        let ends = self.runs.iter().skip(1).map(|run| run.begin).chain([self.text.len()]);
        self.runs
            .iter()
            .zip(ends)
            .filter(|(run, _)| run.kind == kind)
            .map(|(run, end)| &self.text[run.begin..end])
            .collect()
    }

    /// The stretch of text of one kind that begins at byte `from`, which is before the end: its kind and its end.
    pub(super) fn run_at(&self, from: usize) -> (Kind, usize) {
        let next = self.runs.partition_point(|run| run.begin <= from);
        (self.runs[next - 1].kind, self.runs.get(next).map_or(self.text.len(), |run| run.begin))
    }

    pub(super) fn replay(&mut self, Ended { start, reasoning, content, end }: Ended) {
        for (kind, text) in [(Kind::Reasoning, &reasoning), (Kind::Token, &content)] {
            if !text.is_empty() {
                self.push(kind, text);
            }
        }
        self.is_order_lost = !reasoning.is_empty();
        self.phase = Phase::Ended(Arc::new(start), Arc::new(end), Instant::now());
    }

    pub(super) fn push(&mut self, kind: Kind, text: &str) {
        if self.runs.last().is_none_or(|run| run.kind != kind) {
            self.runs.push(Run { begin: self.text.len(), kind });
        }
        text::append(&mut self.text, text);
    }
}

/// What the recorder has to be told once the lock is gone.
pub(super) enum Recall {
    Nothing,
    Fill(Arc<Recorder>),
    Hurry(Arc<Recorder>),
}

impl State {
    /// Notes that text was added.
    pub(super) fn recall(&mut self) -> Recall {
        let len = self.text.len();
        match &mut self.recording {
            Some(recording) if !recording.is_queued && len > recording.recorded => {
                recording.is_queued = true;
                Recall::Fill(Arc::clone(&recording.recorder))
            }
            Some(recording) if !recording.is_hurried && len - recording.recorded >= BATCH_LEN => {
                recording.is_hurried = true;
                Recall::Hurry(Arc::clone(&recording.recorder))
            }
            _ => Recall::Nothing,
        }
    }
}

impl Log {
    /// Adds what is not copied yet to `pieces`, and takes it for copied.
    pub(super) fn take_unrecorded(&self, pieces: &mut Vec<Piece>) {
        let mut state = self.lock();
        let Some(recording) = &mut state.recording else { return };
        recording.is_queued = false;
        recording.is_hurried = false;
        let (record, mut begin) = (recording.record, recording.recorded);
        while begin < state.text.len() {
            let (kind, end) = state.run_at(begin);
            pieces.push(Piece { record, begin, kind, text: state.text[begin..end].to_owned() });
            begin = end;
        }
        if let Some(recording) = &mut state.recording {
            recording.recorded = begin;
        }
    }

    pub(super) fn new(opening: Opening) -> Arc<Self> {
        let state = State {
            phase: Phase::Opening,
            text: String::new(),
            runs: Vec::new(),
            is_order_lost: false,
            is_mirror: false,
            followers: Followers::new(),
            stop_requested: false,
            writer: None,
            recording: None,
        };
        Arc::new(Self { opening, state: Mutex::new(state) })
    }

    /// The log of a generation that is over, from what the database has of it. Positions in a text without reasoning
    /// are what they were; with reasoning, a follower with a cursor is told to replace what it has.
    #[must_use]
    pub fn rebuilt(opening: Opening, ended: Ended) -> Arc<Self> {
        let log = Self::new(opening);
        log.lock().replay(ended);
        log
    }

    /// Returns once the generation has begun: somebody can follow it now.
    ///
    /// # Errors
    /// Why it cannot begin, to everybody who waited for it; `StoreUnavailable` if another relay does not begin it in time.
    pub async fn opened(self: &Arc<Self>) -> Result<(), Error> {
        // A waiter is no follower, but it counts as somebody who is there.
        let mut seat = Seat::take(self, Presence::Reader);
        let opened = std::future::poll_fn(|context| {
            let mut state = self.lock();
            match &state.phase {
                Phase::Opening => {
                    state.followers.wait(seat.place(), context.waker());
                    Poll::Pending
                }
                Phase::Refused(error) => Poll::Ready(Err(error.clone())),
                Phase::Lost => Poll::Ready(Err(moved())),
                Phase::Open(_) | Phase::Ended(..) => Poll::Ready(Ok(())),
            }
        });
        tokio::select! {
            biased;
            opened = opened => opened,
            () = self.overdue_elsewhere() => Err(overdue()),
        }
    }

    /// Returns when another relay should have begun it. Never, while it is this one's to begin.
    async fn overdue_elsewhere(&self) {
        loop {
            sleep(OPENING_TIME_ELSEWHERE).await;
            if self.lock().is_mirror {
                return;
            }
        }
    }

    /// Returns once the generation has ended, was refused or is lost.
    pub async fn ended(self: &Arc<Self>) {
        let mut seat = Seat::take(self, Presence::Reader);
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Opening | Phase::Open(_)) {
                state.followers.wait(seat.place(), context.waker());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Asks the writer to end the generation as stopped. Without effect on one that has ended.
    pub fn request_stop(&self) {
        let writer = {
            let mut state = self.lock();
            state.stop_requested = true;
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Gives the generation up: its writer stops writing and saves nothing, and its followers are cut off without an end,
    /// so that they ask again. Without effect on one that has ended.
    pub fn lose(&self) {
        let (writer, waiting) = {
            let mut state = self.lock();
            if !matches!(state.phase, Phase::Opening | Phase::Open(_)) {
                return;
            }
            state.phase = Phase::Lost;
            (state.writer.take(), state.followers.take_waiting())
        };
        for waker in waiting.into_iter().chain(writer) {
            waker.wake();
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> UserId {
        self.opening.owner
    }

    /// Its name.
    #[must_use]
    pub fn stream_id(&self) -> &StreamId {
        &self.opening.stream_id
    }

    /// Tells the turn that it answers from every other one.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.opening.fingerprint
    }

    /// What `GET /v1/streams` says of it; `None` unless it is being written.
    #[must_use]
    pub fn running(&self) -> Option<Running> {
        let Phase::Open(start) = &self.lock().phase else { return None };
        Some(Running {
            stream_id: start.stream_id.clone(),
            conversation_id: start.conversation_id,
            message_id: start.message_id,
            variant_id: start.variant_id,
            started_at: self.opening.started_at,
        })
    }

    /// Whether there is nothing to follow, and the name is as good as free.
    pub(super) fn is_void(&self) -> bool {
        matches!(self.lock().phase, Phase::Refused(_) | Phase::Lost)
    }

    /// Whether somebody has asked to stop.
    pub(super) fn is_to_stop(&self) -> bool {
        self.lock().stop_requested
    }

    /// Why it could not begin, if it was refused.
    pub(super) fn refusal(&self) -> Option<Error> {
        match &self.lock().phase {
            Phase::Refused(error) => Some(error.clone()),
            Phase::Opening | Phase::Open(_) | Phase::Ended(..) | Phase::Lost => None,
        }
    }

    /// Whether its positions are what they were when it was written.
    pub(super) fn is_ordered(&self) -> bool {
        !self.lock().is_order_lost
    }

    /// Whether somebody reads it.
    pub(super) fn has_readers(&self) -> bool {
        self.lock().followers.present > 0
    }

    /// What it is known by.
    pub(super) fn opening(&self) -> &Opening {
        &self.opening
    }

    pub(super) fn ended_at(&self) -> Option<Instant> {
        match self.lock().phase {
            Phase::Ended(.., at) => Some(at),
            Phase::Opening | Phase::Refused(_) | Phase::Open(_) | Phase::Lost => None,
        }
    }

    pub(crate) fn text_len(&self) -> usize {
        self.lock().text.len()
    }

    /// How much memory its text takes, in bytes.
    pub(super) fn held_len(&self) -> usize {
        let state = self.lock();
        state.text.capacity() + state.runs.capacity() * size_of::<Run>()
    }

    /// A panic while the lock is held cannot leave the state half changed: every change of it is one push or one
    /// assignment. So a poisoned lock is as good as any.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is told who followed a generation that goes on elsewhere.
pub(crate) fn moved() -> Error {
    Error::new(
        Code::StoreUnavailable,
        "This stream is not written here any more. Ask for it again in a moment.",
    )
    .with_retry_after(RETRY_AFTER_MOVE)
}

/// What is told who waited for a generation that another relay has not begun.
fn overdue() -> Error {
    Error::new(
        Code::StoreUnavailable,
        "Another relay was asked for this stream and has not begun it yet. Ask for it again in a moment.",
    )
    .with_retry_after(RETRY_AFTER_MOVE)
}

/// A place among a log's followers, given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    log: Arc<Log>,
    place: usize,
    presence: Presence,
}

impl Seat {
    pub(super) fn take(log: &Arc<Log>, presence: Presence) -> Self {
        Self { log: Arc::clone(log), place: log.lock().followers.join(presence), presence }
    }

    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn presence(&self) -> Presence {
        self.presence
    }

    pub(super) fn place(&mut self) -> usize {
        self.place
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let writer = {
            let mut state = self.log.lock();
            // The writer has to know since when it writes for nobody.
            let is_last = state.followers.leave(self.place, self.presence);
            if is_last { state.writer.take() } else { None }
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
