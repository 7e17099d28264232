//! One line of log for each request, and the id by which it is found.

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, header};
use tokio::time::Instant;
use tracing::{Instrument, error, info, info_span, warn};

use super::reject;
use crate::auth::Principal;
use crate::error::Error;

/// The header that names a request.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over from a caller, in bytes.
const REQUEST_ID_LEN_MAX: usize = 128;

/// Gives the request its id, logs it when its response begins, and writes the body of an error.
///
/// What is never logged: tokens, keys, queries, bodies.
pub(super) async fn log(request: Request, next: Next) -> Response {
    let request_id = request_id(&request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let began = Instant::now();

    let span = info_span!("request", %request_id);
    let mut response = next.run(request).instrument(span.clone()).await;

    let _entered = span.enter();
    let route = route.as_deref().unwrap_or("unknown");
    let status = response.status().as_u16();
    let duration_ms = began.elapsed().as_secs_f64() * 1000.0;
    let user = response
        .extensions()
        .get::<Principal>()
        .map(|caller| tracing::field::display(caller.user()));
    match response.extensions_mut().remove::<Error>() {
        Some(reason) => {
            match status {
                500.. if status != 503 => {
                    error!(%method, route, status, duration_ms, user, %reason, "request failed");
                }
                503 => warn!(%method, route, status, duration_ms, user, %reason, "request refused"),
                _ => info!(%method, route, status, duration_ms, user, %reason, "request refused"),
            }
            let body = reject::envelope(&reason, &request_id);
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().remove(header::CONTENT_LENGTH);
            *response.body_mut() = Body::from(body);
        }
        None => info!(%method, route, status, duration_ms, user, "request"),
    }
    if let Ok(request_id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(X_REQUEST_ID, request_id);
    }
    response
}

/// The caller's own id, if it is harmless, or a new one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_harmless = |id: &&str| {
        (1..=REQUEST_ID_LEN_MAX).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    given
        .filter(is_harmless)
        .map_or_else(|| crate::id::StreamId::random().to_string(), str::to_owned)
}
