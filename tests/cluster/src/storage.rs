//! What makes volumes and snapshots: the CSI driver of crate `csi`, and Kubernetes' own sidecars.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::storage::v1::CSINode;
use kube::Api;
use serde_json::{Value, json};

use crate::{
    components::{Component, Layout, text},
    node::Node,
    own::Own,
};

impl Layout {
    /// Below the cluster's directory, which is the same in the machine: tests reach its sockets.
    pub(crate) fn csi(&self) -> csi::Settings {
        let registry = Some(self.file("kubelet/plugins_registry"));
        csi::Settings { directory: self.file("csi"), registry, node: Node::NAME.to_owned(), gigabytes: 16 }
    }

    pub(crate) fn csi_driver(&self) -> Vec<String> {
        let csi = self.csi();
        let mut arguments = vec![
            format!("--directory={}", text(&csi.directory)),
            format!("--node={}", csi.node),
            format!("--gigabytes={}", csi.gigabytes),
        ];
        arguments.extend(csi.registry.map(|registry| format!("--registry={}", text(&registry))));
        arguments
    }

    pub(crate) fn sidecar(&self, component: Component) -> Vec<String> {
        let mut arguments = vec![
            format!("--kubeconfig={}", text(&self.file(&format!("{component}.kubeconfig")))),
            // There is one of each.
            "--leader-election=false".to_owned(),
        ];
        if let Some((address, port)) = self.listens(component) {
            arguments.push(format!("--http-endpoint={address}:{port}"));
        }
        if component != Component::SnapshotController {
            arguments.push(format!("--csi-address={}", text(&self.csi().endpoint())));
            arguments.push("--extra-create-metadata".to_owned());
        }
        if component == Component::Provisioner {
            arguments.push("--default-fstype=ext4".to_owned());
        }
        arguments
    }
}

impl Own {
    /// What the components look for when they start.
    pub(crate) async fn prepare_storage(&self) -> Result<()> {
        let binaries = &self.layout.binaries;
        let crds = text(&binaries.snapshotter.join("crds"));
        self.kubectl(&["apply", "--server-side", "-f", &crds], "").await?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", &crds], "").await?;
        for file in binaries.rights() {
            self.kubectl(&["apply", "--server-side", "-f", &text(&file)], "").await?;
        }
        let objects: Vec<String> = objects().iter().map(Value::to_string).collect();
        self.kubectl(&["apply", "--server-side", "-f", "-"], &objects.join("\n---\n")).await.map(drop)
    }

    pub(crate) async fn start_storage(&self, ready: Duration) -> Result<()> {
        tokio::try_join!(
            self.run(Component::Provisioner),
            self.run(Component::SnapshotController),
            self.run(Component::Snapshotter)
        )?;
        self.wait_for_what_is_made(Component::Kubelet, "the driver on the node", ready, || async {
            let nodes: Api<CSINode> = Api::all(self.client().await?);
            let drivers = nodes.get(Node::NAME).await?.spec.drivers;
            ensure!(drivers.iter().any(|driver| driver.name == csi::NAME), "it has not registered");
            Ok(())
        })
        .await
    }

    pub(crate) async fn csi(&self) -> Result<csi::Control> {
        let node = self.layout.options.node.context("the cluster has no node")?;
        ensure!(node.storage, "the cluster has no storage: ask for it with Node::storage");
        let socket = self.layout.csi().control();
        ensure!(fs::exists(&socket)?, "{}: the driver does not run", socket.display());
        csi::Control::connect(&socket).await
    }
}

fn objects() -> [Value; 4] {
    let default = |group: &str| json!({(format!("{group}.kubernetes.io/is-default-class")): "true"});
    [
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": csi::NAME},
            "spec": {"attachRequired": false, "fsGroupPolicy": "File"},
        }),
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "test", "annotations": default("storageclass")},
            "provisioner": csi::NAME, "reclaimPolicy": "Delete",
        }),
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
            "metadata": {"name": "test", "annotations": default("snapshot.storage")},
            "driver": csi::NAME, "deletionPolicy": "Delete",
        }),
        json!({
            "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotClass",
            "metadata": {"name": "test", "annotations": default("groupsnapshot.storage")},
            "driver": csi::NAME, "deletionPolicy": "Delete",
        }),
    ]
}
