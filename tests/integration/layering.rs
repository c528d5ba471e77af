//! Dependencies point inward (ARCHITECTURE.md): what each crate may use of ours, and nothing else.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

const ALLOWED: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("certs", &[]),
    ("cluster", &["csi", "fixtures"]),
    ("csi", &[]),
    ("fixtures", &[]),
    ("freeze", &["api"]),
    ("agent", &["api", "certs", "freeze"]),
    ("apiserver", &["api", "certs", "freeze", "repository", "runner", "topology"]),
    ("cli", &["api", "certs", "freeze", "topology"]),
    ("deploy", &["api"]),
    ("repository", &["api"]),
    ("runner", &["api", "certs", "freeze", "repository"]),
    ("topology", &["api"]),
    ("webhooks", &["api", "certs"]),
    ("tests", &["api", "fixtures", "repository"]),
];

#[test]
fn crates_depend_on_each_other_as_the_picture_says() {
    let output = Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--no-deps"]).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    assert_eq!(ours, ALLOWED.iter().map(|(name, _)| *name).collect(), "a crate is missing in the picture");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = ALLOWED.iter().find(|(allowed, _)| *allowed == name).unwrap().1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"] == "dev";
            assert!(for_tests || !ours.contains(used) || allowed.contains(&used), "{name} must not depend on {used}");
        }
    }
}
