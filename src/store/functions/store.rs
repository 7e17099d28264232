//! The store: each function of the contract is one call, tried again where that can do no harm.

use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::wire::{self, WireBegun, WireKeys};
use super::{CONTRACT_VERSION, Fault, Functions};
use crate::auth::Principal;
use crate::bot::{Bot, BotSettings};
use crate::commit::Commit;
use crate::error::{Code, Error};
use crate::id::{
    BotId, ConversationId, MessageId, MessageRef, ProviderKeyId, StreamId, VariantId, call_id,
    random_byte,
};
use crate::provider_key::{NewKey, ProviderKey};
use crate::store::model::{PATH_CHARS_PER_TOKEN, hash};
use crate::store::{
    Announced, Begin, Begun, ConversationPatch, Cursor, Finish, Finished, Page, SavedStream, Store,
};
use crate::story::{Conversation, Message, Tree};
use crate::text;

/// How often a call is made at most.
const TRIES: u32 = 3;

/// The wait before the second try; the third waits twice as long. Up to a half more is added by chance, so that calls
/// that failed together do not come again together.
const BACKOFF: Duration = Duration::from_millis(150);

/// The longest wait that is worth a reader's time. Who asks for more is asked by the reader.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// No try begins later than this after the first: whoever waits is told then.
const TRYING_TIME: Duration = Duration::from_secs(10);

/// When a call is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Carrying it out twice is the same as carrying it out once.
    Harmless,
    /// Only if it was certainly not carried out.
    Harmful,
    /// Not here: whoever calls does it.
    Never,
}

/// A store whose functions are the database's.
#[derive(Debug)]
pub struct FunctionStore<F> {
    functions: F,
    /// The bot that a user gets who has none.
    demo_bot: Option<BotSettings>,
}

impl<F: Functions> FunctionStore<F> {
    /// A store on `functions`. Whether they are there is found out by [`Store::ping`].
    pub fn new(functions: F, demo_bot: Option<BotSettings>) -> Self {
        Self { functions, demo_bot }
    }

    /// A call that may be repeated.
    async fn repeatable<T: DeserializeOwned>(
        &self,
        caller: &Principal,
        function: &'static str,
        arguments: &Value,
    ) -> Result<T, Error> {
        self.call(Some(caller), function, arguments, Repeat::Harmless).await
    }

    /// A call that does something each time it is made.
    async fn once<T: DeserializeOwned>(
        &self,
        caller: &Principal,
        function: &'static str,
        arguments: &Value,
    ) -> Result<T, Error> {
        self.call(Some(caller), function, arguments, Repeat::Harmful).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        caller: Option<&Principal>,
        function: &'static str,
        arguments: &Value,
        repeat: Repeat,
    ) -> Result<T, Error> {
        let arguments = SecretString::from(arguments.to_string());
        let (began, mut backoff) = (Instant::now(), BACKOFF);
        for attempt in 1.. {
            let fault = match self.functions.call(caller, function, &arguments).await {
                Ok(json) => {
                    return serde_json::from_slice(&json).map_err(|error| {
                        Error::internal(format!("{function} answered what it should not: {error}"))
                    });
                }
                Err(fault) => fault,
            };
            let wait = match &fault {
                Fault::NotDone(_, retry_after) if repeat != Repeat::Never => {
                    retry_after.unwrap_or(backoff)
                }
                Fault::Unknown(_) if repeat == Repeat::Harmless => backoff,
                _ => return Err(fault.into()),
            };
            if attempt == TRIES || wait > BACKOFF_MAX || began.elapsed() + wait > TRYING_TIME {
                return Err(fault.into());
            }
            tracing::debug!(function, attempt, ?fault, "call failed, will be tried again");
            sleep(wait + wait * u32::from(random_byte()) / 512).await;
            backoff *= 2;
        }
        unreachable!("the last attempt returns")
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[async_trait]
impl<F: Functions> Store for FunctionStore<F> {
    async fn begin(&self, caller: &Principal, begin: &Begin) -> Result<(Begun, Commit), Error> {
        let arguments = json!({
            "stream_id": begin.stream_id,
            "fingerprint": begin.fingerprint,
            // The same in every try: a call whose answer was lost is answered again.
            "attempt": call_id(),
            "place": wire::place(&begin.place),
            "bot_id": begin.bot_id,
            "wants_path": begin.wants_path,
            "path_chars_per_token": PATH_CHARS_PER_TOKEN,
            "expires_at": begin.expires_at,
            "fallback_bot": self.demo_bot,
            "write_token_hash": text::hex(&hash(&begin.write_token)),
        });
        let begun = self.repeatable::<WireBegun>(caller, "relay_begin", &arguments).await?;
        Ok((Begun::from(begun), Commit::done()))
    }

    async fn finish(&self, finish: &Finish) -> Result<Finished, Error> {
        let arguments = json!({
            "write_token": finish.write_token.expose_secret(),
            "outcome": finish.outcome.as_str(),
            "content": finish.content,
            "reasoning": finish.reasoning,
            "finish_reason": finish.finish_reason,
            "usage": finish.usage,
            "failure": finish.failure,
            "model": finish.model,
        });
        self.call(None, "relay_finish", &arguments, Repeat::Never).await
    }

    async fn find_stream(
        &self,
        caller: &Principal,
        stream_id: &StreamId,
    ) -> Result<Option<SavedStream>, Error> {
        self.repeatable(caller, "relay_find_stream", &json!({"stream_id": stream_id})).await
    }

    async fn announce_reroll(
        &self,
        caller: &Principal,
        message: &MessageRef,
        conversation_id: Option<ConversationId>,
    ) -> Result<Announced, Error> {
        let mut arguments = wire::reference(message);
        arguments["conversation_id"] = json!(conversation_id);
        self.once(caller, "relay_announce_reroll", &arguments).await
    }

    async fn list_conversations(
        &self,
        caller: &Principal,
        cursor: &Cursor,
    ) -> Result<Page<Conversation>, Error> {
        let arguments = json!({"after": cursor.after, "limit": cursor.limit});
        self.repeatable(caller, "relay_list_conversations", &arguments).await
    }

    async fn create_conversation(
        &self,
        caller: &Principal,
        title: &str,
        bot_id: Option<BotId>,
    ) -> Result<Conversation, Error> {
        let arguments = json!({"title": title, "bot_id": bot_id});
        self.once(caller, "relay_create_conversation", &arguments).await
    }

    async fn read_tree(
        &self,
        caller: &Principal,
        id: ConversationId,
        len_max: u64,
    ) -> Result<Tree, Error> {
        self.repeatable(caller, "relay_tree", &json!({"id": id, "len_max": len_max})).await
    }

    async fn patch_conversation(
        &self,
        caller: &Principal,
        id: ConversationId,
        patch: &ConversationPatch,
    ) -> Result<Conversation, Error> {
        let arguments = json!({"id": id, "patch": wire::patch(patch)});
        self.repeatable(caller, "relay_patch_conversation", &arguments).await
    }

    async fn delete_conversation(
        &self,
        caller: &Principal,
        id: ConversationId,
    ) -> Result<(), Error> {
        self.once(caller, "relay_delete_conversation", &json!({"id": id})).await
    }

    async fn select_variant(
        &self,
        caller: &Principal,
        message: MessageId,
        variant: VariantId,
        len_max: u64,
    ) -> Result<Message, Error> {
        let arguments = json!({"message_id": message, "variant_id": variant, "len_max": len_max});
        self.repeatable(caller, "relay_select_variant", &arguments).await
    }

    async fn write_variant(
        &self,
        caller: &Principal,
        message: MessageId,
        content: &str,
        len_max: u64,
    ) -> Result<Message, Error> {
        let arguments = json!({"message_id": message, "content": content, "len_max": len_max});
        self.once(caller, "relay_write_variant", &arguments).await
    }

    async fn delete_message(&self, caller: &Principal, message: MessageId) -> Result<(), Error> {
        self.once(caller, "relay_delete_message", &json!({"message_id": message})).await
    }

    async fn list_bots(&self, caller: &Principal, cursor: &Cursor) -> Result<Page<Bot>, Error> {
        let arguments =
            json!({"after": cursor.after, "limit": cursor.limit, "fallback_bot": self.demo_bot});
        // The bot that it may make is made only where there is none.
        self.repeatable(caller, "relay_list_bots", &arguments).await
    }

    async fn read_bot(&self, caller: &Principal, id: BotId) -> Result<Bot, Error> {
        self.repeatable(caller, "relay_read_bot", &json!({"id": id})).await
    }

    async fn create_bot(&self, caller: &Principal, settings: &BotSettings) -> Result<Bot, Error> {
        self.once(caller, "relay_create_bot", &json!({"settings": settings})).await
    }

    async fn update_bot(
        &self,
        caller: &Principal,
        id: BotId,
        settings: &BotSettings,
    ) -> Result<Bot, Error> {
        let arguments = json!({"id": id, "settings": settings});
        self.repeatable(caller, "relay_update_bot", &arguments).await
    }

    async fn delete_bot(&self, caller: &Principal, id: BotId) -> Result<(), Error> {
        self.once(caller, "relay_delete_bot", &json!({"id": id})).await
    }

    async fn list_keys(&self, caller: &Principal) -> Result<Vec<ProviderKey>, Error> {
        let keys: WireKeys = self.repeatable(caller, "relay_list_keys", &json!({})).await?;
        Ok(keys.data)
    }

    async fn put_key(&self, caller: &Principal, key: &NewKey) -> Result<ProviderKey, Error> {
        self.repeatable(caller, "relay_put_key", &json!(key)).await
    }

    async fn reseal_key(
        &self,
        caller: &Principal,
        id: ProviderKeyId,
        old: &str,
        new: &str,
    ) -> Result<(), Error> {
        self.repeatable(caller, "relay_reseal_key", &json!({"id": id, "old": old, "new": new}))
            .await
    }

    async fn delete_key(&self, caller: &Principal, id: ProviderKeyId) -> Result<(), Error> {
        self.once(caller, "relay_delete_key", &json!({"id": id})).await
    }

    async fn ping(&self) -> Result<(), Error> {
        let found: Version = self.call(None, "relay_version", &json!({}), Repeat::Harmless).await?;
        if found.version == CONTRACT_VERSION {
            return Ok(());
        }
        Err(Error::new(Code::StoreUnavailable, "The database does not fit this relay.").with_detail(
            format!(
                "the functions are of version {}, this relay speaks {CONTRACT_VERSION}: apply its migrations",
                found.version
            ),
        ))
    }
}
