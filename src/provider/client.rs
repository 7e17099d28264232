//! What all HTTP clients for providers have in common, whoever named the address.

use std::time::Duration;

use reqwest::ClientBuilder;

/// How long an idle connection to a provider is kept for the next request; below what providers' front doors keep.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// A client that follows no redirect, which could carry a key elsewhere, and heeds no proxy settings of the environment,
/// which could put somebody in between. `connect_timeout` is for looking the name up, connecting and the TLS handshake
/// together.
pub(super) fn builder(connect_timeout: Duration) -> ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("storytellr-relay/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
}
