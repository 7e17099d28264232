//! The database contract: what the relay asks of a store, and what is true when a store has answered.
//!
//! The relay never names a table. It calls a handful of functions, each one transaction: [`Store::begin`] before the
//! provider is called, [`Store::finish`] after it, and the library of stories around them. Every store passes the suite
//! in `tests/it/contract.rs`; a store that does is finished.
//!
//! Rules that hold for every function:
//!
//! - The caller is an argument, and rows of other users do not exist: what is not theirs is not found.
//! - A function that failed changed nothing. `StoreUnavailable` alone may be tried again.
//! - A variant that is `streaming` past its `expires_at` is read as `interrupted` everywhere.

pub mod functions;
mod model;
mod refusal;
pub mod sqlite;

use async_trait::async_trait;

use crate::auth::Principal;
use crate::bot::{Bot, BotSettings};
use crate::commit::Commit;
use crate::error::Error;
use crate::id::{BotId, ConversationId, MessageId, MessageRef, ProviderKeyId, StreamId, VariantId};
use crate::provider_key::{NewKey, ProviderKey};
use crate::story::{Conversation, Message, Tree};

pub use model::{
    Announced, Begin, Begun, Conclusion, ConversationPatch, Cursor, Finish, Finished, New, Outcome,
    Page, Place, Rows, SavedStream, new_write_token,
};

/// Keys that a user can have: one for each provider, and some for servers of their own. Those of one provider come along
/// with each [`Store::begin`], and this is how many that can be.
pub const KEYS_MAX: usize = 32;

/// The database, as the relay sees it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Decides which bot answers and makes the rows that the generation will write to.
    ///
    /// When it has returned [`Begun::New`], the user's message (if there is one) is there and the conversation's head, and
    /// the reply exists as a variant in state `streaming`, which nobody but the holder of the write token can write. They are
    /// saved when the [`Commit`] says so; before that nobody is to be told of them. For a [`Place::Nowhere`] no row exists and
    /// only the bot was decided.
    ///
    /// Called again with the same user and stream id it changes nothing and returns [`Begun::Existing`], or fails with
    /// `StreamIdReused` if the fingerprint is another one. Of any number of concurrent calls with one stream id exactly
    /// one returns [`Begun::New`].
    ///
    /// The bot is the first that exists of: `bot_id` (not the user's: `BotNotFound`), the conversation's, the user's
    /// default (of several the most recently updated), the user's most recently updated. None: `NoBot`.
    ///
    /// # Errors
    /// `BotNotFound`, `NoBot`, `ConversationNotFound`, `MessageNotFound`, `VariantNotFound`, `NotRerollable`,
    /// `StreamIdReused`, `StoreUnavailable`.
    async fn begin(&self, caller: &Principal, begin: &Begin) -> Result<(Begun, Commit), Error>;

    /// Ends the generation that was begun with `finish.write_token`, as the table of states in the design has it.
    ///
    /// Needs no caller: it works after the caller's access token has expired. Repeated with the same write token it
    /// changes nothing and answers as it did the first time.
    ///
    /// # Errors
    /// `StreamNotFound` if there is no such write token, or what it was for has been deleted; `StoreUnavailable`.
    async fn finish(&self, finish: &Finish) -> Result<Finished, Error>;

    /// What is saved of a stream; `None` if the user has no such stream. A stream that was begun at
    /// [`Place::Nowhere`] or removed with its message is not found.
    ///
    /// # Errors
    /// `StoreUnavailable`.
    async fn find_stream(
        &self,
        caller: &Principal,
        stream_id: &StreamId,
    ) -> Result<Option<SavedStream>, Error>;

    /// The first half of the two-step reroll: a new variant of an assistant's message, in state `pending`, under a new
    /// stream id of the store's choice. `conversation_id`, where given, must be the message's.
    ///
    /// # Errors
    /// `MessageNotFound`, `NotRerollable`, `StoreUnavailable`.
    async fn announce_reroll(
        &self,
        caller: &Principal,
        message: &MessageRef,
        conversation_id: Option<ConversationId>,
    ) -> Result<Announced, Error>;

    /// The user's conversations, the most recently changed first.
    ///
    /// # Errors
    /// `InvalidRequest` for a cursor that no page gave out; `StoreUnavailable`.
    async fn list_conversations(
        &self,
        caller: &Principal,
        cursor: &Cursor,
    ) -> Result<Page<Conversation>, Error>;

    /// Makes a conversation without messages.
    ///
    /// # Errors
    /// `BotNotFound`, `StoreUnavailable`.
    async fn create_conversation(
        &self,
        caller: &Principal,
        title: &str,
        bot_id: Option<BotId>,
    ) -> Result<Conversation, Error>;

    /// The whole tree of a conversation, whose texts are together no longer than `len_max`, in bytes.
    ///
    /// # Errors
    /// `ConversationNotFound`, `StoryTooLarge`, `StoreUnavailable`.
    async fn read_tree(
        &self,
        caller: &Principal,
        id: ConversationId,
        len_max: u64,
    ) -> Result<Tree, Error>;

    /// Changes what `patch` names and nothing else.
    ///
    /// # Errors
    /// `ConversationNotFound`, `BotNotFound`, `MessageNotFound` (the head must be a message of the conversation),
    /// `StoreUnavailable`.
    async fn patch_conversation(
        &self,
        caller: &Principal,
        id: ConversationId,
        patch: &ConversationPatch,
    ) -> Result<Conversation, Error>;

    /// Removes a conversation with all its messages.
    ///
    /// # Errors
    /// `ConversationNotFound`, `GenerationRunning` while one is being written in it, `StoreUnavailable`.
    async fn delete_conversation(
        &self,
        caller: &Principal,
        id: ConversationId,
    ) -> Result<(), Error>;

    /// Makes a variant the one that the story shows. It must be one with text or finished: not `pending`, not
    /// `streaming`. The message's texts are together no longer than `len_max`, in bytes.
    ///
    /// # Errors
    /// `MessageNotFound`, `VariantNotFound`, `GenerationRunning` for a variant still being written, `StoryTooLarge`,
    /// `StoreUnavailable`.
    async fn select_variant(
        &self,
        caller: &Principal,
        message: MessageId,
        variant: VariantId,
        len_max: u64,
    ) -> Result<Message, Error>;

    /// Adds a variant written by hand, complete and active. The message's texts are then together no longer than
    /// `len_max`, in bytes.
    ///
    /// # Errors
    /// `MessageNotFound`, `StoryTooLarge`, `StoreUnavailable`.
    async fn write_variant(
        &self,
        caller: &Principal,
        message: MessageId,
        content: &str,
        len_max: u64,
    ) -> Result<Message, Error>;

    /// Removes a message and all below it. A head among them moves to the removed message's parent.
    ///
    /// # Errors
    /// `MessageNotFound`, `GenerationRunning` while one is being written there, `StoreUnavailable`.
    async fn delete_message(&self, caller: &Principal, message: MessageId) -> Result<(), Error>;

    /// The user's bots, oldest first.
    ///
    /// # Errors
    /// `InvalidRequest` for a cursor that no page gave out; `StoreUnavailable`.
    async fn list_bots(&self, caller: &Principal, cursor: &Cursor) -> Result<Page<Bot>, Error>;

    /// One of the user's bots.
    ///
    /// # Errors
    /// `BotNotFound`, `StoreUnavailable`.
    async fn read_bot(&self, caller: &Principal, id: BotId) -> Result<Bot, Error>;

    /// Makes a bot.
    ///
    /// # Errors
    /// `StoreUnavailable`.
    async fn create_bot(&self, caller: &Principal, settings: &BotSettings) -> Result<Bot, Error>;

    /// Replaces what a user said of a bot. `updated_at` becomes the present.
    ///
    /// # Errors
    /// `BotNotFound`, `StoreUnavailable`.
    async fn update_bot(
        &self,
        caller: &Principal,
        id: BotId,
        settings: &BotSettings,
    ) -> Result<Bot, Error>;

    /// Removes a bot. Conversations bound to it fall back to the user's other bots.
    ///
    /// # Errors
    /// `BotNotFound`, `StoreUnavailable`.
    async fn delete_bot(&self, caller: &Principal, id: BotId) -> Result<(), Error>;

    /// The user's keys for providers, oldest first: at most [`KEYS_MAX`].
    ///
    /// # Errors
    /// `StoreUnavailable`.
    async fn list_keys(&self, caller: &Principal) -> Result<Vec<ProviderKey>, Error>;

    /// Keeps a key in place of the user's key of the same provider and origin, if there is one. From the next
    /// [`Store::begin`] on it is among those that are returned.
    ///
    /// # Errors
    /// `TooManyKeys`, if it is one more than [`KEYS_MAX`]; `StoreUnavailable`.
    async fn put_key(&self, caller: &Principal, key: &NewKey) -> Result<ProviderKey, Error>;

    /// Replaces the sealed form of a key if it is still `old`. What is shown of the key stays as it is.
    ///
    /// # Errors
    /// `KeyNotFound`, also if it has another sealed form; `StoreUnavailable`.
    async fn reseal_key(
        &self,
        caller: &Principal,
        id: ProviderKeyId,
        old: &str,
        new: &str,
    ) -> Result<(), Error>;

    /// Removes a key.
    ///
    /// # Errors
    /// `KeyNotFound`, `StoreUnavailable`.
    async fn delete_key(&self, caller: &Principal, id: ProviderKeyId) -> Result<(), Error>;

    /// Whether nobody else writes to it. Then what a process has begun and not come to record is ended by
    /// [`Store::interrupt_orphans`] when the next one starts.
    fn is_exclusive(&self) -> bool {
        false
    }

    /// For the start of a process: ends as interrupted whatever is still streaming, and returns how much that was. A store
    /// that other processes write to as well leaves it to `expires_at`, as here.
    ///
    /// # Errors
    /// `StoreUnavailable`.
    async fn interrupt_orphans(&self) -> Result<u64, Error> {
        Ok(0)
    }

    /// Whether the database answers, and is one that this relay can use.
    ///
    /// # Errors
    /// `StoreUnavailable`; `Internal`, if it is not set up. What to do about it is in the error's detail.
    async fn ping(&self) -> Result<(), Error>;
}
