//! `inject`: what the webhooks would make of Pods, printed, with no cluster asked. For pipelines, for GitOps, and for whoever wants to
//! see it first.

use std::path::PathBuf;

use api::{
    inject::{self, Asked, Decided, Installation, Verdict},
    install,
};
use serde_json::Value;

use crate::{
    client::Connection,
    failure::Failure,
    manifests::{self, objects, read},
    print::Output,
};

#[derive(Debug, clap::Args)]
pub struct Command {
    /// YAML or JSON of Pods, or of what makes them: StatefulSets, Deployments, Jobs, CronJobs, Lists, and whatever else has a template
    /// at the same place. `-` is the standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image of the agent, unless a Pod names another.
    #[arg(long, value_name = "IMAGE")]
    agent_image: Option<String>,
    /// Where agents find all replicas of stillpoint-apiserver, as the webhooks are told it.
    #[arg(long, value_name = "HOST:PORT")]
    agent_apiserver: Option<String>,
    /// Whose certificates agents trust: `ca.crt` of the Secret stillpoint-webhooks-tls.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The namespace that Stillpoint is installed in, of which nothing is injected.
    #[arg(long, value_name = "NAMESPACE", default_value = install::NAMESPACE)]
    installed_in: String,
}

/// What was said of one Pod, or of the template of one.
#[derive(Debug, PartialEq)]
struct Said {
    /// Kind and name of the object that it is in.
    of: String,
    decided: Decided,
}

/// Templates of Pods in kinds that have them elsewhere than most.
const PLACES: [(&str, &str); 3] =
    [("Pod", ""), ("CronJob", "/spec/jobTemplate/spec/template"), ("PodTemplate", "/template")];
const USUAL: &str = "/spec/template";
/// Lists in lists are nothing that anybody means.
const DEEPEST: usize = 4;

impl Command {
    pub fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let text = read(&self.file)?;
        let ca = self.ca.as_deref().map(read).transpose()?;
        for (flag, value, is_right) in [
            ("--agent-image", &self.agent_image, inject::is_image as fn(&str) -> bool),
            ("--agent-apiserver", &self.agent_apiserver, inject::is_authority),
        ] {
            if value.as_deref().is_some_and(|value| !is_right(value)) {
                return Err(Failure::new(format!("{flag} is not what it should be; see --help")));
            }
        }
        let installation = Installation {
            namespace: &self.installed_in,
            image: self.agent_image.as_deref(),
            apiserver: self.agent_apiserver.as_deref(),
            ca: ca.as_deref(),
        };
        let mut objects = objects(&text).map_err(|why| Failure::new(format!("{}: {why}", self.file.display())))?;
        let namespace = connection.namespace().unwrap_or("default");
        let said: Vec<Said> =
            objects.iter_mut().flat_map(|object| injected(object, namespace, installation, DEEPEST)).collect();
        said.iter().flat_map(Said::lines).for_each(|line| eprintln!("{line}"));
        manifests::print(objects, output)?;
        Ok(u8::from(said.iter().any(|said| said.decided.verdict == Verdict::Skipped)))
    }
}

impl Said {
    fn lines(&self) -> Vec<String> {
        let Decided { verdict, message, warnings, .. } = &self.decided;
        let of = &self.of;
        match verdict {
            Verdict::LeftAlone => vec![format!("{of}: left alone: {message}")],
            Verdict::Skipped => warnings.iter().map(|warning| format!("warning: {of}: {warning}")).collect(),
            Verdict::Injected => {
                let guess = if message.is_empty() { String::new() } else { format!(": {message}") };
                vec![format!("{of}: injected{guess}")]
            }
        }
    }
}

/// Puts an agent into each Pod of an object. Whoever runs this asks for it as a Namespace does: for all that look like a database.
fn injected(object: &mut Value, namespace: &str, installation: Installation<'_>, deeper: usize) -> Vec<Said> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/kind").to_owned();
    let named = [text("/metadata/name"), text("/metadata/generateName")].into_iter().find(|name| !name.is_empty());
    let of = format!("{kind} {}", named.unwrap_or("without a name"));
    let namespace = Some(text("/metadata/namespace")).filter(|own| !own.is_empty()).unwrap_or(namespace).to_owned();
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut).filter(|_| deeper > 0) {
        return items.iter_mut().flat_map(|item| injected(item, &namespace, installation, deeper - 1)).collect();
    }
    let place = PLACES.iter().find(|(of, _)| *of == kind).map_or(USUAL, |(_, place)| place);
    let Some(pod) = object.pointer_mut(place).filter(|pod| pod.pointer("/spec/containers").is_some()) else {
        return Vec::new();
    };
    let mut decided = inject::decide(pod, &namespace, Asked::Namespace, installation);
    if let Some(changed) = decided.pod.take() {
        *pod = changed;
    }
    vec![Said { of, decided }]
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::manifests::yaml;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

    fn here() -> Installation<'static> {
        Installation {
            namespace: "stillpoint",
            image: Some("registry.example/stillpoint-agent:1"),
            apiserver: Some("stillpoint-agents.stillpoint.svc:8444"),
            ca: Some(CA),
        }
    }

    fn done(text: &str) -> (Vec<Value>, Vec<String>) {
        let mut objects = objects(text).unwrap();
        let said: Vec<Said> = objects.iter_mut().flat_map(|object| injected(object, "shop", here(), DEEPEST)).collect();
        (objects, said.iter().flat_map(Said::lines).collect())
    }

    fn agent(pod: &Value) -> &Value {
        let containers = pod["spec"]["initContainers"].as_array();
        let agent = containers.and_then(|all| all.iter().find(|container| container["name"] == inject::CONTAINER));
        agent.unwrap_or(&Value::Null)
    }

    const FILE: &str = r#"# What a chart renders.
---
apiVersion: v1
kind: Secret
metadata: {name: orders}
stringData: {password: "yes", mode: "0440"}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: orders}
spec:
  template:
    metadata: {labels: {app: orders}}
    spec:
      containers: [{name: postgres, image: "postgres:16"}]
      volumes: [{name: keys, secret: {secretName: keys, defaultMode: 0440}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {spec: {containers: [{name: web, image: nginx}]}}}
---
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: rebuild}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: db, image: mariadb}]}}}}}
---
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: canary}
spec: {template: {spec: {containers: [{name: db, image: mariadb}]}}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {generateName: one-}, spec: {containers: [{name: db, image: mysql}]}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: two}}
"#;

    #[test]
    fn every_kind_that_makes_pods_is_injected_and_all_else_stays_as_it_is() {
        let (objects_after, said) = done(FILE);
        let before = objects(FILE).unwrap();
        assert_eq!(before.len(), 6, "an empty document is none");
        assert_eq!((&before[0], &before[2]), (&objects_after[0], &objects_after[2]));
        assert_eq!(agent(&objects_after[1]["spec"]["template"])["args"][0], "run");
        assert_eq!(agent(&objects_after[3]["spec"]["jobTemplate"]["spec"]["template"])["restartPolicy"], "Always");
        assert_eq!(agent(&objects_after[4]["spec"]["template"])["name"], inject::CONTAINER);
        assert_eq!(objects_after[5]["items"][0]["metadata"]["annotations"][inject::STATUS], inject::SKIPPED);
        let right = [
            "StatefulSet orders: injected: PostgreSQL in container postgres, by its image; at 127.0.0.1:5432",
            "Deployment web: left alone: it does not look like a database",
            "CronJob rebuild: injected: MariaDB in container db, by its image; at 127.0.0.1:3306",
            "Rollout canary: injected: MariaDB in container db, by its image; at 127.0.0.1:3306",
            "warning: Pod one-: not injected: the image of db is MySQL's, which is not served yet; PostgreSQL and MariaDB are",
        ];
        assert_eq!(said, right);
        // Printed and run again, nothing changes any more.
        let (again, _) = done(&yaml(&objects_after).unwrap());
        assert_eq!(again, objects_after);
    }

    #[test]
    fn yaml_is_what_kubectl_reads_and_reads_back() {
        let (objects_after, _) = done(FILE);
        assert_eq!(objects_after[1]["spec"]["template"]["spec"]["volumes"][0]["secret"]["defaultMode"], 0o440);
        let printed = yaml(&objects_after).unwrap();
        assert_eq!(objects(&printed).unwrap(), objects_after);
        for quoted in [r#""yes""#, r#""0440""#] {
            assert!(
                printed.contains(quoted) || printed.contains(&quoted.replace('"', "'")),
                "{quoted} is not in\n{printed}"
            );
        }
        assert!(objects("a: [").unwrap_err().contains("line"));
    }

    /// The same as at the webhooks' door, for every Pod that is written down there.
    #[test]
    fn it_says_of_each_pod_what_the_webhooks_say() {
        let pods = Path::new(env!("CARGO_MANIFEST_DIR")).join("../webhooks/tests/pods");
        let mut seen = 0;
        for folder in ["label", "namespace"] {
            for entry in fs::read_dir(pods.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                // The one that was shown to the webhooks without a reason.
                if path.extension().is_none_or(|extension| extension != "yaml") || path.ends_with("unasked.yaml") {
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                let mut right = objects(&text).unwrap().remove(0);
                let golden: Value =
                    serde_json::from_str(&fs::read_to_string(path.with_extension("json")).unwrap()).unwrap();
                if let Ok(patch) = serde_json::from_value::<json_patch::Patch>(golden["patch"].clone()) {
                    json_patch::patch(&mut right, &patch).unwrap();
                }
                assert_eq!(done(&text).0, [right], "{}", path.display());
                seen += 1;
            }
        }
        assert!(seen >= 30, "{seen}");
    }
}
