//! How many connections there may be, in all and from one address.
//!
//! An address may hold as many as are free: alone it gets half of them, beside another a third, and whoever has few is
//! let in as long as there are any. A fixed number would have to be low enough to stop one attacker and high enough for
//! a company, or a proxy, behind one address; there is none.
//!
//! Addresses that are not of the internet are taken for proxies, whose connections are everybody's, and share in nothing
//! but the total: loopback, private networks (container bridges, load balancers), link-local ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections.
#[derive(Debug)]
pub(super) struct Admission(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Admission {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Counts { max, taken: Mutex::default() }))
    }

    /// A place for one more connection of `peer`, if there is one for it.
    pub(super) fn admit(&self, peer: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock();
        let free = self.0.max.saturating_sub(taken.total);
        if free == 0 {
            return None;
        }
        let address = customer(peer);
        if let Some(address) = address {
            let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
            if of_address >= free {
                return None;
            }
            taken.by_address.insert(address, of_address + 1);
        }
        taken.total += 1;
        Some(Place { counts: Arc::clone(&self.0), address })
    }

    /// Whether at most one in sixteen places is free. These are for whoever comes while others, who hold places for
    /// nothing, are being sent away.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.0.max.saturating_sub(self.taken()) <= self.0.max / 16
    }

    /// How many connections there are.
    pub(super) fn taken(&self) -> usize {
        self.0.lock().total
    }
}

impl Counts {
    /// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave for one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    counts: Arc<Counts>,
    address: Option<IpAddr>,
}

impl Place {
    /// Whether more than three quarters of all places are taken.
    pub(super) fn is_short(&self) -> bool {
        let free = self.counts.max.saturating_sub(self.counts.lock().total);
        free < self.counts.max / 4
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.counts.lock();
        taken.total -= 1;
        let Some(address) = self.address else { return };
        if let Some(of_address) = taken.by_address.get_mut(&address) {
            *of_address -= 1;
            if *of_address == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

/// What counts as one address: an IPv4 address, or the /64 that one customer has of IPv6. `None`: not of the internet.
pub(in crate::http) fn customer(peer: IpAddr) -> Option<IpAddr> {
    match peer.to_canonical() {
        IpAddr::V4(v4) if is_local_v4(v4) => None,
        IpAddr::V6(v6) if is_local_v6(v6) => None,
        IpAddr::V6(v6) => {
            Some(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))))
        }
        v4 @ IpAddr::V4(_) => Some(v4),
    }
}

fn is_local_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    // 100.64.0.0/10 is between a provider and its customers, and in many a virtual network.
    let is_shared = first == 100 && second & 0xC0 == 64;
    address.is_loopback() || address.is_private() || address.is_link_local() || is_shared
}

fn is_local_v6(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn admit(admission: &Admission, peer: &str, wanted: usize) -> Vec<Place> {
        (0..wanted).map_while(|_| admission.admit(ip(peer))).collect()
    }

    #[test]
    fn one_address_leaves_as_many_as_it_takes() {
        let admission = Admission::new(100);
        let first = admit(&admission, "203.0.113.1", 1_000);
        assert_eq!(first.len(), 50);
        let second = admit(&admission, "203.0.113.2", 1_000);
        assert_eq!(second.len(), 25);
        for reader in 0..10 {
            assert!(admission.admit(ip(&format!("198.51.100.{reader}"))).is_some());
        }
        drop(first);
        assert_eq!(admit(&admission, "203.0.113.2", 1_000).len(), 25);
        drop(second);
        assert_eq!(admission.taken(), 0);
        assert!(admission.0.lock().by_address.is_empty());
    }

    #[test]
    fn a_proxy_may_take_all() {
        for peer in
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.7", "172.17.0.1", "192.168.1.1"]
        {
            let admission = Admission::new(100);
            let places = admit(&admission, peer, 1_000);
            assert_eq!(places.len(), 100, "{peer}");
            assert!(places[0].is_short());
        }
        for peer in ["100.64.0.1", "169.254.1.1", "fd00::1", "fe80::1"] {
            assert_eq!(admit(&Admission::new(100), peer, 1_000).len(), 100, "{peer}");
        }
        for peer in
            ["100.63.255.255", "100.128.0.0", "172.32.0.1", "::ffff:203.0.113.1", "2001:db8::1"]
        {
            assert_eq!(admit(&Admission::new(100), peer, 1_000).len(), 50, "{peer}");
        }
    }

    #[test]
    fn a_customer_of_ipv6_is_one_address() {
        assert_eq!(
            customer(ip("2001:db8:0:1::1")),
            customer(ip("2001:db8:0:1:ffff:ffff:ffff:ffff"))
        );
        assert_ne!(customer(ip("2001:db8:0:1::1")), customer(ip("2001:db8:0:2::1")));
    }

    #[test]
    fn the_last_sixteenth_is_for_whoever_comes() {
        let admission = Admission::new(160);
        let mut places = admit(&admission, "127.0.0.1", 149);
        assert!(!admission.is_nearly_full());
        places.extend(admission.admit(ip("127.0.0.1")));
        assert!(admission.is_nearly_full());
        assert!(!Admission::new(8).is_nearly_full());
    }

    #[test]
    fn places_are_short_past_three_quarters() {
        let admission = Admission::new(100);
        let places = admit(&admission, "127.0.0.1", 75);
        assert!(!places[0].is_short());
        let one_more = admission.admit(ip("127.0.0.1"));
        assert!(one_more.is_some() && places[0].is_short());
    }
}
