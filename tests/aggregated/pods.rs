//! Pods that get an agent, before a real kube-apiserver: what it takes without the agent it takes with it, also where it wants Pod
//! Security `restricted`, and the agent is never what it warns of.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use api::inject::{Asked, CONTAINER, Installation, Verdict, decide};
use serde_json::{Value, json};

use crate::world::World;

const AGENT: Installation<'_> = Installation {
    namespace: "stillpoint",
    image: Some("registry.example/stillpoint-agent:1"),
    apiserver: Some("stillpoint-agents.stillpoint.svc:8444"),
    ca: Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
};

/// Of the Pods that injection was thought through with, those that get an agent: without it, and with it.
fn pods() -> Result<Vec<(String, [Value; 2])>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../webhooks/tests/pods/label");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut pods = Vec::new();
    for file in files {
        let pod: Value = serde_saphyr::from_str(&fs::read_to_string(&file)?)?;
        let decided = decide(&pod, "shop", Asked::Label, AGENT);
        if let (Verdict::Injected, Some(injected)) = (decided.verdict, decided.pod) {
            pods.push((file.file_stem().unwrap_or_default().to_string_lossy().into_owned(), [pod, injected]));
        }
    }
    Ok(pods)
}

/// A namespace, and what it says to each Pod that is shown to it.
struct Shown<'w> {
    world: &'w World,
    namespace: String,
}

impl Shown<'_> {
    async fn says(&self, name: &str, pod: &Value) -> Result<(bool, String)> {
        let mut pod = pod.clone();
        pod["metadata"]["namespace"] = self.namespace.as_str().into();
        let file = self.world.cluster.root().join(format!("{}-{name}.json", self.namespace));
        fs::write(&file, pod.to_string())?;
        // Fields of an API that is to come are kube-apiserver's to drop.
        let file = file.display().to_string();
        let create = ["create", "--dry-run=server", "--validate=ignore", "-f", &file];
        let said = self.world.cluster.kubectl(&create).await?;
        Ok((said.code == 0, said.stderr))
    }
}

/// One whose Pods are shown to Pod Security, as `mode` (`enforce`, `warn`) of `restricted`.
async fn namespace<'w>(world: &'w World, mode: &str) -> Result<Shown<'w>> {
    let namespace = format!("pods-{mode}");
    let label = format!("pod-security.kubernetes.io/{mode}");
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {label: "restricted"}},
    });
    world.cluster.apply(&object.to_string()).await?;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
    });
    world.cluster.apply(&account.to_string()).await?;
    Ok(Shown { world, namespace })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kube_apiserver_takes_it_takes_with_an_agent() {
    let world = World::get().await;
    let [warns, enforces] = [namespace(world, "warn").await.unwrap(), namespace(world, "enforce").await.unwrap()];
    let (mut taken, mut fit) = (0, BTreeSet::new());
    for (name, [without, with]) in pods().unwrap() {
        let before = warns.says(&name, &without).await.unwrap();
        let after = warns.says(&name, &with).await.unwrap();
        assert!(after.0 || !before.0, "{name}: {}", after.1);
        assert!(!after.1.contains(CONTAINER) || !after.0, "{name} is warned of because of its agent: {}", after.1);
        taken += usize::from(after.0);
        // Whatever fits without it.
        if before.0 && !before.1.contains("PodSecurity") {
            let (is_taken, why) = enforces.says(&name, &with).await.unwrap();
            assert!(is_taken, "{name}: {why}");
            fit.insert(name);
        }
    }
    assert!(taken >= 30 && !fit.is_empty(), "{taken} were taken, and these fit: {fit:?}");
    // What would be seen of an agent that does not fit.
    let (_, [_, mut with]) = pods().unwrap().into_iter().find(|(name, _)| fit.contains(name)).context("none").unwrap();
    let place = if with["spec"]["initContainers"].is_null() { "containers" } else { "initContainers" };
    let containers = with["spec"][place].as_array_mut().unwrap();
    containers.last_mut().unwrap()["securityContext"]["runAsNonRoot"] = false.into();
    let (is_taken, why) = enforces.says("control", &with).await.unwrap();
    assert!(!is_taken && why.contains(CONTAINER), "{why}");
    let (_, said) = warns.says("control", &with).await.unwrap();
    assert!(said.contains(CONTAINER), "{said}");
}
