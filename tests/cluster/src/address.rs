//! An address of this host that is not loopback: EndpointSlices refuse loopback, and kube-apiserver must reach a server
//! that runs here.

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Result, ensure};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// For a machine without a network: an address that is nobody's (RFC 2544), on an interface that leads nowhere. Left in
/// place, since other clusters may use it.
const INTERFACE: &str = "stillpoint0";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

pub(crate) fn of_host() -> Result<Ipv4Addr> {
    if let Some(address) = existing()? {
        return Ok(address);
    }
    ip(&["link", "add", INTERFACE, "type", "dummy"])?;
    ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", INTERFACE])?;
    ip(&["link", "set", INTERFACE, "up"])?;
    Ok(ADDRESS)
}

fn existing() -> Result<Option<Ipv4Addr>> {
    let usable = getifaddrs()?.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let mut addresses = usable.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    Ok(addresses.find(|address| !address.is_link_local()))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "this machine has no address but loopback, and `ip {}` does not give it one: {}; run as root, or bring up a network",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
