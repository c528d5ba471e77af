//! How far the Pod of a run is, in words for people. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerState, ContainerStatus, Pod},
};

/// What can be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is said yet; for what is waited.
    Waiting(String),
    /// It has a log, which grows.
    Running(String),
    /// It has a log, perhaps; how the container ended.
    Ended(String, String),
}

pub(super) const WAITING: &str = "waiting for its Pod";

pub(super) fn state(pod: &Pod, container: &str) -> State {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let all = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    let (init, own) = (all(&status.init_container_statuses), all(&status.container_statuses));
    let of_container = own.iter().find(|it| it.name == container).and_then(|it| it.state.clone()).unwrap_or_default();
    if let Some(ended) = ended(&of_container) {
        return State::Ended(name, ended);
    }
    if of_container.running.is_some() {
        return State::Running(name);
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        let of_init = init.iter().find_map(|it| ended(it.state.as_ref()?).map(|why| format!("{}: {why}", it.name)));
        let why = [status.reason, status.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return State::Ended(
            name,
            if why.is_empty() { of_init.unwrap_or_else(|| "its Pod failed".to_owned()) } else { why },
        );
    }
    let waiting = init.iter().chain(&own).find_map(|it| why(it.state.as_ref()?));
    let unscheduled = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    let unscheduled = unscheduled.map(|it| it.message.clone().or_else(|| it.reason.clone()).unwrap_or_default());
    State::Waiting(match unscheduled.or(waiting) {
        Some(why) => format!("{WAITING}: {why}"),
        None => WAITING.to_owned(),
    })
}

/// Whether it should have ended so long ago, and nobody says that it has: then its node is gone. A deletion's timestamp is when its grace
/// period ends (`metav1.ObjectMeta`).
pub(super) fn is_lost(pod: &Pod, now: Timestamp, after: SignedDuration) -> bool {
    pod.metadata.deletion_timestamp.as_ref().is_some_and(|ends| now.duration_since(ends.0) > after)
}

/// Whether nothing will be made for it any more.
pub(super) fn has_failed(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.clone().any(|it| matches!(it.type_.as_str(), "Failed" | "Complete") && it.status == "True")
}

/// What a container waits for that does not pass by itself.
fn why(state: &ContainerState) -> Option<String> {
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|it| !matches!(*it, "PodInitializing" | "ContainerCreating"))?;
    Some(match &waiting.message {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    })
}

fn ended(state: &ContainerState) -> Option<String> {
    let ended = state.terminated.as_ref()?;
    if ended.exit_code == 0 && ended.reason.as_deref() == Some("Completed") && ended.message.is_none() {
        return Some("it says that it is done".to_owned());
    }
    let reason = ended.reason.clone().unwrap_or_default();
    let more = ended.message.as_deref().map(|message| format!(": {}", message.trim())).unwrap_or_default();
    Some(match reason.as_str() {
        "OOMKilled" => "OOMKilled: give it more memory (spec.runner.resources.limits.memory)".to_owned(),
        reason => format!("{reason} (exit code {}){more}", ended.exit_code),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: Value) -> State {
        let pod = json!({"metadata": {"name": "p"}, "status": status});
        state(&serde_json::from_value(pod).unwrap(), "runner")
    }

    #[test]
    fn what_a_pod_waits_for_is_told() {
        let told = |status: Value| match of(status) {
            State::Waiting(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(json!({})), "waiting for its Pod");
        let scheduled =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]);
        assert!(told(json!({"phase": "Pending", "conditions": scheduled})).contains("0/3 nodes"));
        let pulling = json!([{"name": "install", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]);
        assert!(
            told(json!({"phase": "Pending", "initContainerStatuses": pulling}))
                .contains("ImagePullBackOff: no such image")
        );
        let soon = json!([{"name": "runner", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "PodInitializing"}}}]);
        assert_eq!(told(json!({"phase": "Pending", "containerStatuses": soon})), "waiting for its Pod");
    }

    #[test]
    fn a_pod_is_lost_that_was_deleted_and_does_not_end() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let of = |metadata: Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            is_lost(&pod, now, SignedDuration::from_secs(60))
        };
        assert!(!of(json!({})), "it runs");
        assert!(!of(json!({"deletionTimestamp": "2026-11-30T12:00:30Z"})), "it has time");
        assert!(!of(json!({"deletionTimestamp": "2026-11-30T11:59:30Z"})), "its kubelet is slow");
        assert!(of(json!({"deletionTimestamp": "2026-11-30T11:58:59Z"})));
    }

    #[test]
    fn how_it_ended_is_told_by_its_container_or_else_by_its_pod() {
        let status = |state: Value| {
            json!({"containerStatuses": [{"name": "runner", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": state}]})
        };
        assert_eq!(of(status(json!({"running": {}}))), State::Running("p".into()));
        let killed = of(status(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})));
        assert!(matches!(&killed, State::Ended(_, why) if why.contains("resources.limits.memory")), "{killed:?}");
        let evicted = of(json!({"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}));
        assert_eq!(evicted, State::Ended("p".into(), "Evicted: the node was low on memory".into()));
    }
}
