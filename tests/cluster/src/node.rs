//! The node: containerd, kube-proxy and kubelet, and what each is told.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use serde_json::{Value, json};

use crate::{
    components::{Component, Layout, text},
    machine::Network,
    own::Own,
};

/// A node of a cluster of our own: containers, a network of Pods, and Services by kube-proxy. It needs root. The only one is
/// called [`Node::NAME`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// A StorageClass with a CSI driver of ours, and what makes PersistentVolumes, VolumeSnapshots and VolumeGroupSnapshots of it,
    /// all by default.
    pub storage: bool,
}

impl Node {
    pub const NAME: &str = "node";
    /// A container of it does nothing. Every Pod has one, which holds its namespaces.
    pub const PAUSE: &str = "stillpoint.test/pause:latest";
}

/// What names in the cluster end with.
const DOMAIN: &str = "cluster.local";

/// In the machine's /run.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

impl Layout {
    pub(crate) fn prepare_node(&self) -> Result<()> {
        let Some(network) = self.network() else { return Ok(()) };
        // Nothing outside has to be resolved, and the host's file may be a link into its /run.
        fs::write(self.file("resolv.conf"), "nameserver 127.0.0.1\n")?;
        fs::create_dir_all(self.file("cni"))?;
        fs::write(self.file("cni/pods.conflist"), self.pods(network).to_string())?;
        fs::write(self.file("containerd.toml"), self.containerd())?;
        fs::write(self.file("kubelet.yaml"), self.kubelet(network).to_string())?;
        fs::write(self.file("kube-proxy.yaml"), self.kube_proxy(network).to_string())?;
        fs::write(self.file("Corefile"), self.corefile(network))?;
        Ok(())
    }

    pub(crate) fn on_node(&self, component: Component) -> Vec<String> {
        let config = |name: &str| format!("--config={}", text(&self.file(name)));
        match component {
            Component::Containerd => vec![config("containerd.toml")],
            Component::KubeProxy => vec![config("kube-proxy.yaml")],
            Component::Dns => vec![format!("-conf={}", text(&self.file("Corefile")))],
            _ => vec![
                config("kubelet.yaml"),
                format!("--kubeconfig={}", text(&self.file("kubelet.kubeconfig"))),
                format!("--root-dir={}", text(&self.file("kubelet"))),
                format!("--hostname-override={}", Node::NAME),
                format!("--node-ip={}", self.network().map_or_else(String::new, |network| network.node().to_string())),
            ],
        }
    }

    /// Each Pod at the end of a wire of its own, and everything routed: on a bridge, what comes back from a Pod behind a
    /// ClusterIP would not pass where its address is translated back.
    fn pods(&self, network: Network) -> Value {
        json!({
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [{
                "type": "ptp", "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": self.file("cni-addresses"),
                    "ranges": [[{"subnet": network.pods()}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        })
    }

    fn containerd(&self) -> String {
        format!(
            r#"version = 2
root = {root:?}
state = "/run/containerd"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.internal.v1.opt"]
path = {opt:?}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Without CAP_SYS_RESOURCE, as in many containers, no sandbox would start.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {cni:?}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
            root = text(&self.file("containerd")),
            opt = text(&self.file("containerd-opt")),
            pause = Node::PAUSE,
            cni = text(&self.file("cni")),
        )
    }

    fn kubelet(&self, network: Network) -> Value {
        let cgroups = self.machine.as_ref().map(|machine| format!("/{}", machine.cgroups.name()));
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": network.node(),
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "cgroupDriver": "cgroupfs", "cgroupRoot": cgroups,
            "failCgroupV1": false, "failSwapOn": false, "oomScoreAdj": 0,
            "resolvConf": self.file("resolv.conf"),
            "clusterDNS": [network.node()], "clusterDomain": DOMAIN,
            "volumePluginDir": self.file("flexvolume"),
            // There is no registry to get an image from again, and the disk is not the node's alone.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            // Tests wait for what it sees.
            "syncFrequency": "10s", "nodeStatusUpdateFrequency": "5s",
        })
    }

    /// Names in the cluster; nothing outside has to be resolved.
    fn corefile(&self, network: Network) -> String {
        format!(
            ".:53 {{\n    bind {}\n    errors\n    kubernetes {DOMAIN} {{\n        kubeconfig \"{}\"\n    }}\n}}\n",
            network.node(),
            text(&self.file("coredns.kubeconfig"))
        )
    }

    fn kube_proxy(&self, network: Network) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.file("kube-proxy.kubeconfig")},
            "mode": "iptables", "clusterCIDR": network.pods(), "hostnameOverride": Node::NAME,
            "healthzBindAddress": format!("{}:10256", network.node()),
            // The host's, which a namespace cannot set.
            "conntrack": {"maxPerCore": 0}, "oomScoreAdj": 0,
        })
    }
}

/// What kubeadm lets CoreDNS see.
fn names_are_looked_up() -> [Value; 2] {
    let rbac = "rbac.authorization.k8s.io";
    let rule = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    let rules =
        [rule("", &["endpoints", "services", "pods", "namespaces"]), rule("discovery.k8s.io", &["endpointslices"])];
    let subject = json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": "coredns"});
    [
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "system:coredns"},
            "rules": rules,
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"}, "subjects": [subject],
        }),
    ]
}

impl Own {
    /// Starts the node, and waits until Pods can run on it.
    pub(crate) async fn start_node(&self, node: Node, pause: PathBuf, ready: Duration) -> Result<()> {
        self.run(Component::Containerd).await?;
        self.import_image(&pause).await?;
        if node.storage {
            self.prepare_storage().await?;
            self.run(Component::CsiDriver).await?;
        }
        let rights: Vec<String> = names_are_looked_up().iter().map(Value::to_string).collect();
        self.kubectl(&["apply", "--server-side", "-f", "-"], &rights.join("\n---\n")).await?;
        tokio::try_join!(self.run(Component::KubeProxy), self.run(Component::Dns), self.run(Component::Kubelet))?;
        self.wait_for_what_is_made(Component::Kubelet, "a Node that is ready", ready, || async {
            let nodes: Api<Object> = Api::all(self.client().await?);
            let status = nodes.get(Node::NAME).await?.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let is_ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            ensure!(is_ready.is_some_and(|condition| condition.status == "True"), "{is_ready:?}");
            Ok(())
        })
        .await?;
        if node.storage {
            self.start_storage(ready).await?;
        }
        Ok(())
    }

    /// From a docker-archive, for `imagePullPolicy: Never`.
    pub(crate) async fn import_image(&self, archive: &std::path::Path) -> Result<()> {
        let archive = text(archive);
        let import = ["--address", CONTAINERD, "--namespace", "k8s.io", "images", "import", &archive];
        self.in_machine("ctr", &import).await.map(drop)
    }

    pub(crate) async fn containerd_answers(&self) -> Result<()> {
        self.in_machine("ctr", &["--address", CONTAINERD, "version"]).await.map(drop)
    }
}
