//! The HTTP faces: from requests to turns and calls of the store, and from logs to event streams.
//!
//! A face decodes, calls the spine or the store, and encodes. It never talks to a provider, and no other module knows
//! an HTTP type.

mod address;
mod authenticate;
mod bots;
mod conversations;
mod cors;
mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod keys;
pub mod listener;
mod listing;
mod loops;
pub mod openapi;
mod operations;
mod reject;
mod request_log;
mod reroll;
mod security;
mod shares;
pub mod sse;
mod stream;
mod timer;
mod whole;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};
use axum::{Extension, Router};

use crate::error::{Code, Error};
use crate::relay::Relay;
pub use address::Proxies;
pub use cors::Origins;
pub(crate) use cors::is_loopback;

/// The longest request body in bytes. A million tokens of the caller's own context fit; nothing longer fits a model.
pub const BODY_LEN_MAX: usize = 4 << 20;

/// All routes, with everything that surrounds them.
pub fn router(relay: Arc<Relay>, origins: Origins, proxies: Proxies) -> Router {
    let gate = address::Gate { relay: Arc::clone(&relay), proxies: Arc::new(proxies) };
    // Everything that belongs to somebody. Whoever adds a route here cannot forget to ask who is calling.
    let personal = Router::new()
        .route("/v1/stream", post(stream::start))
        .route("/v1/reroll", post(reroll::reroll))
        .route("/v1/streams", get(stream::list))
        .route("/v1/streams/{stream_id}", get(stream::follow).delete(stream::stop))
        .route("/v1/message-by-stream-id", get(stream::message))
        .route("/v1/conversations", get(conversations::list).post(conversations::create))
        .route(
            "/v1/conversations/{id}",
            get(conversations::read).patch(conversations::patch).delete(conversations::delete),
        )
        .route("/v1/messages/{id}", axum::routing::delete(conversations::delete_message))
        .route("/v1/messages/{id}/active", put(conversations::select_variant))
        .route("/v1/messages/{id}/variants", post(conversations::write_variant))
        .route("/v1/bots", get(bots::list).post(bots::create))
        .route("/v1/bots/{id}", get(bots::read).patch(bots::patch).delete(bots::delete))
        .route("/v1/keys", get(keys::list).post(keys::put))
        .route("/v1/keys/{id}", axum::routing::delete(keys::delete))
        .route("/auth/test", get(operations::auth_test))
        .layer(Extension(whole::Turns::default()))
        .route_layer(from_fn_with_state(Arc::clone(&relay), authenticate::authenticate))
        .route_layer(from_fn_with_state(gate, address::limit));

    // A request passes these from the bottom up.
    Router::new()
        .merge(personal)
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/openapi.json", get(openapi::describe))
        .fallback(route_not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(from_fn(loops::refuse))
        .layer(from_fn(reject::panics))
        .layer(cors::layer(origins))
        .layer(from_fn(request_log::log))
        .layer(from_fn(security::harden))
        .with_state(relay)
}

async fn route_not_found() -> Error {
    Error::new(Code::RouteNotFound, "There is no such route. `GET /openapi.json` lists them.")
}

async fn method_not_allowed() -> Error {
    Error::new(
        Code::MethodNotAllowed,
        "This route does not take that method. `Allow` lists those that it takes.",
    )
}
