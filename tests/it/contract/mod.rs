//! The database contract: what every store must do. A new store is finished when it passes this.
//!
//! Each test is a function of a store; at the end of its file each store runs them all.

mod endings;
mod keys;
mod stories;
mod turns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use storytellr_relay::auth::Principal;
use storytellr_relay::bot::BotSettings;
use storytellr_relay::clock;
use storytellr_relay::error::{Code, Error};
use storytellr_relay::event::{Failure, Usage};
use storytellr_relay::id::{BotId, ConversationId, MessageId, MessageRef, StreamId, VariantId};
use storytellr_relay::provider_key::NewKey;
use storytellr_relay::store::functions::FunctionStore;
use storytellr_relay::store::functions::postgres::PostgresFunctions;
use storytellr_relay::store::functions::postgrest::PostgrestFunctions;
use storytellr_relay::store::sqlite::SqliteStore;
use storytellr_relay::store::{
    Begin, Begun, ConversationPatch, Cursor, Finish, Finished, New, Outcome, Place, Rows, Store,
    new_write_token,
};
use storytellr_relay::story::{Message, Role, Status};
use uuid::Uuid;

use crate::database::Database;
use crate::postgrest::Postgrest;
use crate::relay::principal;

/// Texts of any length.
const ALL: u64 = 1 << 40;

/// What a variant counts beside its texts.
const VARIANT_LEN: u64 = 512;

/// A user with a conversation, and the verbs of a story.
struct Story {
    store: Arc<dyn Store>,
    user: Principal,
    id: ConversationId,
    /// What each variant that was begun is finished with.
    write_tokens: Mutex<HashMap<VariantId, SecretString>>,
}

impl Story {
    /// Of a new user, who has a bot.
    async fn new(store: &Arc<dyn Store>) -> Self {
        let user = principal(Uuid::now_v7());
        bot(store, &user, BotSettings::demo()).await;
        let id = store.create_conversation(&user, "", None).await.unwrap().id;
        Self { store: Arc::clone(store), user, id, write_tokens: Mutex::default() }
    }

    async fn begin(&self, place: Place) -> New {
        self.begin_with(&begin(place)).await
    }

    async fn begin_with(&self, begin: &Begin) -> New {
        match begun(&self.store, &self.user, begin).await.unwrap() {
            Begun::New(new) => {
                let variant = new.rows.as_ref().map(|rows| rows.variant_id);
                let tokens = variant.map(|id| (id, begin.write_token.clone()));
                self.write_tokens.lock().unwrap().extend(tokens);
                *new
            }
            Begun::Existing(saved) => panic!("{saved:?}"),
        }
    }

    fn write_token(&self, rows: &Rows) -> SecretString {
        self.write_tokens.lock().unwrap()[&rows.variant_id].clone()
    }

    fn reply(&self, parent_id: Option<MessageId>, input: &str) -> Place {
        Place::Reply { conversation_id: self.id, parent_id, input: Some(input.to_owned()) }
    }

    /// A turn that has begun.
    async fn ask(&self, input: &str) -> (New, Rows) {
        let mut new = self.begin(self.reply(None, input)).await;
        let rows = new.rows.take().unwrap();
        (new, rows)
    }

    async fn finish(&self, rows: &Rows, outcome: Outcome, content: &str) -> Finished {
        self.store.finish(&finish(&self.write_token(rows), outcome, content)).await.unwrap()
    }

    /// A whole turn; the reply.
    async fn tell(&self, input: &str, answer: &str) -> MessageId {
        let (_, rows) = self.ask(input).await;
        self.finish(&rows, Outcome::Complete, answer).await;
        rows.message_id
    }

    async fn reroll(&self, message: MessageId) -> Rows {
        self.begin(Place::Reroll { message: MessageRef::Id(message) }).await.rows.unwrap()
    }

    async fn message(&self, id: MessageId) -> Option<Message> {
        let tree = self.store.read_tree(&self.user, self.id, ALL).await.unwrap();
        tree.messages.into_iter().find(|message| message.id == id)
    }

    async fn head(&self) -> Option<MessageId> {
        self.store.read_tree(&self.user, self.id, ALL).await.unwrap().conversation.head_id
    }

    async fn set_head(&self, id: MessageId) {
        let patch = ConversationPatch { head_id: Some(id), ..ConversationPatch::default() };
        self.store.patch_conversation(&self.user, self.id, &patch).await.unwrap();
    }

    /// The state, text and activity of the variant.
    async fn variant(&self, rows: &Rows) -> Option<(Status, String, bool)> {
        let message = self.message(rows.message_id).await?;
        let is_active = message.active_variant_id == Some(rows.variant_id);
        let variant = message.variants.into_iter().find(|variant| variant.id == rows.variant_id)?;
        Some((variant.status, variant.content, is_active))
    }

    /// The story as it reads.
    async fn reads(&self) -> Vec<String> {
        let tree = self.store.read_tree(&self.user, self.id, ALL).await.unwrap();
        let text = |id: &MessageId| {
            let message = tree.messages.iter().find(|message| message.id == *id).unwrap();
            let mut variants = message.variants.iter();
            variants
                .find(|variant| Some(variant.id) == message.active_variant_id)
                .unwrap()
                .content
                .clone()
        };
        tree.path.iter().map(text).collect()
    }
}

/// What has begun, when it is safe.
async fn begun(store: &Arc<dyn Store>, user: &Principal, begin: &Begin) -> Result<Begun, Error> {
    let (begun, commit) = store.begin(user, begin).await?;
    commit.wait().await?;
    Ok(begun)
}

async fn bot(store: &Arc<dyn Store>, user: &Principal, settings: BotSettings) -> BotId {
    store.create_bot(user, &settings).await.unwrap().id
}

fn begin(place: Place) -> Begin {
    begin_as(StreamId::random(), "one", place)
}

fn begin_as(stream_id: StreamId, fingerprint: &str, place: Place) -> Begin {
    let expires_at = clock::now() + Duration::from_secs(600);
    Begin {
        stream_id,
        fingerprint: fingerprint.to_owned(),
        place,
        bot_id: None,
        wants_path: true,
        expires_at,
        write_token: new_write_token().unwrap(),
    }
}

/// The same request, made anew.
fn again(begin: &Begin) -> Begin {
    Begin { write_token: new_write_token().unwrap(), ..begin.clone() }
}

fn finish(write_token: &SecretString, outcome: Outcome, content: &str) -> Finish {
    let failure =
        Failure { code: "provider_failed".into(), message: "It failed.".into(), retryable: true };
    Finish {
        write_token: write_token.clone(),
        outcome,
        content: content.to_owned(),
        reasoning: String::new(),
        finish_reason: Some("stop".to_owned()),
        usage: Some(Usage { prompt_tokens: 1, completion_tokens: 2, estimated: false }),
        failure: (outcome == Outcome::Failed).then_some(failure),
        model: "model-1".to_owned(),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code()
}

fn all() -> Cursor {
    Cursor { after: None, limit: 100 }
}

fn new_key(provider: &str, origin: &str, sealed: &str) -> NewKey {
    NewKey {
        provider: provider.to_owned(),
        base_url: Some(origin)
            .filter(|origin| !origin.is_empty())
            .map(|origin| format!("{origin}/v1")),
        last4: "1234".to_owned(),
        origin: origin.to_owned(),
        sealed: sealed.to_owned(),
    }
}

/// Origin and sealed form of the keys that a turn gets which belongs nowhere, sorted.
async fn sealed_keys(store: &Arc<dyn Store>, user: &Principal) -> Vec<(String, String)> {
    let Begun::New(new) = begun(store, user, &begin(Place::Nowhere)).await.unwrap() else {
        panic!()
    };
    let mut keys: Vec<_> = new.keys.into_iter().map(|key| (key.origin, key.sealed)).collect();
    keys.sort_unstable();
    keys
}

/// Runs every test of the contract on the stores that `$new` makes.
macro_rules! on {
    ($store:ident: $new:expr; $($test:ident)*) => {
        mod $store {
            use super::*;

            $(
                #[tokio::test]
                async fn $test() {
                    let (store, _keep) = $new;
                    super::$test(Arc::new(store)).await;
                }
            )*
        }
    };
}

macro_rules! on_every_store {
    ($($test:ident)*) => {
        on! { sqlite: {
            let folder = tempfile::TempDir::new().unwrap();
            (SqliteStore::open(&folder.path().join("relay.db"), None).unwrap(), folder)
        }; $($test)* }
        on! { sqlite_in_memory: (SqliteStore::open_in_memory(None).unwrap(), ()); $($test)* }
        on! { postgres: {
            let url = Database::shared().await.url("relay").parse().unwrap();
            (FunctionStore::new(PostgresFunctions::new(&url).unwrap(), None), ())
        }; $($test)* }
        on! { postgrest: {
            let port = Postgrest::shared().await;
            let url = format!("http://127.0.0.1:{port}").parse().unwrap();
            (FunctionStore::new(PostgrestFunctions::new(&url, None).unwrap(), None), ())
        }; $($test)* }
    };
}

use {on, on_every_store};
