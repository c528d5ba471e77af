//! The traces of a LimitRange, which itself cannot be seen from here: what it has given a container, kube-apiserver writes down
//! (`plugin/pkg/admission/limitranger`, mergePodResourceRequirements). It gives it the agent, too, if that has nothing, for LimitRanger
//! runs once more after a webhook has changed a Pod (apiserver `pkg/admission/reinvocation.go`).

use serde_json::Value;

use super::{
    pod::{Container, Pod},
    quantity,
};

const SAID: &str = "kubernetes.io/limit-ranger";

/// Which of the two amounts of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Limit,
}

impl Kind {
    /// As it is said, and as it is a key of `resources`.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Request => ("request", "requests"),
            Self::Limit => ("limit", "limits"),
        }
    }
}

/// What a LimitRange has given some container of a resource, if that is no more than `most`.
pub(super) fn given(pod: Pod<'_>, resource: &str, kind: Kind, most: &str) -> Option<String> {
    let mut containers = pod.containers().chain(pod.init_containers());
    containers.find_map(|container| {
        let amount = amount(container, kind, resource)?;
        let fits = quantity::parse(&amount) <= quantity::parse(most);
        (fits && is_said(pod, container, kind, resource)).then_some(amount)
    })
}

/// A quantity as it is written; who writes YAML may have written a number.
pub(super) fn amount(container: Container<'_>, kind: Kind, resource: &str) -> Option<String> {
    of(&container.0["resources"], kind, resource)
}

/// The same, of any `resources`.
pub(super) fn of(resources: &Value, kind: Kind, resource: &str) -> Option<String> {
    match resources.get(kind.words().1)?.get(resource)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `LimitRanger plugin set: cpu, memory request for container db; cpu limit for init container setup`.
fn is_said(pod: Pod<'_>, container: Container<'_>, kind: Kind, resource: &str) -> bool {
    let said = pod.annotation(SAID).unwrap_or_default();
    let parts = said.trim_start_matches("LimitRanger plugin set: ").split("; ");
    parts.filter_map(|part| part.split_once(" for ")).any(|(what, whose)| {
        let (resources, word) = what.rsplit_once(' ').unwrap_or_default();
        let is_of = whose.rsplit(' ').next() == Some(container.name());
        is_of && word == kind.words().0 && resources.split(", ").any(|one| one == resource)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_given_is_told_from_what_was_said() {
        let pod = json!({
            "metadata": {"annotations": {SAID: "LimitRanger plugin set: cpu, memory request for container db; cpu limit for init container setup"}},
            "spec": {
                "containers": [{"name": "db", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": 2}}}],
                "initContainers": [{"name": "setup", "resources": {"requests": {"cpu": "5m"}, "limits": {"cpu": "500m"}}}],
            },
        });
        let given = |resource, kind, most| given(Pod(&pod), resource, kind, most);
        assert_eq!(given("cpu", Kind::Request, "500m").as_deref(), Some("100m"));
        assert_eq!(
            given("cpu", Kind::Limit, "4").as_deref(),
            Some("500m"),
            "the database's own was said by its author"
        );
        assert_eq!(given("memory", Kind::Request, "512Mi"), None, "too much for anybody but a database");
        assert_eq!(given("memory", Kind::Limit, "8Gi"), None);
        assert_eq!(super::given(Pod(&json!({"spec": {}})), "cpu", Kind::Limit, "4"), None);
    }
}
