//! The guard against other parsers and other tables, on whatever a fuzzer types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use url::Host;

use super::user_url::UserUrl;
use super::{UpstreamAllow, special_purpose};

/// A base URL as a user may type it.
pub(crate) fn base_url(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for allows_http in [false, true] {
        if let Ok(url) = UserUrl::parse(&text, allows_http) {
            check_url(&url, allows_http);
        }
    }
}

fn check_url(user_url: &UserUrl, allows_http: bool) {
    let url = user_url.url();
    assert!(url.scheme() == "https" || (allows_http && url.scheme() == "http"), "{url}");
    assert!(url.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{url}");
    let is_plain = url.username().is_empty() && url.password().is_none();
    assert!(is_plain && url.query().is_none() && url.fragment().is_none(), "{url}");
    // Percent-encoding may have made it longer than anybody may type.
    if url.as_str().len() <= 2_000 {
        assert_eq!(UserUrl::parse(url.as_str(), allows_http).as_ref(), Ok(user_url));
    }

    // What is called is what HTTP's own parser reads.
    let asked = user_url.chat_completions();
    let asked = asked.url();
    assert_eq!(asked.origin(), url.origin());
    assert!(asked.path().ends_with("/chat/completions"), "{asked}");
    if let Ok(uri) = asked.as_str().parse::<http::Uri>() {
        assert_eq!(uri.scheme_str(), Some(url.scheme()), "{asked}");
        assert_eq!(uri.host(), url.host_str(), "{asked}");
        assert_eq!(uri.port_u16(), url.port(), "{asked}");
        assert_eq!(uri.path(), asked.path(), "{asked}");
    }

    let Some(host) = url.host() else { panic!("{url} has no host") };
    if let Host::Domain(name) = host {
        // What the system's resolver would take for an address must have been taken for one before.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!is_number && name.parse::<IpAddr>().is_err(), "{url}");
    }
    check_allowed(&host);
}

/// The operator's words go as far as they say, and no further.
fn check_allowed(host: &Host<&str>) {
    assert!(!UpstreamAllow::default().covers(host));
    let network = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8));
    let allow = UpstreamAllow { networks: vec![network], hosts: vec!["llm.example".to_owned()] };
    let is_meant = match host {
        Host::Domain(name) => *name == "llm.example",
        Host::Ipv4(address) => address.octets()[0] == 10,
        Host::Ipv6(_) => false,
    };
    assert_eq!(allow.covers(host), is_meant, "{host}");
}

/// Sixteen bytes are an address, and the first four of them another.
pub(crate) fn address(input: &[u8]) {
    let Some((octets, _)) = input.split_first_chunk::<4>() else { return };
    let v4 = Ipv4Addr::from(*octets);
    check_address(v4.into());
    check_carried(v4);
    if let Some((octets, _)) = input.split_first_chunk::<16>() {
        check_address(Ipv6Addr::from(*octets).into());
    }
}

fn check_address(address: IpAddr) {
    let is_public = match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    };
    assert!(special_purpose(address).is_some() || is_public, "{address} is not public");
}

/// However an address of IPv4 is carried in one of IPv6, it gets no further for it.
fn check_carried(address: Ipv4Addr) {
    let [a, b, c, d] = address.octets().map(u16::from);
    let (high, low) = (a << 8 | b, c << 8 | d);
    for carrier in [
        address.to_ipv6_mapped(),
        address.to_ipv6_compatible(),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0x5efe, high, low),
    ] {
        assert!(special_purpose(carrier.into()).is_some(), "{carrier}");
    }
    let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
    assert_eq!(special_purpose(nat64.into()), special_purpose(address.into()), "{nat64}");
}

/// By the standard library, and by arithmetic where that has not made up its mind.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let number = u32::from(address);
    let is_in = |first: [u8; 4], bits: u32| {
        (number ^ u32::from(Ipv4Addr::from(first))).leading_zeros() >= bits
    };
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || address.is_broadcast()
        || is_in([0, 0, 0, 0], 8)
        || is_in([100, 64, 0, 0], 10)
        || is_in([192, 0, 0, 0], 24)
        || is_in([198, 18, 0, 0], 15)
        || is_in([240, 0, 0, 0], 4)
        || is_in([168, 63, 129, 16], 32))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    if let [0x64, 0xff9b, 0, 0, 0, 0, ..] = address.segments() {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let is_special = address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_unique_local()
        || address.is_unicast_link_local()
        || address.to_ipv4().is_some()
        || first == 0x2002
        || first == 0x3ffe
        || (first == 0x2001 && (second < 0x200 || second == 0xdb8))
        || (first == 0x3fff && second < 0x1000);
    (0x2000..0x4000).contains(&first) && !is_special
}
