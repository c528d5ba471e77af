//! What the agent is given of the node, so that its Pod stays what it was: of the same QoS class, and admitted by the same LimitRanges
//! and ResourceQuotas as far as its other containers tell of them.
//!
//! | the Pod | the agent |
//! |---|---|
//! | is Guaranteed | limits, and requests of the same |
//! | is Burstable | requests and a limit of memory; one of CPU only if all others have one, for a throttled thaw is a longer outage |
//! | is BestEffort, or has resources of its own as a whole | nothing |
//!
//! As far as a LimitRange can be seen (`limit_range.rs`), it is respected: what it gives others it gives the agent, too, if that has
//! nothing, and its values are within its own bounds, which ours need not be. And a limit of ours is no larger beside its request than
//! with the others, for whom its `maxLimitRequestRatio` was enough. What is left is its `min`, of which nothing tells.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    limit_range::{self, Kind},
    pod::{Container, Pod},
    quantity,
};

/// What an annotation asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Wanted {
    pub(super) cpu: Bounds,
    pub(super) memory: Bounds,
}

/// Of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Bounds {
    pub(super) request: Option<String>,
    pub(super) limit: Option<String>,
}

/// How a kubelet that is short of memory orders Pods (`pkg/apis/core/v1/helper/qos`, ComputePodQOS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// One resource, and what the agent has of it where nobody says otherwise.
struct Resource {
    name: &'static str,
    request: &'static str,
    limit: &'static str,
    /// Whether it has a limit in a Burstable Pod whose others have none.
    always_limited: bool,
    /// The most that a LimitRange may give it: what is meant for databases keeps a Pod with two of them from finding a node.
    most: &'static str,
    /// What amounts of it are written in, and that in billionths.
    unit: (&'static str, i128),
}

const CPU: Resource = Resource {
    name: "cpu",
    request: "10m",
    limit: "100m",
    always_limited: false,
    most: "500m",
    unit: ("m", 1_000_000),
};
const MEMORY: Resource = Resource {
    name: "memory",
    request: "16Mi",
    limit: "48Mi",
    always_limited: true,
    most: "512Mi",
    unit: ("Mi", (1 << 20) * 1_000_000_000),
};
/// With less memory it is killed before it has begun, and a sidecar that does not begin keeps all others from beginning.
const LEAST_MEMORY: &str = "16Mi";

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What kube-apiserver would refuse with the Pod, and what would keep the Pod from starting.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, Bounds { request, limit }) in [(CPU.name, &self.cpu), (MEMORY.name, &self.memory)] {
            if let (Some(request), Some(limit)) = (request, limit)
                && quantity::parse(request) > quantity::parse(limit)
            {
                return Err(format!("requests.{name} is above limits.{name}"));
            }
        }
        let enough = |amount: &Option<String>| {
            amount.as_ref().is_none_or(|amount| quantity::parse(amount) >= quantity::parse(LEAST_MEMORY))
        };
        if enough(&self.memory.limit) { Ok(()) } else { Err(format!("limits.memory must be {LEAST_MEMORY} or more")) }
    }
}

/// The QoS class that a Pod would have.
pub(super) fn qos(pod: Pod<'_>) -> Qos {
    let of_all = pod.0.pointer("/spec/resources");
    let of_each = pod.containers().chain(pod.init_containers()).map(|container| &container.0["resources"]);
    let lists: Vec<&Value> = if is_set_as_a_whole(pod) { of_all.into_iter().collect() } else { of_each.collect() };
    let (mut requested, mut limited, mut all_limited) = ([0, 0], [0, 0], true);
    for resources in lists {
        for (at, name) in [CPU.name, MEMORY.name].into_iter().enumerate() {
            let limit = amount(resources, Kind::Limit, name).unwrap_or(0);
            // Who has a limit only requests as much (`pkg/apis/core/v1/defaults.go`, SetDefaults_Pod).
            requested[at] += amount(resources, Kind::Request, name).unwrap_or(limit);
            limited[at] += limit;
            all_limited &= limit > 0;
        }
    }
    match (requested, limited) {
        ([0, 0], [0, 0]) => Qos::BestEffort,
        _ if all_limited && requested == limited => Qos::Guaranteed,
        _ => Qos::Burstable,
    }
}

/// The agent's `resources`; and what people should know of them.
pub(super) fn resources(pod: Pod<'_>, wanted: &Wanted) -> (Value, Option<&'static str>) {
    let class = qos(pod);
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (resource, wanted) in [(CPU, &wanted.cpu), (MEMORY, &wanted.memory)] {
        let bounds = match class {
            _ if is_set_as_a_whole(pod) => wanted.clone(),
            Qos::BestEffort => wanted.clone(),
            Qos::Guaranteed => guaranteed(pod, &resource, wanted),
            Qos::Burstable => burstable(pod, &resource, wanted),
        };
        requests.extend(bounds.request.map(|amount| (resource.name.to_owned(), amount.into())));
        limits.extend(bounds.limit.map(|amount| (resource.name.to_owned(), amount.into())));
    }
    let mut both = Map::new();
    both.extend((!requests.is_empty()).then(|| ("requests".to_owned(), requests.into())));
    both.extend((!limits.is_empty()).then(|| ("limits".to_owned(), limits.into())));
    let note = (class == Qos::BestEffort && !wanted.is_empty())
        .then_some("with agent-resources the Pod is Burstable, and without BestEffort");
    (json!(both), note)
}

fn guaranteed(pod: Pod<'_>, resource: &Resource, wanted: &Bounds) -> Bounds {
    let given = || limit_range::given(pod, resource.name, Kind::Limit, resource.most);
    let amount = wanted.limit.clone().or_else(|| wanted.request.clone()).or_else(given);
    let amount = Some(amount.unwrap_or_else(|| resource.limit.to_owned()));
    Bounds { request: amount.clone(), limit: amount }
}

fn burstable(pod: Pod<'_>, resource: &Resource, wanted: &Bounds) -> Bounds {
    let is_named = *wanted != Bounds::default();
    if !is_named && limit_range::given(pod, resource.name, Kind::Request, resource.most).is_some() {
        return Bounds::default();
    }
    let mut others = pod.containers().chain(pod.init_containers());
    let all_limited = others.all(|container| limit_range::amount(container, Kind::Limit, resource.name).is_some());
    let own = |of: &str| Some(of.to_owned());
    let more = |one: &str, other: &str| quantity::parse(one) > quantity::parse(other);
    let limit = match (&wanted.limit, &wanted.request) {
        (Some(limit), _) => Some(limit.clone()),
        _ if !(resource.always_limited || all_limited) => None,
        (None, Some(request)) if more(request, resource.limit) => Some(request.clone()),
        (None, _) => own(resource.limit),
    };
    let request = match (&wanted.request, &limit) {
        (Some(request), _) => Some(request.clone()),
        (None, Some(limit)) if more(resource.request, limit) => Some(limit.clone()),
        (None, Some(limit)) if all_limited => Some(in_proportion(pod, resource, limit)),
        (None, _) => own(resource.request),
    };
    Bounds { request, limit }
}

/// Our own request, or more: as large a part of the limit as with the container whose limit is the largest beside its request.
fn in_proportion(pod: Pod<'_>, resource: &Resource, limit: &str) -> String {
    let ours = quantity::parse(limit).unwrap_or(0);
    let part = |container: Container<'_>| {
        let of = |kind| amount(&container.0["resources"], kind, resource.name).filter(|amount| *amount > 0);
        let limited = of(Kind::Limit)?;
        Some(ours.checked_mul(of(Kind::Request).unwrap_or(limited))? / limited)
    };
    let least = pod.containers().chain(pod.init_containers()).filter_map(part).min().unwrap_or(0);
    let (unit, size) = resource.unit;
    let needed = format!("{}{unit}", least / size + i128::from(least % size > 0));
    match quantity::parse(&needed) {
        amount if amount <= quantity::parse(resource.request) => resource.request.to_owned(),
        amount if amount >= Some(ours) => limit.to_owned(),
        _ => needed,
    }
}

/// Resources of the Pod as a whole, which those of its containers together must not exceed (KEP-2837).
fn is_set_as_a_whole(pod: Pod<'_>) -> bool {
    let set = |kind| pod.0.pointer(kind).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    set("/spec/resources/requests") || set("/spec/resources/limits")
}

fn amount(resources: &Value, kind: Kind, name: &str) -> Option<i128> {
    quantity::parse(&limit_range::of(resources, kind, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    fn with(requests: Value, limits: Value) -> Value {
        json!({"name": "db", "resources": {"requests": requests, "limits": limits}})
    }

    fn one(requests: Value, limits: Value) -> Value {
        pod(json!([with(requests, limits)]))
    }

    /// The Pod, with the agent that it would get.
    fn given(pod: &Value, wanted: &str) -> (Value, Qos) {
        let wanted = super::super::values::resources(wanted).unwrap_or_default();
        let (resources, _) = resources(Pod(pod), &wanted);
        let mut after = pod.clone();
        after["spec"]["initContainers"] = json!([{"name": "agent", "resources": resources}]);
        (resources, qos(Pod(&after)))
    }

    #[test]
    fn the_class_is_what_kubernetes_says() {
        let class = |pod: Value| qos(Pod(&pod));
        assert_eq!(class(one(json!({}), json!({}))), Qos::BestEffort);
        assert_eq!(class(one(json!({"cpu": 0}), json!({}))), Qos::BestEffort);
        assert_eq!(class(one(json!({"cpu": "1"}), json!({}))), Qos::Burstable);
        assert_eq!(class(one(json!({}), json!({"cpu": "1"}))), Qos::Burstable);
        assert_eq!(class(one(json!({}), json!({"cpu": "1", "memory": "1Gi"}))), Qos::Guaranteed);
        assert_eq!(class(one(json!({"cpu": "1000m"}), json!({"cpu": 1, "memory": "1Gi"}))), Qos::Guaranteed);
        assert_eq!(
            class(one(json!({"cpu": "1", "memory": "512Mi"}), json!({"cpu": "1", "memory": "1Gi"}))),
            Qos::Burstable
        );
        let both = pod(json!([with(json!({}), json!({"cpu": "1", "memory": "1Gi"})), {"name": "plain"}]));
        assert_eq!(class(both), Qos::Burstable);
        let whole = json!({"limits": {"cpu": "2", "memory": "2Gi"}});
        assert_eq!(class(json!({"spec": {"containers": [{"name": "db"}], "resources": whole}})), Qos::Guaranteed);
    }

    #[test]
    fn the_class_stays_whatever_is_asked_for_but_where_nothing_was() {
        let pods = [
            one(json!({}), json!({"cpu": "1", "memory": "1Gi"})),
            one(json!({"cpu": "1"}), json!({})),
            one(json!({"cpu": "1", "memory": "512Mi"}), json!({"cpu": "1", "memory": "1Gi"})),
            json!({"spec": {"containers": [{"name": "db"}], "resources": {"limits": {"cpu": "2", "memory": "2Gi"}}}}),
        ];
        for pod in &pods {
            for wanted in
                ["", "requests.cpu=50m", "limits.cpu=1", "requests.memory=1Gi,limits.memory=2Gi", "limits.cpu=1m"]
            {
                assert_eq!(given(pod, wanted).1, qos(Pod(pod)), "{wanted}: {pod}");
            }
        }
        let plain = one(json!({}), json!({}));
        assert_eq!(given(&plain, ""), (json!({}), Qos::BestEffort));
        assert_eq!(given(&plain, "requests.cpu=5m"), (json!({"requests": {"cpu": "5m"}}), Qos::Burstable));
    }

    #[test]
    fn a_limit_of_cpu_is_given_only_where_all_others_have_one() {
        let memory_only = one(json!({"memory": "512Mi"}), json!({"memory": "2Gi"}));
        let usual = json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "48Mi"}});
        assert_eq!(given(&memory_only, "").0, usual);
        let all = one(json!({"cpu": "100m", "memory": "128Mi"}), json!({"cpu": "2", "memory": "1Gi"}));
        let limited =
            json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "48Mi"}});
        assert_eq!(given(&all, "").0, limited);
    }

    #[test]
    fn a_limit_is_no_larger_beside_its_request_than_with_the_others() {
        let of = |requests, limits, wanted| given(&one(requests, limits), wanted).0;
        let all = of(json!({"cpu": "500m", "memory": "1Gi"}), json!({"cpu": "1500m", "memory": "2Gi"}), "");
        let limited =
            json!({"requests": {"cpu": "34m", "memory": "24Mi"}, "limits": {"cpu": "100m", "memory": "48Mi"}});
        assert_eq!(all, limited);
        // Who has only a limit requests as much.
        let all = of(json!({"cpu": "500m"}), json!({"cpu": "1500m", "memory": "2Gi"}), "");
        assert_eq!(all["requests"]["memory"], "48Mi");
        let odd =
            of(json!({"cpu": "1", "memory": "3Gi"}), json!({"cpu": "2", "memory": "3Gi"}), "limits.memory=65000001");
        assert_eq!(odd["requests"]["memory"], "65000001", "not rounded above the limit");
    }

    #[test]
    fn what_a_limit_range_gives_others_it_gives_the_agent() {
        let said = |requests: Value, limits: Value, said: &str| {
            let mut pod = one(requests, limits);
            let said = format!("LimitRanger plugin set: {said}");
            pod["metadata"] = json!({"annotations": {"kubernetes.io/limit-ranger": said}});
            pod
        };
        let both = "cpu request for container db; cpu limit for container db";
        let burstable = said(json!({"cpu": "100m", "memory": "256Mi"}), json!({"cpu": "1", "memory": "1Gi"}), both);
        assert_eq!(given(&burstable, "").0, json!({"requests": {"memory": "16Mi"}, "limits": {"memory": "48Mi"}}));
        assert_eq!(given(&burstable, "limits.cpu=1").0["limits"]["cpu"], "1", "an annotation has the last word");
        // A request of its own is not said, and what LimitRanger would have it request is not known.
        let limit = "cpu limit for container db";
        let limited = said(json!({"cpu": "100m", "memory": "256Mi"}), json!({"cpu": "1", "memory": "1Gi"}), limit);
        assert_eq!(given(&limited, "").0["limits"]["cpu"], "100m");
        let guaranteed = said(json!({}), json!({"cpu": "500m", "memory": "1Gi"}), both);
        let (resources, class) = given(&guaranteed, "");
        assert_eq!((&resources["requests"]["cpu"], class), (&json!("500m"), Qos::Guaranteed));
        let large = said(json!({}), json!({"cpu": "4", "memory": "1Gi"}), both);
        let (resources, class) = given(&large, "");
        assert_eq!((&resources["requests"]["cpu"], class), (&json!("100m"), Qos::Guaranteed), "that is for databases");
    }
}
