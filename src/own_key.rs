//! Users' own provider keys: sealed before a store sees them, opened for one call, sealed anew after a rotation.

use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use crate::auth::Principal;
use crate::bot::BotSettings;
use crate::error::{Code, Error};
use crate::provider::CUSTOM;
use crate::provider_key::{self, NewKey, ProviderKey, SealedKey};
use crate::relay::Relay;
use crate::seal::Binding;

/// Keeps the caller's key for the provider in place of the one that there was. A key for provider `custom` is bound to the
/// origin of `base_url`.
///
/// # Errors
/// `Unsupported`, if the operator has set no master key; `InvalidRequest`, `TooManyKeys`, `StoreUnavailable`.
pub async fn keep(
    relay: &Relay,
    caller: &Principal,
    provider: String,
    base_url: Option<&str>,
    key: &SecretString,
) -> Result<ProviderKey, Error> {
    let master_keys = relay.master_keys.as_ref().ok_or_else(no_master_key)?;
    let origin = origin(&provider, base_url)?;
    let binding = Binding { user: caller.user(), provider: &provider, origin: &origin };
    let sealed = master_keys.seal(key, &binding)?;
    let last4 = provider_key::last4(key);
    let base_url = base_url.map(str::to_owned);
    relay.store.put_key(caller, &NewKey { provider, base_url, last4, origin, sealed }).await
}

/// The caller's own key for the bot's provider, among `keys`, which are the caller's for that provider; `None` if none of
/// them is for where the bot's requests go. A key that was sealed under an old master key is sealed anew in a task of its
/// own, so that the old one can be dropped some day.
///
/// # Errors
/// `NoProviderKey`, if there is one and it does not open: it is not passed over for the operator's, whose account the
/// caller did not mean to use.
pub(crate) fn open(
    relay: &Arc<Relay>,
    caller: &Principal,
    bot: &BotSettings,
    keys: Vec<SealedKey>,
) -> Result<Option<SecretString>, Error> {
    let origin = origin(&bot.provider, bot.base_url.as_deref())?;
    let Some(key) = keys.into_iter().find(|key| key.origin == origin) else { return Ok(None) };
    let binding = Binding { user: caller.user(), provider: &bot.provider, origin: &origin };
    let provider = &bot.provider;
    let Some(master_keys) = &relay.master_keys else {
        return Err(unopened(provider, "Whoever runs the relay must set RELAY_MASTER_KEYS.")
            .with_detail(format!("key {}: RELAY_MASTER_KEYS is not set", key.id)));
    };
    let opened = master_keys.open(&key.sealed, &binding).map_err(|why| {
        unopened(provider, "Enter it again with `POST /v1/keys`.")
            .with_detail(format!("key {} does not open: {why}", key.id))
    })?;
    if opened.is_outdated {
        let newly = master_keys.seal(&opened.key, &binding)?;
        relay.tasks.spawn(reseal(Arc::clone(relay), caller.clone(), key, newly));
    }
    Ok(Some(opened.key))
}

/// Puts `newly` in the place of what the key was sealed as, unless that has been replaced since.
async fn reseal(relay: Arc<Relay>, caller: Principal, key: SealedKey, newly: String) {
    let id = key.id;
    match relay.store.reseal_key(&caller, id, &key.sealed, &newly).await {
        Ok(()) => tracing::info!(%id, "sealed a user's key under the newest master key"),
        Err(error) if error.code() == Code::KeyNotFound => {}
        // It is tried again when the key is used again.
        Err(error) => tracing::warn!(%id, %error, "a user's key was not sealed anew"),
    }
}

/// The origin that a key is bound to; empty where the provider's address is not the caller's word.
///
/// # Errors
/// `InvalidRequest`, if such an address has none: a key that is bound to nothing would go everywhere.
fn origin(provider: &str, base_url: Option<&str>) -> Result<String, Error> {
    if provider != CUSTOM {
        return Ok(String::new());
    }
    let url = base_url.and_then(|base_url| Url::parse(base_url.trim()).ok());
    let url = url.filter(Url::has_host).ok_or_else(|| {
        Error::new(
            Code::InvalidRequest,
            "`base_url` of provider `custom` must be an https address.",
        )
    })?;
    Ok(provider_key::origin(&url))
}

fn no_master_key() -> Error {
    Error::new(
        Code::Unsupported,
        "This relay keeps no keys of users. Whoever runs it must set RELAY_MASTER_KEYS.",
    )
}

fn unopened(provider: &str, what_to_do: &str) -> Error {
    Error::new(
        Code::NoProviderKey,
        format!("Your key for the provider `{provider}` cannot be opened any more. {what_to_do}"),
    )
}
