//! What the node's processes take for a machine of their own: namespaces of mounts, processes and network.
//!
//! Containers, mounts, interfaces and iptables rules are all within, and the kernel removes them when the first process of
//! the namespaces ends, however it does. Several nodes live side by side, and none sees what the host or another has.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    cgroups::Cgroups,
    process::{Lifetime, Process, group_members, is_dead},
    wait::{tail, until, wait_blocking},
};

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The first process in it, by the host's number.
    first: u32,
    pub(crate) network: Network,
    pub(crate) cgroups: Cgroups,
}

/// A wire between the host and a machine, and the addresses behind it: 198.19.0.0/16, which is nobody's (RFC 2544), has room
/// for 64 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    number: u8,
}

/// The first process of a machine: it makes it one, and then buries orphans (a shell that waits does) until it is killed.
/// - A mount that others made before would keep its device busy after they have unmounted it; what they unmount later
///   goes here too (slave).
/// - At paths that cannot be chosen, containerd and CNI keep things below /run and /var/lib, the kubelet below /var/lib and
///   its Pods' logs below /var/log.
const FIRST: &str = r#"
awk '$0 ~ / - [^ ]+ \/dev\/loop/ && $5 != "/" { print $5 }' /proc/self/mountinfo | while read -r path; do
    umount --lazy "$(printf %b "$path")" || true
done
mount --make-rshared /
for path in /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs $path; done
mkdir /run/lock
mount --bind "$1/var-log" /var/log
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
: > "$1/machine-is-up"
sleep infinity &
wait
"#;

const READY: Duration = Duration::from_secs(30);

impl Machine {
    /// Starts one, with a wire to it.
    pub(crate) async fn start(root: &Path, log: &Path, life: Lifetime) -> Result<(Process, Self)> {
        fs::create_dir_all(root.join("var-log"))?;
        let home = root.display().to_string();
        let namespaces =
            ["--mount", "--propagation=slave", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "--net"];
        let shell = ["sh", "-euc", FIRST, "machine", &home];
        let arguments: Vec<String> = namespaces.into_iter().chain(shell).map(str::to_owned).collect();
        let process = Process::spawn(Path::new("unshare"), &arguments, root, log, life)?;
        match Self::set_up(root, log, process.group()).await {
            Ok(machine) => Ok((process, machine)),
            Err(error) => {
                process.kill();
                Err(error.context("the node's namespaces"))
            }
        }
    }

    async fn set_up(root: &Path, log: &Path, group: u32) -> Result<Self> {
        let up = until("the machine is up", READY, || async {
            if is_dead(group) {
                return Ok(Err(anyhow!("they ended; {}", tail(log))));
            }
            ensure!(root.join("machine-is-up").exists(), "its first process is not so far");
            Ok(first_of(group))
        });
        let first = up.await??;
        let network = Network::claim(first)?;
        // Whoever had the number before us is gone, but may have been killed before it cleaned up, or be about to: so no two have a
        // name in common.
        let name = format!("stillpoint-node-{}-", network.number);
        Cgroups::sweep(&name);
        let cgroups = Cgroups::new(&format!("{name}{first}"));
        cgroups.create()?;
        fs::write(root.join(CGROUPS), cgroups.name())?;
        Ok(Self { first, network, cgroups })
    }

    /// Its group was killed: waits until everything that ran in it is gone, and removes what the kernel leaves.
    pub(crate) fn went_down(&self, group: u32) {
        // The first process becomes a zombie only when all others are dead (pid_namespaces(7)).
        wait_blocking(|| group_members(group).is_empty());
        wait_blocking(|| self.cgroups.remove().is_ok());
    }

    /// How to run a program in it.
    pub(crate) fn enter(&self, program: &Path, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
        let target = self.first.to_string();
        let enter = ["--target", &target, "--mount", "--pid", "--net", "--"].map(str::to_owned);
        let all = enter.into_iter().chain([program.display().to_string()]).chain(arguments).collect();
        (PathBuf::from("nsenter"), all)
    }
}

/// The file in a cluster's directory that says whose cgroups are its node's.
pub(crate) const CGROUPS: &str = "cgroups";

/// The child of `unshare`, which forks as only a new process is in a new namespace of processes.
fn first_of(unshare: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    Ok(children.split_whitespace().next().context("unshare has no child")?.parse()?)
}

impl Network {
    const MOST: u8 = 64;

    /// Takes a free number, by the name of the host's end, which only one can have; it goes when the machine does.
    fn claim(first: u32) -> Result<Self> {
        let netns = first.to_string();
        for number in 0..Self::MOST {
            let network = Self { number };
            let wire = network.wire();
            let made = ip(&["link", "add", &wire, "type", "veth", "peer", "name", "host", "netns", &netns]);
            match made {
                Ok(()) => return network.configure(first).map(|()| network),
                Err(error) if error.to_string().contains("File exists") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("there are {} clusters with a node already", Self::MOST)
    }

    fn configure(self, first: u32) -> Result<()> {
        let (wire, host, node) = (self.wire(), self.host().to_string(), self.node().to_string());
        ip(&["address", "add", &format!("{host}/24"), "dev", &wire])?;
        ip(&["link", "set", &wire, "up"])?;
        let inside = |arguments: &[&str]| {
            let target = first.to_string();
            let enter = ["--target", &target, "--net", "ip"];
            command("nsenter", &enter.into_iter().chain(arguments.iter().copied()).collect::<Vec<_>>())
        };
        inside(&["address", "add", &format!("{node}/24"), "dev", "host"])?;
        inside(&["link", "set", "host", "up"])?;
        inside(&["route", "add", "default", "via", &host])?;
        // Pods, and ClusterIPs, which kube-proxy leads to Pods.
        ip(&["route", "add", &self.pods(), "via", &node])?;
        ip(&["route", "add", &self.services(), "via", &node])
    }

    fn wire(self) -> String {
        format!("stillpoint{}", self.number)
    }

    fn address(self, net: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.number * 4 + net, host)
    }

    /// The host, as the machine knows it.
    pub(crate) fn host(self) -> Ipv4Addr {
        self.address(0, 1)
    }

    pub(crate) fn node(self) -> Ipv4Addr {
        self.address(0, 2)
    }

    pub(crate) fn pods(self) -> String {
        format!("{}/24", self.address(1, 0))
    }

    pub(crate) fn services(self) -> String {
        format!("{}/24", self.address(2, 0))
    }

    pub(crate) fn api_service(self) -> Ipv4Addr {
        self.address(2, 1)
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    command("ip", arguments)
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), error.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_machines_have_an_address_in_common() {
        let networks = |number| {
            let network = Network { number };
            [format!("{}/24", network.address(0, 0)), network.pods(), network.services()]
        };
        let mut all: Vec<String> = (0..Network::MOST).flat_map(networks).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 3 * usize::from(Network::MOST));
        assert_eq!(Network { number: 63 }.services(), "198.19.254.0/24");
    }
}
