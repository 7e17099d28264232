//! Writing a generation: begin it or refuse it, append, end it. Exactly one end, whatever happens to the writer.

use std::sync::Arc;
use std::task::Poll;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::Instant;

use super::log::{Ended, Log, Phase, Recall, State, TEXT_LEN_MAX};
use super::recorder::{RecordId, Recorder, Recording};
use crate::error::{Code, Error};
use crate::event::{End, Failed, Failure, Kind, Start};

/// How often an answer may go from thinking to speaking and back. Models that do both do it some ten times; each time costs
/// memory, which its text does not show.
const RUNS_MAX: usize = 10_000;

/// What followers want of the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Somebody asked to stop.
    Stop,
    /// The last follower left, then. It holds until somebody comes back.
    Deserted(Instant),
    /// Another relay has taken the generation over: nothing more is to be written, and nothing saved.
    Lost,
}

/// The right to write one generation. Dropped without an end, it ends the generation as failed, so that no follower
/// waits for ever.
#[derive(Debug)]
pub struct Writer {
    log: Arc<Log>,
    /// Whether somebody else writes the log when this is dropped.
    is_given_away: bool,
}

/// A look at what followers want, apart from the writer so that it can be awaited while text is appended.
#[derive(Debug)]
pub struct Watch {
    log: Arc<Log>,
    /// The last [`Control::Deserted`] that was reported, so that each is reported once.
    deserted_since: Option<Instant>,
}

impl Writer {
    pub(super) fn new(log: Arc<Log>) -> Self {
        Self { log, is_given_away: false }
    }

    /// A writer that, dropped without an end, leaves the generation to the next one who finds it.
    pub(super) fn inherited(log: Arc<Log>) -> Self {
        Self { log, is_given_away: true }
    }

    /// Leaves the log, which has not begun, to be written by somebody else.
    pub(super) fn give_away(mut self) -> Arc<Log> {
        self.is_given_away = true;
        Arc::clone(&self.log)
    }

    /// The log being written.
    #[must_use]
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Says that the generation cannot begin, to all who attached. Its name is free again.
    pub fn refuse(self, error: Error) {
        self.change_last(|state| {
            if matches!(state.phase, Phase::Opening) {
                state.phase = Phase::Refused(error);
            }
        });
    }

    /// Begins: `start` is the first event.
    pub fn open(&self, start: Start) {
        self.change(|state| {
            if matches!(state.phase, Phase::Opening) {
                state.phase = Phase::Open(Arc::new(start));
            }
        });
    }

    /// Appends pieces of text that followers then see, all at once.
    ///
    /// # Errors
    /// `AnswerTooLong` if the text would be longer than any honest answer; then nothing was appended.
    pub fn append<'a>(
        &self,
        pieces: impl Iterator<Item = (Kind, &'a str)> + Clone,
    ) -> Result<(), Error> {
        let len: usize = pieces.clone().map(|(_, text)| text.len()).sum();
        if len == 0 {
            return Ok(());
        }
        let recall = self.change(|state| {
            if state.text.len() + len > TEXT_LEN_MAX {
                return Err(Error::new(
                    Code::AnswerTooLong,
                    "The provider sent more text than an answer can have, which is 4 MiB. What fits is kept; set `max_tokens` in the bot.",
                ));
            }
            if state.runs.len() + pieces.clone().count() > RUNS_MAX {
                return Err(Error::new(
                    Code::AnswerTooLong,
                    "The provider went from thinking to speaking and back more often than any model does. What had come is kept; choose another model or provider.",
                ));
            }
            for (kind, text) in pieces.filter(|(_, text)| !text.is_empty()) {
                state.push(kind, text);
            }
            Ok(state.recall())
        })?;
        match recall {
            Recall::Nothing => {}
            Recall::Fill(recorder) => recorder.fill(&self.log),
            Recall::Hurry(recorder) => recorder.hurry(),
        }
        Ok(())
    }

    /// From now on the text is copied to `record`, until the generation has ended.
    pub fn record(&self, recorder: &Arc<Recorder>, record: RecordId) {
        let recorder = Arc::clone(recorder);
        let recording =
            Recording { recorder, record, recorded: 0, is_queued: false, is_hurried: false };
        self.log.lock().recording = Some(recording);
    }

    /// Gives the generation up to another relay, which ends and saves it.
    pub fn lose(self) {
        self.log.lose();
        self.change_last(|_| {});
    }

    /// Whether another relay has taken the generation over.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.log.lock().phase, Phase::Lost)
    }

    /// What the end of the generation is saved with; absent if nothing is saved.
    #[must_use]
    pub fn write_token(&self) -> Option<SecretString> {
        self.log.opening().write_token.clone()
    }

    /// When the generation was asked for.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.log.opening().started_at
    }

    /// The first event, if the generation has begun.
    #[must_use]
    pub fn start(&self) -> Option<Start> {
        match &self.log.lock().phase {
            Phase::Open(start) | Phase::Ended(start, ..) => Some(Start::clone(start)),
            Phase::Opening | Phase::Refused(_) | Phase::Lost => None,
        }
    }

    /// Leaves what was recorded as it is: the generation did not come to an end that is safe.
    pub fn leave_record(&self) {
        self.log.lock().recording = None;
    }

    /// All reasoning and all content that was appended.
    #[must_use]
    pub fn texts(&self) -> (String, String) {
        let state = self.log.lock();
        (state.text_of(Kind::Reasoning), state.text_of(Kind::Token))
    }

    /// Whether any text was appended.
    #[must_use]
    pub fn has_text(&self) -> bool {
        self.log.text_len() > 0
    }

    /// Fills in a generation that turned out to be over.
    pub fn replay(self, ended: Ended) {
        self.change_last(|state| state.replay(ended));
    }

    /// What followers want. One watch at a time.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { log: Arc::clone(&self.log), deserted_since: None }
    }

    /// Ends the generation: `end` is the last event.
    pub fn end(self, end: End) {
        self.end_with(end);
    }

    fn end_with(&self, end: End) {
        self.change_last(|state| {
            if let Phase::Open(start) = &state.phase {
                state.phase = Phase::Ended(Arc::clone(start), Arc::new(end), Instant::now());
                // What is read for ten minutes more need not hold room to grow.
                state.text.shrink_to_fit();
            }
        });
    }

    /// The last change of all, after which there is nothing to recover.
    fn change_last(&self, change: impl FnOnce(&mut State)) {
        let recording = self.change(|state| {
            change(state);
            state.recording.take()
        });
        if let Some(recording) = recording {
            recording.recorder.end(recording.record);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (changed, waiting) = {
            let mut state = self.log.lock();
            let changed = change(&mut state);
            (changed, state.followers.take_waiting())
        };
        for follower in waiting {
            follower.wake();
        }
        changed
    }
}

impl Watch {
    /// Returns when followers want something. Cancel safe: what was not returned is returned by the next call.
    pub async fn control(&mut self) -> Control {
        let (log, reported) = (&self.log, &mut self.deserted_since);
        std::future::poll_fn(|context| {
            let mut state = log.lock();
            if matches!(state.phase, Phase::Lost) {
                return Poll::Ready(Control::Lost);
            }
            if state.stop_requested {
                return Poll::Ready(Control::Stop);
            }
            let deserted_since = state.followers.deserted_since();
            let news = deserted_since.filter(|_| deserted_since != *reported);
            *reported = deserted_since;
            if let Some(since) = news {
                return Poll::Ready(Control::Deserted(since));
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Since when nobody follows; `None` while somebody does.
    #[must_use]
    pub fn deserted_since(&self) -> Option<Instant> {
        self.log.lock().followers.deserted_since()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.is_given_away {
            return;
        }
        let lost = || Error::internal("the task of a generation ended without an end");
        let phase = self.log.lock().phase.clone();
        match phase {
            // What was recorded stays: it may be all that is left.
            Phase::Opening => self.change(|state| state.phase = Phase::Refused(lost())),
            Phase::Open(start) => self.end_with(End::Failed(Failed {
                failure: Failure::from(&lost()),
                stream_id: start.stream_id.clone(),
                message_id: start.message_id,
                // It is when the relay is started again, as far as it was recorded: nobody can promise that now.
                saved: None,
            })),
            Phase::Refused(_) | Phase::Ended(..) | Phase::Lost => {}
        }
    }
}
