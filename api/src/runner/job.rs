//! From a task to the Job that does it. Pure: what a controller applies is what `kubectl still generate` prints.
//!
//! The Pod has two images: ours, of which the runner is copied, and one with the server's own programs, in which it runs. It reaches no
//! Kubernetes API, has no root and no capabilities, and of Secrets only the keys that its task names, as files.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Capabilities, Container, EmptyDirVolumeSource, EnvVar, EphemeralVolumeSource, KeyToPath,
            PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, PodSecurityContext, PodSpec, PodTemplateSpec,
            ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, Volume,
            VolumeMount, VolumeProjection, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use super::{ALLOCATION, RunnerTemplate, SCRATCH, SECRETS, Scratch, TASK, Task};
use crate::inject;

/// All that a Job is made of.
#[derive(Clone, Debug)]
pub struct JobOf<'a> {
    pub namespace: &'a str,
    /// The run's own name; no other's, ever.
    pub name: &'a str,
    /// The Snapshot or Restore: with it the Job goes.
    pub owner: OwnerReference,
    pub task: &'a Task,
    /// Names of Secrets, and of their keys.
    pub secrets: &'a BTreeMap<String, Vec<String>>,
    pub template: &'a RunnerTemplate,
    /// The image of this installation, with the runner in it.
    pub ours: &'a str,
    /// The image with the server's programs.
    pub programs: &'a str,
    /// It is ended then, whatever it does.
    pub deadline_seconds: i64,
}

/// On Jobs and their Pods.
pub const NAME: (&str, &str) = ("app.kubernetes.io/name", "stillpoint");
pub const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "runner");
/// The container that works, and whose output is its reports.
pub const CONTAINER: &str = "runner";
/// In our image.
pub const BINARY: &str = "/stillpoint-runner";
/// Its argument, before a directory: copies itself there.
pub const INSTALL: &str = "install";

const BINARY_DIRECTORY: &str = "/run/stillpoint/bin";
const SECRETS_DIRECTORY: &str = "/run/stillpoint/secrets";
const TEMPORARY: &str = "/run/stillpoint/tmp";
const SCRATCH_DIRECTORY: &str = "/scratch";
/// Nobody, as images without root are wont to have it.
const USER: i64 = 65532;
/// Told to end, a run ends its programs and says what it leaves.
const GRACE_SECONDS: i64 = 30;
/// What it has said is in its log only, until somebody has heard it; whoever has removes it.
const KEPT_SECONDS: i32 = 7 * 24 * 3600;

pub fn job(of: &JobOf<'_>) -> Job {
    let labels = labels(of);
    Job {
        metadata: ObjectMeta {
            name: Some(of.name.to_owned()),
            namespace: Some(of.namespace.to_owned()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![of.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            // Another attempt is another run, with a name of its own: what dead ones left is known by that.
            backoff_limit: Some(0),
            active_deadline_seconds: Some(of.deadline_seconds),
            ttl_seconds_after_finished: Some(KEPT_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(of.template.annotations.clone()).filter(|some| !some.is_empty()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(of)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn labels(of: &JobOf<'_>) -> BTreeMap<String, String> {
    let mut labels = of.template.labels.clone();
    // It runs a server's image, and is none: a Namespace that has agents put beside its databases has none put here.
    for (key, value) in [NAME, COMPONENT, (inject::LABEL, "false")] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// Whether these are the labels of a run's Pod: whatever else it has of a template, it is no server.
pub fn is_run(labels: &BTreeMap<String, String>) -> bool {
    [NAME, COMPONENT].iter().all(|(key, value)| labels.get(*key).is_some_and(|found| found == value))
}

fn pod(of: &JobOf<'_>) -> PodSpec {
    let template = of.template;
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        service_account_name: template.service_account_name.clone(),
        image_pull_secrets: some(template.image_pull_secrets.clone()),
        node_selector: Some(template.node_selector.clone()).filter(|some| !some.is_empty()),
        tolerations: some(template.tolerations.clone()),
        affinity: template.affinity.clone(),
        priority_class_name: template.priority_class_name.clone(),
        security_context: Some(template.security_context.clone().unwrap_or_else(nobody)),
        init_containers: Some(vec![installer(of)]),
        containers: vec![runner(of)],
        volumes: Some(volumes(of)),
        ..PodSpec::default()
    }
}

/// Copies the runner to where the other container finds it.
fn installer(of: &JobOf<'_>) -> Container {
    Container {
        name: "install".to_owned(),
        image: Some(of.ours.to_owned()),
        command: Some(vec![BINARY.to_owned(), INSTALL.to_owned(), BINARY_DIRECTORY.to_owned()]),
        resources: Some(resources("10m", "16Mi", "64Mi")),
        security_context: Some(least()),
        volume_mounts: Some(vec![mount("bin", BINARY_DIRECTORY, false)]),
        ..Container::default()
    }
}

fn runner(of: &JobOf<'_>) -> Container {
    let template = of.template;
    let mut mounts = vec![
        mount("bin", BINARY_DIRECTORY, true),
        mount("secrets", SECRETS_DIRECTORY, true),
        mount("tmp", TEMPORARY, false),
    ];
    mounts.extend(template.scratch.iter().map(|_| mount("scratch", SCRATCH_DIRECTORY, false)));
    mounts.extend(template.volume_mounts.iter().cloned());
    Container {
        name: CONTAINER.to_owned(),
        image: Some(of.programs.to_owned()),
        command: Some(vec![format!("{BINARY_DIRECTORY}{BINARY}")]),
        env: Some(variables(of)),
        resources: Some(template.resources.clone().unwrap_or_else(|| resources("100m", "128Mi", "512Mi"))),
        security_context: Some(least()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// Ours last: of a name that is there twice the last one counts.
fn variables(of: &JobOf<'_>) -> Vec<EnvVar> {
    let task = serde_json::to_string(of.task).unwrap_or_default();
    let own = [(TASK, task.as_str()), (SECRETS, SECRETS_DIRECTORY), ("TMPDIR", TEMPORARY)];
    let scratch = of.template.scratch.iter().map(|_| (SCRATCH, SCRATCH_DIRECTORY));
    let own = own.into_iter().chain(scratch).chain(ALLOCATION);
    // `$(NAME)` would be another variable's value (Kubernetes API, EnvVar.value).
    let own = own.map(|(name, value)| EnvVar {
        name: name.to_owned(),
        value: Some(value.replace("$(", "$$(")),
        value_from: None,
    });
    of.template.env.iter().cloned().chain(own).collect()
}

fn volumes(of: &JobOf<'_>) -> Vec<Volume> {
    let directory = |name: &str, in_memory: bool| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: in_memory.then(|| "Memory".to_owned()),
            size_limit: Some(Quantity(if in_memory { "64Mi" } else { "256Mi" }.to_owned())),
        }),
        ..Volume::default()
    };
    let mut volumes = vec![directory("bin", false), secrets(of), directory("tmp", true)];
    volumes.extend(of.template.scratch.as_ref().map(scratch));
    volumes.extend(of.template.volumes.iter().cloned());
    volumes
}

/// `SECRET/KEY`, as a standalone server lays them out. What is not there is told by the run.
fn secrets(of: &JobOf<'_>) -> Volume {
    let source = |(name, keys): (&String, &Vec<String>)| VolumeProjection {
        secret: Some(SecretProjection {
            name: name.clone(),
            items: Some(
                keys.iter()
                    .map(|key| KeyToPath { key: key.clone(), path: format!("{name}/{key}"), mode: None })
                    .collect(),
            ),
            optional: Some(true),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name: "secrets".to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o440),
            sources: Some(of.secrets.iter().map(source).collect()),
        }),
        ..Volume::default()
    }
}

fn scratch(scratch: &Scratch) -> Volume {
    let requests = BTreeMap::from([("storage".to_owned(), scratch.size.clone())]);
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        storage_class_name: scratch.storage_class_name.clone(),
        resources: Some(VolumeResourceRequirements { requests: Some(requests), limits: None }),
        ..PersistentVolumeClaimSpec::default()
    };
    Volume {
        name: "scratch".to_owned(),
        ephemeral: Some(EphemeralVolumeSource {
            volume_claim_template: Some(PersistentVolumeClaimTemplate { metadata: None, spec }),
        }),
        ..Volume::default()
    }
}

fn mount(volume: &str, path: &str, is_read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: is_read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn nobody() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        seccomp_profile: Some(runtime_default()),
        ..PodSecurityContext::default()
    }
}

/// What Pod Security `restricted` wants of a container.
fn least() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn resources(cpu: &str, memory: &str, most: &str) -> ResourceRequirements {
    let of = |pairs: &[(&str, &str)]| {
        Some(pairs.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect())
    };
    ResourceRequirements {
        requests: of(&[("cpu", cpu), ("memory", memory)]),
        limits: of(&[("memory", most)]),
        ..ResourceRequirements::default()
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runner::{ReplicateTask, RunName};

    fn made(template: &RunnerTemplate) -> serde_json::Value {
        let task: Task = Task::Replicate(Box::new(ReplicateTask {
            run: RunName { name: "u-1".into(), over: Vec::new() },
            repository: serde_json::from_value(json!({
                "locations": [{"name": "$(HOME)", "directory": {"path": "/x"}}],
                "encryption": {"passwordSecretRef": {"name": "key"}},
            }))
            .unwrap(),
            id: "ab".into(),
            to: vec!["disk".into()],
        }));
        let secrets = BTreeMap::from([("key".to_owned(), vec!["password".to_owned()])]);
        let owner =
            OwnerReference { kind: "Snapshot".into(), name: "s".into(), uid: "u".into(), ..OwnerReference::default() };
        let of = JobOf {
            namespace: "shop",
            name: "u-1",
            owner,
            task: &task,
            secrets: &secrets,
            template,
            ours: "stillpoint:1",
            programs: "postgres:18",
            deadline_seconds: 600,
        };
        serde_json::to_value(job(&of)).unwrap()
    }

    #[test]
    fn a_job_as_it_is_applied() {
        insta::assert_json_snapshot!(made(&RunnerTemplate::default()));
    }

    #[test]
    fn a_template_is_heeded_and_what_is_ours_stays() {
        let template: RunnerTemplate = serde_json::from_value(json!({
            "serviceAccountName": "backups", "nodeSelector": {"disk": "fast"}, "labels": {"team": "db", "app.kubernetes.io/name": "x", inject::LABEL: "true"},
            "env": [{"name": "TMPDIR", "value": "/elsewhere"}, {"name": "HTTPS_PROXY", "value": "http://proxy"}],
            "securityContext": {"runAsUser": 999}, "scratch": {"size": "10Gi"},
            "volumes": [{"name": "more", "emptyDir": {}}], "volumeMounts": [{"name": "more", "mountPath": "/more"}],
        }))
        .unwrap();
        let pod = &made(&template)["spec"]["template"];
        assert_eq!(
            (&pod["metadata"]["labels"]["team"], &pod["metadata"]["labels"]["app.kubernetes.io/name"]),
            (&json!("db"), &json!("stillpoint"))
        );
        assert_eq!(
            pod["metadata"]["labels"][inject::LABEL],
            "false",
            "it is no database that an agent could stand beside"
        );
        let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
        assert_eq!(
            (&spec["serviceAccountName"], &spec["securityContext"]["runAsUser"]),
            (&json!("backups"), &json!(999))
        );
        let value = |name: &str| {
            container["env"].as_array().unwrap().iter().rev().find(|it| it["name"] == name).unwrap()["value"].clone()
        };
        assert_eq!(value(SCRATCH), json!("/scratch"));
        assert_eq!((value("HTTPS_PROXY"), value("TMPDIR")), (json!("http://proxy"), json!("/run/stillpoint/tmp")));
        let mounts: Vec<_> =
            container["volumeMounts"].as_array().unwrap().iter().map(|it| it["mountPath"].as_str().unwrap()).collect();
        assert!(mounts.contains(&"/scratch") && mounts.contains(&"/more"), "{mounts:?}");
        assert_eq!(spec["automountServiceAccountToken"], json!(false));
    }

    #[test]
    fn a_run_is_known_by_its_labels_and_gets_no_agent_in_a_namespace_where_all_do() {
        let pod = made(&RunnerTemplate::default())["spec"]["template"].take();
        let labels: BTreeMap<String, String> = serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap();
        assert!(is_run(&labels));
        assert!(!is_run(&BTreeMap::from([(COMPONENT.0.to_owned(), COMPONENT.1.to_owned())])), "another's runner");
        let (image, apiserver, ca) = (Some("agent:1"), Some("stillpoint:1234"), Some("CA"));
        let installation = inject::Installation { namespace: "stillpoint", image, apiserver, ca };
        let verdict =
            |pod: &serde_json::Value| inject::decide(pod, "shop", inject::Asked::Namespace, installation).verdict;
        assert_eq!(verdict(&pod), inject::Verdict::LeftAlone);
        // The control: by its image it is taken for a database.
        let mut without = pod;
        without["metadata"]["labels"] = json!({});
        assert_ne!(verdict(&without), inject::Verdict::LeftAlone);
    }

    #[test]
    fn nothing_of_a_task_is_taken_for_a_variable() {
        let made = made(&RunnerTemplate::default());
        let env = made["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(env.iter().any(|it| it["name"] == TASK && it["value"].as_str().unwrap().contains("$$(HOME)")));
    }
}
