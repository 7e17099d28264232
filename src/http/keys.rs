//! The user's own keys for providers: they are put in and never come out.

use std::sync::Arc;

use axum::Json as JsonResponse;
use axum::extract::State;
use http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use super::extract::{Id, Json, invalid};
use crate::auth::Principal;
use crate::error::Error;
use crate::id::ProviderKeyId;
use crate::own_key;
use crate::provider::{CUSTOM, Providers};
use crate::provider_key::{KEY_LEN_MAX, ProviderKey, is_key};
use crate::relay::Relay;
use crate::store::Page;
use crate::text;

/// The body of `POST /v1/keys`.
#[derive(Deserialize)]
pub(super) struct Body {
    provider: String,
    #[serde(deserialize_with = "secret")]
    key: SecretString,
    base_url: Option<String>,
}

/// As serde does it, but for its error, which would quote what is no text.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(SecretString::from(text)),
        _ => Err(serde::de::Error::custom("must be a string")),
    }
}

/// `GET /v1/keys`
pub(super) async fn list(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
) -> Result<JsonResponse<Page<ProviderKey>>, Error> {
    let data = relay.store.list_keys(&caller).await?;
    Ok(JsonResponse(Page { data, next: None }))
}

/// `POST /v1/keys`
pub(super) async fn put(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Json(body): Json<Body>,
) -> Result<(StatusCode, JsonResponse<ProviderKey>), Error> {
    let Body { provider, key, base_url } = check(body, &relay.providers)?;
    let kept = own_key::keep(&relay, &caller, provider, base_url.as_deref(), &key).await?;
    Ok((StatusCode::CREATED, JsonResponse(kept)))
}

/// `DELETE /v1/keys/{id}`
pub(super) async fn delete(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(id): Id<ProviderKeyId>,
) -> Result<StatusCode, Error> {
    relay.store.delete_key(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The body, cleaned, if it can be kept.
pub(super) fn check(body: Body, providers: &Providers) -> Result<Body, Error> {
    let base_url = body.base_url.as_deref().map(|url| text::clean(url).trim().to_owned());
    let body = Body { base_url: base_url.filter(|url| !url.is_empty()), ..body };
    let names = providers.names_with_keys();
    if !names.contains(&body.provider.as_str()) {
        return Err(invalid(format!("`provider` must be one of: {}.", names.join(", "))));
    }
    if !is_key(&body.key) {
        return Err(invalid(format!(
            "`key` must have 1 to {KEY_LEN_MAX} characters, all of them printable ASCII, and no space."
        )));
    }
    match (body.provider.as_str(), body.base_url.as_deref()) {
        (CUSTOM, None) => {
            Err(invalid("Provider `custom` needs `base_url`: the key is sent to its origin alone."))
        }
        (CUSTOM, Some(base_url)) => {
            providers.check_base_url(base_url)?;
            Ok(body)
        }
        (_, Some(_)) => Err(invalid(
            "`base_url` is only for provider `custom`; the other providers have their own.",
        )),
        (_, None) => Ok(body),
    }
}
