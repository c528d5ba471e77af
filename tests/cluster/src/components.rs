//! The parts of a cluster, and where everything of one is.

use std::{
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fixtures::Port;

use crate::{
    binaries::Binaries,
    cluster::Options,
    identity,
    machine::{Machine, Network},
    pki,
};

/// In the order in which they are started: each needs those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// What the node's processes take for a machine of their own: namespaces. Everything in it ends with it.
    Machine,
    Etcd,
    Apiserver,
    ControllerManager,
    Scheduler,
    Containerd,
    KubeProxy,
    Dns,
    CsiDriver,
    Kubelet,
    Provisioner,
    SnapshotController,
    Snapshotter,
}

/// Where everything of one cluster is.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    /// Of this host, not loopback.
    pub(crate) address: Ipv4Addr,
    pub(crate) options: Options,
    pub(crate) ports: Ports,
    pub(crate) binaries: Binaries,
    /// Where the node's processes run, if there is a node.
    pub(crate) machine: Option<Machine>,
}

#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) etcd: Port,
    pub(crate) etcd_peers: Port,
    pub(crate) apiserver: Port,
    pub(crate) controller_manager: Port,
    pub(crate) scheduler: Port,
}

/// Who asked for what and how it ended, once for each request; never bodies, which hold Secrets, but of one kind, which holds
/// none: what a server asks about its users is seen nowhere else.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Request
  resources: [{group: authorization.k8s.io, resources: [subjectaccessreviews]}]
- level: Metadata
";

impl Component {
    pub const CONTROL_PLANE: [Self; 4] = [Self::Etcd, Self::Apiserver, Self::ControllerManager, Self::Scheduler];
    pub const NODE: [Self; 5] = [Self::Machine, Self::Containerd, Self::KubeProxy, Self::Dns, Self::Kubelet];
    /// On a node.
    pub const STORAGE: [Self; 4] = [Self::CsiDriver, Self::Provisioner, Self::SnapshotController, Self::Snapshotter];

    pub(crate) fn sidecars(self) -> &'static [Self] {
        if self == Self::CsiDriver { &[Self::Provisioner, Self::Snapshotter] } else { &[] }
    }

    /// The name of its binary, and of its log without `.log`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::KubeProxy => "kube-proxy",
            Self::Dns => "coredns",
            Self::CsiDriver => "csi-driver",
            Self::Kubelet => "kubelet",
            Self::Provisioner => "csi-provisioner",
            Self::SnapshotController => "snapshot-controller",
            Self::Snapshotter => "csi-snapshotter",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Ports {
    pub(crate) fn reserve() -> Result<Self> {
        Ok(Self {
            etcd: Port::reserve()?,
            etcd_peers: Port::reserve()?,
            apiserver: Port::reserve()?,
            controller_manager: Port::reserve()?,
            scheduler: Port::reserve()?,
        })
    }
}

impl Layout {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn log(&self, component: Component) -> PathBuf {
        self.file(&format!("{component}.log"))
    }

    pub(crate) fn pki(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(name)
    }

    /// In the node's machine.
    pub(crate) fn machine(&self) -> Result<&Machine> {
        self.machine.as_ref().context("the cluster has no node: ask for one with Options::node")
    }

    pub(crate) fn network(&self) -> Option<Network> {
        self.machine.as_ref().map(|machine| machine.network)
    }

    /// Where Services are.
    fn api_service(&self) -> Ipv4Addr {
        self.network().map_or(API_SERVICE, Network::api_service)
    }

    pub(crate) fn service_range(&self) -> String {
        self.network().map_or_else(|| SERVICE_RANGE.to_owned(), Network::services)
    }

    /// Where it listens, if it does so by TCP.
    pub(crate) fn listens(&self, component: Component) -> Option<(Ipv4Addr, u16)> {
        let here = |port: &Port| Some((Ipv4Addr::LOCALHOST, port.number));
        let there = |port| self.network().map(|network| (network.node(), port));
        match component {
            Component::Etcd => here(&self.ports.etcd),
            Component::Apiserver => here(&self.ports.apiserver),
            Component::ControllerManager => here(&self.ports.controller_manager),
            Component::Scheduler => here(&self.ports.scheduler),
            Component::Kubelet => there(10250),
            Component::KubeProxy => there(10256),
            Component::Dns => there(53),
            Component::Provisioner => there(9810),
            Component::SnapshotController => there(9811),
            Component::Snapshotter => there(9812),
            Component::Machine | Component::Containerd | Component::CsiDriver => None,
        }
    }

    /// Writes everything that the components read.
    pub(crate) fn prepare(&self) -> Result<()> {
        let authority = pki::make(&self.root.join("pki"), &[self.api_service(), self.address])?;
        fs::write(self.file("audit-policy.yaml"), AUDIT_POLICY)?;
        let kubeconfig = |address: Ipv4Addr, name: &str, user: &str, group: Option<&str>| {
            let server = format!("https://{address}:{}", self.ports.apiserver.number);
            let pair = authority.client(user, group)?;
            let kubeconfig = identity::by_certificate(&server, &authority.certificate, &pair);
            identity::write(&self.file(&format!("{name}.kubeconfig")), &kubeconfig)
        };
        let here = Ipv4Addr::LOCALHOST;
        kubeconfig(here, "admin", "kubernetes-admin", Some("system:masters"))?;
        kubeconfig(here, "kube-controller-manager", "system:kube-controller-manager", None)?;
        kubeconfig(here, "kube-scheduler", "system:kube-scheduler", None)?;
        if self.machine.is_some() {
            kubeconfig(self.address, "kubelet", "system:node:node", Some("system:nodes"))?;
            kubeconfig(self.address, "kube-proxy", "system:kube-proxy", None)?;
            // By name they are the ServiceAccounts whom their own manifests give rights, with a certificate instead of a
            // token that would expire.
            let account = |name: &str, namespace: &str| {
                let user = format!("system:serviceaccount:{namespace}:{name}");
                kubeconfig(self.address, name, &user, Some("system:serviceaccounts"))
            };
            account("csi-provisioner", "default")?;
            account("csi-snapshotter", "default")?;
            account("snapshot-controller", "kube-system")?;
            account("coredns", "kube-system")?;
            self.prepare_node()?;
        }
        Ok(())
    }

    pub(crate) fn arguments(&self, component: Component) -> Result<Vec<String>> {
        Ok(match component {
            Component::Etcd => self.etcd(),
            Component::Apiserver => self.apiserver(),
            Component::ControllerManager => self.controller_manager(),
            Component::Scheduler => self.client_of_apiserver(component),
            Component::Machine => anyhow::bail!("a machine that went down does not come up again: start a new cluster"),
            Component::Containerd | Component::KubeProxy | Component::Dns | Component::Kubelet => {
                self.on_node(component)
            }
            Component::CsiDriver => self.csi_driver(),
            Component::Provisioner | Component::SnapshotController | Component::Snapshotter => self.sidecar(component),
        })
    }
}

/// Of loopback: without a kube-proxy, what is sent to a ClusterIP leaves the machine by its default route, and who knows who
/// answers there. Here nobody does, at once, unless a test listens on it. A node has another one, for its Pods.
const SERVICE_RANGE: &str = "127.96.0.0/16";

/// Its first address is the API server's own.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(127, 96, 0, 1);

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags() {
        let layout = |aggregator_routing, fsync| Layout {
            root: PathBuf::from("/root-of-it"),
            address: Ipv4Addr::new(198, 18, 0, 1),
            options: Options { aggregator_routing, fsync, node: None },
            ports: Ports::reserve().unwrap(),
            binaries: Binaries::default(),
            machine: None,
        };
        let has = |layout: &Layout, component, flag: &str| {
            layout.arguments(component).unwrap().iter().any(|given| given == flag)
        };
        let (fast, real) = (layout(true, false), layout(false, true));
        assert!(has(&fast, Component::Apiserver, "--enable-aggregator-routing=true"));
        assert!(has(&real, Component::Apiserver, "--enable-aggregator-routing=false"));
        assert!(has(&fast, Component::Etcd, "--unsafe-no-fsync") && !has(&real, Component::Etcd, "--unsafe-no-fsync"));
    }
}
