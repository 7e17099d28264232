//! The embedded store: the database contract over one SQLite file, with nothing to install.
//!
//! Each function of the contract is a function of a connection in a file of its own kind; here they are only put into
//! their thread (`crate::sqlite`).

mod begin;
mod bots;
mod conversations;
mod finish;
mod keys;
mod messages;
mod page;
mod read;
mod rows;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;

use super::{
    Announced, Begin, Begun, ConversationPatch, Cursor, Finish, Finished, Page, SavedStream, Store,
};
use crate::auth::Principal;
use crate::bot::{Bot, BotSettings};
use crate::commit::Commit;
use crate::error::Error;
use crate::id::{BotId, ConversationId, MessageId, MessageRef, ProviderKeyId, StreamId, VariantId};
use crate::provider_key::{NewKey, ProviderKey};
use crate::sqlite::{Database, Schema};
use crate::story::{Conversation, Message, Tree};

/// What marks a SQLite file as the relay's stories, in its header: "Rely".
const APPLICATION_ID: i64 = 0x5265_6c79;

const SCHEMA: Schema = Schema {
    application_id: APPLICATION_ID,
    steps: &[include_str!("schema/1.sql"), include_str!("schema/2.sql")],
    // The answer to a repeated `finish` is kept for a week where its rows are gone: far longer than any retry.
    upkeep: "delete from generations where variant_id is null and ended_at < (unixepoch() - 7 * 24 * 60 * 60) * 1000;",
    is_checked: false,
};

/// The embedded store.
#[derive(Debug)]
pub struct SqliteStore {
    database: Database,
    /// The bot that a user gets who has none.
    demo_bot: Option<Arc<BotSettings>>,
}

impl SqliteStore {
    /// Opens the file, makes it if it is not there, and brings it to the present version.
    ///
    /// # Errors
    /// `StoreUnavailable`, with a message for the operator, if it cannot be written, is another program's, or was
    /// written by a newer version.
    pub fn open(path: &Path, demo_bot: Option<BotSettings>) -> Result<Self, Error> {
        Ok(Self { database: Database::open(path, &SCHEMA)?, demo_bot: demo_bot.map(Arc::new) })
    }

    /// Fails if [`Self::open`] would, unless only because another relay has the file. Nothing is changed, and no relay kept
    /// from it. Returns whether there is a file.
    ///
    /// # Errors
    /// `StoreUnavailable`, with a message for the operator.
    pub fn try_out(path: &Path) -> Result<bool, Error> {
        Database::try_out(path, &SCHEMA)
    }

    /// A store that is gone with the process.
    ///
    /// # Errors
    /// `StoreUnavailable`, if there is no memory for it.
    pub fn open_in_memory(demo_bot: Option<BotSettings>) -> Result<Self, Error> {
        Ok(Self { database: Database::open_in_memory(&SCHEMA)?, demo_bot: demo_bot.map(Arc::new) })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn begin(&self, caller: &Principal, begin: &Begin) -> Result<(Begun, Commit), Error> {
        let (user, begin, demo_bot) = (caller.user(), begin.clone(), self.demo_bot.clone());
        self.database
            .write_ahead(move |connection| {
                begin::begin(connection, user, &begin, demo_bot.as_deref())
            })
            .await
    }

    async fn finish(&self, finish: &Finish) -> Result<Finished, Error> {
        let finish = finish.clone();
        self.database.write(move |connection| finish::finish(connection, &finish)).await
    }

    async fn find_stream(
        &self,
        caller: &Principal,
        stream_id: &StreamId,
    ) -> Result<Option<SavedStream>, Error> {
        let (user, stream_id) = (caller.user(), stream_id.clone());
        self.database.read(move |connection| read::find_stream(connection, user, &stream_id)).await
    }

    async fn announce_reroll(
        &self,
        caller: &Principal,
        message: &MessageRef,
        conversation_id: Option<ConversationId>,
    ) -> Result<Announced, Error> {
        let (user, message) = (caller.user(), message.clone());
        self.database
            .write(move |connection| {
                begin::announce_reroll(connection, user, &message, conversation_id)
            })
            .await
    }

    async fn list_conversations(
        &self,
        caller: &Principal,
        cursor: &Cursor,
    ) -> Result<Page<Conversation>, Error> {
        let (user, cursor) = (caller.user(), cursor.clone());
        self.database.read(move |connection| conversations::list(connection, user, &cursor)).await
    }

    async fn create_conversation(
        &self,
        caller: &Principal,
        title: &str,
        bot_id: Option<BotId>,
    ) -> Result<Conversation, Error> {
        let (user, title) = (caller.user(), title.to_owned());
        self.database
            .write(move |connection| conversations::create(connection, user, &title, bot_id))
            .await
    }

    async fn read_tree(
        &self,
        caller: &Principal,
        id: ConversationId,
        len_max: u64,
    ) -> Result<Tree, Error> {
        let user = caller.user();
        self.database.read(move |connection| read::tree(connection, user, id, len_max)).await
    }

    async fn patch_conversation(
        &self,
        caller: &Principal,
        id: ConversationId,
        patch: &ConversationPatch,
    ) -> Result<Conversation, Error> {
        let (user, patch) = (caller.user(), patch.clone());
        self.database
            .write(move |connection| conversations::patch(connection, user, id, &patch))
            .await
    }

    async fn delete_conversation(
        &self,
        caller: &Principal,
        id: ConversationId,
    ) -> Result<(), Error> {
        let user = caller.user();
        self.database.write(move |connection| conversations::delete(connection, user, id)).await
    }

    async fn select_variant(
        &self,
        caller: &Principal,
        message: MessageId,
        variant: VariantId,
        len_max: u64,
    ) -> Result<Message, Error> {
        let user = caller.user();
        self.database
            .write(move |connection| {
                messages::select_variant(connection, user, message, variant, len_max)
            })
            .await
    }

    async fn write_variant(
        &self,
        caller: &Principal,
        message: MessageId,
        content: &str,
        len_max: u64,
    ) -> Result<Message, Error> {
        let (user, content) = (caller.user(), content.to_owned());
        self.database
            .write(move |connection| {
                messages::write_variant(connection, user, message, &content, len_max)
            })
            .await
    }

    async fn delete_message(&self, caller: &Principal, message: MessageId) -> Result<(), Error> {
        let user = caller.user();
        self.database
            .write(move |connection| messages::delete_message(connection, user, message))
            .await
    }

    async fn list_bots(&self, caller: &Principal, cursor: &Cursor) -> Result<Page<Bot>, Error> {
        let (user, cursor, demo_bot) = (caller.user(), cursor.clone(), self.demo_bot.clone());
        // May make the demo bot.
        self.database
            .write(move |connection| bots::list(connection, user, &cursor, demo_bot.as_deref()))
            .await
    }

    async fn read_bot(&self, caller: &Principal, id: BotId) -> Result<Bot, Error> {
        let user = caller.user();
        self.database.read(move |connection| bots::read(connection, user, id)).await
    }

    async fn create_bot(&self, caller: &Principal, settings: &BotSettings) -> Result<Bot, Error> {
        let (user, settings) = (caller.user(), settings.clone());
        self.database.write(move |connection| bots::create(connection, user, &settings)).await
    }

    async fn update_bot(
        &self,
        caller: &Principal,
        id: BotId,
        settings: &BotSettings,
    ) -> Result<Bot, Error> {
        let (user, settings) = (caller.user(), settings.clone());
        self.database.write(move |connection| bots::update(connection, user, id, &settings)).await
    }

    async fn delete_bot(&self, caller: &Principal, id: BotId) -> Result<(), Error> {
        let user = caller.user();
        self.database.write(move |connection| bots::delete(connection, user, id)).await
    }

    async fn list_keys(&self, caller: &Principal) -> Result<Vec<ProviderKey>, Error> {
        let user = caller.user();
        self.database.read(move |connection| keys::list(connection, user)).await
    }

    async fn put_key(&self, caller: &Principal, key: &NewKey) -> Result<ProviderKey, Error> {
        let (user, key) = (caller.user(), key.clone());
        self.database.write(move |connection| keys::put(connection, user, &key)).await
    }

    async fn reseal_key(
        &self,
        caller: &Principal,
        id: ProviderKeyId,
        old: &str,
        new: &str,
    ) -> Result<(), Error> {
        let (user, old, new) = (caller.user(), old.to_owned(), new.to_owned());
        self.database.write(move |connection| keys::reseal(connection, user, id, &old, &new)).await
    }

    async fn delete_key(&self, caller: &Principal, id: ProviderKeyId) -> Result<(), Error> {
        let user = caller.user();
        self.database.write(move |connection| keys::delete(connection, user, id)).await
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn interrupt_orphans(&self) -> Result<u64, Error> {
        self.database.write(finish::interrupt_orphans).await
    }

    async fn ping(&self) -> Result<(), Error> {
        if self.database.is_failing() {
            // Reading proves nothing then. This writes what is there already.
            let write = |connection: &Connection| {
                Ok(connection.pragma_update(None, "application_id", APPLICATION_ID)?)
            };
            return self.database.write(write).await;
        }
        self.database.read(|connection| Ok(connection.query_row("select 1", [], |_| Ok(()))?)).await
    }
}
