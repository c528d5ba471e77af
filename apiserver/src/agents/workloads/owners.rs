//! Who makes Pods, as far as members of a database go: StatefulSets and Deployments that are nobody else's.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet, StatefulSet},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::{Api, Client};
use topology::Asks;

/// What Pods are made by, as they say it themselves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) owner: Owner,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Owner {
    pub(super) kind: Kind,
    pub(super) name: String,
    uid: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    StatefulSet,
    /// Of a Deployment.
    ReplicaSet,
}

/// What a Database is made of.
pub(super) struct Owned {
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// Its Pods, and nobody else's.
    pub(super) selector: LabelSelector,
}

const APPS: &str = "apps/v1";

impl Workload {
    /// `None`: of a Pod alone, a Job or an operator's own kind nobody knows who its members are.
    pub(super) fn of(namespace: &str, asks: &Asks) -> Option<Self> {
        let owner = asks.owner.as_ref().filter(|owner| owner.api_version == APPS)?;
        let kind = match owner.kind.as_str() {
            "StatefulSet" => Kind::StatefulSet,
            "ReplicaSet" => Kind::ReplicaSet,
            _ => return None,
        };
        let owner = Owner { kind, name: owner.name.clone(), uid: owner.uid.clone() };
        Some(Self { namespace: namespace.to_owned(), owner })
    }
}

/// `None`: it is gone, or going, or somebody else's, who knows better.
pub(super) async fn owned(client: &Client, workload: &Workload) -> Result<Option<Owned>, String> {
    let Workload { namespace, owner } = workload;
    let unread = |error: kube::Error| format!("{:?} {} could not be read: {error}", owner.kind, owner.name);
    match owner.kind {
        Kind::StatefulSet => {
            let found = Api::<StatefulSet>::namespaced(client.clone(), namespace).get_opt(&owner.name).await;
            let found = found.map_err(unread)?.filter(|found| is_its_own(&found.metadata, Some(&owner.uid)));
            let selector = found.and_then(|found| found.spec).map(|spec| spec.selector);
            Ok(selector.map(|selector| Owned { kind: "StatefulSet", name: owner.name.clone(), selector }))
        }
        Kind::ReplicaSet => {
            let found = Api::<ReplicaSet>::namespaced(client.clone(), namespace).get_opt(&owner.name).await;
            let found = found.map_err(unread)?.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid));
            let Some(deployment) = found.and_then(|found| controller(&found.metadata)) else { return Ok(None) };
            let found = Api::<Deployment>::namespaced(client.clone(), namespace).get_opt(&deployment.name).await;
            let found = found.map_err(unread)?.filter(|found| is_its_own(&found.metadata, Some(&deployment.uid)));
            let selector = found.and_then(|found| found.spec).map(|spec| spec.selector);
            Ok(selector.map(|selector| Owned { kind: "Deployment", name: deployment.name, selector }))
        }
    }
}

/// The Deployment that a ReplicaSet is of.
pub(super) async fn deployment(
    client: &Client,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<OwnerReference>, kube::Error> {
    if owner.kind != "ReplicaSet" || owner.api_version != APPS {
        return Ok(None);
    }
    let found = Api::<ReplicaSet>::namespaced(client.clone(), namespace).get_opt(&owner.name).await?;
    Ok(found.and_then(|found| controller(&found.metadata)))
}

fn controller(metadata: &ObjectMeta) -> Option<OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true)).cloned()
}

/// That very one, which nobody else controls, and which stays.
fn is_its_own(metadata: &ObjectMeta, uid: Option<&String>) -> bool {
    metadata.uid.as_ref() == uid && metadata.deletion_timestamp.is_none() && controller(metadata).is_none()
}

#[cfg(test)]
mod tests {
    use api::inject::Policy;

    use super::*;

    fn owner(api_version: &str, kind: &str) -> OwnerReference {
        OwnerReference {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: "orders".to_owned(),
            uid: "u".to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }
    }

    #[test]
    fn members_are_known_of_what_kubernetes_itself_makes_and_of_nothing_else() {
        let of = |owner: Option<OwnerReference>| {
            let asks = Asks { uid: "p".to_owned(), owner, skipped: None, policy: Policy::default() };
            Workload::of("shop", &asks).map(|workload| workload.owner.kind)
        };
        assert_eq!(of(Some(owner(APPS, "StatefulSet"))), Some(Kind::StatefulSet));
        assert_eq!(of(Some(owner(APPS, "ReplicaSet"))), Some(Kind::ReplicaSet));
        for other in [
            owner("apps.kruise.io/v1", "StatefulSet"),
            owner("batch/v1", "Job"),
            owner("postgresql.cnpg.io/v1", "Cluster"),
        ] {
            assert_eq!(of(Some(other)), None);
        }
        assert_eq!(of(None), None, "a Pod alone");
    }

    #[test]
    fn what_somebody_else_controls_or_what_goes_is_not_its_own() {
        let uid = "u".to_owned();
        let own = ObjectMeta { uid: Some(uid.clone()), ..ObjectMeta::default() };
        assert!(is_its_own(&own, Some(&uid)));
        assert!(!is_its_own(&own, Some(&"another".to_owned())));
        let operators = ObjectMeta { owner_references: Some(vec![owner("example.org/v1", "Postgres")]), ..own.clone() };
        assert!(!is_its_own(&operators, Some(&uid)));
        let going = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
        assert!(!is_its_own(&ObjectMeta { deletion_timestamp: Some(going), ..own }, Some(&uid)));
    }
}
