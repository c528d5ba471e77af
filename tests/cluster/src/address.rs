//! An address of this host that is not loopback: EndpointSlices refuse loopback, and kube-apiserver must reach a server
//! that runs here.

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Context, Result};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// For a machine without a network: an address that is nobody's (RFC 2544). On the loopback interface, for not every kernel
/// has dummy ones. Left in place, since other clusters may use it.
const ADDRESS: &str = "198.18.0.1/32";

pub(crate) fn of_host() -> Result<Ipv4Addr> {
    if let Some(address) = existing()? {
        return Ok(address);
    }
    let output = Command::new("ip").args(["address", "add", ADDRESS, "dev", "lo"]).output().context("ip")?;
    // Looked up rather than taken for granted: somebody else may have been quicker.
    existing()?.with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("this machine has no address but 127.0.0.1: bring up a network, or run `sudo ip address add {ADDRESS} dev lo` ({})", error.trim())
    })
}

fn existing() -> Result<Option<Ipv4Addr>> {
    let up = getifaddrs()?.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP));
    let mut addresses = up.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    Ok(addresses.find(|address| !address.is_loopback() && !address.is_link_local()))
}
