//! What every response tells a browser not to do with it, whichever handler or error it comes from.
//!
//! All that is answered is data for a program. A page that gets to show it, frame it, sniff it for a script or keep it is
//! no client of ours. That it came by https is for the proxy to say (`Strict-Transport-Security`), which has the certificate.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, header};

/// The fields, and what they are unless a route has another reason.
pub(super) const HEADERS: [(HeaderName, &str); 5] = [
    // Stories and tokens' owners: neither proxies nor a shared computer's disk keep them.
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // For browsers that do not know `frame-ancestors`.
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Adds [`HEADERS`] to the response, but for those that it has.
pub(super) async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
