//! What a namespace and a snapshot say of how they want to be treated, and whose snapshot it is. Pure.

use std::{collections::BTreeMap, time::Duration};

use api::gate::{DEADLINE_SECONDS, ON_MISSED, POLICY, QUIESCE, REQUIRED, SKIP};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What becomes of a snapshot whose databases could not be held in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnMissed {
    /// It is never cut.
    Fail,
    /// It is cut as it is, and says so.
    Keep,
}

/// Of a Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespacePolicy {
    /// No copy is wanted that is not consistent.
    pub(crate) required: bool,
    on_missed: Option<OnMissed>,
    deadline: Option<Duration>,
}

/// How a snapshot is to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Its databases are held for it.
    Hold,
    /// It does not want to be waited for.
    Skip,
    /// Another operator's, which makes it consistent itself; its name.
    Foreign(&'static str),
}

/// How long a snapshot that has to be consistent is tried for, unless somebody says.
pub(super) const DEADLINE: Duration = Duration::from_secs(300);

/// An operator that holds its own databases for the snapshots that it takes, and how those are known.
struct Operator {
    name: &'static str,
    /// API groups of the owner of its snapshots, and of groups below these.
    owners: &'static [&'static str],
    /// Labels or annotations that it alone sets on them.
    marks: &'static [&'static str],
}

/// From their sources: CloudNativePG `pkg/utils/labels_annotations.go`, whose snapshots may have no owner; mariadb-operator
/// `internal/controller/physicalbackup_controller_snapshot.go`. Of the others only their API groups are known to us.
const OPERATORS: [Operator; 4] = [
    Operator { name: "CloudNativePG", owners: &["postgresql.cnpg.io"], marks: &["cnpg.io/backupName"] },
    Operator {
        name: "EDB Postgres for Kubernetes",
        owners: &["postgresql.k8s.enterprisedb.io"],
        marks: &["k8s.enterprisedb.io/backupName"],
    },
    Operator { name: "mariadb-operator", owners: &["k8s.mariadb.com"], marks: &[] },
    Operator { name: "a Percona operator", owners: &["percona.com"], marks: &[] },
];

impl NamespacePolicy {
    pub(crate) fn read(metadata: &ObjectMeta) -> Self {
        let (on_missed, deadline) = missed(metadata.annotations.as_ref());
        Self { required: text(metadata.labels.as_ref(), POLICY) == Some(REQUIRED), on_missed, deadline }
    }

    /// Whatever the label says: the API server was told so.
    pub(super) fn or_required(self, required: bool) -> Self {
        Self { required: self.required || required, ..self }
    }

    /// What becomes of a snapshot that could not be held until now. The snapshot's own word goes before the namespace's.
    pub(super) fn missed(&self, snapshot: Option<&ObjectMeta>, now: Timestamp) -> Missed {
        let said = snapshot.and_then(|metadata| metadata.annotations.as_ref());
        let (on_missed, deadline) = missed(said);
        let deadline = deadline.or(self.deadline).unwrap_or(DEADLINE);
        let made = snapshot.and_then(|metadata| metadata.creation_timestamp.as_ref()).map(|made| made.0);
        let over = made.is_some_and(|made| now.duration_since(made).unsigned_abs() >= deadline);
        match (over, on_missed.or(self.on_missed).unwrap_or(OnMissed::Fail)) {
            (false, _) => Missed::Again { within: deadline },
            (true, OnMissed::Keep) => Missed::Kept { after: deadline },
            (true, OnMissed::Fail) => Missed::Failed { after: deadline },
        }
    }
}

/// Of a snapshot that has to be consistent, and is not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    Again { within: Duration },
    Kept { after: Duration },
    Failed { after: Duration },
}

/// Of a snapshot; `None`: it could not be read, or is gone.
pub(super) fn treatment(snapshot: Option<&ObjectMeta>) -> Treatment {
    let Some(metadata) = snapshot else { return Treatment::Hold };
    if text(metadata.annotations.as_ref(), QUIESCE) == Some(SKIP) {
        return Treatment::Skip;
    }
    let operator = OPERATORS.iter().find(|operator| operator.made(metadata));
    operator.map_or(Treatment::Hold, |operator| Treatment::Foreign(operator.name))
}

impl Operator {
    fn made(&self, metadata: &ObjectMeta) -> bool {
        let marked = |mark: &&str| {
            [&metadata.labels, &metadata.annotations].into_iter().any(|all| text(all.as_ref(), mark).is_some())
        };
        let owned = |group: &str| {
            let is_in = |of: &str| group.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            self.owners.iter().any(|of| is_in(of))
        };
        let owners = metadata.owner_references.as_ref().into_iter().flatten();
        let groups = owners.filter_map(|owner| owner.api_version.split_once('/')).map(|(group, _)| group);
        self.marks.iter().any(marked) || groups.into_iter().any(owned)
    }
}

/// What nobody can read is as if it were not there.
fn missed(annotations: Option<&BTreeMap<String, String>>) -> (Option<OnMissed>, Option<Duration>) {
    let on_missed = match text(annotations, ON_MISSED) {
        Some("Fail") => Some(OnMissed::Fail),
        Some("Keep") => Some(OnMissed::Keep),
        _ => None,
    };
    let seconds = text(annotations, DEADLINE_SECONDS).and_then(|seconds| seconds.parse::<u32>().ok());
    (on_missed, seconds.map(|seconds| Duration::from_secs(seconds.into())))
}

fn text<'a>(all: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    all?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_snapshot_of_another_operator_is_known_by_its_owner_or_its_mark_and_no_other_is() {
        let owned = |api_version: &str| json!({"ownerReferences": [{"apiVersion": api_version, "kind": "X", "name": "x", "uid": "u"}]});
        for (snapshot, expected) in [
            (json!({}), Treatment::Hold),
            (json!({"annotations": {QUIESCE: "skip"}}), Treatment::Skip),
            (json!({"annotations": {QUIESCE: "yes"}}), Treatment::Hold),
            (json!({"labels": {"cnpg.io/backupName": "b"}}), Treatment::Foreign("CloudNativePG")),
            // On every claim of a cluster, and so on what Velero makes of one.
            (json!({"labels": {"cnpg.io/cluster": "c"}}), Treatment::Hold),
            (json!({"labels": {"velero.io/backup-name": "b"}}), Treatment::Hold),
            (owned("postgresql.cnpg.io/v1"), Treatment::Foreign("CloudNativePG")),
            (owned("k8s.mariadb.com/v1alpha1"), Treatment::Foreign("mariadb-operator")),
            (owned("psmdb.percona.com/v1"), Treatment::Foreign("a Percona operator")),
            (owned("notpercona.com/v1"), Treatment::Hold),
            (owned("v1"), Treatment::Hold),
        ] {
            assert_eq!(treatment(Some(&metadata(snapshot.clone()))), expected, "{snapshot}");
        }
        assert_eq!(treatment(None), Treatment::Hold);
    }

    #[test]
    fn what_is_missed_is_tried_again_until_its_deadline_and_then_is_as_was_said() {
        let made = "2026-01-01T00:00:00Z";
        let namespace = |annotations: Value| {
            NamespacePolicy::read(&metadata(json!({"labels": {POLICY: REQUIRED}, "annotations": annotations})))
        };
        let keep = json!({ON_MISSED: "Keep", DEADLINE_SECONDS: "10"});
        let at = |second: i64| made.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second);
        let seconds = Duration::from_secs;
        for (namespaces, own, second, missed) in [
            (json!({}), json!({}), 299, Missed::Again { within: DEADLINE }),
            (json!({}), json!({}), 300, Missed::Failed { after: DEADLINE }),
            (keep.clone(), json!({}), 9, Missed::Again { within: seconds(10) }),
            (keep.clone(), json!({}), 10, Missed::Kept { after: seconds(10) }),
            (keep.clone(), json!({ON_MISSED: "Fail"}), 10, Missed::Failed { after: seconds(10) }),
            (keep.clone(), json!({DEADLINE_SECONDS: "20"}), 10, Missed::Again { within: seconds(20) }),
            (keep, json!({ON_MISSED: "?", DEADLINE_SECONDS: "-1"}), 10, Missed::Kept { after: seconds(10) }),
        ] {
            let snapshot = metadata(json!({"creationTimestamp": made, "annotations": own}));
            assert_eq!(namespace(namespaces).missed(Some(&snapshot), at(second)), missed, "{own} at {second}");
        }
        let of_nobody = namespace(json!({})).missed(None, at(1_000));
        assert_eq!(of_nobody, Missed::Again { within: DEADLINE }, "nobody knows since when");
    }

    #[test]
    fn a_namespace_that_says_nothing_is_preferred() {
        assert_eq!(
            NamespacePolicy::read(&metadata(json!({"labels": {POLICY: "Preferred"}}))),
            NamespacePolicy::default()
        );
        assert!(NamespacePolicy::read(&metadata(json!({"labels": {POLICY: REQUIRED}}))).required);
    }
}
