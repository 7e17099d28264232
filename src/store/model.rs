//! The arguments and answers of the database contract.

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bot::Bot;
use crate::error::Error;
use crate::event::{BotRef, Failure, Usage};
use crate::id::{BotId, ConversationId, MessageId, MessageRef, StreamId, VariantId};
use crate::provider_key::SealedKey;
use crate::story::{Beat, Role, Status};
use crate::text::{self, discreet};

/// How many characters of path a store returns for each token of the bot's `context_size`: real text has about four a
/// token and hardly ever more than eight, so what is left out could not have been in the prompt, while a turn's cost
/// does not grow with the story.
pub(super) const PATH_CHARS_PER_TOKEN: u64 = 8;

/// What a variant counts beside its texts, in bytes, where texts may have a length: as much as it has of other fields. The
/// functions of the database have the same number.
pub(super) const VARIANT_LEN: i64 = 512;

/// Where a generation belongs.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub enum Place {
    /// Nothing is saved.
    Nowhere,
    /// A reply to a message of a conversation.
    Reply {
        /// The conversation.
        conversation_id: ConversationId,
        /// The message to answer, or that `input` follows; absent: the head.
        parent_id: Option<MessageId>,
        /// A new message of the user, to be saved under the parent and answered.
        input: Option<String>,
    },
    /// Another variant of an assistant's message.
    Reroll {
        /// The message.
        message: MessageRef,
    },
    /// A variant that the two-step reroll announced.
    Announced {
        /// The variant. It must be `pending`, and of the stream id that begins it.
        variant_id: VariantId,
        /// The conversation, where the client names it; it must be the variant's.
        conversation_id: Option<ConversationId>,
    },
}

discreet!(Place {});

/// What is to begin.
#[derive(Debug, Clone)]
pub struct Begin {
    /// The generation's name, unique among the user's.
    pub stream_id: StreamId,
    /// Tells this turn from every other one: the same for the same turn.
    pub fingerprint: String,
    /// Where it belongs.
    pub place: Place,
    /// The bot that the request names.
    pub bot_id: Option<BotId>,
    /// Whether the path above the reply is wanted.
    pub wants_path: bool,
    /// When the generation must have ended.
    pub expires_at: Timestamp,
    /// What [`super::Store::finish`] will ask for: random, and used for this call alone. The caller has it before the
    /// store does, so that a generation can be ended by whoever never heard that it has begun.
    pub write_token: SecretString,
}

/// A write token that nobody else has.
///
/// # Errors
/// Internal, if the operating system has no random bytes.
pub fn new_write_token() -> Result<SecretString, Error> {
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(Error::internal)?;
    Ok(SecretString::from(text::hex(&token)))
}

/// What a store keeps of a write token.
pub(super) fn hash(write_token: &SecretString) -> [u8; 32] {
    Sha256::digest(write_token.expose_secret()).into()
}

/// What has begun.
#[derive(Debug)]
pub enum Begun {
    /// A generation that nobody has begun before.
    New(Box<New>),
    /// The generation of this stream id exists.
    Existing(Box<SavedStream>),
}

/// A generation that may now be run.
#[derive(Debug)]
pub struct New {
    /// Who answers.
    pub bot: Bot,
    /// What it writes to; absent at [`Place::Nowhere`].
    pub rows: Option<Rows>,
    /// The path from the root to the reply's parent, oldest first, each message's active variant; messages without any
    /// text are left out. Only as much of its end as can matter, by `PATH_CHARS_PER_TOKEN`. Empty unless wanted.
    pub path: Vec<Beat>,
    /// The user's keys for the bot's provider, at most [`super::KEYS_MAX`].
    pub keys: Vec<SealedKey>,
}

/// The rows that a generation writes to.
#[derive(Debug)]
pub struct Rows {
    /// The story.
    pub conversation_id: ConversationId,
    /// The message.
    pub message_id: MessageId,
    /// The variant.
    pub variant_id: VariantId,
    /// The user's message that was saved with it.
    pub user_message_id: Option<MessageId>,
}

/// How a generation ended, as a store is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The provider finished it.
    Complete,
    /// The user stopped it, or nobody came back in time.
    Stopped,
    /// The relay was shut down.
    Interrupted,
    /// The provider failed. A reply without any text is removed, message and all, unless something hangs on it.
    Failed,
    /// It was never run, because the relay found that it cannot be: everything that `begin` made is removed again, the
    /// user's message too, and the head goes back to where it was if nothing has moved it since.
    Refused,
}

impl Outcome {
    const ALL: [Self; 5] =
        [Self::Complete, Self::Stopped, Self::Interrupted, Self::Failed, Self::Refused];

    /// The word for it, where it is written down.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }

    /// What the word means.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// How a generation ended, apart from its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclusion {
    /// How it ended.
    pub outcome: Outcome,
    /// Why the provider ended it.
    pub finish_reason: Option<String>,
    /// What it used; absent if nobody counted.
    pub usage: Option<Usage>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Whether it was begun by the two-step reroll, whose client knows the variant as the alternative.
    pub is_announced: bool,
}

/// The end of a generation.
#[derive(Clone)]
pub struct Finish {
    /// That of [`Begin::write_token`].
    pub write_token: SecretString,
    /// How it ended.
    pub outcome: Outcome,
    /// The text.
    pub content: String,
    /// What the model thought, if its bot shows that.
    pub reasoning: String,
    /// Why the provider ended it.
    pub finish_reason: Option<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The model that wrote it; empty: the one that began.
    pub model: String,
}

discreet!(Finish { outcome });

impl Finish {
    /// The end of a generation with that text, reasoning first. Of one that was interrupted it says whether there is any.
    #[must_use]
    pub fn concluded(
        write_token: SecretString,
        (reasoning, content): (String, String),
        conclusion: &Conclusion,
        model: String,
    ) -> Self {
        let Conclusion { outcome, finish_reason, usage, failure, is_announced: _ } =
            conclusion.clone();
        let finish =
            Self { write_token, outcome, content, reasoning, finish_reason, usage, failure, model };
        match outcome {
            Outcome::Interrupted => finish.with_why_interrupted(),
            _ => finish,
        }
    }

    /// The end of a generation of which nothing is left but that it was begun.
    #[must_use]
    pub fn interrupted(write_token: SecretString) -> Self {
        Self::empty(write_token, Outcome::Interrupted).with_why_interrupted()
    }

    fn with_why_interrupted(self) -> Self {
        let failure = Some(Failure::from(&Error::interrupted(self.has_text())));
        Self { failure, ..self }
    }

    /// Whether anything has come of it.
    #[must_use]
    pub fn has_text(&self) -> bool {
        !(self.content.is_empty() && self.reasoning.is_empty())
    }

    /// The end of a generation that was never run.
    #[must_use]
    pub fn refused(write_token: SecretString) -> Self {
        Self::empty(write_token, Outcome::Refused)
    }

    fn empty(write_token: SecretString, outcome: Outcome) -> Self {
        Self {
            write_token,
            outcome,
            content: String::new(),
            reasoning: String::new(),
            finish_reason: None,
            usage: None,
            failure: None,
            model: String::new(),
        }
    }
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The message; absent if it was removed.
    pub message_id: Option<MessageId>,
    /// The variant; absent if it was removed.
    pub variant_id: Option<VariantId>,
    /// How it ended for the database. Absent where that does not say.
    #[serde(default)]
    pub outcome: Option<Outcome>,
    /// How long its content is there, in bytes. Absent where the database does not say.
    #[serde(default)]
    pub content_len: Option<u64>,
}

impl Finished {
    /// Whether it is what `finish` made of it, and not what somebody else had made of it before.
    #[must_use]
    pub fn is_by(&self, finish: &Finish) -> bool {
        self.outcome.is_none_or(|outcome| outcome == finish.outcome)
            && self.content_len.is_none_or(|len| len == finish.content.len() as u64)
    }
}

/// What is saved of a stream. Also the wire form of `GET /v1/message-by-stream-id`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedStream {
    /// The message.
    pub id: MessageId,
    /// Its story.
    pub conversation_id: ConversationId,
    /// The message it answers.
    pub parent_id: Option<MessageId>,
    /// Who speaks.
    pub role: Role,
    /// The variant that the stream wrote.
    pub variant_id: VariantId,
    /// Whether that is the one which the story shows.
    pub is_active: bool,
    /// The stream.
    pub stream_id: StreamId,
    /// Its text.
    pub content: String,
    /// What the model thought, if its bot shows that.
    pub reasoning: String,
    /// Its state.
    pub status: Status,
    /// The bot that wrote it.
    pub bot: BotRef,
    /// The model that wrote it.
    pub model: Option<String>,
    /// Why the provider ended it.
    pub finish_reason: Option<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Why it failed.
    pub error: Option<Failure>,
    /// The user's message that was saved with it.
    pub user_message_id: Option<MessageId>,
    /// Whether it was begun by the two-step reroll.
    pub is_announced: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

discreet!(SavedStream { id, variant_id, stream_id, status });

impl SavedStream {
    /// Whether anything has come of it.
    pub(crate) fn has_text(&self) -> bool {
        !(self.content.is_empty() && self.reasoning.is_empty())
    }

    /// Makes it what it will be once `finish` is saved. Returns whether it will be there at all: what is taken back will
    /// not.
    pub(crate) fn finish(&mut self, finish: Finish) -> bool {
        self.status = match finish.outcome {
            Outcome::Complete => Status::Complete,
            Outcome::Stopped => Status::Stopped,
            Outcome::Interrupted => Status::Interrupted,
            Outcome::Failed => Status::Failed,
            Outcome::Refused => return false,
        };
        (self.content, self.reasoning) = (finish.content, finish.reasoning);
        (self.finish_reason, self.usage) = (finish.finish_reason, finish.usage);
        self.error = finish.failure;
        if !finish.model.is_empty() {
            self.model = Some(finish.model);
        }
        true
    }
}

/// A variant that was announced.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Announced {
    /// The variant.
    pub variant_id: VariantId,
    /// Its message.
    pub message_id: MessageId,
    /// The story.
    pub conversation_id: ConversationId,
    /// The stream that will write it.
    pub stream_id: StreamId,
}

/// What to change of a conversation: `None` leaves as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConversationPatch {
    /// The title.
    pub title: Option<String>,
    /// The bot; `Some(None)` unbinds it.
    pub bot_id: Option<Option<BotId>>,
    /// The head.
    pub head_id: Option<MessageId>,
}

discreet!(ConversationPatch { bot_id, head_id });

/// Where a page of a list begins, and how long it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// [`Page::next`] of the page before; absent: the first.
    pub after: Option<String>,
    /// Entries at most.
    pub limit: u32,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The entries.
    pub data: Vec<T>,
    /// Where the next page begins; absent: there is none.
    pub next: Option<String>,
}
