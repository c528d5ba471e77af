//! What is installed: CRDs, the APIService and who answers behind it, replicas.

use std::time::Duration;

use api::{
    crds,
    install::{self, ACCOUNT, LEASE},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::Deployment, coordination::v1::Lease},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::Finding;

/// A replica renews its Lease every 2 s, and counts as alive for so long after.
const ALIVE: Duration = Duration::from_secs(15);
/// Longer than from one renewal to the next.
const RENEWAL: Duration = Duration::from_secs(3);
/// The oldest Kubernetes that is supported: 1.x.
const OLDEST: u32 = 33;

pub(super) const APPLY: &str = "install or upgrade Stillpoint (deploy/README.md)";

pub(super) async fn server(client: &Client) -> Finding {
    let version = match client.apiserver_version().await {
        Ok(version) => version,
        Err(error) => {
            let said = Finding::unseen("server", "the API server", &error);
            let fix = "check that it runs, and that KUBECONFIG and the context are the right ones";
            return Finding::fail("server", said.message, fix);
        }
    };
    let minor: u32 = version.minor.trim_end_matches('+').parse().unwrap_or(OLDEST);
    if minor < OLDEST {
        let message = format!("Kubernetes {}, older than 1.{OLDEST}", version.git_version);
        return Finding::warn("server", message, "upgrade the cluster: admission and CRDs are tested from there on");
    }
    Finding::pass("server", format!("it answers: {}", version.git_version))
}

/// A standalone server has no APIServices.
pub(super) async fn is_cluster(client: &Client) -> bool {
    let groups = client.list_api_groups().await;
    groups.map_or(true, |groups| groups.groups.iter().any(|group| group.name == "apiregistration.k8s.io"))
}

/// All of it, and the namespace that it is installed in.
pub(super) async fn look(client: &Client) -> (Vec<Finding>, String) {
    let mut findings = Vec::new();
    let found: Api<CustomResourceDefinition> = Api::all(client.clone());
    for wanted in crds::all() {
        let name = wanted.name_any();
        findings.push(match found.get_opt(&name).await {
            Ok(found) => crd(&name, found.as_ref()),
            Err(error) => Finding::unseen("crd", &format!("CRD {name}"), &error),
        });
    }
    let services: Api<APIService> = Api::all(client.clone());
    let service = services.get_opt(&install::api_service()).await;
    let home = home(service.as_ref().ok().and_then(Option::as_ref));
    findings.push(match &service {
        Ok(service) => api_service(service.as_ref()),
        Err(error) => Finding::unseen("apiservice", "the APIService", error),
    });
    findings.push(answers(client).await);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &home);
    findings.push(match deployments.get_opt(ACCOUNT).await {
        Ok(found) => deployment(&home, ACCOUNT, found.as_ref()),
        Err(error) => Finding::unseen("deployment", &format!("Deployment {home}/{ACCOUNT}"), &error),
    });
    findings.push(replicas(client, &home).await);
    (findings, home)
}

/// The namespace that it is installed in; its usual one where nothing says.
pub(crate) fn home(service: Option<&APIService>) -> String {
    let service = service.and_then(|service| service.spec.as_ref()?.service.as_ref());
    service.and_then(|service| service.namespace.clone()).unwrap_or_else(|| install::NAMESPACE.to_owned())
}

fn crd(name: &str, found: Option<&CustomResourceDefinition>) -> Finding {
    let Some(found) = found else {
        return Finding::fail("crd", format!("CRD {name} is not there"), "kubectl apply -f deploy/crds/");
    };
    let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let refused = conditions.into_iter().find(|condition| {
        (condition.type_ == "Established" || condition.type_ == "NamesAccepted") && condition.status != "True"
    });
    if let Some(refused) = refused {
        let why = refused.message.as_deref().unwrap_or("no reason is given");
        let message = format!("CRD {name} is not {}: {why}", refused.type_);
        return Finding::fail("crd", message, format!("kubectl describe crd {name}"));
    }
    let (schema, ours) = (crds::schema_of(found), crds::SCHEMA);
    let message = format!("CRD {name} has schema {schema}, this command knows {ours}");
    match schema {
        older if older < ours => Finding::fail("crd", message, "kubectl apply -f deploy/crds/ of this version"),
        newer if newer > ours => {
            Finding::warn("crd", message, "use the kubectl-still of the version that is installed")
        }
        _ => Finding::pass("crd", format!("CRD {name}, schema {schema}")),
    }
}

/// Reasons of kube-apiserver's availability controller (kube-aggregator: `remote_available_controller.go`), and what helps.
const ADVICE: [(&str, &str); 6] = [
    ("ServiceNotFound", "its Service is gone: install Stillpoint again, or delete the APIService if it is to be gone"),
    ("ServicePortError", "the Service has not the port that the APIService names: apply both from the same version"),
    ("EndpointsNotFound", "no pod of the Service is ready: kubectl -n NAMESPACE get pods"),
    ("MissingEndpoints", "no pod of the Service is ready: kubectl -n NAMESPACE get pods"),
    (
        "FailedDiscoveryCheck",
        "a pod is ready, and the control plane gets no answer from it: a firewall or a NetworkPolicy in between, or the port; \
         see the log of the pods",
    ),
    ("ServiceAccessError", "kube-apiserver cannot read the Service: see its log"),
];

fn api_service(service: Option<&APIService>) -> Finding {
    let name = install::api_service();
    let Some(service) = service else {
        return Finding::fail("apiservice", format!("APIService {name} is not there"), APPLY);
    };
    let status = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let Some(available) = status.into_iter().find(|condition| condition.type_ == "Available") else {
        let message = format!("nobody has looked at APIService {name} yet");
        return Finding::warn("apiservice", message, "try again in a moment");
    };
    let spec = service.spec.as_ref();
    let trusts = spec.is_some_and(|spec| spec.ca_bundle.is_some() || spec.insecure_skip_tls_verify == Some(true));
    if available.status == "True" && trusts {
        return Finding::pass("apiservice", format!("APIService {name} is available"));
    }
    if available.status == "True" {
        // What finds it available does not verify who answers (kube-aggregator: `remote_available_controller.go`).
        let message =
            format!("APIService {name} is available, and has no caBundle: kube-apiserver trusts nobody there");
        let fix = "a replica fills it in within seconds when it runs, and may patch the APIService; see its log";
        return Finding::fail("apiservice", message, fix);
    }
    let reason = available.reason.as_deref().unwrap_or("no reason");
    let said = available.message.as_deref().unwrap_or_default();
    let message = format!("APIService {name} is not available: {reason}: {said}");
    let advice =
        ADVICE.iter().find(|(of, _)| *of == reason).map_or("see the log of kube-apiserver", |(_, advice)| advice);
    let home = spec.and_then(|spec| spec.service.as_ref()?.namespace.as_deref()).unwrap_or(install::NAMESPACE);
    Finding::fail("apiservice", message, advice.replace("NAMESPACE", home))
}

/// Through kube-apiserver, as every user asks.
async fn answers(client: &Client) -> Finding {
    match client.list_api_group_resources(api::LIVE_API_VERSION).await {
        Ok(list) if list.resources.iter().any(|resource| resource.name == "databases/quiesce") => {
            Finding::pass("api", format!("{} answers", api::LIVE_API_VERSION))
        }
        Ok(_) => Finding::fail(
            "api",
            format!("{} answers, and does not know databases/quiesce", api::LIVE_API_VERSION),
            "something else serves that group: kubectl get apiservice",
        ),
        Err(error) => {
            let said = Finding::unseen("api", api::LIVE_API_VERSION, &error);
            let fix = "repair what is above it first; if it is about a certificate, the APIService's caBundle is another's: a \
                       replica puts its own there, or whoever keeps the certificate that was given to it";
            Finding { fix: Some(fix.to_owned()), ..said }
        }
    }
}

pub(super) fn deployment(home: &str, name: &str, found: Option<&Deployment>) -> Finding {
    let Some(found) = found else {
        return Finding::warn(
            "deployment",
            format!("Deployment {home}/{name} is not there"),
            "right only when it runs by other means",
        );
    };
    let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = found.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let message = format!("Deployment {home}/{name}: {ready} of {wanted} pods are ready");
    let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let failure = conditions.into_iter().find(|condition| condition.type_ == "ReplicaFailure");
    let look = format!("kubectl -n {home} describe pods -l app.kubernetes.io/name=stillpoint");
    match (ready, failure.and_then(|failure| failure.message.as_deref())) {
        (_, Some(why)) => Finding::fail("deployment", format!("{message}; a pod could not be made: {why}"), look),
        (0, None) => Finding::fail("deployment", message, look),
        (ready, None) if ready < wanted => Finding::warn("deployment", message, look),
        _ => Finding::pass("deployment", message),
    }
}

/// Who says that they live. By this machine's clock first; when it disagrees, by who says so again.
async fn replicas(client: &Client, home: &str) -> Finding {
    let leases: Api<Lease> = Api::namespaced(client.clone(), home);
    let ours = ListParams::default().labels(&format!("{LEASE}=replica"));
    let about = format!("Leases in namespace {home}");
    let first = match leases.list(&ours).await {
        Ok(list) => list.items,
        Err(error) => return Finding::unseen("replicas", &about, &error),
    };
    let now = Timestamp::now();
    let fresh = first.iter().filter(|lease| renewed(lease).is_some_and(|at| is_fresh(at, now))).count();
    if fresh >= 2 || first.is_empty() {
        return alive(fresh);
    }
    tokio::time::sleep(RENEWAL).await;
    match leases.list(&ours).await {
        Ok(second) => alive(renewing(&first, &second.items).max(fresh)),
        Err(error) => Finding::unseen("replicas", &about, &error),
    }
}

fn renewed(lease: &Lease) -> Option<Timestamp> {
    Some(lease.spec.as_ref()?.renew_time.as_ref()?.0)
}

fn is_fresh(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at).unsigned_abs() < ALIVE
}

/// How many of the second look are not as they were at the first.
fn renewing(first: &[Lease], second: &[Lease]) -> usize {
    let before = |name: Option<&String>| first.iter().find(|lease| lease.metadata.name.as_ref() == name);
    second.iter().filter(|lease| before(lease.metadata.name.as_ref()).and_then(renewed) != renewed(lease)).count()
}

fn alive(alive: usize) -> Finding {
    match alive {
        0 => Finding::fail(
            "replicas",
            "no replica renews its Lease: nothing can be frozen",
            "see the log of the pods: they may not be able to write Leases",
        ),
        1 => Finding::warn(
            "replicas",
            "one replica: while it is away nothing can be frozen, and nobody answers for the API",
            "run two",
        ),
        more => Finding::pass("replicas", format!("{more} replicas are alive")),
    }
}

#[cfg(test)]
mod tests {
    use api::CheckResult;
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn a_crd_is_missing_refused_older_newer_or_right() {
        let ours = crds::all().remove(0);
        let with = |schema: u32, status: &str| {
            let mut crd = ours.clone();
            crd.annotations_mut().insert(crds::ANNOTATION_SCHEMA.to_owned(), schema.to_string());
            let condition = json!({"type": "NamesAccepted", "status": status, "message": "spdb is taken"});
            crd.status = from_value(json!({"conditions": [condition]})).unwrap();
            crd
        };
        for (found, result, says) in [
            (None, CheckResult::Fail, "not there"),
            (Some(with(crds::SCHEMA, "False")), CheckResult::Fail, "spdb is taken"),
            (Some(with(0, "True")), CheckResult::Fail, "has schema 0"),
            (Some(with(crds::SCHEMA + 1, "True")), CheckResult::Warn, "this command knows"),
            (Some(with(crds::SCHEMA, "True")), CheckResult::Pass, "schema"),
        ] {
            let finding = crd("databases.stillpoint.dev", found.as_ref());
            assert!(finding.result == result && finding.message.contains(says), "{finding:?}");
        }
    }

    #[test]
    fn an_api_service_that_is_not_available_says_why_and_what_helps() {
        let with = |status: &str, reason: &str, bundle: &str| -> APIService {
            from_value(json!({
                "spec": {
                    "caBundle": bundle, "groupPriorityMinimum": 100, "versionPriority": 100,
                    "service": {"namespace": "home", "name": "s"},
                },
                "status": {"conditions": [
                    {"type": "Available", "status": status, "reason": reason, "message": "dial tcp: refused"},
                ]},
            }))
            .unwrap()
        };
        assert_eq!(api_service(None).result, CheckResult::Fail);
        assert_eq!(api_service(Some(&with("True", "Passed", "YQ=="))).result, CheckResult::Pass);
        let missing = api_service(Some(&with("False", "MissingEndpoints", "YQ==")));
        assert!(missing.message.contains("MissingEndpoints: dial tcp: refused"), "{missing:?}");
        assert!(missing.fix.unwrap().contains("kubectl -n home get pods"));
        assert!(api_service(Some(&with("False", "FailedDiscoveryCheck", "YQ=="))).fix.unwrap().contains("firewall"));
        let mut untrusted = with("True", "Passed", "YQ==");
        untrusted.spec.as_mut().unwrap().ca_bundle = None;
        let untrusted = api_service(Some(&untrusted));
        assert!(untrusted.result == CheckResult::Fail && untrusted.message.contains("no caBundle"), "{untrusted:?}");
    }

    #[test]
    fn pods_that_are_ready_count_and_a_pod_that_cannot_be_made_is_told() {
        let with = |ready: i32, conditions: Value| -> Deployment {
            from_value(json!({
                "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"readyReplicas": ready, "conditions": conditions},
            }))
            .unwrap()
        };
        for (ready, result) in [(0, CheckResult::Fail), (1, CheckResult::Warn), (2, CheckResult::Pass)] {
            assert_eq!(deployment("home", ACCOUNT, Some(&with(ready, json!([])))).result, result, "{ready}");
        }
        let forbidden = json!([{"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"}]);
        let finding = deployment("home", ACCOUNT, Some(&with(2, forbidden)));
        assert!(finding.result == CheckResult::Fail && finding.message.contains("PodSecurity"), "{finding:?}");
        assert_eq!(deployment("home", ACCOUNT, None).result, CheckResult::Warn);
    }

    #[test]
    fn a_replica_lives_by_the_clock_or_by_a_renewal_that_is_seen() {
        let lease = |name: &str, at: i64| -> Lease {
            let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::from_second(at).unwrap());
            from_value(json!({"metadata": {"name": name}, "spec": {"renewTime": at}})).unwrap()
        };
        let (at, now) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(110).unwrap());
        assert!(is_fresh(at, now) && is_fresh(now, at) && !is_fresh(at, Timestamp::from_second(200).unwrap()));
        let (first, second) = ([lease("a", 1), lease("b", 1)], [lease("a", 3), lease("b", 1), lease("c", 1)]);
        assert_eq!(renewing(&first, &second), 2, "a was renewed, c is new, b is dead");
        assert_eq!(
            [alive(0).result, alive(1).result, alive(2).result],
            [CheckResult::Fail, CheckResult::Warn, CheckResult::Pass]
        );
    }
}
