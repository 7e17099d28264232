//! The library of stories: conversations, and what can be done by hand to their messages.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json as JsonResponse};
use http::StatusCode;
use serde::Deserialize;

use super::extract::{Id, Json, Parameters, invalid, present};
use super::listing::Listing;
use super::whole::{SMALL_LEN_MAX, Turns};
use crate::auth::Principal;
use crate::error::Error;
use crate::id::{BotId, ConversationId, MessageId, VariantId};
use crate::relay::Relay;
use crate::store::ConversationPatch;
use crate::story::Conversation;
use crate::text;

/// The longest title, in characters: more is no title but a text.
const TITLE_CHARS_MAX: usize = 500;

/// `GET /v1/conversations`
pub(super) async fn list(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Extension(turns): Extension<Turns>,
    Parameters(listing): Parameters<Listing>,
) -> Result<Response, Error> {
    let cursor = listing.into();
    let read = relay.store.list_conversations(&caller, &cursor);
    turns.bounded(caller.user(), SMALL_LEN_MAX, read).await
}

#[derive(Deserialize)]
pub(super) struct CreateBody {
    title: Option<String>,
    bot_id: Option<BotId>,
}

/// `POST /v1/conversations`
pub(super) async fn create(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Json(body): Json<CreateBody>,
) -> Result<(StatusCode, JsonResponse<Conversation>), Error> {
    let title = title(body.title.as_deref().unwrap_or_default())?;
    let conversation = relay.store.create_conversation(&caller, &title, body.bot_id).await?;
    Ok((StatusCode::CREATED, JsonResponse(conversation)))
}

/// `GET /v1/conversations/{id}`
pub(super) async fn read(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Extension(turns): Extension<Turns>,
    Id(id): Id<ConversationId>,
) -> Result<Response, Error> {
    let read = |len_max| relay.store.read_tree(&caller, id, len_max);
    turns.read(caller.user(), read).await
}

#[derive(Deserialize)]
pub(super) struct PatchBody {
    title: Option<String>,
    #[serde(default, deserialize_with = "present")]
    bot_id: Option<Option<BotId>>,
    head_id: Option<MessageId>,
}

/// `PATCH /v1/conversations/{id}`
pub(super) async fn patch(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<ConversationId>,
    Json(body): Json<PatchBody>,
) -> Result<JsonResponse<Conversation>, Error> {
    let patch = ConversationPatch {
        title: body.title.as_deref().map(title).transpose()?,
        bot_id: body.bot_id,
        head_id: body.head_id,
    };
    relay.store.patch_conversation(&caller, id, &patch).await.map(JsonResponse)
}

/// `DELETE /v1/conversations/{id}`
pub(super) async fn delete(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<ConversationId>,
) -> Result<StatusCode, Error> {
    relay.store.delete_conversation(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct SelectBody {
    variant_id: VariantId,
}

/// `PUT /v1/messages/{id}/active`
pub(super) async fn select_variant(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Extension(turns): Extension<Turns>,
    Id(id): Id<MessageId>,
    Json(SelectBody { variant_id }): Json<SelectBody>,
) -> Result<Response, Error> {
    let select = |len_max| relay.store.select_variant(&caller, id, variant_id, len_max);
    turns.change(caller.user(), StatusCode::OK, select).await
}

#[derive(Deserialize)]
pub(super) struct WriteBody {
    content: String,
}

/// `POST /v1/messages/{id}/variants`
pub(super) async fn write_variant(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Extension(turns): Extension<Turns>,
    Id(id): Id<MessageId>,
    Json(body): Json<WriteBody>,
) -> Result<Response, Error> {
    let content = text::clean(&body.content);
    if content.is_empty() {
        return Err(invalid("`content` is empty. To remove a message, delete it."));
    }
    let write = |len_max| relay.store.write_variant(&caller, id, &content, len_max);
    turns.change(caller.user(), StatusCode::CREATED, write).await
}

/// `DELETE /v1/messages/{id}`
pub(super) async fn delete_message(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<MessageId>,
) -> Result<StatusCode, Error> {
    relay.store.delete_message(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The title, cleaned, if it is one.
pub(super) fn title(title: &str) -> Result<String, Error> {
    if title.chars().count() > TITLE_CHARS_MAX {
        return Err(invalid(format!("`title` is longer than {TITLE_CHARS_MAX} characters.")));
    }
    Ok(text::clean(title).into_owned())
}
