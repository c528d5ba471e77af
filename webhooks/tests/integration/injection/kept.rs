//! What has to be true of every Pod that was injected, told by looking at it before and after, and by no word of the code that did it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Volume};
use serde_json::{Value, json};

use super::{cases, done};

const AGENT: &str = "stillpoint-agent";
const VOLUMES: [&str; 4] = ["stillpoint-token", "stillpoint-run", "stillpoint-credentials", "stillpoint-socket"];
const ANNOTATIONS: [&str; 4] = [
    "stillpoint.dev/inject-status",
    "stillpoint.dev/inject-message",
    "stillpoint.dev/inject-hash",
    "stillpoint.dev/inject-version",
];

pub(super) type Check = fn(&Value, &Value) -> Result<(), String>;

pub(super) const CHECKS: [(&str, Check); 7] = [
    ("the class is kept", class_kept),
    ("Pod Security restricted", restricted),
    ("nothing else is touched", nothing_else),
    ("it stops nothing", stops_nothing),
    ("names and places are one's own", distinct),
    ("it is what Kubernetes reads", readable),
    ("it gets no token of the Pod's account", no_api_token),
];

#[test]
fn every_pod_that_was_injected_keeps_what_it_was() {
    let mut injected = 0;
    for case in cases() {
        let done = done(&case.pod, case.door);
        if done.verdict == "injected" {
            injected += 1;
            for (what, check) in CHECKS {
                let held = check(&case.pod, &done.after);
                // Somebody wanted that of this one, and was told.
                let is_wanted = case.name == "label/best-effort-with-agent-resources" && what == "the class is kept";
                assert_eq!(held.is_err(), is_wanted, "{}: {what}: {held:?}", case.name);
            }
        }
    }
    assert!(injected >= 30, "{injected}");
}

/// A Pod that was not injected has words of ours, and nothing else.
#[test]
fn every_pod_that_was_skipped_is_what_it_was_but_for_its_annotations() {
    for case in cases() {
        let done = done(&case.pod, case.door);
        match done.verdict {
            "left alone" => assert_eq!(case.pod, done.after, "{}", case.name),
            "skipped" => {
                assert_eq!(nothing_else(&case.pod, &done.after), Ok(()), "{}", case.name);
                assert_eq!(case.pod["spec"], done.after["spec"], "{}", case.name);
            }
            _ => {}
        }
    }
}

/// The controls: each check notices what it is for.
#[test]
fn every_check_would_notice() {
    let case = |name: &str| cases().into_iter().find(|case| case.name == name).unwrap();
    let guaranteed = case("label/guaranteed");
    let after = done(&guaranteed.pod, guaranteed.door).after;
    let agent = "/spec/initContainers/0";
    let security = |key: &str| format!("{agent}/securityContext/{key}");
    let broken: Vec<(&str, String, Value)> = vec![
        ("the class is kept", format!("{agent}/resources/requests/cpu"), "1m".into()),
        ("the class is kept", format!("{agent}/resources"), json!({})),
        ("Pod Security restricted", security("runAsUser"), 0.into()),
        ("Pod Security restricted", security("runAsNonRoot"), false.into()),
        ("Pod Security restricted", security("allowPrivilegeEscalation"), Value::Null),
        ("Pod Security restricted", security("capabilities"), json!({"drop": ["NET_RAW"]})),
        ("Pod Security restricted", security("capabilities"), json!({"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
        ("Pod Security restricted", security("seccompProfile"), json!({"type": "Unconfined"})),
        ("Pod Security restricted", security("readOnlyRootFilesystem"), false.into()),
        ("Pod Security restricted", security("privileged"), true.into()),
        (
            "Pod Security restricted",
            "/spec/volumes/0".to_owned(),
            json!({"name": VOLUMES[0], "hostPath": {"path": "/"}}),
        ),
        ("nothing else is touched", "/spec/containers/0/image".to_owned(), "postgres:17".into()),
        ("nothing else is touched", "/spec/containers/0/env".to_owned(), json!([{"name": "A"}])),
        ("nothing else is touched", "/spec/shareProcessNamespace".to_owned(), true.into()),
        ("nothing else is touched", "/metadata/labels/added".to_owned(), "x".into()),
        ("nothing else is touched", "/metadata/annotations/added".to_owned(), "x".into()),
        (
            "nothing else is touched",
            "/spec/containers/0/volumeMounts".to_owned(),
            json!([{"name": VOLUMES[1], "mountPath": "/x"}]),
        ),
        ("it stops nothing", format!("{agent}/readinessProbe"), json!({"tcpSocket": {"port": 1}})),
        ("it stops nothing", format!("{agent}/startupProbe"), json!({"tcpSocket": {"port": 1}})),
        ("it stops nothing", format!("{agent}/lifecycle"), json!({})),
        ("it stops nothing", format!("{agent}/ports"), json!([{"containerPort": 1}])),
        ("it stops nothing", format!("{agent}/restartPolicy"), Value::Null),
        ("it stops nothing", format!("{agent}/imagePullPolicy"), "Always".into()),
        ("it stops nothing", "/spec/initContainers/1".to_owned(), json!({"name": "later"})),
        ("names and places are one's own", "/spec/containers/0/name".to_owned(), AGENT.into()),
        ("names and places are one's own", "/spec/volumes/1/name".to_owned(), VOLUMES[0].into()),
        ("names and places are one's own", format!("{agent}/volumeMounts/1/mountPath"), "/run/stillpoint/token".into()),
        ("names and places are one's own", format!("{agent}/volumeMounts/1/name"), "missing".into()),
        ("it is what Kubernetes reads", format!("{agent}/args"), "run".into()),
        ("it is what Kubernetes reads", format!("{agent}/argz"), json!([])),
        ("it is what Kubernetes reads", "/spec/volumes/0/projectet".to_owned(), json!({})),
        ("it gets no token of the Pod's account", format!("{agent}/volumeMounts/2/mountPath"), "/elsewhere".into()),
        ("it gets no token of the Pod's account", format!("{agent}/volumeMounts/2/name"), VOLUMES[0].into()),
    ];
    for (what, check) in CHECKS {
        assert_eq!(check(&guaranteed.pod, &after), Ok(()), "{what}");
        assert!(broken.iter().any(|(of, _, _)| *of == what), "{what} has no control");
    }
    for (what, pointer, value) in broken {
        let wrong = with(after.clone(), &pointer, value);
        let check = CHECKS.iter().find(|(name, _)| *name == what).unwrap().1;
        assert!(check(&guaranteed.pod, &wrong).is_err(), "{what}: {pointer} was not noticed");
    }
}

/// With the value at this place another; null takes it away.
fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    let (above, key) = pointer.rsplit_once('/').unwrap();
    match pod.pointer_mut(above).unwrap() {
        Value::Array(items) if key.parse::<usize>().unwrap() == items.len() => items.push(value),
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        map => map[key] = value,
    }
    pod
}

fn list<'a>(pod: &'a Value, pointer: &str) -> Vec<&'a Value> {
    pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten().collect()
}

/// The list that it is in.
pub(super) fn place(pod: &Value) -> &'static str {
    let is_ordinary = list(pod, "/spec/containers").iter().any(|container| container["name"] == AGENT);
    if is_ordinary { "/spec/containers" } else { "/spec/initContainers" }
}

fn agent(pod: &Value) -> &Value {
    list(pod, place(pod)).into_iter().find(|container| container["name"] == AGENT).unwrap_or(&Value::Null)
}

fn holds(held: bool, why: impl Into<String>) -> Result<(), String> {
    if held { Ok(()) } else { Err(why.into()) }
}

/// Kubernetes' documentation, "Configure Quality of Service for Pods". Whoever has only a limit requests as much.
fn class(pod: &Value) -> &'static str {
    let amount = |value: &Value| -> f64 {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let suffixes = [("m", 0.001), ("Ki", 1024.0), ("Mi", 1_048_576.0), ("Gi", 1_073_741_824.0), ("", 1.0)];
        let mut read = suffixes
            .into_iter()
            .filter_map(|(suffix, times)| Some(text.strip_suffix(suffix)?.parse::<f64>().ok()? * times));
        read.next().unwrap_or_else(|| panic!("{text} is no amount that this test knows"))
    };
    let whole = &pod["spec"]["resources"];
    let all: Vec<&Value> = if whole.is_object() {
        vec![whole]
    } else {
        let all = ["/spec/containers", "/spec/initContainers"].into_iter().flat_map(|lists| list(pod, lists));
        all.map(|container| &container["resources"]).collect()
    };
    let of = |resources: &Value, kind: &str, name: &str| resources[kind].get(name).map(amount);
    let (mut any, mut equal) = (false, true);
    for resources in all {
        for name in ["cpu", "memory"] {
            let limit = of(resources, "limits", name);
            let request = of(resources, "requests", name).or(limit);
            any |= request.is_some();
            equal &= limit.is_some() && limit == request;
        }
    }
    match (any, equal) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn class_kept(before: &Value, after: &Value) -> Result<(), String> {
    holds(class(before) == class(after), format!("{} was {}", class(after), class(before)))
}

/// Kubernetes' documentation, "Pod Security Standards", `restricted`, for what was added; and a read-only root, which it does not ask for.
fn restricted(before: &Value, after: &Value) -> Result<(), String> {
    let security = &agent(after)["securityContext"];
    holds(security["runAsNonRoot"] == true, "runAsNonRoot")?;
    holds(security["runAsUser"].as_i64().is_some_and(|user| user > 0), "runAsUser")?;
    holds(security["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation")?;
    holds(security["capabilities"] == json!({"drop": ["ALL"]}), "capabilities")?;
    holds(security["seccompProfile"] == json!({"type": "RuntimeDefault"}), "seccompProfile")?;
    holds(security["readOnlyRootFilesystem"] == true, "readOnlyRootFilesystem")?;
    holds(security.get("privileged").is_none() && security.get("procMount").is_none(), "privileged")?;
    let there = list(before, "/spec/volumes");
    let kinds = ["emptyDir", "projected", "secret"];
    let is_allowed =
        |volume: &&Value| volume.as_object().unwrap().keys().all(|key| key == "name" || kinds.contains(&key.as_str()));
    holds(
        list(after, "/spec/volumes")
            .into_iter()
            .filter(|volume| !there.contains(volume))
            .all(|volume| is_allowed(&volume)),
        "volumes",
    )
}

/// Taken off what may have been added, it is what it was.
pub(super) fn nothing_else(before: &Value, after: &Value) -> Result<(), String> {
    let mut rest = after.clone();
    let hooks = before["metadata"]["annotations"]["stillpoint.dev/velero-hooks"] == "true";
    let was = before["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let is_ours = |key: &str| {
        ANNOTATIONS.contains(&key) || (hooks && key.contains("hook.backup.velero.io/") && !was.contains_key(key))
    };
    drop_from(&mut rest, "/metadata", "annotations", |key, _| is_ours(key));
    drop_from(&mut rest, "/spec", "volumes", |_, volume| {
        VOLUMES.iter().any(|name| volume["name"] == *name && !list(before, "/spec/volumes").contains(&volume))
    });
    drop_from(&mut rest, "/spec", "initContainers", |_, container| container["name"] == AGENT);
    let there = list(before, "/spec/containers");
    drop_from(&mut rest, "/spec", "containers", |_, container| {
        container["name"] == AGENT && hooks && !there.contains(&container)
    });
    let asked = before["metadata"]["annotations"]["stillpoint.dev/shared-socket"] == "true";
    for at in 0..list(before, "/spec/containers").len() {
        drop_from(&mut rest, &format!("/spec/containers/{at}"), "volumeMounts", |_, mount| {
            asked && mount["name"] == "stillpoint-socket"
        });
    }
    let mut was = before.clone();
    drop_from(&mut was, "/metadata", "annotations", |key, _| is_ours(key));
    // An empty list, or none where one may be, is nothing to lose.
    drop_from(&mut was, "/spec", "volumes", |_, _| false);
    drop_from(&mut was, "/spec", "initContainers", |_, _| false);
    for at in 0..list(before, "/spec/containers").len() {
        drop_from(&mut was, &format!("/spec/containers/{at}"), "volumeMounts", |_, _| false);
    }
    for pod in [&mut rest, &mut was] {
        drop_from(pod, "", "metadata", |_, _| false);
    }
    holds(rest == was, format!("left: {rest}\nwas:  {was}"))
}

/// Takes what fits out of a list or a map, and that, if nothing is left.
fn drop_from(pod: &mut Value, above: &str, key: &str, fits: impl Fn(&str, &Value) -> bool) {
    let Some(above) = pod.pointer_mut(above).filter(|above| above.is_object()) else { return };
    match &mut above[key] {
        Value::Array(items) => items.retain(|item| !fits("", item)),
        Value::Object(map) => map.retain(|key, value| !fits(key, value)),
        _ => {}
    }
    let is_empty = match &above[key] {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        other => other.is_null(),
    };
    if is_empty {
        above.as_object_mut().unwrap().remove(key);
    }
}

fn stops_nothing(before: &Value, after: &Value) -> Result<(), String> {
    let agent = agent(after);
    for key in ["readinessProbe", "startupProbe", "livenessProbe", "lifecycle", "ports"] {
        holds(agent.get(key).is_none(), key)?;
    }
    // A sidecar, but in a Pod that wants Velero's hooks and goes on for ever.
    let place = place(after);
    if place == "/spec/containers" {
        let hooks = &before["metadata"]["annotations"]["stillpoint.dev/velero-hooks"];
        let policy = before["spec"].get("restartPolicy");
        holds(hooks == "true" && policy.is_none_or(|policy| policy == "Always"), "it is no sidecar")?;
        holds(agent.get("restartPolicy").is_none(), "restartPolicy")?;
    } else {
        holds(agent["restartPolicy"] == "Always", "restartPolicy")?;
    }
    holds(agent["imagePullPolicy"] != "Always", "imagePullPolicy")?;
    let last = list(after, place).len() - 1;
    holds(list(after, place)[last]["name"] == AGENT, "it is not the last")?;
    holds(last == list(before, place).len(), "more than one was added")
}

fn distinct(_: &Value, after: &Value) -> Result<(), String> {
    let lists = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];
    let containers: Vec<&Value> = lists.into_iter().flat_map(|lists| list(after, lists)).collect();
    let differ =
        |values: Vec<&Value>| values.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len() == values.len();
    holds(differ(containers.iter().map(|container| &container["name"]).collect()), "containers")?;
    holds(differ(list(after, "/spec/volumes").iter().map(|volume| &volume["name"]).collect()), "volumes")?;
    for container in containers {
        let mounts = list(container, "/volumeMounts");
        holds(differ(mounts.iter().map(|mount| &mount["mountPath"]).collect()), "places")?;
    }
    let named = |name: &Value| list(after, "/spec/volumes").iter().any(|volume| volume["name"] == *name);
    holds(list(agent(after), "/volumeMounts").iter().all(|mount| named(&mount["name"])), "a volume is missing")
}

/// Kubernetes' types have all of it: it comes back as it went in.
fn readable(before: &Value, after: &Value) -> Result<(), String> {
    let container: Container = serde_json::from_value(agent(after).clone()).map_err(|error| error.to_string())?;
    holds(serde_json::to_value(container).unwrap() == *agent(after), "a field is not Kubernetes'")?;
    for volume in
        list(after, "/spec/volumes").into_iter().filter(|volume| !list(before, "/spec/volumes").contains(volume))
    {
        let read: Volume = serde_json::from_value(volume.clone()).map_err(|error| error.to_string())?;
        holds(serde_json::to_value(read).unwrap() == *volume, "a field is not Kubernetes'")?;
    }
    Ok(())
}

/// kube-apiserver mounts one wherever nothing is at that place, also when a webhook has added a container.
fn no_api_token(_: &Value, after: &Value) -> Result<(), String> {
    let place = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mount = list(agent(after), "/volumeMounts").into_iter().find(|mount| mount["mountPath"] == place);
    let mount = mount.ok_or("nothing is there")?;
    holds(
        mount["name"] == "stillpoint-run" && mount["subPath"] == "none" && mount["readOnly"] == true,
        "it is not empty",
    )
}
