//! Right before a cut: which Databases have data on the volumes, and holding them.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    Database, Level, Quiesce, QuiesceSpec, QuiesceStatus,
    gate::{Gate, GateAnswer, GateDecision, GateRequest, Group, ON_MISSED, RETRY_AFTER_SECONDS, TRY_AGAIN},
};

use jiff::Timestamp;
use topology::{Holds, Index, Name};

use super::policy::Missed;

/// What a cut asks for; pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing of ours is on these volumes, and nobody waits for us.
    Nothing(Why),
    Hold(Together),
}

/// Why a cut needs no freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// No PersistentVolume that we know has this handle: it is bound to no claim.
    NotBound,
    /// No Pod mounts any of it.
    NotMounted,
    /// No Database's endpoint leads to who mounts it.
    NoDatabase,
}

/// Databases that are held for one cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Together {
    pub(super) namespace: String,
    /// In the order in which members are claimed.
    pub(super) databases: BTreeSet<String>,
    /// The highest of their levels.
    pub(super) level: Level,
    /// Claims that are cut.
    pub(super) cut: BTreeSet<String>,
    /// All claims that these Databases have data on.
    pub(super) of: BTreeSet<String>,
    /// What the server of each, in the Pod whose volumes these are, says of where it runs: one of these. Empty where nobody can tell.
    pub(super) names: BTreeMap<String, BTreeSet<String>>,
    /// The Pods of each whose volumes these are.
    pub(super) pods: BTreeMap<String, BTreeSet<String>>,
    /// Before this none of it was there.
    pub(super) since: Option<Timestamp>,
}

/// The claims that are cut, as far as they are known. They are of one namespace: a snapshot's is theirs, unless somebody lies.
pub(super) fn claims(index: &Index, driver: &str, handles: &[String], namespace: Option<&str>) -> BTreeSet<Name> {
    handles.iter().filter_map(|handle| index.claim_of(driver, handle, namespace)).cloned().collect()
}

/// What the cut of these claims asks for; `databases` are those of the namespace.
pub(super) fn wanted(index: &Index, claims: &BTreeSet<Name>, databases: &[&Database]) -> Wanted {
    let Some((namespace, _)) = claims.first() else { return Wanted::Nothing(Why::NotBound) };
    let mut together = Together {
        namespace: namespace.clone(),
        databases: BTreeSet::new(),
        level: Level::Recoverable,
        cut: claims.iter().map(|(_, claim)| claim.clone()).collect(),
        of: BTreeSet::new(),
        names: BTreeMap::new(),
        pods: BTreeMap::new(),
        since: None,
    };
    let mut why = Why::NotMounted;
    for claim in &together.cut {
        match index.holds(namespace, claim, databases.iter().copied()) {
            Holds::Nobody => {}
            Holds::Unknown => why = Why::NoDatabase,
            Holds::Databases(found) => {
                for one in found {
                    together.of.extend(one.claims);
                    together.since = together.since.max(one.since);
                    // Of one Database in two Pods nobody can say which of them was held for both.
                    let names = together.names.entry(one.database.clone()).or_insert_with(|| one.names.clone());
                    names.retain(|name| one.names.contains(name));
                    together.pods.entry(one.database.clone()).or_default().insert(one.pod);
                    together.databases.insert(one.database);
                }
            }
        }
    }
    if together.databases.is_empty() {
        return Wanted::Nothing(why);
    }
    let named =
        |database: &&&Database| database.metadata.name.as_ref().is_some_and(|name| together.databases.contains(name));
    let levels = databases.iter().filter(named).map(|database| database.spec.freeze.level);
    together.level = levels.max().unwrap_or_default();
    // Or one could acknowledge what another's copy does not know.
    if together.databases.len() > 1 {
        together.level = Level::WriteBlocked;
    }
    Wanted::Hold(together)
}

/// The verb's body, to be asked of the first of them. `member`: of that one, the Pod that is meant.
pub(super) fn quiesce(together: &Together, member: Option<String>, uid: String, reason: String) -> Quiesce {
    let with = together.databases.iter().skip(1).cloned().collect();
    let spec = QuiesceSpec {
        uid: Some(uid),
        member,
        with,
        level: Some(together.level),
        reason: Some(reason),
        ..QuiesceSpec::default()
    };
    Quiesce { spec, ..Quiesce::default() }
}

/// For people, of whom a cut is made.
pub(super) fn reason(request: &GateRequest) -> String {
    let kind = match request.object.group {
        Group::Single => "VolumeSnapshot",
        Group::Group => "VolumeGroupSnapshot",
    };
    match &request.snapshot {
        Some(snapshot) => format!("{kind} {}/{}", snapshot.namespace, snapshot.name),
        None => format!("{kind}Content {}", request.object.name),
    }
}

/// Whose volumes these are, if that is one Pod of one Database.
pub(super) fn member(together: &Together) -> Option<(&str, &str)> {
    let mut pods = together.pods.iter().flat_map(|(database, pods)| pods.iter().map(move |pod| (database, pod)));
    let (database, pod) = pods.next()?;
    pods.next().is_none().then_some((database, pod))
}

/// They are held: the cut may be made, and what is stored says so.
pub(super) fn held(request: &GateRequest, together: &Together, status: &QuiesceStatus) -> GateAnswer {
    let databases: Vec<&str> = together.databases.iter().map(String::as_str).collect();
    let mut answer = GateAnswer::allow();
    answer.audit = [
        ("freeze".to_owned(), status.freeze.clone().unwrap_or_default()),
        ("databases".to_owned(), databases.join(",")),
        ("level".to_owned(), together.level.to_string()),
    ]
    .into();
    answer.warnings.clone_from(&status.warnings);
    // Of what is only being made nothing can be changed any more.
    answer.claim = status.uid.clone().filter(|_| !request.dry_run && request.gate == Gate::Cut);
    answer
}

/// They are not. `missed`: where nothing less is wanted, what becomes of it; anywhere else the cut is made all the same.
pub(super) fn not_held(missed: Option<Missed>, why: &str) -> GateAnswer {
    // What has to be read comes after it.
    let why = &shortened(why, LONGEST_WHY);
    let mut answer = GateAnswer::allow();
    answer.audit.insert("not-held".to_owned(), why.to_owned());
    let message = match missed {
        None | Some(Missed::Kept { .. }) => {
            answer.warnings.push(format!("not held, the copy is crash-consistent: {why}"));
            return answer;
        }
        Some(Missed::Again { within }) => {
            let seconds = within.as_secs();
            format!("not held: {why}; it is tried again, see {ON_MISSED} for what becomes of it after {seconds} s")
        }
        Some(Missed::Failed { after }) => {
            let seconds = after.as_secs();
            format!(
                "not held for {seconds} s: {why}; delete the snapshot, or say {ON_MISSED}: Keep on it to have it as it is"
            )
        }
    };
    answer.decision = conflict(format!("{message}: {TRY_AGAIN}"));
    answer
}

/// Of what nobody can have a reason for, nothing is held; where nothing less is wanted it waits, should it be real after all.
pub(super) fn unreal(missed: Option<Missed>, why: &str) -> GateAnswer {
    let mut answer = GateAnswer::allow();
    if let Some(Missed::Again { .. } | Missed::Failed { .. }) = missed {
        answer.decision = conflict(format!("{}: {TRY_AGAIN}", shortened(why, LONGEST_WHY)));
    }
    answer
}

/// Of a reason, in an answer.
const LONGEST_WHY: usize = 1024;

/// At most so many bytes of a text, never half a character.
fn shortened(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(longest)])
}

fn conflict(message: String) -> GateDecision {
    GateDecision::Deny {
        code: 409,
        reason: "Conflict".to_owned(),
        message,
        retry_after_seconds: Some(RETRY_AFTER_SECONDS),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
    use serde_json::json;

    use super::*;

    fn database(name: &str, host: &str, level: &str) -> Database {
        serde_json::from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": name},
            "spec": {"engine": "PostgreSQL", "endpoint": {"host": host}, "freeze": {"level": level}},
        }))
        .unwrap()
    }

    fn index() -> Index {
        let mut index = Index::new("cluster.local".to_owned());
        for (volume, claim) in [("h-data", "data"), ("h-wal", "wal"), ("h-files", "files"), ("h-old", "old")] {
            let volume: PersistentVolume = serde_json::from_value(json!({
                "metadata": {"name": volume},
                "spec": {
                    "csi": {"driver": "d", "volumeHandle": volume},
                    "claimRef": {"namespace": "shop", "name": claim},
                },
                "status": {"phase": "Bound"},
            }))
            .unwrap();
            index.put_volume(&volume);
        }
        for (pod, ip, claims) in [("pg", "10.0.0.1", &["data", "wal"][..]), ("web", "10.0.0.2", &["files"])] {
            let volumes: Vec<_> = claims
                .iter()
                .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
                .collect();
            let mounts: Vec<_> = claims.iter().map(|claim| json!({"name": claim, "mountPath": "/d"})).collect();
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": pod}, "spec": {"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": volumes},
                "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
            }))
            .unwrap();
            index.put_pod(&pod);
        }
        index
    }

    #[test]
    fn a_cut_wants_all_databases_of_its_volumes_and_nothing_of_others() {
        let (index, one) = (index(), database("orders", "10.0.0.1", "Durable"));
        let two = database("audit", "10.0.0.1", "WriteBlocked");
        let wanted = |handles: &[&str], databases: &[&Database]| {
            let handles: Vec<String> = handles.iter().map(|handle| (*handle).to_owned()).collect();
            wanted(&index, &claims(&index, "d", &handles, Some("shop")), databases)
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let together = |databases: &[&str], level, cut: &[&str]| {
            let (databases, cut, of) = (names(databases), names(cut), names(&["data", "wal"]));
            let pods = databases.iter().map(|name| (name.clone(), names(&["pg"]))).collect();
            let names = databases.iter().map(|name| (name.clone(), names(&["10.0.0.1", "pg"]))).collect();
            Wanted::Hold(Together { namespace: "shop".to_owned(), databases, level, cut, of, names, pods, since: None })
        };
        assert_eq!(wanted(&["h-data"], &[&one]), together(&["orders"], Level::Durable, &["data"]));
        assert_eq!(wanted(&["h-data", "h-wal"], &[&one]), together(&["orders"], Level::Durable, &["data", "wal"]));
        let both = together(&["audit", "orders"], Level::WriteBlocked, &["data"]);
        assert_eq!(wanted(&["h-data"], &[&one, &two]), both);
        assert_eq!(wanted(&["h-files"], &[&one]), Wanted::Nothing(Why::NoDatabase));
        assert_eq!(wanted(&["h-old"], &[&one]), Wanted::Nothing(Why::NotMounted));
        assert_eq!(wanted(&["h-unheard-of"], &[&one]), Wanted::Nothing(Why::NotBound));
    }

    #[test]
    fn what_is_not_held_waits_only_where_that_is_wanted_and_as_long() {
        let within = std::time::Duration::from_secs(300);
        for missed in [None, Some(Missed::Kept { after: within })] {
            let answer = not_held(missed, "why");
            assert_eq!((answer.decision, answer.warnings.len()), (GateDecision::Allow, 1));
        }
        for missed in [Missed::Again { within }, Missed::Failed { after: within }] {
            let GateDecision::Deny { code, message, .. } = not_held(Some(missed), "why").decision else { panic!() };
            let told = ["why", "300 s", ON_MISSED, TRY_AGAIN];
            assert!(code == 409 && told.iter().all(|told| message.contains(told)), "{message}");
        }
    }
}
