//! [`Cluster`]: one of our own, or one that is there.

use std::{
    collections::BTreeMap,
    env, fs,
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use kube::Client;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    address,
    binaries::{Binaries, tool},
    components::{Component, Layout, Ports},
    identity::{self, Identity},
    kubectl::{Kubectl, Output},
    machine::Machine,
    node::Node,
    own::Own,
    process::Lifetime,
    service::{self, ServicePort},
};

/// How a cluster of our own is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether kube-apiserver dials the addresses of a Service's EndpointSlices itself (`--enable-aggregator-routing`), one
    /// at random for each request. Without it, as kubeadm has it, APIServices and webhooks are dialled at their Service's
    /// ClusterIP. There is no kube-proxy that would lead from there to the EndpointSlices, but in a cluster of our own it is
    /// a loopback address, on which the server under test can listen.
    pub aggregator_routing: bool,
    /// Whether etcd waits for the disk. Without it a cluster starts and writes faster, and may lose its objects when the
    /// machine stops, though not when etcd does.
    pub fsync: bool,
    /// Without one, a Pod stays pending.
    pub node: Option<Node>,
}

impl Options {
    /// What runs in such a cluster, in the order of [`Component`].
    pub fn components(&self) -> Vec<Component> {
        let node = self.node.map_or(&[][..], |_| &Component::NODE);
        let storage = self.node.filter(|node| node.storage).map_or(&[][..], |_| &Component::STORAGE);
        let mut all = [&Component::CONTROL_PLANE, node, storage].concat();
        all.sort();
        all
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { aggregator_routing: true, fsync: true, node: None }
    }
}

/// A control plane. One of our own ends when this is dropped: its processes are killed, its directory is removed.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: Kubectl,
    address: Ipv4Addr,
    /// None when the cluster is somebody else's. Before the directory: that goes last.
    own: Option<Own>,
    root: PathBuf,
    _directory: Option<Directory>,
}

/// The tests' cluster is this kubeconfig's, if it is set; nothing is started then.
const UNDER_TEST: &str = "KUBECONFIG_UNDER_TEST";

impl Cluster {
    /// Starts one in a temporary directory, or takes the one that `KUBECONFIG_UNDER_TEST` names. That one must be able to
    /// reach this host ([`Self::address`]), and its administrator must be one; `options` mean nothing to it.
    pub async fn start(options: Options) -> Result<Self> {
        let directory = Directory::create()?;
        let root = directory.temporary.path().to_owned();
        let Some(kubeconfig) = env::var_os(UNDER_TEST) else {
            let cluster = Self::start_in(&root, options, Lifetime::Ours).await?;
            return Ok(Self { _directory: Some(directory), ..cluster });
        };
        let kubeconfig =
            fs::canonicalize(&kubeconfig).with_context(|| format!("{UNDER_TEST}={}", kubeconfig.display()))?;
        let kubectl = Kubectl { binary: tool("kubectl", &["1.35"]).await?, home: root.join("home") };
        Ok(Self { kubeconfig, kubectl, address: address::of_host()?, own: None, root, _directory: Some(directory) })
    }

    pub(crate) async fn start_in(root: &Path, options: Options, life: Lifetime) -> Result<Self> {
        let binaries = Binaries::get(options).await?;
        let ports = Ports::reserve()?;
        let (process, machine) = match options.node {
            Some(_) => Some(Machine::start(root, &root.join("machine.log"), life).await?).unzip(),
            None => (None, None),
        };
        let address = machine.as_ref().map_or_else(address::of_host, |machine| Ok(machine.network.host()))?;
        let kubectl = Kubectl { binary: binaries.kubectl(), home: root.join("home") };
        let layout = Layout { root: root.to_owned(), address, options, ports, binaries, machine };
        let kubeconfig = layout.file("admin.kubeconfig");
        let own = Some(Own::start(layout, process, life).await?);
        Ok(Self { kubeconfig, kubectl, address, own, root: root.to_owned(), _directory: None })
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig of somebody else, for whatever reads one.
    pub async fn kubeconfig_of(&self, identity: &Identity) -> Result<PathBuf> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let with_token = |token: &str| identity::instead_of(&self.kubeconfig, |user| *user = json!({"token": token}));
        let kubeconfig = match identity {
            Identity::User { name, groups } => identity::instead_of(&self.kubeconfig, |user| {
                user["as"] = json!(name);
                user["as-groups"] = json!(groups);
            })?,
            Identity::ServiceAccount { namespace, name } => {
                let token = self.kubectl(&["create", "token", name, "--namespace", namespace]).await?.ok()?;
                with_token(token.trim())?
            }
            Identity::Token(token) => with_token(token)?,
        };
        let path = self.root.join(format!("identity-{}.kubeconfig", NUMBER.fetch_add(1, Ordering::Relaxed)));
        identity::write(&path, &kubeconfig)?;
        Ok(path)
    }

    /// A client of the administrator's, good for the runtime that asks.
    pub async fn client(&self) -> Result<Client> {
        identity::client(&self.kubeconfig).await
    }

    pub async fn client_as(&self, identity: &Identity) -> Result<Client> {
        identity::client(&self.kubeconfig_of(identity).await?).await
    }

    /// Runs kubectl as the administrator.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl.run(&self.kubeconfig, arguments, "").await
    }

    pub async fn kubectl_as(&self, identity: &Identity, arguments: &[&str]) -> Result<Output> {
        self.kubectl.run(&self.kubeconfig_of(identity).await?, arguments, "").await
    }

    /// The program that `kubectl edit` runs, for a test to write.
    pub fn editor(&self) -> PathBuf {
        self.kubectl.editor()
    }

    /// Applies manifests, YAML or JSON, as the administrator.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.kubectl.run(&self.kubeconfig, &arguments, manifests).await?.ok()
    }

    /// An address of this host that the cluster may name in EndpointSlices: servers under test listen there.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Makes servers on [`Self::address`] a Service, in a namespace that is made if need be, and answers its ClusterIP.
    /// Calling it again with other ports replaces them. Their certificate must be for `NAME.NAMESPACE.svc`.
    pub async fn register_service(&self, namespace: &str, name: &str, ports: &[ServicePort]) -> Result<IpAddr> {
        let registered = service::register(self.client().await?, self.address, namespace, name, ports).await;
        registered.with_context(|| format!("registering {namespace}/{name}"))
    }

    /// Where files of this cluster's may lie; removed with it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One JSON object a line, at level Metadata; of SubjectAccessReviews at level Request. Not of somebody else's cluster, as everything below.
    pub fn audit_log(&self) -> Result<PathBuf> {
        Ok(self.own("the audit log")?.layout.file("audit.log"))
    }

    /// What the audit log has now, whole lines only.
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.audit_log()?)?;
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// What `component` says.
    pub fn log(&self, component: Component) -> Result<PathBuf> {
        Ok(self.own("a component's log")?.layout.log(component))
    }

    /// The authority of front proxies: who shows its certificate may name any user.
    pub fn front_proxy_ca(&self) -> Result<PathBuf> {
        Ok(self.own("the front proxy's authority")?.layout.pki("front-proxy-ca.crt"))
    }

    /// What kube-apiserver shows to the servers behind it: certificate and key of `front-proxy-client`.
    pub fn front_proxy_client(&self) -> Result<(PathBuf, PathBuf)> {
        let layout = &self.own("the front proxy's certificate")?.layout;
        Ok((layout.pki("front-proxy-client.crt"), layout.pki("front-proxy-client.key")))
    }

    /// As a crash: no goodbye. The CSI driver takes its sidecars along, as they are of one Pod elsewhere: what loses its
    /// driver exits (csi-lib-utils, ExitOnConnectionLoss), but only when it has to ask it something.
    pub fn stop(&self, component: Component) -> Result<()> {
        let own = self.own("stopping a component")?;
        own.stop(component)?;
        component.sidecars().iter().try_for_each(|sidecar| own.stop(*sidecar))
    }

    /// Starts one that was stopped, on its port and its data, and waits until it answers.
    pub async fn start_again(&self, component: Component) -> Result<()> {
        let own = self.own("starting a component")?;
        own.run(component).await?;
        for sidecar in component.sidecars() {
            own.run(*sidecar).await?;
        }
        Ok(())
    }

    /// Stops one and starts it with further arguments, until it is started again without: `--timeout=2s` of the snapshotter, so
    /// that a driver that hangs is soon given up.
    pub async fn restart_with(&self, component: Component, further: &[&str]) -> Result<()> {
        let own = self.own("starting a component")?;
        own.stop(component)?;
        own.run_with(component, further).await
    }

    /// It hangs: its connections stay open, and nothing comes.
    pub fn pause(&self, component: Component) -> Result<()> {
        self.own("pausing a component")?.signal(component, Signal::SIGSTOP)
    }

    pub fn resume(&self, component: Component) -> Result<()> {
        self.own("resuming a component")?.signal(component, Signal::SIGCONT)
    }

    /// The process group of each component that runs.
    pub fn process_groups(&self) -> Result<BTreeMap<Component, u32>> {
        Ok(self.own("process groups")?.groups())
    }

    /// Runs a program of this host's in the machine that the node's processes take for theirs: its mounts, its network.
    pub async fn on_node(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.own("a program on the node")?.in_machine(program, arguments).await
    }

    /// Brings an image (`tests/tools/image`) to the node, for Pods with `imagePullPolicy: Never`.
    pub async fn import_image(&self, archive: &Path) -> Result<()> {
        self.own("an image on the node")?.import_image(archive).await.context("importing an image")
    }

    /// How the CSI driver is made slow or faulty.
    pub async fn csi(&self) -> Result<csi::Control> {
        self.own("the CSI driver")?.csi().await
    }

    pub(crate) fn leave(self) {
        if let Some(own) = &self.own {
            own.leave();
        }
    }

    fn own(&self, what: &str) -> Result<&Own> {
        self.own.as_ref().with_context(|| {
            format!(
                "{what}: the cluster is somebody else's, since {UNDER_TEST} is set; unset it to have one of your own"
            )
        })
    }
}

/// A temporary directory that is locked while its owner lives.
#[derive(Debug)]
struct Directory {
    temporary: TempDir,
    _lock: File,
}

impl Directory {
    const PREFIX: &str = "stillpoint-cluster-";

    fn create() -> Result<Self> {
        Self::sweep();
        let temporary = tempfile::Builder::new().prefix(Self::PREFIX).tempdir()?;
        // Locked before it has its name: a sweep in between would take it for abandoned.
        let unnamed = temporary.path().join("unlocked");
        let lock = File::create(&unnamed)?;
        lock.try_lock()?;
        fs::rename(&unnamed, temporary.path().join("lock"))?;
        fs::create_dir(temporary.path().join("home"))?;
        Ok(Self { temporary, _lock: lock })
    }

    /// Removes what tests left that were killed, or that keep their cluster in a static: each is some 150 MB.
    fn sweep() {
        for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(Self::PREFIX));
            if ours && File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_whose_owner_died_is_swept_and_others_stay() {
        let living = Directory::create().unwrap();
        let dead = Directory::create().unwrap();
        let path = dead.temporary.path().to_owned();
        let Directory { temporary, _lock: lock } = dead;
        let (kept, ()) = (temporary.keep(), drop(lock));
        assert!(kept == path && path.exists());
        Directory::sweep();
        assert!(!path.exists() && living.temporary.path().exists());
    }
}
