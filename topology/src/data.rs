//! The way back: Database → the member that is held → the claims that its data is on. Pure; by the same rules as what is asked
//! before a cut, so that what is taken for a Database is what is held for.

use std::collections::BTreeSet;

use api::Database;

use super::{Index, Standing, unrelated};

/// What a Database has its data on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The member that is held.
    pub pod: String,
    /// PersistentVolumeClaims.
    pub claims: BTreeSet<String>,
    /// Other volumes that it writes to, by their names in the Pod: nobody can snapshot them.
    pub others: BTreeSet<String>,
}

/// Why that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoData {
    /// No Pod that runs is behind its endpoint, or has its labels.
    NoPod,
    /// Of several members none is known to have the role that is held.
    NoMember,
    /// Its Pod, which writes to no claim.
    NoClaim(String),
}

impl Index {
    /// Of several members the first that has the role of `spec.freeze.target`.
    pub fn data(&self, namespace: &str, database: &Database) -> Result<Data, NoData> {
        let members = self.members(namespace, database);
        if members.is_empty() {
            return Err(NoData::NoPod);
        }
        let meant = |pod: &String| self.standing(namespace, database, pod) == Standing::Meant;
        let pod = members.into_iter().find(meant).ok_or(NoData::NoMember)?;
        let place = self.pod(namespace, &pod).ok_or(NoData::NoPod)?;
        let unrelated = unrelated(database);
        let related = |all: &BTreeSet<String>| -> BTreeSet<String> {
            all.iter().filter(|volume| !unrelated.contains(volume.as_str())).cloned().collect()
        };
        let (claims, others) = (related(&place.claims), related(&place.others));
        if claims.is_empty() {
            return Err(NoData::NoClaim(pod));
        }
        Ok(Data { pod, claims, others })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, claims: &[&str]) -> Pod {
        let mounts: Vec<Value> = claims.iter().map(|claim| json!({"name": claim, "mountPath": "/x"})).collect();
        let volumes: Vec<Value> =
            claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "orders"}},
            "spec": {"containers": [{"name": "db", "volumeMounts": mounts}], "volumes": volumes},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        }))
        .unwrap()
    }

    fn database(role: &str, members: &[(&str, &str)], annotations: Value) -> Database {
        let members: Vec<Value> = members
            .iter()
            .map(|(name, role)| json!({"name": name, "role": role, "version": "15", "id": "1"}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": "orders", "namespace": "shop", "annotations": annotations},
            "spec": {
                "engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": "orders"}},
                "freeze": {"target": {"role": role}},
            },
            "status": {"members": members},
        }))
        .unwrap()
    }

    #[test]
    fn the_claims_are_those_of_the_member_that_is_held() {
        let mut index = Index::new("cluster.local".to_owned());
        let none = json!({});
        assert_eq!(index.data("shop", &database("Primary", &[], none.clone())), Err(NoData::NoPod));
        index.put_pod(&pod("a", &["data-a", "wal-a", "cache"]));
        let unrelated = json!({"stillpoint.dev/unrelated-claims": "cache"});
        let of = |claims: &[&str], pod: &str| {
            let claims = claims.iter().map(|claim| (*claim).to_owned()).collect();
            Ok(Data { pod: pod.to_owned(), claims, others: BTreeSet::new() })
        };
        assert_eq!(index.data("shop", &database("Primary", &[], unrelated)), of(&["data-a", "wal-a"], "a"));
        index.put_pod(&pod("b", &["data-b"]));
        assert_eq!(index.data("shop", &database("Primary", &[], none.clone())), Err(NoData::NoMember));
        let both = [("a", "Primary"), ("b", "Replica")];
        assert_eq!(index.data("shop", &database("Replica", &both, none.clone())), of(&["data-b"], "b"));
        assert_eq!(index.data("other", &database("Replica", &both, none.clone())), Err(NoData::NoPod));
        let mut index = Index::new("cluster.local".to_owned());
        index.put_pod(&pod("a", &[]));
        assert_eq!(index.data("shop", &database("Primary", &[], none)), Err(NoData::NoClaim("a".to_owned())));
    }
}
