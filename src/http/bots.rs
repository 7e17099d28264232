//! The user's bots.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json as JsonResponse};
use http::StatusCode;
use serde_json::{Map, Value};

use super::extract::{Id, Json, Parameters, invalid, parse};
use super::listing::{Listing, long_page, long_read_len};
use super::stream::check_settings;
use super::whole::Turns;
use crate::auth::Principal;
use crate::bot::{Bot, BotSettings};
use crate::error::Error;
use crate::id::BotId;
use crate::provider::Providers;
use crate::relay::Relay;
use crate::text;

/// The longest name of a bot or a model, in characters.
const NAME_CHARS_MAX: usize = 200;

/// The longest system prompt, in bytes: some 60,000 tokens, which is more than leaves room for a story.
const SYSTEM_PROMPT_LEN_MAX: usize = 256 << 10;

/// How much text is held while a page is read, in bytes.
const READ_LEN_MAX: u64 = long_read_len(SYSTEM_PROMPT_LEN_MAX);

/// The largest context, in tokens: as much as any model has, or nearly, and some 8 MiB of text to put together.
const CONTEXT_SIZE_MAX: u32 = 2 << 20;

/// `GET /v1/bots`
pub(super) async fn list(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Extension(turns): Extension<Turns>,
    Parameters(listing): Parameters<Listing>,
) -> Result<Response, Error> {
    let (store, user) = (&relay.store, &caller);
    let read = |cursor| async move { store.list_bots(user, &cursor).await };
    let page = long_page(listing.into(), read, |bot| &bot.settings.system_prompt);
    turns.bounded(caller.user(), READ_LEN_MAX, page).await
}

/// `POST /v1/bots`
pub(super) async fn create(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Json(settings): Json<BotSettings>,
) -> Result<(StatusCode, JsonResponse<Bot>), Error> {
    let bot = relay.store.create_bot(&caller, &check(settings, &relay.providers)?).await?;
    Ok((StatusCode::CREATED, JsonResponse(bot)))
}

/// `GET /v1/bots/{id}`
pub(super) async fn read(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<BotId>,
) -> Result<JsonResponse<Bot>, Error> {
    relay.store.read_bot(&caller, id).await.map(JsonResponse)
}

/// `PATCH /v1/bots/{id}`
pub(super) async fn patch(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<BotId>,
    Json(patch): Json<Map<String, Value>>,
) -> Result<JsonResponse<Bot>, Error> {
    let settings = relay.store.read_bot(&caller, id).await?.settings;
    let settings = check(patched(&settings, patch)?, &relay.providers)?;
    relay.store.update_bot(&caller, id, &settings).await.map(JsonResponse)
}

/// `DELETE /v1/bots/{id}`
pub(super) async fn delete(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<BotId>,
) -> Result<StatusCode, Error> {
    relay.store.delete_bot(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a bot need not have.
const OPTIONAL: [&str; 4] = ["base_url", "temperature", "max_tokens", "reasoning"];

/// The settings with what `patch` has in their place.
pub(super) fn patched(
    settings: &BotSettings,
    patch: Map<String, Value>,
) -> Result<BotSettings, Error> {
    let mut settings = serde_json::to_value(settings).map_err(Error::internal)?;
    for (field, value) in patch {
        // Only what a bot has: other fields are ignored, as everywhere. Null unsets what may be absent, and is itself
        // absent elsewhere.
        if let Some(current) = settings.get_mut(&field)
            && (!value.is_null() || OPTIONAL.contains(&field.as_str()))
        {
            *current = value;
        }
    }
    parse(settings.to_string().as_bytes())
}

/// The settings, cleaned, if a bot can have them.
pub(super) fn check(settings: BotSettings, providers: &Providers) -> Result<BotSettings, Error> {
    let clean = |text: &str| text::clean(text).into_owned();
    let settings = BotSettings {
        name: clean(&settings.name),
        model: clean(&settings.model),
        system_prompt: clean(&settings.system_prompt),
        base_url: settings.base_url.as_deref().map(|url| clean(url).trim().to_owned()),
        ..settings
    };
    let is_name = |name: &str| !name.trim().is_empty() && name.chars().count() <= NAME_CHARS_MAX;
    if !is_name(&settings.name) {
        return Err(invalid(format!("`name` must have 1 to {NAME_CHARS_MAX} characters.")));
    }
    if !is_name(&settings.model) {
        return Err(invalid(format!("`model` must have 1 to {NAME_CHARS_MAX} characters.")));
    }
    if !providers.knows(&settings.provider) {
        return Err(invalid(format!(
            "`provider` must be one of: {}.",
            providers.names().join(", ")
        )));
    }
    check_base_url(&settings, providers)?;
    check_settings(settings.max_tokens, settings.temperature)?;
    if settings.system_prompt.len() > SYSTEM_PROMPT_LEN_MAX {
        return Err(invalid(format!(
            "`system_prompt` is longer than {SYSTEM_PROMPT_LEN_MAX} bytes."
        )));
    }
    if settings.context_size > CONTEXT_SIZE_MAX {
        return Err(invalid(format!("`context_size` must be at most {CONTEXT_SIZE_MAX}.")));
    }
    if settings.context_size == 0
        || settings.max_tokens.is_some_and(|max_tokens| max_tokens >= settings.context_size)
    {
        return Err(invalid(
            "`context_size` must be 1 or more, and more than `max_tokens`: both must fit into it.",
        ));
    }
    Ok(settings)
}

/// Whether the address has the form of one. Whether it may be called is decided when it is.
fn check_base_url(settings: &BotSettings, providers: &Providers) -> Result<(), Error> {
    let base_url = settings.base_url.as_deref().filter(|url| !url.is_empty());
    match (settings.provider.as_str(), base_url) {
        ("custom", None) => Err(invalid("Provider `custom` needs `base_url`.")),
        ("custom", Some(url)) => providers.check_base_url(url),
        (_, Some(_)) => Err(invalid(
            "`base_url` is only for provider `custom`; the other providers have their own.",
        )),
        (_, None) => Ok(()),
    }
}
