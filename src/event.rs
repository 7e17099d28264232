//! What can happen in a generation, and the positions of it.
//!
//! A generation is `start`, then text (reasoning and tokens), then one end. Positions are counted in bytes of text, so a
//! position says exactly how much of the text somebody has, however it was cut into events: `start` is at 1, an event of
//! text is at 1 plus all bytes of text up to its end, and the end is one past the last byte. Hence positions grow, and
//! a reader can go on from any of them, on any instance, whatever pieces it had read before. What it tells the relay when it
//! comes back is a [`Cursor`].

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::{BotId, ConversationId, MessageId, StreamId, VariantId};

/// A position in a generation.
pub type Seq = u64;

/// The position of `start`.
pub const SEQ_START: Seq = 1;

/// What a reader has of a generation; as a number, the `id` of an SSE event.
///
/// A position alone would not do: a reader may have more than was recorded when its relay died, and then the end of
/// the shorter text has the very position of a text that is longer by one byte. Nor would positions grow where a reader is
/// told to replace what it has by less. So the number is, from the lowest bit: 32 bits of the position to which the reader
/// has the text, one bit for whether it has the end, and 20 bits of how often it was told to replace what it had. It is
/// exact in the numbers of every language, JavaScript's too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    replaced: u32,
    has_end: bool,
    text_end: Seq,
}

impl Cursor {
    const POSITION_BITS: u32 = 32;
    const REPLACED_MAX: u32 = (1 << 20) - 1;

    /// Of a reader that has everything up to that position, and not the end.
    #[must_use]
    pub fn at(text_end: Seq) -> Self {
        Self { replaced: 0, has_end: false, text_end }
    }

    /// The cursor that has that `id`. There is one for every number; what no event had cannot be honoured.
    #[must_use]
    pub fn from_id(id: u64) -> Self {
        let above = id >> Self::POSITION_BITS;
        let text_end = id & u64::from(u32::MAX);
        match u32::try_from(above >> 1) {
            Ok(replaced) if replaced <= Self::REPLACED_MAX => {
                Self { replaced, has_end: above & 1 == 1, text_end }
            }
            // Beyond every text there can be.
            Ok(_) | Err(_) => Self::at(u32::MAX.into()),
        }
    }

    /// The `id` of the event that brings a reader here.
    #[must_use]
    pub fn id(self) -> u64 {
        let above = u64::from(self.replaced) << 1 | u64::from(self.has_end);
        above << Self::POSITION_BITS | self.text_end
    }

    /// The position of the last event: the end is one past the text.
    #[must_use]
    pub fn seq(self) -> Seq {
        self.text_end + Seq::from(self.has_end)
    }

    /// Whether the reader has the end.
    #[must_use]
    pub fn has_end(self) -> bool {
        self.has_end
    }

    /// After an event that ends there.
    #[must_use]
    pub fn moved_to(self, text_end: Seq) -> Self {
        Self { text_end, has_end: false, ..self }
    }

    /// After the end of a text that ends there.
    #[must_use]
    pub fn ended_at(self, text_end: Seq) -> Self {
        Self { text_end, has_end: true, ..self }
    }

    /// After all that the reader had was replaced by a text that ends there.
    #[must_use]
    pub fn replaced_by(self, text_end: Seq) -> Self {
        // Nobody is told so a million times but by a cursor that was made up.
        let replaced = if self.replaced < Self::REPLACED_MAX { self.replaced + 1 } else { 0 };
        Self { replaced, has_end: false, text_end }
    }
}

/// Which of the two texts of a generation a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the model thought before it answered; never part of the content.
    Reasoning,
    /// The answer.
    Token,
}

impl Kind {
    /// The word for it, on the wire and wherever it is written down.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reasoning => "reasoning",
            Self::Token => "token",
        }
    }
}

/// The bot that answers, as a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BotRef {
    /// Absent for a bot that was deleted since.
    pub id: Option<BotId>,
    /// The bot's name; empty for a bot that was deleted since.
    pub name: String,
}

/// The first event: what is being written, and where it will be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The generation's name.
    pub stream_id: StreamId,
    /// The story it belongs to; absent if nothing is saved.
    pub conversation_id: Option<ConversationId>,
    /// The message being written.
    pub message_id: Option<MessageId>,
    /// The variant of that message being written.
    pub variant_id: Option<VariantId>,
    /// The user's message that was saved with this turn.
    pub user_message_id: Option<MessageId>,
    /// Who answers.
    pub bot: BotRef,
    /// The model that answers.
    pub model: String,
}

#[cfg(any(test, fuzzing))]
impl Start {
    /// Of a generation that saves nothing.
    pub(crate) fn for_tests() -> Self {
        Self {
            stream_id: StreamId::random(),
            conversation_id: None,
            message_id: None,
            variant_id: None,
            user_message_id: None,
            bot: BotRef { id: None, name: String::new() },
            model: String::new(),
        }
    }
}

#[cfg(any(test, fuzzing))]
impl End {
    /// Of a generation that saves nothing, and came to nothing.
    pub(crate) fn for_tests() -> Self {
        Self::Done(Done {
            stream_id: StreamId::random(),
            message_id: None,
            variant_id: None,
            alternative_id: None,
            status: DoneStatus::Complete,
            finish_reason: None,
            usage: Usage::UNKNOWN,
            saved: None,
        })
    }
}

/// Tokens used, by the provider's count if it gave one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer, reasoning included.
    pub completion_tokens: u64,
    /// Whether the relay counted them, because the provider did not.
    pub estimated: bool,
}

impl Usage {
    /// Where nobody has counted, or what was counted is lost.
    pub const UNKNOWN: Self = Self { prompt_tokens: 0, completion_tokens: 0, estimated: true };
}

/// How a generation ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DoneStatus {
    /// The provider finished it.
    Complete,
    /// The user stopped it, or nobody came back for it in time.
    Stopped,
}

/// The last event of a generation that ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The generation's name.
    pub stream_id: StreamId,
    /// The message that was written; absent in the two-step form, which names the variant instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// The variant that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant_id: Option<VariantId>,
    /// The variant that was written, under the name that the two-step form knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternative_id: Option<VariantId>,
    /// How it ended.
    pub status: DoneStatus,
    /// Why the provider ended it, in OpenAI's words; absent if it did not.
    pub finish_reason: Option<String>,
    /// What it used.
    pub usage: Usage,
    /// True: the text is in the database. False: it is in the outbox and will be. Absent: nothing was to be saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved: Option<bool>,
}

/// Why a generation ended badly, as it is told and saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One of the codes of [`crate::error::Code`].
    pub code: Cow<'static, str>,
    /// A sentence that says what to do.
    pub message: Cow<'static, str>,
    /// Whether the same turn may well succeed if it is tried again unchanged.
    pub retryable: bool,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code().as_str().into(),
            message: error.message().into_owned().into(),
            retryable: error.code().is_retryable(),
        }
    }
}

/// The last event of a generation that ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// The generation's name.
    pub stream_id: StreamId,
    /// The message that holds the text so far; absent if there is none.
    pub message_id: Option<MessageId>,
    /// True: the text so far is in the database. False: it is in the outbox and will be. Absent: nothing was to be saved,
    /// or it could not be.
    pub saved: Option<bool>,
}

/// The last event of a generation: there is exactly one, and nothing after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It ended well.
    Done(Done),
    /// It ended badly.
    Failed(Failed),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_that_every_language_has_whatever_a_reader_says() {
        let exact = 1 << 53;
        for said in [0, 1, 60, (1 << 32) + 60, exact - 1, exact, exact + 61, u64::MAX] {
            let cursor = Cursor::from_id(said);
            assert!(cursor.id() < exact, "{said}");
            assert!(said >= exact || cursor.id() == said, "{said}");
            for next in [cursor.moved_to(7), cursor.ended_at(7), cursor.replaced_by(7)] {
                assert!(next.id() < exact, "{said}");
            }
        }
    }

    #[test]
    fn an_end_is_behind_all_text_and_a_replacement_behind_the_end() {
        let read = Cursor::at(9);
        let (ended, replaced) = (read.ended_at(9), read.ended_at(9).replaced_by(2));
        let ids = [read.id(), read.moved_to(1_000).id(), ended.id(), replaced.id()];
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    }
}
