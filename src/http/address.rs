//! Before anybody is known: which address a request comes from, and whether that has a request left.
//!
//! A proxy says for whom it asks in `X-Forwarded-For`, to whose end each adds who it heard it from. Anybody can send such a
//! field, so it is read from its end, and only for as long as those who wrote it are trusted: the first who is not is the
//! client, whatever stands before.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use tracing::warn;

use super::authenticate::{ADDRESS, announce};
use super::listener::{Peer, customer};
use crate::relay::Relay;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The networks of proxies that say truly for whom they ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(pub Vec<IpNet>);

impl Proxies {
    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address of whoever asks, as far as what `peer` says of it can be trusted, and whether that one says more.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, bool) {
        let mut client = peer.to_canonical();
        let fields = headers.get_all(X_FORWARDED_FOR).iter().rev();
        // Each by itself: what a client wrote, which may be no text, must not hide who the proxies heard it from.
        let hops = fields
            .flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','))
            .map_while(|hop| address(str::from_utf8(hop).ok()?.trim()));
        for hop in hops {
            if !self.trust(client) {
                return (client, true);
            }
            client = hop;
        }
        (client, false)
    }
}

/// The address of one hop, with or without a port.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || Some(hop.parse::<SocketAddr>().ok()?.ip());
    hop.parse().ok().or_else(bare).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

/// Whether the operator has been told that there may be a proxy that has to be named. Once: anybody can send the field.
static UNKNOWN_PROXY: Once = Once::new();
const IS_IT_A_PROXY: &str = "refused for asking too often: an address that says for whom it asks. If it is your proxy, whose clients share one limit, name it in RELAY_TRUSTED_PROXIES";

/// What [`limit`] goes by.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) relay: Arc<Relay>,
    pub(super) proxies: Arc<Proxies>,
}

/// Lets a request pass whose address is within its rate. Addresses that are not of the internet are proxies that nobody
/// has named, with everybody's requests, and have none.
pub(super) async fn limit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|Peer(peer)| *peer);
    let client = peer.map(|peer| gate.proxies.client(peer, request.headers()));
    let Some((client, says_more)) = client else { return next.run(request).await };
    let Some(address) = customer(client) else { return next.run(request).await };
    match gate.relay.limits.check_address(address).await {
        Ok(_) => next.run(request).await,
        Err((quota, error)) => {
            if says_more {
                UNKNOWN_PROXY.call_once(|| warn!(address = %client, "{IS_IT_A_PROXY}"));
            }
            let mut response = error.into_response();
            announce(ADDRESS, &quota, response.headers_mut());
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(peer: &str, fields: &[&str], expected: &str) {
        let networks = ["10.0.0.0/8", "127.0.0.0/8", "2001:db8:f::/48"];
        let proxies = Proxies(networks.iter().map(|network| network.parse().unwrap()).collect());
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        let (client, _) = proxies.client(peer.parse().unwrap(), &headers);
        assert_eq!(client.to_string(), expected, "{peer} {fields:?}");
    }

    #[test]
    fn the_last_who_is_not_trusted_is_the_client() {
        check("10.0.0.1", &["203.0.113.7"], "203.0.113.7");
        check("::ffff:10.0.0.1", &["203.0.113.7"], "203.0.113.7");
        check("10.0.0.1", &["198.51.100.1, 203.0.113.7, 10.9.9.9"], "203.0.113.7");
        check("10.0.0.1", &["198.51.100.1", "203.0.113.7", "10.9.9.9,127.0.0.1"], "203.0.113.7");
        check("2001:db8:f::1", &["2001:db8:1::7"], "2001:db8:1::7");
        check("10.0.0.1", &["[2001:db8:1::7]:4711"], "2001:db8:1::7");
        check("10.0.0.1", &["[2001:db8:1::7]"], "2001:db8:1::7");
        check("10.0.0.1", &["203.0.113.7:80"], "203.0.113.7");
        check("10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7");
    }

    #[test]
    fn what_others_say_is_not_listened_to() {
        check("203.0.113.7", &[], "203.0.113.7");
        check("203.0.113.7", &["198.51.100.1"], "203.0.113.7");
        check("203.0.113.7", &["10.0.0.1"], "203.0.113.7");
        check("10.0.0.1", &["10.1.1.1, 203.0.113.7"], "203.0.113.7");
    }

    #[test]
    fn what_cannot_be_read_ends_what_is_known() {
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &[""], "10.0.0.1");
        check("10.0.0.1", &["203.0.113.7, unknown"], "10.0.0.1");
        check("10.0.0.1", &["203.0.113.7, _hidden, 10.2.2.2"], "10.2.2.2");
        check("10.0.0.1", &["203.0.113.7", "é", "10.2.2.2"], "10.2.2.2");
        check("10.0.0.1", &["é, 203.0.113.7"], "203.0.113.7");
        check("10.0.0.1", &["203.0.113.7, é, 10.2.2.2"], "10.2.2.2");
        check("10.0.0.1", &["10.3.3.3, 10.2.2.2"], "10.3.3.3");
    }
}
