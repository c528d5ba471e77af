//! What an operator applies, as files, generated from the code that they belong to. The files are in the repository, so that
//! nobody needs Rust to install; a test says when they are not what the code says.

mod monitoring;
mod pods;
mod policies;
mod rights;
mod server;
mod settings;
mod webhooks;

use std::{fs, io, path::Path};

use anyhow::Context;
use api::install::{ACCOUNT, webhooks as of};
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

/// Objects that belong together.
struct Part {
    name: &'static str,
    /// The folder of its plain YAML.
    folder: &'static str,
    objects: Vec<Object>,
}

/// One object, and where it is applied.
struct Object {
    value: Value,
    /// In the chart: only if this holds.
    when: Option<&'static str>,
    /// In the chart: once for each of these; `.` is the one.
    each: Option<&'static str>,
    plain: bool,
    chart: bool,
}

impl From<Value> for Object {
    fn from(value: Value) -> Self {
        Self { value, when: None, each: None, plain: true, chart: true }
    }
}

fn only_if(when: &'static str, value: Value) -> Object {
    Object { when: Some(when), ..value.into() }
}

fn only_in_chart(when: &'static str, value: Value) -> Object {
    Object { plain: false, ..only_if(when, value) }
}

/// All but the CRDs, in the order in which they are applied. The API comes last: it is of use when somebody answers.
fn parts() -> Vec<Part> {
    let each = |each, value: Value| Object { each: Some(each), plain: false, ..value.into() };
    let all = |objects: Vec<Value>| objects.into_iter().map(Object::from).collect();
    let enabled = rights::credentials(&settings::computed("null", "."));
    let [leases, freezes] = server::flows();
    let server = vec![
        only_if("$.Values.priorityClassName", server::quota()),
        server::service().into(),
        server::deployment().into(),
        only_if("$.Values.agents.enabled", server::agents()),
        only_if("gt (int $.Values.replicas) 1", server::budget()),
        only_if("$.Values.networkPolicy.enabled", server::network()),
        only_if("$.Values.flowSchema.enabled", leases),
        only_if("$.Values.flowSchema.enabled", freezes),
        only_in_chart("$.Values.serviceMonitor.enabled", monitoring::monitor()),
        only_in_chart("$.Values.alerts.enabled", monitoring::alerts()),
    ];
    let part = |name, objects| Part { name, folder: "apiserver", objects };
    vec![
        part("namespace", vec![Object { chart: false, ..server::namespace().into() }]),
        part("rights", all(rights::rights())),
        part("enabled", vec![each("$.Values.namespaces", enabled)]),
        part("policies", all(policies::policies())),
        part("server", server),
        Part { name: "webhooks", folder: "webhooks", objects: webhooks() },
        Part { name: "configuration", folder: "webhooks", objects: configuration() },
        part("api", vec![api().into()]),
    ]
}

/// Which webhooks are asked, and about what: whoever leads fills it in.
fn configuration() -> Vec<Object> {
    [of::Kind::Validating, of::Kind::Mutating].map(|kind| only_if(WEBHOOKS, kind.stub())).into()
}

const WEBHOOKS: &str = "$.Values.webhooks.enabled";

/// Those who are asked before a snapshot is cut. That they are is a part of its own: it goes before they do.
fn webhooks() -> Vec<Object> {
    vec![
        only_if(WEBHOOKS, webhooks::account()),
        only_if(WEBHOOKS, webhooks::service()),
        only_if(WEBHOOKS, webhooks::deployment()),
        only_if("and $.Values.webhooks.enabled (gt (int $.Values.webhooks.replicas) 1)", webhooks::budget()),
        only_if("and $.Values.webhooks.enabled $.Values.networkPolicy.enabled", webhooks::network()),
        only_in_chart("and $.Values.webhooks.enabled $.Values.serviceMonitor.enabled", monitoring::webhooks_monitor()),
        only_in_chart("and $.Values.webhooks.enabled $.Values.alerts.enabled", monitoring::gate_alerts()),
    ]
}

/// All that is generated: plain YAML by parts and as one file, and the chart.
pub fn manifests() -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let mut everything = Vec::new();
    for crd in api::crds::all() {
        let crd = serde_json::to_value(crd)?;
        let name = crd["spec"]["names"]["plural"].as_str().unwrap_or_default();
        manifests.push(Manifest { path: format!("crds/{name}.yaml"), text: yaml(&[&crd])? });
        everything.push(crd);
    }
    let crds = everything.iter().map(|crd| only_if("$.Values.crds.enabled", kept(crd.clone()))).collect();
    let parts = parts();
    for part in &parts {
        let objects = part.objects.iter().filter(|object| object.plain);
        let objects: Vec<Value> =
            objects.map(|object| settings::plain(&object.value)).collect::<anyhow::Result<_>>()?;
        if !objects.is_empty() {
            manifests.push(Manifest { path: format!("{}/{}.yaml", part.folder, part.name), text: yaml(&objects)? });
        }
        everything.extend(objects);
    }
    // The namespace first: what is in it comes after it.
    everything.sort_by_key(|object| object["kind"] != "Namespace");
    manifests.push(Manifest { path: "stillpoint.yaml".to_owned(), text: yaml(&everything)? });
    for part in [Part { name: "crds", folder: "crds", objects: crds }].iter().chain(&parts) {
        let text = templates(&part.objects)?;
        if !text.is_empty() {
            let path = format!("chart/templates/{}.yaml", part.name);
            manifests.push(Manifest { path, text: format!("{GENERATED}{text}") });
        }
    }
    let chart = yaml(&[json!({
        "apiVersion": "v2", "name": "stillpoint", "type": "application",
        "description": "Application-consistent copies of databases: a freeze, and the proof that it held",
        "version": env!("CARGO_PKG_VERSION"), "appVersion": env!("CARGO_PKG_VERSION"), "kubeVersion": ">=1.33.0-0",
    })])?;
    for (name, text) in [
        ("Chart.yaml", chart),
        ("values.yaml", format!("{GENERATED}{}", settings::values())),
        ("values.schema.json", settings::schema()?),
        ("templates/NOTES.txt", NOTES.to_owned()),
    ] {
        manifests.push(Manifest { path: format!("chart/{name}"), text });
    }
    Ok(manifests)
}

/// What Helm says after an installation.
const NOTES: &str = "\
kubectl still doctor                what stands, and what is missing
kubectl still enable NAMESPACE      lets Stillpoint read the Secrets that a namespace's Databases name

Before `helm uninstall`, end what is held: kubectl delete freezes.stillpoint.dev --all --all-namespaces
CRDs and what is stored outlive the release. deploy/README.md says how to remove them.
";

/// An uninstallation leaves what is stored.
fn kept(mut crd: Value) -> Value {
    crd["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
    crd
}

fn templates(objects: &[Object]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects.iter().filter(|object| object.chart) {
        let (begin, end) = match (object.when, object.each) {
            (Some(when), _) => (format!("{{{{- if {when} }}}}\n"), "{{- end }}\n"),
            (None, Some(each)) => (format!("{{{{- range {each} }}}}\n"), "{{- end }}\n"),
            (None, None) => (String::new(), ""),
        };
        text += &format!("{begin}---\n{}{end}", settings::template(&object.value)?);
    }
    Ok(text)
}

/// Our group at kube-apiserver. Low priority: plain names mean the stored kinds. The `caBundle` is the server's to keep, unless
/// it has a certificate from somebody else.
fn api() -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {
            "name": api::install::api_service(), "labels": labels(),
            "annotations": settings::set("apiService.annotations"),
        },
        "spec": {
            "group": api::LIVE_GROUP, "version": api::VERSION, "groupPriorityMinimum": 100, "versionPriority": 100,
            "caBundle": settings::optional("apiService.caBundle", "{{ $.Values.apiService.caBundle | quote }}"),
            "service": {"namespace": NAMESPACE, "name": ACCOUNT, "port": 443},
        },
    })
}

fn labels() -> Value {
    api::install::LABELS.into_iter().collect()
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
        fs::remove_file(directory.path().join("chart/values.yaml")).unwrap();
        assert_eq!(stale(directory.path()).unwrap(), ["crds/databases.yaml", "chart/values.yaml"]);
    }

    #[test]
    fn a_manifest_reads_back_as_what_it_was_written_from() {
        for (manifest, crd) in manifests().unwrap().iter().zip(api::crds::all()) {
            let read = serde_saphyr::from_str(&manifest.text).unwrap();
            assert_eq!(crd, read, "{}", manifest.path);
        }
    }

    #[test]
    fn the_one_file_has_all_of_the_parts_and_no_mark_is_left() {
        let manifests = manifests().unwrap();
        let one = manifests.iter().find(|manifest| manifest.path == "stillpoint.yaml").unwrap();
        let documents = |text: &str| text.trim_start_matches(GENERATED).split("---\n").map(str::to_owned).collect();
        let whole: Vec<String> = documents(&one.text);
        let is_part = |path: &str| ["crds/", "apiserver/", "webhooks/"].iter().any(|folder| path.starts_with(folder));
        let parts = manifests.iter().filter(|manifest| is_part(&manifest.path));
        let mut parts: Vec<String> = parts.flat_map(|part| -> Vec<String> { documents(&part.text) }).collect();
        assert!(whole[0].contains("kind: Namespace"), "{}", whole[0]);
        let mut sorted = whole.clone();
        sorted.sort();
        parts.sort();
        assert_eq!(sorted, parts);
        for manifest in &manifests {
            assert!(!manifest.text.contains(['⟦', '⟧']), "{}", manifest.path);
        }
    }

    /// A field that we apply is taken back by whoever applies us again.
    #[test]
    fn who_is_asked_before_a_cut_is_installed_without_a_word_of_whom() {
        let objects = parts().into_iter().flat_map(|part| part.objects);
        let is_one = |object: &Object| object.value["kind"].as_str().unwrap().ends_with("WebhookConfiguration");
        let found: Vec<Object> = objects.filter(is_one).collect();
        assert_eq!(found.len(), 2);
        for object in found {
            assert_eq!(object.when, Some(WEBHOOKS));
            let fields: Vec<&String> = object.value.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["apiVersion", "kind", "metadata"]);
            let of_metadata: Vec<&String> = object.value["metadata"].as_object().unwrap().keys().collect();
            assert_eq!(of_metadata, ["labels", "name"]);
        }
    }

    #[test]
    fn what_selects_pods_selects_those_of_its_own_name_and_no_others() {
        let objects = parts().into_iter().flat_map(|part| part.objects);
        let objects: Vec<Value> = objects.map(|object| settings::plain(&object.value).unwrap()).collect();
        let pods: Vec<(&Value, &Value)> = objects
            .iter()
            .filter(|object| object["kind"] == "Deployment")
            .map(|object| (&object["metadata"]["name"], &object["spec"]["template"]["metadata"]["labels"]))
            .collect();
        assert_eq!(pods.len(), 2);
        let mut selecting = 0;
        for object in &objects {
            let spec = &object["spec"];
            let selector = match object["kind"].as_str() {
                Some("Service") => &spec["selector"],
                Some("Deployment" | "PodDisruptionBudget") => &spec["selector"]["matchLabels"],
                Some("NetworkPolicy") => &spec["podSelector"]["matchLabels"],
                _ => continue,
            };
            let wanted = selector.as_object().unwrap();
            let selected = pods.iter().filter(|(_, labels)| wanted.iter().all(|(key, value)| &labels[key] == value));
            let selected: Vec<&Value> = selected.map(|(name, _)| *name).collect();
            // Agents find the server's Pods by a name of their own.
            let of_agents = object["metadata"]["name"] == api::agent::SERVICE;
            let name = json!(ACCOUNT);
            let of = if of_agents { &name } else { &object["metadata"]["name"] };
            assert_eq!(selected, [of], "{object}");
            selecting += usize::from(!of_agents);
        }
        assert_eq!(selecting, 8, "four of each");
    }
}
