//! Where each component's binary is; `tests/tools` builds what is not there.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::{cluster::Options, components::Component};

#[derive(Debug, Default)]
pub(crate) struct Binaries {
    control_plane: PathBuf,
    node: PathBuf,
    dns: PathBuf,
    provisioner: PathBuf,
    /// The snapshot CRDs are here too.
    pub(crate) snapshotter: PathBuf,
    driver: PathBuf,
}

impl Binaries {
    pub(crate) async fn get(options: Options) -> Result<Self> {
        let mut binaries = Self { control_plane: tool("kubernetes", &[]).await?, ..Self::default() };
        let Some(node) = options.node else { return Ok(binaries) };
        ensure!(
            fixtures::is_root(),
            "a node needs root, for namespaces, mounts and containers: run as root, or without one"
        );
        tool("setup", &["node"]).await?;
        binaries.node = tool("kubernetes", &["node"]).await?;
        binaries.dns = tool("kubernetes", &["dns"]).await?;
        if node.storage {
            binaries.provisioner = tool("kubernetes", &["provisioner"]).await?;
            binaries.snapshotter = tool("kubernetes", &["snapshotter"]).await?;
            binaries.driver = driver()?;
        }
        Ok(binaries)
    }

    pub(crate) fn of(&self, component: Component) -> PathBuf {
        match component {
            Component::Machine => PathBuf::from("unshare"),
            Component::Containerd => PathBuf::from("/usr/bin/containerd"),
            Component::CsiDriver => self.driver.clone(),
            Component::KubeProxy | Component::Kubelet => self.node.join(component.name()),
            Component::Dns => self.dns.join(component.name()),
            Component::Provisioner => self.provisioner.join(component.name()),
            Component::SnapshotController | Component::Snapshotter => self.snapshotter.join(component.name()),
            _ => self.control_plane.join(component.name()),
        }
    }

    pub(crate) fn kubectl(&self) -> PathBuf {
        self.control_plane.join("kubectl")
    }

    /// What the sidecars' authors say that they need to be allowed, and the CRDs of snapshots.
    pub(crate) fn rights(&self) -> [PathBuf; 3] {
        let snapshotter = |name: &str| self.snapshotter.join(name);
        let [controller, sidecar] = ["rbac-snapshot-controller.yaml", "rbac-csi-snapshotter.yaml"].map(snapshotter);
        [self.provisioner.join("rbac.yaml"), controller, sidecar]
    }
}

/// What `tests/tools/image` makes, for [`crate::Cluster::import_image`].
pub async fn image(arguments: &[&str]) -> Result<PathBuf> {
    tool("image", arguments).await
}

/// Built by whoever runs us, beside us.
fn driver() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let directory = own.parent().context("no directory")?;
    let directory = if directory.ends_with("deps") { directory.parent().context("no directory")? } else { directory };
    let path = directory.join("csi-driver");
    ensure!(path.exists(), "{} is not built: run `cargo build -p csi` first", path.display());
    Ok(path)
}

/// Where a tool of `tests/tools` says that something is. It may have to build it first, and then says so on our stderr: that
/// takes minutes.
pub async fn tool(name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools").join(name);
    let output = Command::new(&tool).args(arguments).stderr(Stdio::inherit()).output().await;
    let output = output.with_context(|| tool.display().to_string())?;
    ensure!(output.status.success(), "tests/tools/{name} failed ({}); it said why", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(text.lines().last().unwrap_or_default()))
}
