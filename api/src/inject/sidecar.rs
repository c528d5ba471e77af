//! From a plan to a Pod that has the agent: a container, its volumes, and nothing else of the Pod.

use json_patch::{Patch, PatchOperation};
use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use crate::agent::AUDIENCE;

use super::{
    AGENT_BINARY, CONTAINER, CREDENTIALS_DIRECTORY, CREDENTIALS_VOLUME, PASSWORD_FILE, PREFIX, RUN_VOLUME,
    SOCKET_VOLUME, TOKEN_FILE, TOKEN_SECONDS, TOKEN_VOLUME, USERNAME_FILE, mounts, plan::Plan, pod::Pod, resources,
    variables as name,
};

/// The Pod with its agent, and what people should know.
pub(super) struct Built {
    pub(super) pod: Value,
    pub(super) notes: Vec<String>,
}

/// What a patch must leave as it is: with another name nobody finds it, and with the others the Pod waits for it, or for ever.
const KEPT: [&str; 6] = ["name", "restartPolicy", "restartPolicyRules", "lifecycle", "startupProbe", "readinessProbe"];
/// How much larger a patch may make the container, in bytes, and how deep.
const MOST_MORE: usize = 64 * 1024;
const DEEPEST: usize = 32;

pub(super) fn build(pod: Pod<'_>, plan: &Plan<'_>) -> Result<Built, String> {
    let volumes = volumes(plan);
    free(pod, &volumes)?;
    let (resources, note) = resources::resources(pod, &plan.resources);
    let mut agent = container(plan, resources);
    if let Some(patch) = &plan.patch {
        agent = patched(agent, patch).map_err(|why| format!("{PREFIX}json-patch: {why}"))?;
    }
    let mut built = pod.0.clone();
    push(&mut built["spec"], "volumes", volumes);
    push(&mut built["spec"], if plan.ordinary { "containers" } else { "initContainers" }, vec![agent]);
    if let Some(directory) = &plan.shared {
        let mount = json!({"name": SOCKET_VOLUME, "mountPath": directory});
        let database = of_name(&mut built["spec"], plan.container).ok_or("the database's container is gone")?;
        push(database, "volumeMounts", vec![mount]);
    }
    is_sound(Pod(&built)).map_err(|why| match plan.patch {
        Some(_) => format!("{PREFIX}json-patch, or what it is applied to: {why}"),
        None => why,
    })?;
    Ok(Built { pod: built, notes: note.map(str::to_owned).into_iter().collect() })
}

fn container(plan: &Plan<'_>, resources: Value) -> Value {
    let mut mounts = mounts::own(plan.credentials.is_some());
    mounts.extend(plan.mounts.iter().cloned());
    let mut security = json!({
        "runAsNonRoot": true,
        "runAsUser": plan.user,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let Some(group) = plan.group {
        security["runAsGroup"] = group.into();
    }
    let mut container = json!({
        "name": CONTAINER,
        "image": plan.image,
        // Whatever its tag: a database that starts again must not wait for a registry.
        "imagePullPolicy": "IfNotPresent",
        // Whatever its entrypoint: the image may have more programs than this.
        "command": [AGENT_BINARY],
        "args": ["run"],
        "env": variables(plan),
        "securityContext": security,
        "volumeMounts": mounts,
    });
    if !plan.ordinary {
        container["restartPolicy"] = "Always".into();
    }
    if resources.as_object().is_some_and(|resources| !resources.is_empty()) {
        container["resources"] = resources;
    }
    container
}

fn variables(plan: &Plan<'_>) -> Vec<Value> {
    let said = |name: &str, value: String| Some(json!({"name": name, "value": value}));
    let field = |name: &str, path: &str| Some(json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
    let variables = [
        field(name::POD_NAME, "metadata.name"),
        field(name::POD_NAMESPACE, "metadata.namespace"),
        field(name::POD_UID, "metadata.uid"),
        said(name::CONTAINER, plan.container.to_owned()),
        said(name::ENGINE, plan.engine.to_string()),
        said(name::ADDRESS, plan.address.clone()),
        plan.port.and_then(|port| said(name::PORT, port.to_string())),
        plan.level.and_then(|level| said(name::LEVEL, level.to_string())),
        plan.ttl_seconds.and_then(|seconds| said(name::TTL, format!("{seconds}s"))),
        plan.credentials.as_ref().and_then(|_| said(name::CREDENTIALS, CREDENTIALS_DIRECTORY.to_owned())),
        said(name::APISERVER, plan.apiserver.to_owned()),
        said(name::CA, plan.ca.to_owned()),
    ];
    variables.into_iter().flatten().collect()
}

/// In memory, those that are written to: a volume on the node's disk keeps cluster-autoscaler from removing the node (its
/// `utils/drain`, isLocalVolume).
fn volumes(plan: &Plan<'_>) -> Vec<Value> {
    let memory = |name: &str| json!({"name": name, "emptyDir": {"medium": "Memory"}});
    let token = json!({"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE});
    let mut volumes = vec![
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}),
        memory(RUN_VOLUME),
    ];
    if let Some(credentials) = &plan.credentials {
        let items = json!([
            {"key": credentials.username_key, "path": USERNAME_FILE},
            {"key": credentials.password_key, "path": PASSWORD_FILE},
        ]);
        // Optional: a Secret that is not there yet, or has no password, stops no Pod.
        let secret = json!({"secretName": credentials.secret, "items": items, "optional": true});
        volumes.push(json!({"name": CREDENTIALS_VOLUME, "secret": secret}));
    }
    volumes.extend(plan.shared.as_ref().map(|_| memory(SOCKET_VOLUME)));
    volumes
}

/// No name of ours is taken. One that is may be an agent that somebody runs himself, and two in one Pod would be two freezers of one
/// database; so nothing is injected under another name.
fn free(pod: Pod<'_>, volumes: &[Value]) -> Result<(), String> {
    if pod.all().any(|container| container.name() == CONTAINER) {
        return Err(format!(
            "the Pod has a container {CONTAINER} of its own; give it another name, or take the label off"
        ));
    }
    let taken = volumes.iter().filter_map(|volume| volume["name"].as_str());
    let mut taken = taken.filter(|name| pod.volumes().any(|volume| volume["name"] == *name));
    match taken.next() {
        Some(name) => Err(format!("the Pod has a volume {name} of its own; give it another name")),
        None => Ok(()),
    }
}

/// Step by step, each within its bounds: what a patch adds to what it has added grows without them.
fn patched(container: Value, patch: &Patch) -> Result<Value, String> {
    let length = |value: &Value| value.to_string().len();
    let longest = length(&container) + MOST_MORE;
    let mut patched = container.clone();
    for (at, operation) in patch.0.iter().enumerate() {
        let one: &[PatchOperation] = std::slice::from_ref(operation);
        json_patch::patch(&mut patched, one).map_err(|error| format!("operation {at}: {}", error.kind))?;
        if depth(&patched) > DEEPEST || length(&patched) > longest {
            return Err(format!("operation {at} makes the container too large"));
        }
        if let Some(key) = KEPT.into_iter().find(|key| patched.get(key) != container.get(key)) {
            return Err(format!("operation {at}: {key} must stay as it is"));
        }
        // A field of another type than it is to have is refused with the Pod, whatever the failurePolicy says (apiserver
        // `pkg/admission/plugin/webhook/mutating/dispatcher.go`).
        if serde_json::from_value::<Container>(patched.clone()).is_err() {
            return Err(format!("operation {at} makes no container that Kubernetes can read"));
        }
    }
    if patched["image"].as_str().is_none_or(|image| image.trim().is_empty()) {
        return Err("it takes the image off".to_owned());
    }
    Ok(patched)
}

/// What would have kube-apiserver refuse the Pod, of what mounts and variables may be by now.
fn is_sound(pod: Pod<'_>) -> Result<(), String> {
    let Some(agent) = pod.all().find(|container| container.name() == CONTAINER) else { return Ok(()) };
    // By that it is known, too.
    if !agent.is_agent() {
        return Err("the agent would have no token".to_owned());
    }
    let mut paths: Vec<&str> = agent.mounts().map(|mount| mount.path).collect();
    paths.sort_unstable();
    if let Some(twice) = paths.iter().zip(paths.iter().skip(1)).find_map(|(one, next)| (one == next).then_some(one)) {
        return Err(format!("the agent would have two volumes at {twice}"));
    }
    let is_volume = |name: &str| pod.volumes().any(|volume| volume["name"] == name);
    if let Some(mount) = agent.mounts().find(|mount| !is_volume(mount.volume) || !mount.path.starts_with('/')) {
        return Err(format!("the agent would mount {} at {}, and cannot", mount.volume, mount.path));
    }
    let variables = agent.0["env"].as_array().into_iter().flatten();
    if variables.map(|variable| &variable["name"]).any(|name| name.as_str().is_none_or(str::is_empty)) {
        return Err("a variable of the agent would have no name".to_owned());
    }
    Ok(())
}

fn push(object: &mut Value, key: &str, more: Vec<Value>) {
    if object[key].is_null() {
        object[key] = Value::Array(Vec::new());
    }
    if let Some(list) = object[key].as_array_mut() {
        list.extend(more);
    }
}

fn of_name<'a>(spec: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let lists = ["containers", "initContainers"];
    let at = lists.into_iter().find_map(|list| {
        let mut items = spec[list].as_array()?.iter();
        Some((list, items.position(|container| container["name"] == name)?))
    });
    at.map(|(list, index)| &mut spec[list][index])
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
