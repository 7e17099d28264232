//! Which web pages may call from a browser: exact origins, with credentials.

use std::time::Duration;

use http::{HeaderValue, Method, header, request};
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::{Host, Url};

use super::authenticate::{RATELIMIT, RATELIMIT_POLICY};
use super::request_log::X_REQUEST_ID;
use super::sse::{LAST_EVENT_ID, X_STREAM_ID};

/// How long a browser may remember the answer to a preflight; Chromium's own limit is two hours.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Which web pages may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    /// Any port of this machine: `dev` only.
    pub loopback: bool,
    /// To the letter.
    pub exact: Vec<String>,
    /// `https://*.example.com`, as scheme with `://` and the rest from the dot on; the star is one label.
    pub wildcards: Vec<(String, String)>,
}

impl Origins {
    /// Whether a page of `origin` may call. `origin` is what the browser sent.
    #[must_use]
    pub fn allow(&self, origin: &str) -> bool {
        self.exact.iter().any(|exact| exact == origin)
            || self.wildcards.iter().any(|(scheme, rest)| is_one_label_below(origin, scheme, rest))
            || (self.loopback && is_from_loopback(origin))
    }
}

fn is_one_label_below(origin: &str, scheme: &str, rest: &str) -> bool {
    let label = origin.strip_prefix(scheme).and_then(|host| host.strip_suffix(rest));
    let is_of_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    label.is_some_and(|label| !label.is_empty() && label.bytes().all(is_of_label))
}

/// Whether a page of `origin` comes from this machine. Browsers resolve every name under `localhost` to it.
fn is_from_loopback(origin: &str) -> bool {
    let url = Url::parse(origin).ok().filter(|url| url.origin().ascii_serialization() == origin);
    url.is_some_and(|url| {
        is_loopback(&url) || url.domain().is_some_and(|name| name.ends_with(".localhost"))
    })
}

/// Whether `url` leads to this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

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
