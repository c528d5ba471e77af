//! The parts of the control plane, and what each is told.

use std::{
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fixtures::Port;

use crate::{
    cluster::Options,
    identity,
    pki::{self, Clients, Pair},
};

/// In the order in which they are started: each needs those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Etcd,
    Apiserver,
    ControllerManager,
    Scheduler,
}

/// Where everything of one control plane is.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    /// Of this host, not loopback.
    pub(crate) address: Ipv4Addr,
    pub(crate) options: Options,
    pub(crate) ports: Ports,
}

#[derive(Debug)]
pub(crate) struct Ports {
    etcd: Port,
    etcd_peers: Port,
    apiserver: Port,
    controller_manager: Port,
    scheduler: Port,
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
    pub const ALL: [Self; 4] = [Self::Etcd, Self::Apiserver, Self::ControllerManager, Self::Scheduler];

    /// The name of its binary, and of its log without `.log`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
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

    /// Where it listens, on loopback.
    pub(crate) fn port(&self, component: Component) -> u16 {
        match component {
            Component::Etcd => self.ports.etcd.number,
            Component::Apiserver => self.ports.apiserver.number,
            Component::ControllerManager => self.ports.controller_manager.number,
            Component::Scheduler => self.ports.scheduler.number,
        }
    }

    /// Writes everything that the components read.
    pub(crate) fn prepare(&self) -> Result<()> {
        let Clients { authority, admin, controller_manager, scheduler } =
            pki::make(&self.root.join("pki"), self.address)?;
        fs::write(self.file("audit-policy.yaml"), AUDIT_POLICY)?;
        let server = format!("https://127.0.0.1:{}", self.port(Component::Apiserver));
        let kubeconfig = |name: &str, pair: &Pair| {
            identity::write(&self.file(name), &identity::by_certificate(&server, &authority, pair))
        };
        kubeconfig("admin.kubeconfig", &admin)?;
        kubeconfig("kube-controller-manager.kubeconfig", &controller_manager)?;
        kubeconfig("kube-scheduler.kubeconfig", &scheduler)
    }

    pub(crate) fn arguments(&self, component: Component) -> Vec<String> {
        match component {
            Component::Etcd => self.etcd(),
            Component::Apiserver => self.apiserver(),
            Component::ControllerManager => self.controller_manager(),
            Component::Scheduler => self.client_of_apiserver(component),
        }
    }

    fn etcd(&self) -> Vec<String> {
        let clients = format!("http://127.0.0.1:{}", self.ports.etcd.number);
        let peers = format!("http://127.0.0.1:{}", self.ports.etcd_peers.number);
        let mut arguments = vec![
            format!("--data-dir={}", text(&self.file("etcd"))),
            "--name=only".to_owned(),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=only={peers}"),
            "--log-level=warn".to_owned(),
        ];
        if !self.options.fsync {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        arguments
    }

    fn apiserver(&self) -> Vec<String> {
        let pki = |name: &str| text(&self.pki(name));
        vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd.number),
            // On all addresses: Pods and servers under test come by the host's.
            "--bind-address=0.0.0.0".to_owned(),
            format!("--secure-port={}", self.ports.apiserver.number),
            format!("--advertise-address={}", self.address),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--allow-privileged=true".to_owned(),
            // As kubeadm has it.
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            // The aggregation layer.
            format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-uid-headers=X-Remote-Uid".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
            format!("--enable-aggregator-routing={}", self.options.aggregator_routing),
            format!("--audit-policy-file={}", text(&self.file("audit-policy.yaml"))),
            format!("--audit-log-path={}", text(&self.file("audit.log"))),
            // In MB. Or it goes on in another file after 100, where no test would look.
            "--audit-log-maxsize=2000".to_owned(),
        ]
    }

    fn controller_manager(&self) -> Vec<String> {
        let mut arguments = self.client_of_apiserver(Component::ControllerManager);
        arguments.extend([
            "--use-service-account-credentials=true".to_owned(),
            // Its default of 20 a second would be half of a cluster's start.
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            format!("--service-account-private-key-file={}", text(&self.pki("service-accounts.key"))),
            format!("--root-ca-file={}", text(&self.pki("ca.crt"))),
            format!("--cluster-signing-cert-file={}", text(&self.pki("ca.crt"))),
            format!("--cluster-signing-key-file={}", text(&self.pki("ca.key"))),
            // Or it makes its own, in the machine's /usr.
            format!("--flex-volume-plugin-dir={}", text(&self.file("flexvolume"))),
        ]);
        arguments
    }

    fn client_of_apiserver(&self, component: Component) -> Vec<String> {
        let kubeconfig = text(&self.file(&format!("{component}.kubeconfig")));
        let mut arguments: Vec<_> = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
            .map(|flag| format!("--{flag}={kubeconfig}"))
            .into();
        arguments.extend([
            // There is one of each, and a restarted one need not wait for its predecessor's lease.
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port(component)),
        ]);
        arguments
    }
}

/// Of loopback: without a kube-proxy, what is sent to a ClusterIP leaves the machine by its default route, and who knows who
/// answers there. Here nobody does, at once, unless a test listens on it. Pods would need another one. Holds
/// [`pki::API_SERVICE`].
const SERVICE_RANGE: &str = "127.96.0.0/16";

fn text(path: &Path) -> String {
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
            options: Options { aggregator_routing, fsync },
            ports: Ports::reserve().unwrap(),
        };
        let has =
            |layout: &Layout, component, flag: &str| layout.arguments(component).iter().any(|given| given == flag);
        let (fast, real) = (layout(true, false), layout(false, true));
        assert!(has(&fast, Component::Apiserver, "--enable-aggregator-routing=true"));
        assert!(has(&real, Component::Apiserver, "--enable-aggregator-routing=false"));
        assert!(has(&fast, Component::Etcd, "--unsafe-no-fsync") && !has(&real, Component::Etcd, "--unsafe-no-fsync"));
    }
}
