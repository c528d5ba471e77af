//! Every snapshot, and later every pod, passes here: no Kubernetes client, no watch and no database driver is linked.

use std::process::Command;

/// What is linked into a crate's programs.
fn linked(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}", "--locked"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn unwanted(all: &[String]) -> Vec<&String> {
    let is_unwanted = |name: &&String| {
        ["apiserver", "freeze", "kube-client", "kube-runtime", "mongodb", "rusqlite"].contains(&name.as_str())
            || name.starts_with("sqlx")
    };
    all.iter().filter(is_unwanted).collect()
}

#[test]
fn no_client_no_watch_and_no_driver_is_linked() {
    let webhooks = linked("webhooks");
    assert!(webhooks.contains(&"hyper".to_owned()) && webhooks.contains(&"api".to_owned()), "{webhooks:?}");
    assert_eq!(unwanted(&webhooks), [""; 0]);
    // That it would be noticed.
    let apiserver = linked("apiserver");
    assert!(unwanted(&apiserver).iter().any(|name| *name == "kube-client"));
    assert!(unwanted(&apiserver).iter().any(|name| name.starts_with("sqlx")));
}
