//! The HTTP clients for providers, and what they have in common, whoever named the address.

use std::time::Duration;

use reqwest::ClientBuilder;

use super::cleartext::Cleartext;

/// How long an idle connection to a provider is kept for the next request; below what providers' front doors keep.
pub(super) const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

pub(super) const USER_AGENT: &str = concat!("storytellr-relay/", env!("CARGO_PKG_VERSION"));

/// The clients for addresses that the operator named.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) library: reqwest::Client,
    pub(super) cleartext: Cleartext,
}

impl Clients {
    /// # Errors
    /// If no TLS client can be made, for want of certificate authorities on this machine.
    pub(super) fn new(connect_timeout: Duration) -> Result<Self, reqwest::Error> {
        let library = builder(connect_timeout).build()?;
        Ok(Self { library, cleartext: Cleartext::new(connect_timeout) })
    }
}

/// A client that follows no redirect, which could carry a key elsewhere, and heeds no proxy settings of the environment,
/// which could put somebody in between. `connect_timeout` is for looking the name up, connecting and the TLS handshake
/// together.
pub(super) fn builder(connect_timeout: Duration) -> ClientBuilder {
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
}
