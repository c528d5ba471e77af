//! The recipe of the image says nothing false: no engine builds it here, so each name in it is looked up where it comes from.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

/// What is wrong with a recipe, of which these Deployments are.
fn wrong(recipe: &str, metadata: &Value, deployments: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines: Vec<&str> = recipe.lines().map(str::trim).collect();
    let after = |word: &str| lines.iter().filter_map(|line| line.strip_prefix(word)).collect::<Vec<_>>();
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let package = |name: &str| packages().find(|package| package["name"] == name);

    let words: Vec<&str> = after("RUN cargo build ").iter().flat_map(|line| line.split_whitespace()).collect();
    let mut built: Vec<&str> = words.windows(2).filter(|pair| pair[0] == "-p").map(|pair| pair[1]).collect();
    // Each of these is a package of that name.
    built.extend(after("RUN make "));
    let mut binaries = BTreeSet::new();
    for name in &built {
        match package(name) {
            None => wrong.push(format!("there is no package {name}")),
            Some(package) => {
                let targets = package["targets"].as_array().into_iter().flatten();
                binaries.extend(
                    targets.filter(|target| target["kind"][0] == "bin").filter_map(|target| target["name"].as_str()),
                );
            }
        }
    }
    let copied: BTreeSet<&str> = after("COPY --from=build ")
        .iter()
        .flat_map(|line| line.split_whitespace())
        .filter_map(|path| path.strip_prefix("/stillpoint/target/release/"))
        .collect();
    if copied != binaries {
        wrong.push(format!("built are {binaries:?}, in the image are {copied:?}"));
    }
    if !after("RUN cargo build ").iter().any(|line| line.ends_with("--locked -p webhooks")) {
        wrong.push("webhooks are not built by themselves".to_owned());
    }
    let entry: Vec<&str> = after("ENTRYPOINT ");
    if entry != [r#"["/usr/local/bin/stillpoint-apiserver"]"#] {
        wrong.push(format!("the entry point is {entry:?}"));
    }
    for deployment in deployments {
        let pod = &deployment["spec"]["template"]["spec"];
        let user = format!("{0}:{1}", pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]);
        if after("USER ") != [user.as_str()] {
            wrong.push(format!("a Deployment runs as {user}, the image as {:?}", after("USER ")));
        }
        let command = pod["containers"][0]["command"][0].as_str();
        let command = command.and_then(|command| command.strip_prefix("/usr/local/bin/"));
        if command.is_some_and(|command| !copied.contains(command)) {
            wrong.push(format!("a Deployment runs {command:?}, which is not in the image"));
        }
    }
    let minor = |version: &str| version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    let wanted = package("apiserver").and_then(|package| minor(package["rust_version"].as_str()?));
    if after("ARG RUST=").first().and_then(|version| minor(version)) < wanted {
        wrong.push("its Rust is older than ours".to_owned());
    }
    wrong
}

#[test]
fn the_recipe_names_what_is_there_and_runs_as_the_deployment_does() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipe = std::fs::read_to_string(here.join("Containerfile")).unwrap();
    let output = Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--no-deps"]).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let deployments = ["apiserver/server.yaml", "webhooks/webhooks.yaml"].map(|file| {
        let file = std::fs::read_to_string(here.join(file)).unwrap();
        let deployment = file.split("---\n").find(|document| document.contains("kind: Deployment")).unwrap();
        serde_saphyr::from_str(deployment).unwrap()
    });

    assert_eq!(wrong(&recipe, &metadata, &deployments), [""; 0]);
    assert!(here.join("../LICENSE").exists() && here.join("../.containerignore").exists());
    for (good, bad) in [
        ("-p cli", "-p client"),
        ("--locked -p webhooks", "--locked -p webhooks -p cli"),
        ("release/kubectl-still ", "release/kubectl-steady "),
        ("/stillpoint/target/release/stillpoint-webhooks ", ""),
        ("RUN make agent", "RUN make"),
        ("USER 65532:65532", "USER nobody"),
        ("ARG RUST=1.94", "ARG RUST=1.80"),
        ("/usr/local/bin/stillpoint-apiserver\"", "/bin/sh\""),
    ] {
        assert!(recipe.contains(good), "{good}");
        assert_ne!(wrong(&recipe.replace(good, bad), &metadata, &deployments), [""; 0], "{bad} is noticed");
    }
}
