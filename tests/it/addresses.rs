//! The table of addresses against somebody else's: Python's `ipaddress.is_global`, at a million addresses.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use storytellr_relay::provider::special_purpose;

const ADDRESSES: usize = 1_000_000;

/// Blocks whose edges are looked at: IANA's special-purpose registries of both families, whatever either table makes of
/// them, and forms that carry an IPv4 address.
const BLOCKS: &str = "
    0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
    192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/31 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24
    192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 224.0.0.0/24
    232.0.0.0/8 239.0.0.0/8 240.0.0.0/4 255.255.255.255/32 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32
    ::/128 ::1/128 ::/96 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2000::/3
    2001::/23 2001::/32 2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28
    2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3ffe::/16 3fff::/20 4000::/2 5f00::/16 fc00::/7
    fd00:ec2::254/128 fd20:ce::254/128 fe80::/10 fec0::/10 ff00::/8";

/// Where we refuse what Python calls global, and why. The other way round there is nothing.
const STRICTER: &[(&str, &str)] = &[
    ("168.63.129.16/32", "every virtual machine of Azure has its host there"),
    (
        "192.0.0.0/24",
        "the registry has two anycast addresses in it, and Python up to 3.12 only some of its parts",
    ),
    ("192.31.196.0/24", "a sinkhole, globally reachable by the registry"),
    ("192.52.193.0/24", "multicast relays, globally reachable by the registry"),
    (
        "192.88.99.0/24",
        "6to4 relays, taken out of service; the registry says nothing of their reach",
    ),
    ("192.175.48.0/24", "a sinkhole, globally reachable by the registry"),
    ("224.0.0.0/4", "multicast, which is in another registry"),
    ("::/96", "IPv4-compatible: deprecated, and not in the registry"),
    (
        "::ffff:0:0/96",
        "IPv4-mapped: newer versions of Python judge the address inside, and we know no reason to type it",
    ),
    ("::ffff:0:0:0/96", "IPv4-translated: not in the registry"),
    ("64:ff9b::/96", "NAT64: we judge the address inside"),
    ("64:ff9b:1::/48", "local NAT64, which Python knows from 3.13 on"),
    ("100:0:0:1::/64", "a dummy, newer than Python's table"),
    (
        "2001::/23",
        "IETF protocols: newer versions of Python let the registry's anycast addresses and ORCHIDs through",
    ),
    ("2002::/16", "6to4: by the registry its reach is that of the address inside"),
    ("2620:4f:8000::/48", "a sinkhole, globally reachable by the registry"),
    ("3ffe::/16", "the former 6bone, given back"),
    ("3fff::/20", "documentation, newer than Python's table"),
    ("fec0::/10", "site-local: deprecated, and not in the registry"),
    ("ff00::/8", "multicast, which is in another registry"),
];

/// Outside of this IANA has given out nothing, which Python calls global; we do not.
const GLOBAL_UNICAST: &str = "2000::/3";

fn blocks() -> Vec<IpNet> {
    BLOCKS.split_whitespace().map(|block| block.parse().unwrap()).collect()
}

/// Addresses around every edge of every block, near and ever farther, and inside; then of all there are.
fn addresses() -> Vec<IpAddr> {
    let blocks = blocks();
    let mut random = fastrand::Rng::with_seed(5);
    let mut addresses = Vec::with_capacity(ADDRESSES + 16);
    while addresses.len() < ADDRESSES {
        let block = blocks[random.usize(..blocks.len())];
        let distance = random.u128(..) >> random.u32(64..128);
        match block {
            IpNet::V4(block) => {
                let (first, last) = (block.network().to_bits(), block.broadcast().to_bits());
                let distance = distance as u32 >> random.u32(..32);
                let near =
                    [first.wrapping_add(distance), first.wrapping_sub(distance)].into_iter().chain(
                        [last.wrapping_add(distance), last.wrapping_sub(distance), random.u32(..)],
                    );
                addresses.extend(near.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))));
            }
            IpNet::V6(block) => {
                let (first, last) = (block.network().to_bits(), block.broadcast().to_bits());
                let inside = first | (random.u128(..) & (last ^ first));
                let carried = first | u128::from(blocks_v4(&blocks, &mut random));
                let near = [first.wrapping_add(distance), first.wrapping_sub(distance)]
                    .into_iter()
                    .chain([last.wrapping_add(distance), last.wrapping_sub(distance)])
                    .chain([inside, carried, random.u128(..)]);
                addresses.extend(near.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))));
            }
        }
    }
    addresses
}

/// An IPv4 address at the beginning of a block, to be carried in one of IPv6.
fn blocks_v4(blocks: &[IpNet], random: &mut fastrand::Rng) -> u32 {
    loop {
        if let IpNet::V4(block) = blocks[random.usize(..blocks.len())] {
            return block.network().to_bits();
        }
    }
}

/// For each address whether Python calls it global.
fn python_says(addresses: &[IpAddr]) -> Vec<bool> {
    // Numbers, because Python reads those faster than addresses.
    const SCRIPT: &str = "import sys, ipaddress
families = {'4': ipaddress.IPv4Address, '6': ipaddress.IPv6Address}
sys.stdout.writelines('01'[families[line[0]](int(line[1:], 16)).is_global] for line in sys.stdin)";
    let mut python = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed");
    let mut stdin = python.stdin.take().unwrap();
    let line = |address: &IpAddr| match address {
        IpAddr::V4(address) => format!("4{:x}\n", address.to_bits()),
        IpAddr::V6(address) => format!("6{:x}\n", address.to_bits()),
    };
    let lines: String = addresses.iter().map(line).collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout.iter().map(|&digit| digit == b'1').collect()
}

#[test]
fn python_agrees_but_where_we_are_stricter() {
    let addresses = addresses();
    let global = python_says(&addresses);
    assert_eq!(global.len(), addresses.len());
    let stricter: Vec<IpNet> = STRICTER.iter().map(|(block, _)| block.parse().unwrap()).collect();
    let global_unicast: IpNet = GLOBAL_UNICAST.parse().unwrap();
    let is_isatap = |address: Ipv6Addr| {
        matches!(address.segments(), [_, _, _, _, 0 | 0x100 | 0x200 | 0x300, 0x5efe, _, _])
    };
    let mut allowed = 0;
    for (address, is_global) in addresses.into_iter().zip(global) {
        match (special_purpose(address), is_global) {
            (None, true) => allowed += 1,
            (Some(_), false) => {}
            (None, false) => panic!("{address} is public by our table, and not by Python's"),
            (Some(what), true) => {
                let is_stricter = stricter.iter().any(|block| block.contains(&address));
                let is_explained = match address {
                    IpAddr::V4(_) => is_stricter,
                    IpAddr::V6(v6) => {
                        is_stricter || !global_unicast.contains(&address) || is_isatap(v6)
                    }
                };
                assert!(is_explained, "{address} is {what}, and global by Python's table");
            }
        }
    }
    assert!(allowed > ADDRESSES / 10, "only {allowed} were public by both");
}

/// Where IANA's registries and common sense leave no doubt.
#[test]
fn servers_of_the_internet_are_public() {
    for address in
        ["1.1.1.1", "8.8.8.8", "99.255.255.255", "100.128.0.0", "172.32.0.0", "192.0.1.0"]
            .into_iter()
            .chain([
                "223.255.255.255",
                "168.63.129.15",
                "2606:4700::1111",
                "2a00:1450::1",
                "2001:200::",
            ])
            .chain(["64:ff9b::808:808", "2003::1", "3fff:1000::"])
    {
        assert_eq!(special_purpose(address.parse().unwrap()), None, "{address}");
    }
    for address in
        ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2600::5efe:808:808", "2600::200:5efe:1:1"]
    {
        assert!(special_purpose(address.parse().unwrap()).is_some(), "{address}");
    }
}
