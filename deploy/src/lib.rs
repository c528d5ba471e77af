//! What an operator applies, as files, generated from the code that they belong to. The files are in the repository, so that
//! nobody needs Rust to install; a test says when they are not what the code says.

mod policies;
mod rights;
mod settings;

use std::{fs, io, path::Path};

use anyhow::Context;
use api::install::ACCOUNT;
use serde::Serialize;
use serde_json::{Value, json};

use settings::NAMESPACE;

/// One file, by its path below `deploy/`.
#[derive(Debug)]
pub struct Manifest {
    pub path: String,
    pub text: String,
}

/// The first line of each.
const GENERATED: &str = "# Generated from the Rust types by `make manifests`; do not edit.\n";

/// All that is generated.
pub fn manifests() -> anyhow::Result<Vec<Manifest>> {
    let mut manifests: Vec<Manifest> = api::crds::all()
        .iter()
        .map(|crd| Ok(Manifest { path: format!("crds/{}.yaml", crd.spec.names.plural), text: yaml(&[crd])? }))
        .collect::<anyhow::Result<_>>()?;
    for (name, objects) in [("rights", rights::rights()), ("policies", policies::policies()), ("api", vec![api()])] {
        let objects: Vec<Value> = objects.iter().map(settings::plain).collect();
        manifests.push(Manifest { path: format!("apiserver/{name}.yaml"), text: yaml(&objects)? });
    }
    Ok(manifests)
}

/// Our group at kube-apiserver. Low priority: plain names mean the stored kinds. The `caBundle` is the server's to keep.
fn api() -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("{}.{}", api::VERSION, api::LIVE_GROUP), "labels": labels()},
        "spec": {
            "group": api::LIVE_GROUP, "version": api::VERSION, "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"namespace": NAMESPACE, "name": ACCOUNT, "port": 443},
        },
    })
}

/// On everything that is ours.
fn labels() -> Value {
    json!({"app.kubernetes.io/name": "stillpoint", "app.kubernetes.io/component": "apiserver"})
}

/// Writes all of them below `directory`.
pub fn write(directory: &Path) -> anyhow::Result<()> {
    for manifest in manifests()? {
        let path = directory.join(&manifest.path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, &manifest.text));
        written.with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Those that are not in `directory` as the code says them.
pub fn stale(directory: &Path) -> anyhow::Result<Vec<String>> {
    let is_stale = |manifest: &Manifest| match fs::read_to_string(directory.join(&manifest.path)) {
        Ok(text) => Ok(text != manifest.text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    };
    let mut stale = Vec::new();
    for manifest in manifests()? {
        if is_stale(&manifest).with_context(|| manifest.path.clone())? {
            stale.push(manifest.path);
        }
    }
    Ok(stale)
}

fn yaml(objects: &[impl Serialize]) -> anyhow::Result<String> {
    let documents = objects.iter().map(|object| Ok(serde_saphyr::to_string(object)?));
    let documents: Vec<String> = documents.collect::<anyhow::Result<_>>()?;
    Ok(format!("{GENERATED}{}", documents.join("---\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_repository_is_what_the_code_says() {
        let stale = stale(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert_eq!(stale, [""; 0], "run `make manifests`, and look at the difference");
    }

    #[test]
    fn a_file_that_somebody_edited_or_removed_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        assert_eq!(stale(directory.path()).unwrap(), [""; 0]);
        fs::write(directory.path().join("crds/databases.yaml"), "edited").unwrap();
        fs::remove_file(directory.path().join("crds/freezes.yaml")).unwrap();
        assert_eq!(stale(directory.path()).unwrap(), ["crds/databases.yaml", "crds/freezes.yaml"]);
    }

    #[test]
    fn a_manifest_reads_back_as_what_it_was_written_from() {
        for (manifest, crd) in manifests().unwrap().iter().zip(api::crds::all()) {
            let read = serde_saphyr::from_str(&manifest.text).unwrap();
            assert_eq!(crd, read, "{}", manifest.path);
        }
    }
}
