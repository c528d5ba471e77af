//! Which claims a Snapshot is of, and what their copies are called. Pure.

use std::collections::BTreeMap;

use api::{Database, SnapshotVolume, conditions::reasons};
use sha2::{Digest, Sha256};
use topology::{Index, NoData};

/// Why it is not known of what a Snapshot is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The longest name of an object.
const LONGEST: usize = 253;

/// One for each claim, in the order of their names; Databases may share one. And what a person should know of them.
pub(super) fn claims(
    index: &Index,
    namespace: &str,
    snapshot: &str,
    databases: &[&Database],
) -> Result<(Vec<SnapshotVolume>, Vec<String>), Unknown> {
    let mut volumes: BTreeMap<String, SnapshotVolume> = BTreeMap::new();
    let mut warnings = Vec::new();
    for database in databases {
        let name = database.metadata.name.as_deref().unwrap_or_default();
        let data = index.data(namespace, database).map_err(|why| unknown(name, why))?;
        if !data.others.is_empty() {
            let others = data.others.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            warnings.push(format!(
                "Database {name} writes to volumes without a claim, too, which are not in it: {others} of Pod {}",
                data.pod
            ));
        }
        for claim in data.claims {
            let volume = volumes.entry(claim.clone()).or_insert_with(|| SnapshotVolume {
                claim,
                pod: data.pod.clone(),
                ..SnapshotVolume::default()
            });
            volume.databases.push(name.to_owned());
        }
    }
    let is_one = volumes.len() == 1;
    for (claim, volume) in &mut volumes {
        volume.volume_snapshot = if is_one { snapshot.to_owned() } else { joined(snapshot, claim) };
    }
    Ok((volumes.into_values().collect(), warnings))
}

/// `NAME-CLAIM`, always the same for the same two; where that is too long, its beginning and a digest.
pub(super) fn joined(name: &str, claim: &str) -> String {
    let whole = format!("{name}-{claim}");
    if whole.len() <= LONGEST {
        return whole;
    }
    let digest = Sha256::digest(&whole).iter().take(5).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let begin: String = whole.chars().take(LONGEST - digest.len() - 1).collect();
    format!("{}-{digest}", begin.trim_end_matches(['-', '.']))
}

fn unknown(database: &str, why: NoData) -> Unknown {
    let message = match why {
        NoData::NoPod => format!(
            "no Pod runs that is behind Database {database}: a VolumeSnapshot is of a Pod's volumes in this cluster; start it, or see to \
             which Pods its endpoint leads"
        ),
        NoData::NoMember => format!(
            "Database {database} has several members, and none is known to have the role of spec.freeze.target.role: give its Pods \
             agents, or register each member by an address that leads to it alone"
        ),
        NoData::NoClaim(pod) => format!(
            "Pod {pod} of Database {database} writes to no PersistentVolumeClaim: there is nothing to take a VolumeSnapshot of"
        ),
    };
    Unknown { reason: reasons::NOT_FOUND, message }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn pod(app: &str, claims: &[&str]) -> Pod {
        let mounts: Vec<Value> = claims.iter().map(|claim| json!({"name": claim, "mountPath": "/x"})).collect();
        let volumes: Vec<Value> =
            claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": app, "namespace": "shop", "labels": {"app": app}},
            "spec": {"containers": [{"name": "db", "volumeMounts": mounts}], "volumes": volumes},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        }))
        .unwrap()
    }

    fn database(name: &str, app: &str) -> Database {
        serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": app}}},
        }))
        .unwrap()
    }

    #[test]
    fn each_claim_has_one_copy_and_each_copy_its_name() {
        let mut index = Index::new("cluster.local".to_owned());
        index.put_pod(&pod("orders", &["data"]));
        index.put_pod(&pod("stock", &["stock", "stock-wal"]));
        let (orders, shared, stock) =
            (database("orders", "orders"), database("billing", "orders"), database("stock", "stock"));
        let named = |databases: &[&Database]| -> Vec<(String, String, String)> {
            let (volumes, warnings) = claims(&index, "shop", "noon", databases).unwrap();
            assert_eq!(warnings, [""; 0]);
            let one = |volume: SnapshotVolume| (volume.claim, volume.volume_snapshot, volume.databases.join(","));
            volumes.into_iter().map(one).collect()
        };
        let of = |claim: &str, name: &str, databases: &str| (claim.to_owned(), name.to_owned(), databases.to_owned());
        assert_eq!(named(&[&orders]), [of("data", "noon", "orders")]);
        assert_eq!(named(&[&orders, &shared]), [of("data", "noon", "orders,billing")]);
        assert_eq!(
            named(&[&stock, &orders]),
            [
                of("data", "noon-data", "orders"),
                of("stock", "noon-stock", "stock"),
                of("stock-wal", "noon-stock-wal", "stock")
            ]
        );
        let nowhere = database("gone", "gone");
        let why = claims(&index, "shop", "noon", &[&orders, &nowhere]).unwrap_err();
        assert!(why.message.contains("no Pod runs that is behind Database gone"), "{why:?}");
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_and_stays_its_own() {
        let long = "x".repeat(200);
        let (one, other) = (joined(&long, &format!("{long}a")), joined(&long, &format!("{long}b")));
        assert!(one.len() <= LONGEST && other.len() <= LONGEST && one != other);
        assert_eq!(one, joined(&long, &format!("{long}a")));
    }
}
