//! Whether the cluster lets Stillpoint's account do what it needs: asked of the cluster itself, right by right.

use api::install::{self, AT_HOME, ENABLED, EVERYWHERE, REVIEWS, Rule, TRUST};
use futures::{StreamExt, TryStreamExt, stream};
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
    vec![match missing(client, &user, rights).await {
        Ok(missing) => told(&user, all, &missing),
        Err(error) => Finding::unseen("rights", UNSEEN, &error),
    }]
}

/// Whether it may make in a namespace what copies are made of, and read what they need.
pub(super) async fn copies(client: &Client, home: &str, namespace: &str) -> Finding {
    let user = install::account_user(home);
    let rights: Vec<Right> = ENABLED.iter().flat_map(|rule| rights_of(Some(namespace), rule)).collect();
    let all = rights.len();
    match missing(client, &user, rights).await {
        Ok(missing) => told_of_copies(namespace, all, &missing),
        Err(error) => Finding::unseen("copies", UNSEEN, &error),
    }
}

const UNSEEN: &str = "what others may (SubjectAccessReview)";

/// Those that it has not, as they are told.
async fn missing(client: &Client, user: &str, rights: Vec<Right>) -> Result<Vec<String>, kube::Error> {
    let asked = rights.into_iter().map(|right| async move {
        let may = may(client, user, attributes(&right)).await?;
        Ok::<_, kube::Error>((!may).then(|| right.told()))
    });
    let answers: Vec<Option<String>> = stream::iter(asked).buffer_unordered(AT_ONCE).try_collect().await?;
    let mut missing: Vec<String> = answers.into_iter().flatten().collect();
    missing.sort();
    Ok(missing)
}

fn told_of_copies(namespace: &str, all: usize, missing: &[String]) -> Finding {
    match missing.len() {
        0 => Finding::pass("copies", format!("Stillpoint has the {all} rights that copies need in it")),
        // What lets it in is there, and is older than what is installed.
        some if some < all => {
            let message = format!("Stillpoint may not: {}", missing.join("; "));
            Finding::fail("copies", message, RIGHTS)
        }
        _ => {
            let message = "there are copies in it, and Stillpoint was not let in: it makes no Jobs, VolumeSnapshots and claims there";
            Finding::fail("copies", message, format!("kubectl still enable {namespace}"))
        }
    }
}

const RIGHTS: &str = "kubectl apply -f deploy/apiserver/rights.yaml, or helm upgrade";

fn told(user: &str, all: usize, missing: &[String]) -> Finding {
    if missing.is_empty() {
        return Finding::pass("rights", format!("{user} has the {all} rights that it needs"));
    }
    let message = format!("{user} may not: {}", missing.join("; "));
    Finding::fail("rights", message, RIGHTS)
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
    let everywhere = EVERYWHERE.iter().chain(&REVIEWS).flat_map(|rule| rights_of(None, rule));
    let here = AT_HOME.iter().flat_map(|rule| rights_of(Some(home), rule));
    let trust = rights_of(Some("kube-system"), &TRUST);
    everywhere.chain(here).chain(trust).collect()
}

fn rights_of(namespace: Option<&str>, rule: &Rule) -> Vec<Right> {
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
    #[test]
    fn of_copies_it_is_told_whether_it_was_let_in_and_what_it_may_not_though_it_was() {
        let rights: Vec<String> =
            ENABLED.iter().flat_map(|rule| rights_of(Some("shop"), rule)).map(|right| right.told()).collect();
        for right in ["create jobs.batch in shop", "get pods/log in shop", "create persistentvolumeclaims in shop"] {
            assert!(rights.iter().any(|told| told == right), "{right} in {rights:?}");
        }
        let all = rights.len();
        assert_eq!(told_of_copies("shop", all, &[]).result, api::CheckResult::Pass);
        let none = told_of_copies("shop", all, &rights);
        assert_eq!(none.fix.as_deref(), Some("kubectl still enable shop"));
        let some = told_of_copies("shop", all, &rights[1..2]);
        assert!(some.message.contains(&rights[1]) && some.fix.is_some_and(|fix| fix.contains("rights.yaml")));
    }
}
