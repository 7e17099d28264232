//! Which web pages may call from a browser: exact origins, with credentials.

use std::time::Duration;

use http::{HeaderValue, Method, header, request};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::authenticate::{RATELIMIT, RATELIMIT_POLICY};
use super::request_log::X_REQUEST_ID;
use super::sse::{LAST_EVENT_ID, X_STREAM_ID};
use crate::config::Origins;

/// How long a browser may remember the answer to a preflight; Chromium's own limit is two hours.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Adds the `Access-Control` headers for origins that are allowed, and none that allow anything for others.
pub(super) fn layer(origins: Origins) -> CorsLayer {
    let is_allowed = move |origin: &HeaderValue, _: &request::Parts| {
        origin.to_str().is_ok_and(|origin| origins.allow(origin))
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_allowed))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::ACCEPT,
            LAST_EVENT_ID,
            X_REQUEST_ID,
        ])
        .expose_headers([
            X_REQUEST_ID,
            X_STREAM_ID,
            RATELIMIT,
            RATELIMIT_POLICY,
            header::RETRY_AFTER,
        ])
        .max_age(MAX_AGE)
}
