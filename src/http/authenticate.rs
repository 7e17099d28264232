//! Before every personal route: who is calling, and whether they have a request left.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::auth::Principal;
use crate::clock;
use crate::error::{Code, Error};
use crate::limits::Quota;
use crate::relay::Relay;

/// The fields of draft-ietf-httpapi-ratelimit-headers.
pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What the quotas are called in them: requests of a user, and of an address.
pub(super) const REQUESTS: &str = "requests";
pub(super) const ADDRESS: &str = "address";

/// Lets a request pass that has a valid token and is within its user's rate. Handlers take the caller as an argument.
pub(super) async fn authenticate(
    State(relay): State<Arc<Relay>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match bearer(request.headers()) {
        Ok(token) => relay.verifier.verify(token, clock::now()).await,
        Err(error) => Err(error),
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let (quota, mut response) = match relay.limits.check(&caller).await {
        Ok(quota) => {
            request.extensions_mut().insert(caller.clone());
            (quota, next.run(request).await)
        }
        Err((quota, error)) => (quota, error.into_response()),
    };
    announce(REQUESTS, &quota, response.headers_mut());
    // For the line of log.
    response.extensions_mut().insert(caller);
    response
}

/// The token of `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let missing = || {
        Error::new(
            Code::MissingToken,
            "Send the session's access token: `Authorization: Bearer <access_token>`.",
        )
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(Error::new(
            Code::InvalidToken,
            "There are several `Authorization` headers. Send one.",
        ));
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(token)
    } else {
        Err(missing())
    }
}

/// Says what is left of a quota, and of which.
pub(super) fn announce(policy: &str, quota: &Quota, headers: &mut HeaderMap) {
    let (requests, window) = (quota.rate.requests, quota.rate.window.as_secs());
    let resets_in = quota.resets_in.as_secs_f64().ceil();
    let fields = [
        (RATELIMIT_POLICY, format!("\"{policy}\";q={requests};w={window}")),
        (RATELIMIT, format!("\"{policy}\";r={};t={resets_in}", quota.remaining)),
    ];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::internal("a route without authentication"))
    }
}
