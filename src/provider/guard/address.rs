//! Which addresses are nobody's public server.
//!
//! A table, and nothing else to ask: what is not in it is public. It is the special-purpose registries of IANA, whole:
//! also the few blocks in them that are globally reachable (anycast services, sinkholes) hold no provider. The one
//! exception is NAT64's well-known prefix, behind which networks without IPv4 see all of IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(address: [u8; 4], prefix_len: u8) -> Ipv4Net {
    let [a, b, c, d] = address;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

/// `head` is the first four groups; the others are zero.
const fn v6(head: [u16; 4], prefix_len: u8) -> Ipv6Net {
    let [a, b, c, d] = head;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix_len)
}

/// IANA's IPv4 special-purpose registry (its RFC 6890), with the multicast and class E space of its IPv4 address space
/// registry, and what clouds keep for themselves in public space.
const IPV4: [(Ipv4Net, &str); 19] = [
    (v4([0, 0, 0, 0], 8), "this network (RFC 791)"),
    (v4([10, 0, 0, 0], 8), "private (RFC 1918)"),
    // With Alibaba Cloud's metadata at 100.100.100.200.
    (v4([100, 64, 0, 0], 10), "shared by a carrier's customers (RFC 6598)"),
    (v4([127, 0, 0, 0], 8), "loopback (RFC 1122)"),
    // With most clouds' metadata at 169.254.169.254.
    (v4([169, 254, 0, 0], 16), "link-local (RFC 3927)"),
    (v4([172, 16, 0, 0], 12), "private (RFC 1918)"),
    // With Oracle Cloud's metadata at 192.0.0.192; in it 192.0.0.9 and 192.0.0.10 are anycast.
    (v4([192, 0, 0, 0], 24), "for IETF protocols (RFC 6890)"),
    (v4([192, 0, 2, 0], 24), "for documentation (RFC 5737)"),
    (v4([192, 31, 196, 0], 24), "the AS112 sinkhole (RFC 7535)"),
    (v4([192, 52, 193, 0], 24), "multicast relays (RFC 7450)"),
    (v4([192, 88, 99, 0], 24), "6to4 relays (RFC 7526)"),
    (v4([192, 168, 0, 0], 16), "private (RFC 1918)"),
    (v4([192, 175, 48, 0], 24), "the AS112 sinkhole (RFC 7534)"),
    (v4([198, 18, 0, 0], 15), "for benchmarks (RFC 2544)"),
    (v4([198, 51, 100, 0], 24), "for documentation (RFC 5737)"),
    (v4([203, 0, 113, 0], 24), "for documentation (RFC 5737)"),
    (v4([224, 0, 0, 0], 4), "multicast (RFC 5771)"),
    (v4([240, 0, 0, 0], 4), "reserved (RFC 1112)"),
    // Public by its number, and on every virtual machine of Azure the host's own services.
    (v4([168, 63, 129, 16], 32), "Azure's host"),
];

/// All that IANA has given out as global unicast; what is outside of it is special or nobody's (RFC 4291, section 2.4).
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0], 3);

/// NAT64's well-known prefix (RFC 6052): the last 32 bits are the IPv4 address that is meant.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);

/// IANA's IPv6 special-purpose registry, and the forms that carry an IPv4 address: where a gateway unwraps them, they
/// lead where that address does. What is outside global unicast is here for its name alone.
const IPV6: [(Ipv6Net, &str); 17] = [
    (v6([0, 0, 0, 0], 96), "unspecified, loopback or IPv4-compatible (RFC 4291)"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96), "IPv4-mapped (RFC 4291)"),
    (
        Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96),
        "IPv4-translated (RFC 7915)",
    ),
    (v6([0x64, 0xff9b, 1, 0], 48), "local NAT64 (RFC 8215)"),
    (v6([0x100, 0, 0, 0], 64), "discarded (RFC 6666)"),
    (v6([0x100, 0, 0, 1], 64), "a dummy (RFC 9780)"),
    // With Teredo (2001::/32, RFC 4380), benchmarks (2001:2::/48) and both kinds of ORCHID; and anycast services.
    (v6([0x2001, 0, 0, 0], 23), "for IETF protocols (RFC 2928)"),
    (v6([0x2001, 0xdb8, 0, 0], 32), "for documentation (RFC 3849)"),
    (v6([0x2002, 0, 0, 0], 16), "6to4 (RFC 3056)"),
    (v6([0x2620, 0x4f, 0x8000, 0], 48), "the AS112 sinkhole (RFC 7534)"),
    (v6([0x3ffe, 0, 0, 0], 16), "the former 6bone (RFC 3701)"),
    (v6([0x3fff, 0, 0, 0], 20), "for documentation (RFC 9637)"),
    (v6([0x5f00, 0, 0, 0], 16), "SRv6 (RFC 9602)"),
    // With the metadata of AWS at fd00:ec2::254 and of Google Cloud at fd20:ce::254.
    (v6([0xfc00, 0, 0, 0], 7), "private (RFC 4193)"),
    (v6([0xfe80, 0, 0, 0], 10), "link-local (RFC 4291)"),
    (v6([0xfec0, 0, 0, 0], 10), "site-local (RFC 3879)"),
    (v6([0xff00, 0, 0, 0], 8), "multicast (RFC 4291)"),
];

/// What `address` is instead of a public server's, in words for the operator; `None` if it is a public one.
#[must_use]
pub fn special_purpose(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => {
            IPV4.iter().find(|(block, _)| block.contains(&address)).map(|(_, what)| *what)
        }
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            special_purpose(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        IpAddr::V6(address) => {
            if let Some((_, what)) = IPV6.iter().find(|(block, _)| block.contains(&address)) {
                return Some(what);
            }
            if !GLOBAL_UNICAST.contains(&address) {
                return Some("not global unicast (RFC 4291)");
            }
            is_isatap(address).then_some("ISATAP (RFC 5214)")
        }
    }
}

/// Whether the second half is ISATAP's, which any prefix can have. Its first group is zero but for two flags.
fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., flags, isatap, _, _] = address.segments();
    flags & !0x0300 == 0 && isatap == 0x5efe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isatap_is_told_by_its_group_and_two_flags() {
        for (flags, expected) in
            [(0, true), (0x100, true), (0x200, true), (0x300, true), (0x400, false), (1, false)]
        {
            let address = Ipv6Addr::new(0x2600, 0, 0, 0, flags, 0x5efe, 0x808, 0x808);
            assert_eq!(is_isatap(address), expected, "{address}");
        }
    }
}
