//! The story tree as clients read it: conversations, their messages, and the variants of each.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{Failure, Usage};
use crate::id::{BotId, ConversationId, MessageId, StreamId, VariantId};
use crate::text::discreet;

/// Who speaks in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The reader.
    User,
    /// The bot.
    Assistant,
}

impl Role {
    /// The word on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// The state of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Announced by the two-step reroll, not started.
    Pending,
    /// A generation is writing it.
    Streaming,
    /// Finished by the provider, or written by hand.
    Complete,
    /// The user stopped it, or nobody came back in time.
    Stopped,
    /// The relay died or was shut down in mid-stream.
    Interrupted,
    /// The provider failed; the text so far is kept.
    Failed,
}

impl Status {
    /// The word on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Streaming => "streaming",
            Self::Complete => "complete",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }
}

/// A story, without its messages.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its row.
    pub id: ConversationId,
    /// What the reader calls it; may be empty.
    pub title: String,
    /// The bot bound to it.
    pub bot_id: Option<BotId>,
    /// The message that the story now ends with.
    pub head_id: Option<MessageId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it, or a message of it, last changed.
    pub updated_at: Timestamp,
}

discreet!(Conversation { id, bot_id, head_id });

/// A story with all its messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// The story.
    #[serde(flatten)]
    pub conversation: Conversation,
    /// The messages from the root to the head.
    pub path: Vec<MessageId>,
    /// All messages, oldest first.
    pub messages: Vec<Message>,
}

/// A node of the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Its row.
    pub id: MessageId,
    /// The message it answers; absent at a root.
    pub parent_id: Option<MessageId>,
    /// Who speaks.
    pub role: Role,
    /// The variant that the story shows; absent while there is none to show.
    pub active_variant_id: Option<VariantId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its texts, oldest first.
    pub variants: Vec<Variant>,
}

/// One text of a message.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its row.
    pub id: VariantId,
    /// The text.
    pub content: String,
    /// What the model thought, if its bot shows that.
    pub reasoning: String,
    /// Its state.
    pub status: Status,
    /// The generation that wrote it; absent if it was written by hand.
    pub stream_id: Option<StreamId>,
    /// The bot that wrote it.
    pub bot_id: Option<BotId>,
    /// The model that wrote it.
    pub model: Option<String>,
    /// Why the provider ended it, in OpenAI's words.
    pub finish_reason: Option<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Why it failed.
    pub error: Option<Failure>,
    /// When it was made.
    pub created_at: Timestamp,
}

discreet!(Variant { id, status });

/// What one message says, without its place in the tree.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

discreet!(Beat { role });
