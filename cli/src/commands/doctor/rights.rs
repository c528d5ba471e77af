//! Whether the cluster lets Stillpoint's account do what it needs: asked of the cluster itself, right by right.

use api::install::{self, AT_HOME, EVERYWHERE, REVIEWS, Rule, TRUST};
use futures::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

use super::Finding;

/// Questions that are asked at once.
const AT_ONCE: usize = 8;

/// One right.
#[derive(Clone, Debug)]
struct Right {
    namespace: Option<String>,
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
    name: Option<&'static str>,
}

impl Right {
    fn told(&self) -> String {
        let of = self.namespace.as_ref().map(|namespace| format!(" in {namespace}")).unwrap_or_default();
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let name = self.name.map(|name| format!(" {name}")).unwrap_or_default();
        format!("{} {}{group}{name}{of}", self.verb, self.resource)
    }
}

pub(super) async fn look(client: &Client, home: &str) -> Vec<Finding> {
    let user = install::account_user(home);
    let rights = wanted(home);
    let all = rights.len();
    let asked = rights.into_iter().map(|right| async {
        let may = may(client, &user, attributes(&right)).await;
        (right, may)
    });
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    if let Some((_, Err(error))) = answers.iter().find(|(_, may)| may.is_err()) {
        return vec![Finding::unseen("rights", "what others may (SubjectAccessReview)", error)];
    }
    let mut missing: Vec<String> =
        answers.iter().filter(|(_, may)| !may.as_ref().is_ok_and(|may| *may)).map(|(right, _)| right.told()).collect();
    missing.sort();
    vec![told(&user, all, &missing)]
}

fn told(user: &str, all: usize, missing: &[String]) -> Finding {
    if missing.is_empty() {
        return Finding::pass("rights", format!("{user} has the {all} rights that it needs"));
    }
    let message = format!("{user} may not: {}", missing.join("; "));
    Finding::fail("rights", message, "kubectl apply -f deploy/apiserver/rights.yaml, or helm upgrade")
}

/// The question that decides whether a Database's Secret can be read.
pub(super) async fn reads_secret(
    client: &Client,
    home: &str,
    namespace: &str,
    name: &str,
) -> Result<bool, kube::Error> {
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        resource: Some("secrets".to_owned()),
        verb: Some("get".to_owned()),
        name: Some(name.to_owned()),
        ..ResourceAttributes::default()
    };
    may(client, &install::account_user(home), attributes).await
}

fn wanted(home: &str) -> Vec<Right> {
    let of = |namespace: Option<&str>, rule: &Rule| -> Vec<Right> {
        let names: Vec<_> = match rule.names() {
            all if all.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        let mut rights = Vec::new();
        for resource in rule.resources() {
            for verb in rule.verbs() {
                let right =
                    |name| Right { namespace: namespace.map(str::to_owned), group: rule.group, resource, verb, name };
                rights.extend(names.iter().copied().map(right));
            }
        }
        rights
    };
    let everywhere = EVERYWHERE.iter().chain(&REVIEWS).flat_map(|rule| of(None, rule));
    let here = AT_HOME.iter().flat_map(|rule| of(Some(home), rule));
    let trust = of(Some("kube-system"), &TRUST);
    everywhere.chain(here).chain(trust).collect()
}

fn attributes(right: &Right) -> ResourceAttributes {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    ResourceAttributes {
        namespace: right.namespace.clone(),
        group: Some(right.group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: Some(subresource.to_owned()).filter(|subresource| !subresource.is_empty()),
        verb: Some(right.verb.to_owned()),
        name: right.name.map(str::to_owned),
        ..ResourceAttributes::default()
    }
}

async fn may(client: &Client, user: &str, attributes: ResourceAttributes) -> Result<bool, kube::Error> {
    let (namespace, name) = user.trim_start_matches("system:serviceaccount:").split_once(':').unwrap_or_default();
    debug_assert!(!name.is_empty(), "a ServiceAccount's name");
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            groups: Some(groups.into()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_right_is_asked_for_by_itself_and_those_that_are_missing_are_named() {
        let rights = wanted("home");
        let told_of: Vec<String> = rights.iter().map(Right::told).collect();
        for right in [
            "patch freezes/status.stillpoint.dev",
            "update leases.coordination.k8s.io in home",
            "create subjectaccessreviews.authorization.k8s.io",
            "watch configmaps extension-apiserver-authentication in kube-system",
            "create secrets in home",
            "update secrets stillpoint-apiserver-ca in home",
            "update secrets stillpoint-webhooks-tls in home",
            "watch namespaces",
            "patch volumesnapshotcontents.snapshot.storage.k8s.io",
            "patch validatingwebhookconfigurations.admissionregistration.k8s.io stillpoint-webhooks",
            "get customresourcedefinitions.apiextensions.k8s.io freezes.stillpoint.dev",
        ] {
            assert!(told_of.iter().any(|told| told == right), "{right} in {told_of:?}");
        }
        let status = attributes(rights.iter().find(|right| right.resource == "freezes/status").unwrap());
        assert_eq!((status.resource.as_deref(), status.subresource.as_deref()), (Some("freezes"), Some("status")));
        assert_eq!(told("us", 9, &[]).result, api::CheckResult::Pass);
        let missing = told("us", 9, &["get secrets in home".to_owned()]);
        assert!(missing.result == api::CheckResult::Fail && missing.message.contains("get secrets in home"));
    }
}
