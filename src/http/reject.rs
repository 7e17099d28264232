//! From an [`Error`] to a response: which status it has, and what its body says.
//!
//! An error becomes a response without a body that carries the error; `request_log`, which knows the request's id, logs
//! it and writes the body. So an error is logged once, and no handler has to know ids.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::error::{Code, Error};

/// What is told to wait who is refused for now, where nobody knows better.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = status(self.code()).into_response();
        let is_for_now = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        if let Some(wait) = self.retry_after().or(is_for_now.then_some(RETRY_AFTER)) {
            // Rounded up: who comes back a moment early is refused again.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self.code(), Code::MissingToken | Code::InvalidToken) {
            // RFC 6750, section 3.
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.code(), Code::BodyTooLarge | Code::RequestTimeout) {
            // The rest of the body is not read, so nothing else can come on this connection.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

pub(super) fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidRequest
        | Code::ContextTooLong
        | Code::NotRerollable
        | Code::Unsupported
        | Code::UnknownProvider
        | Code::UpstreamNotAllowed => StatusCode::BAD_REQUEST,
        Code::MissingToken | Code::InvalidToken => StatusCode::UNAUTHORIZED,
        Code::NoProviderKey => StatusCode::PAYMENT_REQUIRED,
        Code::BotNotFound | Code::NoBot => StatusCode::FORBIDDEN,
        Code::ConversationNotFound
        | Code::MessageNotFound
        | Code::VariantNotFound
        | Code::StreamNotFound
        | Code::KeyNotFound
        | Code::RouteNotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::StreamIdReused
        | Code::GenerationRunning
        | Code::TooManyKeys
        | Code::StoryTooLarge => StatusCode::CONFLICT,
        Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited | Code::TooManyStreams | Code::BudgetExceeded => {
            StatusCode::TOO_MANY_REQUESTS
        }
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Overloaded
        | Code::ShuttingDown
        | Code::StoreUnavailable
        | Code::KeysUnavailable
        | Code::NotSaved
        | Code::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
        // These happen after the first event, where there is no status to set any more.
        Code::ProviderUnreachable
        | Code::ProviderTimeout
        | Code::ProviderRateLimited
        | Code::ProviderKeyRefused
        | Code::ProviderRejected
        | Code::ProviderFailed
        | Code::ProviderInvalid
        | Code::AnswerTooLong => StatusCode::BAD_GATEWAY,
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'static str,
    message: &'a str,
    request_id: &'a str,
}

/// The JSON that a client gets for `error`.
pub(super) fn envelope(error: &Error, request_id: &str) -> String {
    let body = Body { code: error.code().as_str(), message: &error.message(), request_id };
    serde_json::to_string(&Envelope { error: body }).unwrap_or_default()
}

/// Answers for a handler that panics. The panic's own message may hold anything, so it goes nowhere; that there was one, and
/// where, is in the operator's log by the panic hook. tower-http's layer would put the body of every response into two boxes
/// more, and an event stream would be polled through them at each token.
pub(super) async fn panics(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Error::internal("a request handler panicked").into_response())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::to_bytes;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_costs_one_request_and_its_words_go_nowhere() {
        async fn panicking() -> StatusCode {
            panic!("once upon a time")
        }
        let router = Router::new()
            .route("/", get(panicking))
            .layer(from_fn(panics))
            .layer(from_fn(super::super::request_log::log));
        let response = router.oneshot(Request::<axum::body::Body>::default()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = to_bytes(response.into_body(), 1 << 10).await.unwrap();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains("\"code\":\"internal\"") && !body.contains("once"), "{body}");
    }

    #[test]
    fn whoever_is_refused_for_now_is_told_when_to_come_back() {
        for &code in Code::ALL {
            let response = Error::new(code, "").into_response();
            let is_for_now = response.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                is_for_now,
                "{code:?}"
            );
        }
        let known = Error::new(Code::Overloaded, "").with_retry_after(Duration::from_millis(8_100));
        assert_eq!(known.into_response().headers()[header::RETRY_AFTER], "9");
    }
}
