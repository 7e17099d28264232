//! A provider's response, by whichever client it came.

use std::future::poll_fn;
use std::pin::Pin;

use http::{HeaderMap, StatusCode};
use http_body::Body as _;

use super::cleartext;
use crate::error::with_causes;

/// The head of a response, and its body.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// A body that is coming in. Dropping it gives it up.
#[derive(Debug)]
pub(super) enum Body {
    /// From the library's client, without the response's head, which would hold the buffer that it was read into.
    Library(reqwest::Body),
    Cleartext(cleartext::Body),
}

impl From<reqwest::Response> for Response {
    fn from(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, body: Body::Library(reqwest::Body::from(response)) }
    }
}

impl From<(cleartext::Head, cleartext::Body)> for Response {
    fn from((head, body): (cleartext::Head, cleartext::Body)) -> Self {
        Self { status: head.status, headers: head.headers, body: Body::Cleartext(body) }
    }
}

impl Body {
    /// Waits for more and hands it to `take`, in pieces. Returns whether there was anything: the body is over otherwise.
    /// Cancel safe.
    ///
    /// # Errors
    /// Why there will be no more, for the operator.
    pub(super) async fn read(&mut self, mut take: impl FnMut(&[u8])) -> Result<bool, String> {
        let body = match self {
            Self::Cleartext(body) => {
                return body.read(take).await.map_err(|fault| fault.to_string());
            }
            Self::Library(body) => body,
        };
        loop {
            match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
                None => return Ok(false),
                Some(Err(error)) => return Err(describe(error)),
                Some(Ok(frame)) => {
                    // What is no data are trailers.
                    if let Some(data) = frame.data_ref() {
                        take(data);
                        return Ok(true);
                    }
                }
            }
        }
    }
}

/// A transport error with its causes, without the address: paths and queries can hold secrets.
pub(super) fn describe(error: reqwest::Error) -> String {
    with_causes(&error.without_url())
}
