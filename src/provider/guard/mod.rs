//! The one way to a server whose address is a user's word.
//!
//! A user can type any address, so a request there could reach what only this machine can reach. What is called must be
//! public, or allowed by the operator; the address that is checked is the one that is connected to; and whoever tries
//! addresses learns nothing of what is behind them: whatever the reason that there is no answer (a private address, a name
//! that does not exist, a closed port, silence), it is told with the same words after the same time.

mod address;
mod allow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod resolver;
#[cfg(test)]
mod tests;
mod user_url;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Response};
use tokio::time::{Instant, sleep, sleep_until};
use url::Host;

use super::transport::describe;
use super::{client, retry};
use crate::error::{Code, Error};
pub use address::special_purpose;
pub use allow::UpstreamAllow;
use resolver::{CheckedResolver, Lookup, SystemLookup};
pub(crate) use user_url::UserUrl;

/// When it is told that there is no answer, after the beginning: all that can happen until there is a connection fits into
/// it, so it is told neither before nor after. Only who has been connected to, and so may be called, can break off later.
/// A reader waits that long for a slip of the keyboard.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// How long one try may take to look the name up, to connect and to shake hands. A try that could not be over by
/// [`TOLD_AFTER`] is not made.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3_500);

/// The header that requests to users' addresses carry. A request that comes in with it has gone round in a circle.
pub const LOOP_MARK: HeaderName = HeaderName::from_static("x-storytellr-relay");

/// The HTTP client for users' addresses, which nothing else can use.
pub(super) struct Guard {
    allow: Arc<UpstreamAllow>,
    client: reqwest::Client,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("allow", &self.allow).finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard that looks names up as the system does.
    pub(super) fn new(allow: UpstreamAllow) -> Result<Self, reqwest::Error> {
        Self::with_lookup(allow, Arc::new(SystemLookup::default()))
    }

    fn with_lookup(allow: UpstreamAllow, lookup: Arc<dyn Lookup>) -> Result<Self, reqwest::Error> {
        let allow = Arc::new(allow);
        let resolver = CheckedResolver { allow: Arc::clone(&allow), lookup };
        let mark = HeaderMap::from_iter([(LOOP_MARK, HeaderValue::from_static("custom"))]);
        let client = client::builder(CONNECT_TIMEOUT)
            .dns_resolver(resolver)
            .default_headers(mark)
            .build()?;
        Ok(Self { allow, client })
    }

    /// Reads what a user typed. No more than its form is looked at.
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence that begins with the field's name.
    pub(super) fn parse(&self, base_url: &str) -> Result<UserUrl, &'static str> {
        UserUrl::parse(base_url, !self.allow.is_empty())
    }

    /// Posts what `prepare` makes of a request, up to three times, until there is an answer, whatever it says.
    ///
    /// # Errors
    /// That there is none, [`TOLD_AFTER`] the call; the reason is in the detail alone.
    pub(super) async fn post(
        &self,
        url: &UserUrl,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let told_at = Instant::now() + TOLD_AFTER;
        let answered = match self.check(url) {
            Ok(()) => self.keep_trying(url, prepare, told_at - CONNECT_TIMEOUT).await,
            Err(reason) => Err(reason),
        };
        match answered {
            Ok(response) => Ok(response),
            Err(reason) => {
                sleep_until(told_at).await;
                let host = url.url().host_str().unwrap_or_default();
                Err(refused(format!("{host}: {reason}")))
            }
        }
    }

    /// Whether the URL's own host may be called, as far as it can be told before a name is looked up.
    fn check(&self, url: &UserUrl) -> Result<(), String> {
        let host = url.url().host().ok_or("the URL has no host")?;
        if url.url().scheme() == "http" && !self.allow.covers(&host) {
            return Err("http is only for what RELAY_UPSTREAM_ALLOW names".to_owned());
        }
        // The client asks no resolver about an address.
        match host {
            Host::Domain(_) => Ok(()),
            Host::Ipv4(address) => self.allow.check(None, address.into()),
            Host::Ipv6(address) => self.allow.check(None, address.into()),
        }
    }

    async fn keep_trying(
        &self,
        url: &UserUrl,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
        last_try_by: Instant,
    ) -> Result<Response, String> {
        let mut tries_made = 0;
        loop {
            tries_made += 1;
            let reason = match self.try_once(url, &prepare).await {
                Ok(response) => return Ok(response),
                Err(reason) => reason,
            };
            let wait = retry::backoff(tries_made, crate::id::random_byte());
            if tries_made == retry::TRIES || Instant::now() + wait > last_try_by {
                return Err(reason);
            }
            sleep(wait).await;
        }
    }

    async fn try_once(
        &self,
        url: &UserUrl,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, String> {
        let response =
            prepare(self.client.post(url.url().clone())).send().await.map_err(describe)?;
        // The resolver has seen to it already. Should it ever be passed by, nobody reads the answer.
        self.check_peer(url, response.remote_addr())?;
        Ok(response)
    }

    fn check_peer(&self, url: &UserUrl, peer: Option<SocketAddr>) -> Result<(), String> {
        let peer = peer.ok_or("the connection has no address")?;
        self.allow.check(url.url().domain(), peer.ip())
    }
}

/// The one answer to whoever asked for an address that is not called, or that does not answer.
pub(super) fn refused(reason: impl fmt::Display) -> Error {
    Error::new(
        Code::UpstreamNotAllowed,
        "There is no answer from the bot's `base_url`, or this relay does not call it. It must be the https address of a public server. Check it, choose another provider, or ask whoever runs the relay.",
    )
    .with_detail(reason)
}
