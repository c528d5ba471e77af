//! However a cluster with a node ends, nothing of it is left.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use cluster::{Cluster, Component, Node, Options, until};
use serde_json::json;

use crate::world::{SOON, WITH_STORAGE, World};

/// A cluster with a Pod that does nothing.
async fn idle(storage: bool) -> Result<Cluster> {
    let cluster = Cluster::start(Options { node: Some(Node { storage }), ..WITH_STORAGE }).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle"},
        "spec": {"containers": [{"name": "idle", "image": Node::PAUSE, "imagePullPolicy": "Never"}]},
    });
    cluster.apply(&pod.to_string()).await?;
    let wait = ["wait", "--for=condition=Ready", "--timeout=90s", "pod/idle"];
    cluster.kubectl(&wait).await?.ok()?;
    Ok(cluster)
}

/// What the host has of one: processes by what their command line names, loop devices, interfaces, control groups.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    processes: Vec<u32>,
    loops: usize,
    cgroups: Vec<PathBuf>,
}

/// Where the node's programs keep things on a machine that they have for themselves.
const THEIRS: [&str; 6] =
    ["/opt/containerd", "/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet"];

impl Traces {
    fn of(root: &Path, cgroups: &str) -> Result<Self> {
        let name = root.display().to_string();
        let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let names_it = |process: &u32| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let files = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&name) || files.contains(&format!("/{cgroups}/"))
        };
        let loops = Command::new("losetup").args(["--list", "--noheadings", "--output=BACK-FILE"]).output()?.stdout;
        let groups = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path().join(cgroups));
        Ok(Self {
            processes: all.filter(names_it).collect(),
            loops: String::from_utf8_lossy(&loops).lines().filter(|line| line.contains(&name)).count(),
            cgroups: groups.filter(|path| path.exists()).collect(),
        })
    }

    async fn until_none(root: &Path, cgroups: &str) {
        until("nothing is left", SOON, || async {
            let left = Self::of(root, cgroups)?;
            ensure!(left.processes.is_empty() && left.loops == 0, "{left:?}");
            Ok(())
        })
        .await
        .unwrap();
        assert!(!in_mounts(root), "a mount is left");
    }
}

fn in_mounts(root: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&root.display().to_string())
}

fn cgroups_of(root: &Path) -> String {
    fs::read_to_string(root.join("cgroups")).unwrap()
}

#[tokio::test]
async fn nodes_side_by_side_and_nothing_left_of_them() {
    let theirs = || THEIRS.iter().filter(|path| Path::new(path).exists()).collect::<Vec<_>>();
    // A machine may have a containerd of its own.
    let before = theirs();
    let (one, other) = tokio::try_join!(idle(true), idle(false)).unwrap();
    assert_ne!(one.address(), other.address());
    let root = one.root().to_owned();
    let cgroups = cgroups_of(&root);
    let there = Traces::of(&root, &cgroups).unwrap();
    assert!(there.processes.len() >= WITH_STORAGE.components().len() && there.loops == 1, "{there:?}");
    assert!(!there.cgroups.is_empty() && !in_mounts(&root), "{there:?}");
    assert!(other.csi().await.unwrap_err().to_string().contains("Node::storage"));

    drop(one);
    Traces::until_none(&root, &cgroups).await;
    assert!(Traces::of(&root, &cgroups).unwrap().cgroups.is_empty() && !root.exists());
    // The other has lost nothing.
    World(&other).kubectl(&["delete", "pod", "idle", "--grace-period=1"]).await.unwrap();
    assert_eq!(theirs(), before, "on the host");
    let error = other.start_again(Component::Machine).await.unwrap_err().to_string();
    assert!(error.contains("runs already"), "{error}");
}

#[tokio::test]
async fn one_that_stays_until_it_is_told_to_go() {
    let directory = tempfile::tempdir().unwrap();
    // Everything has to bear a space: sockets, mounts, configurations.
    let root = directory.path().join("it is mine");
    let run = |verb: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cluster")).args(verb).arg("--dir").arg(&root).output().unwrap();
        assert!(output.status.success(), "{verb:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run(&["up", "--node"]).ends_with("a cluster is ready\n"));
    assert!(run(&["up", "--node"]).ends_with("a cluster runs already\n"));
    let cgroups = cgroups_of(&root);
    let there = Traces::of(&root, &cgroups).unwrap();
    assert!(there.processes.len() >= WITH_STORAGE.components().len() && there.loops == 1, "{there:?}");
    let ended = run(&["down"]);
    assert!(WITH_STORAGE.components().iter().all(|component| ended.contains(component.name())), "{ended}");
    Traces::until_none(&root, &cgroups).await;
    assert!(Traces::of(&root, &cgroups).unwrap().cgroups.is_empty() && !root.exists());
}

/// The first process of the namespaces ends with the process that started the cluster, however that ends.
#[tokio::test]
async fn nothing_runs_on_when_the_test_is_killed() {
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ending::a_test_that_will_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines().map_while(Result::ok);
    let root = lines.find_map(|line| Some(PathBuf::from(line.strip_prefix("at ")?))).unwrap();
    let cgroups = cgroups_of(&root);
    assert!(!Traces::of(&root, &cgroups).unwrap().processes.is_empty());
    test.kill().unwrap();
    test.wait().unwrap();
    Traces::until_none(&root, &cgroups).await;
    // The directory and the empty groups are swept by the next to start, which the groups' number belongs to then.
    fs::remove_dir_all(&root).unwrap();
}

#[tokio::test]
#[ignore = "nothing_runs_on_when_the_test_is_killed runs it, and kills it"]
async fn a_test_that_will_be_killed() {
    let cluster = idle(true).await.unwrap();
    println!("at {}", cluster.root().display());
    std::future::pending::<()>().await;
}
