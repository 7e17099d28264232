//! The JSON of the functions where it differs from the types of the contract.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::bot::Bot;
use crate::id::{ConversationId, MessageId, MessageRef, VariantId};
use crate::provider_key::{ProviderKey, SealedKey};
use crate::store::{Begun, ConversationPatch, New, Place, Rows, SavedStream};
use crate::story::Beat;

/// What `relay_begin` answers.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum WireBegun {
    Existing {
        existing: Box<SavedStream>,
    },
    New {
        bot: Box<Bot>,
        #[serde(default)]
        rows: Option<WireRows>,
        path: Vec<Beat>,
        /// Absent where the database keeps none.
        #[serde(default)]
        keys: Vec<SealedKey>,
    },
}

/// What `relay_list_keys` answers.
#[derive(Deserialize)]
pub(super) struct WireKeys {
    pub(super) data: Vec<ProviderKey>,
}

#[derive(Deserialize)]
pub(super) struct WireRows {
    conversation_id: ConversationId,
    message_id: MessageId,
    variant_id: VariantId,
    user_message_id: Option<MessageId>,
}

impl From<WireBegun> for Begun {
    fn from(begun: WireBegun) -> Self {
        match begun {
            WireBegun::Existing { existing } => Self::Existing(existing),
            WireBegun::New { bot, rows, path, keys } => {
                Self::New(Box::new(New { bot: *bot, rows: rows.map(Rows::from), path, keys }))
            }
        }
    }
}

impl From<WireRows> for Rows {
    fn from(rows: WireRows) -> Self {
        Self {
            conversation_id: rows.conversation_id,
            message_id: rows.message_id,
            variant_id: rows.variant_id,
            user_message_id: rows.user_message_id,
        }
    }
}

/// The place of a generation, as `relay_begin` takes it.
pub(super) fn place(place: &Place) -> Value {
    match place {
        Place::Nowhere => json!({"kind": "nowhere"}),
        Place::Reply { conversation_id, parent_id, input } => json!({
            "kind": "reply",
            "conversation_id": conversation_id,
            "parent_id": parent_id,
            "input": input,
        }),
        Place::Reroll { message } => {
            let mut place = reference(message);
            place["kind"] = json!("reroll");
            place
        }
        Place::Announced { variant_id, conversation_id } => json!({
            "kind": "announced",
            "variant_id": variant_id,
            "conversation_id": conversation_id,
        }),
    }
}

/// A message by its id or by the stream that wrote it.
pub(super) fn reference(message: &MessageRef) -> Value {
    match message {
        MessageRef::Id(id) => json!({"message_id": id}),
        MessageRef::Stream(stream_id) => json!({"message_stream_id": stream_id}),
    }
}

/// Only what the patch names.
pub(super) fn patch(patch: &ConversationPatch) -> Value {
    let mut named = json!({});
    if let Some(title) = &patch.title {
        named["title"] = json!(title);
    }
    if let Some(bot_id) = patch.bot_id {
        named["bot_id"] = json!(bot_id);
    }
    if let Some(head_id) = patch.head_id {
        named["head_id"] = json!(head_id);
    }
    named
}
