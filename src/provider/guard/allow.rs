//! What addresses that users type may lead to: public servers, and what the operator allows beside them.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use url::Host;

use super::address::special_purpose;

/// What `custom` addresses may reach though private: networks, and hosts by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamAllow {
    /// Networks; a single address is a network of one.
    pub networks: Vec<IpNet>,
    /// Host names, in lower case. What they resolve to is not looked at.
    pub hosts: Vec<String>,
}

impl UpstreamAllow {
    /// Whether nothing is allowed beside public servers.
    pub(super) fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.hosts.is_empty()
    }

    /// Whether the operator has allowed the host as it stands in a URL.
    pub(super) fn covers(&self, host: &Host<&str>) -> bool {
        match *host {
            Host::Domain(name) => self.covers_name(name),
            Host::Ipv4(address) => self.covers_address(address.into()),
            Host::Ipv6(address) => self.covers_address(address.into()),
        }
    }

    /// Whether a connection may be made to `address`, which `name` resolves to, or which is itself in the URL.
    ///
    /// # Errors
    /// Why not, for the operator.
    pub(super) fn check(&self, name: Option<&str>, address: IpAddr) -> Result<(), String> {
        if name.is_some_and(|name| self.covers_name(name)) || self.covers_address(address) {
            return Ok(());
        }
        if let Some(what) = special_purpose(address) {
            return Err(format!("{address} is {what}"));
        }
        if is_own(address) {
            return Err(format!("{address} is this machine's own"));
        }
        Ok(())
    }

    fn covers_name(&self, name: &str) -> bool {
        self.hosts.iter().any(|host| host == name)
    }

    fn covers_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// Whether this machine has the address itself: what listens there is often meant for the machine alone, and no
/// firewall stands in between. The kernel is asked which address it would send from, and sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0, 0, 0, 0].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    // Where there is no way to the address, it is not here.
    let source = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        // Any port does.
        socket.connect(SocketAddr::new(address, 443))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_knows_its_own_addresses() {
        assert!(is_own([127, 0, 0, 1].into()));
        assert!(!is_own([1, 1, 1, 1].into()));
        // Global unicast that nobody has.
        assert!(!is_own([0x2000, 0, 0, 0, 0, 0, 0, 1].into()));
    }
}
