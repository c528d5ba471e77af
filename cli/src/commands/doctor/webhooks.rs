//! Whether a snapshot is held for: who is asked before it is cut, and whether they are reached, trusted, and asked.

mod configuration;

use api::{
    Database, gate,
    install::{
        ACCOUNT,
        webhooks::{NAME, SERVING},
    },
};
use jiff::{Timestamp, ToSpan};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::Deployment,
        core::v1::{Namespace, Secret},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

pub(crate) use self::configuration::Configurations;
use super::{Finding, installed::deployment};

/// Leaves are exchanged long before; one that is so near its end is one that nobody exchanges.
const NEAR_DAYS: i64 = 2;
/// The CRDs of external-snapshotter that every snapshot needs.
const CRDS: [&str; 3] = ["volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"];

/// What was found of the parts that belong together.
struct Found {
    /// The server was told to answer at gates; `None`: nobody knows.
    gates: Option<bool>,
    deployment: Option<Deployment>,
    configurations: Configurations,
}

pub(super) async fn look(client: &Client, home: &str) -> Vec<Finding> {
    let found = match find(client, home).await {
        Ok(found) => found,
        Err(unseen) => return vec![unseen],
    };
    if let Some(off) = off(&found) {
        return vec![off];
    }
    let mut findings = vec![snapshots(client).await, deployment(home, NAME, found.deployment.as_ref())];
    findings.push(endpoints(client, home).await);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), home);
    let secret = match secrets.get_opt(SERVING).await {
        Ok(secret) => {
            findings.push(certificate(home, secret.as_ref(), Timestamp::now()));
            secret
        }
        Err(error) => {
            findings.push(Finding::unseen("certificate", &format!("Secret {home}/{SERVING}"), &error));
            None
        }
    };
    findings.push(configuration::trusted(home, &found.configurations, secret.as_ref()));
    let found = &found.configurations;
    if found.validating.is_some() {
        let databases: Api<Database> = Api::all(client.clone());
        findings.push(match databases.list_metadata(&ListParams::default()).await {
            Ok(list) => {
                configuration::shown(found, &list.items.iter().filter_map(ResourceExt::namespace).collect(), home)
            }
            Err(error) => Finding::unseen("shown", "Databases", &error),
        });
        let labelled = ListParams::default().labels(&format!("{}={}", gate::POLICY, gate::REQUIRED));
        let namespaces: Api<Namespace> = Api::all(client.clone());
        findings.push(match namespaces.list(&labelled).await {
            Ok(list) => configuration::required(found, &list.items.iter().map(ResourceExt::name_any).collect(), home),
            Err(error) => Finding::unseen("required", "Namespaces", &error),
        });
        findings.extend(configuration::drivers(found));
    }
    findings
}

async fn find(client: &Client, home: &str) -> Result<Found, Finding> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), home);
    let unseen = |what: String| move |error: kube::Error| Finding::unseen("webhooks", &what, &error);
    let server = deployments.get_opt(ACCOUNT).await.map_err(unseen(format!("Deployment {home}/{ACCOUNT}")))?;
    let deployment = deployments.get_opt(NAME).await.map_err(unseen(format!("Deployment {home}/{NAME}")))?;
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configurations = Configurations {
        validating: validating.get_opt(NAME).await.map_err(unseen(format!("configuration {NAME}")))?,
        mutating: mutating.get_opt(NAME).await.map_err(unseen(format!("configuration {NAME}")))?,
    };
    Ok(Found { gates: server.as_ref().map(answers_at_gates), deployment, configurations })
}

fn answers_at_gates(server: &Deployment) -> bool {
    let pod = server.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let arguments =
        pod.into_iter().flat_map(|pod| &pod.containers).flat_map(|container| container.args.iter().flatten());
    arguments.into_iter().any(|argument| argument.starts_with("--gates-listen"))
}

/// An installation without webhooks has none of the parts.
fn off(found: &Found) -> Option<Finding> {
    if found.gates != Some(false) {
        return None;
    }
    let message = "they are off: nobody is asked before a snapshot is cut";
    let Configurations { validating, mutating } = &found.configurations;
    Some(match (&found.deployment, validating.is_some() || mutating.is_some()) {
        (None, false) => Finding::pass("webhooks", message),
        (_, true) => Finding::fail(
            "webhooks",
            format!("{message}, and a webhook configuration {NAME} has kube-apiserver ask all the same"),
            format!(
                "kubectl delete validatingwebhookconfiguration,mutatingwebhookconfiguration {NAME}; they belong to the webhooks, as \
                 Helm knows"
            ),
        ),
        (Some(_), false) => Finding::fail(
            "webhooks",
            format!("{message}, but Deployment {NAME} is there"),
            "apply both from one version",
        ),
    })
}

/// Whether there is anything to be held for.
async fn snapshots(client: &Client) -> Finding {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut missing = Vec::new();
    for resource in CRDS {
        let name = format!("{resource}.{}", gate::SNAPSHOTS);
        match crds.get_metadata_opt(&name).await {
            Ok(Some(_)) => {}
            Ok(None) => missing.push(name),
            Err(error) => return Finding::unseen("snapshots", &format!("CRD {name}"), &error),
        }
    }
    let groups = format!("volumegroupsnapshots.{}", gate::GROUP_SNAPSHOTS);
    let groups = crds.get_metadata_opt(&groups).await.is_ok_and(|found| found.is_some());
    served(&missing, groups)
}

fn served(missing: &[String], groups: bool) -> Finding {
    match missing.len() {
        0 if groups => Finding::pass("snapshots", "the cluster has CSI snapshots, single and of groups"),
        0 => Finding::pass("snapshots", "the cluster has CSI snapshots, single ones only"),
        all if all == CRDS.len() => Finding::pass(
            "snapshots",
            "the cluster has no CSI snapshots (external-snapshotter): there is nothing to hold for",
        ),
        _ => Finding::fail(
            "snapshots",
            format!("CRD {} is not there", missing.join(", ")),
            "apply all CRDs of one version of external-snapshotter",
        ),
    }
}

/// Whom the Service leads to.
async fn endpoints(client: &Client, home: &str) -> Finding {
    match ready(client, home).await {
        Ok(ready) => reached(home, ready),
        Err(error) => Finding::unseen("webhooks", &format!("EndpointSlices of {home}/{NAME}"), &error),
    }
}

/// How many webhooks there are that are ready.
pub(crate) async fn ready(client: &Client, home: &str) -> Result<usize, kube::Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), home);
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={NAME}"));
    Ok(leads_to(&slices.list(&of).await?.items))
}

fn leads_to(slices: &[EndpointSlice]) -> usize {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    // Without a word it counts as ready (EndpointConditions, discovery.k8s.io/v1).
    let ready = |conditions: Option<bool>| conditions != Some(false);
    endpoints.filter(|one| ready(one.conditions.as_ref().and_then(|conditions| conditions.ready))).count()
}

fn reached(home: &str, ready: usize) -> Finding {
    match ready {
        0 => Finding::fail(
            "webhooks",
            format!(
                "Service {home}/{NAME} leads to nobody: nothing is held for a snapshot, and what is Required is refused"
            ),
            format!(
                "kubectl -n {home} describe pods -l app.kubernetes.io/component=webhooks; in ContainerCreating they wait for \
                 Secret {SERVING}, which a replica of {ACCOUNT} makes"
            ),
        ),
        ready => Finding::pass("webhooks", format!("Service {home}/{NAME} leads to {ready}")),
    }
}

/// What they show to kube-apiserver.
fn certificate(home: &str, secret: Option<&Secret>, now: Timestamp) -> Finding {
    let about = format!("Secret {home}/{SERVING}");
    let fix =
        format!("a replica that leads makes it anew; see the log of {ACCOUNT}: it may not be able to write Secrets");
    let Some(pem) = secret.and_then(|secret| text(secret, "tls.crt")) else {
        return Finding::fail("certificate", format!("{about} has no certificate: the webhooks cannot start"), fix);
    };
    match certs::validity(&pem) {
        Err(error) => Finding::fail("certificate", format!("{about} cannot be read: {error}"), fix),
        Ok((_, until)) if until <= now => Finding::fail("certificate", format!("{about} was valid until {until}"), fix),
        Ok((_, until)) if until <= now + (NEAR_DAYS * 24).hours() => {
            Finding::warn("certificate", format!("{about} is valid until {until} only"), fix)
        }
        Ok((_, until)) => Finding::pass("certificate", format!("the webhooks' is valid until {until}")),
    }
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok()
}

#[cfg(test)]
mod tests {
    use api::CheckResult;
    use k8s_openapi::ByteString;
    use serde_json::{Value, from_value, json};

    use super::*;

    fn secret(of: &[(&str, &str)]) -> Secret {
        let data = of.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    fn server(arguments: &[&str]) -> Deployment {
        let container = json!({"name": "c", "args": arguments});
        from_value(json!({"spec": {"selector": {}, "template": {"spec": {"containers": [container]}}}})).unwrap()
    }

    #[test]
    fn without_webhooks_all_is_well_when_nothing_of_them_is_left() {
        let with = |arguments: &[&str], deployment: bool, configured: bool| Found {
            gates: Some(answers_at_gates(&server(arguments))),
            deployment: deployment.then(Deployment::default),
            configurations: Configurations {
                validating: configured.then(ValidatingWebhookConfiguration::default),
                mutating: None,
            },
        };
        let told = |found: &Found| off(found).map(|finding| finding.result);
        assert_eq!(told(&with(&["--listen=1"], false, false)), Some(CheckResult::Pass));
        assert_eq!(told(&with(&["--listen=1"], false, true)), Some(CheckResult::Fail));
        assert_eq!(told(&with(&["--listen=1"], true, false)), Some(CheckResult::Fail));
        assert_eq!(told(&with(&["--listen=1", "--gates-listen=0.0.0.0:8443"], false, false)), None);
        let nobody_knows = Found { gates: None, deployment: None, configurations: Configurations::default() };
        assert_eq!(told(&nobody_knows), None);
    }

    #[test]
    fn a_certificate_is_there_and_not_at_its_end() {
        let (authority, _) = certs::Authority::create("a", Timestamp::UNIX_EPOCH).unwrap();
        let names = certs::Names { dns: vec!["a".to_owned()], addresses: Vec::new() };
        let pair = authority.serve(&names, Timestamp::UNIX_EPOCH, std::time::Duration::from_secs(7 * 86400)).unwrap();
        let shown = secret(&[("tls.crt", &pair.certificate)]);
        let at = |days: i64| Timestamp::UNIX_EPOCH + (days * 24).hours();
        assert_eq!(certificate("home", Some(&shown), at(1)).result, CheckResult::Pass);
        assert_eq!(certificate("home", Some(&shown), at(6)).result, CheckResult::Warn);
        assert_eq!(certificate("home", Some(&shown), at(8)).result, CheckResult::Fail);
        assert_eq!(certificate("home", Some(&secret(&[("tls.crt", "none")])), at(1)).result, CheckResult::Fail);
        assert_eq!(certificate("home", None, at(1)).result, CheckResult::Fail);
    }

    #[test]
    fn somebody_who_is_ready_is_led_to() {
        let slice = |ready: Value| -> EndpointSlice {
            let endpoint = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": ready}});
            from_value(json!({"addressType": "IPv4", "endpoints": [endpoint]})).unwrap()
        };
        assert_eq!(reached("home", leads_to(&[])).result, CheckResult::Fail);
        assert_eq!(reached("home", leads_to(&[slice(json!(false))])).result, CheckResult::Fail);
        assert_eq!(reached("home", leads_to(&[slice(json!(false)), slice(json!(true))])).result, CheckResult::Pass);
        assert_eq!(reached("home", leads_to(&[slice(Value::Null)])).result, CheckResult::Pass);
    }

    #[test]
    fn a_cluster_has_snapshots_or_none_and_half_of_them_is_a_fault() {
        let missing = |count: usize| CRDS[..count].iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(served(&missing(0), true).message.contains("of groups"));
        assert_eq!(served(&missing(1), true).result, CheckResult::Fail);
        let none = served(&missing(3), false);
        assert!(none.result == CheckResult::Pass && none.message.contains("nothing to hold for"), "{none:?}");
    }
}
