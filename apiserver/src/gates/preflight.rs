//! When a snapshot is declared: what is going to be in its way, as warnings that kubectl prints. Nothing is held, nobody is dialled,
//! and nobody is denied: a snapshot that has to be consistent is waited for at its cut, and may be mended until then. Pure.

use std::collections::BTreeSet;

use api::{
    Database,
    conditions::{self, types},
    gate::{Group, LONGEST_WARNING},
};
use topology::{Index, Name};

use super::cut::{Together, Wanted};

/// What is known of a snapshot that is declared.
pub(super) struct Declared<'a> {
    pub(super) group: Group,
    pub(super) wanted: &'a Wanted,
    /// Of the namespace.
    pub(super) databases: &'a [&'a Database],
    /// Whether its driver cuts as of one instant; `None`: nobody could tell.
    pub(super) atomic: Option<bool>,
}

/// Those of these claims that have a volume, and that volume's driver.
pub(super) fn driver<'i>(index: &'i Index, namespace: &str, claims: &[String]) -> Option<&'i str> {
    claims.iter().find_map(|claim| index.driver_of(namespace, claim))
}

pub(super) fn names(namespace: &str, claims: &[String]) -> BTreeSet<Name> {
    claims.iter().map(|claim| (namespace.to_owned(), claim.clone())).collect()
}

/// Each within the bound of a warning.
pub(super) fn warnings(declared: &Declared<'_>) -> Vec<String> {
    let Wanted::Hold(together) = declared.wanted else { return Vec::new() };
    let held = declared
        .databases
        .iter()
        .filter(|database| database.metadata.name.as_ref().is_some_and(|name| together.databases.contains(name)));
    let mut warnings: Vec<String> =
        held.filter_map(|database| not_ready(database).or_else(|| of_another_role(database, together))).collect();
    if let Some(missing) = missing(together) {
        let instead = match declared.group {
            Group::Single => "take a VolumeGroupSnapshot",
            Group::Group => "its selector leaves them out",
        };
        warnings.push(bounded("partial: its database writes to ", &missing, &format!(", too; {instead}")));
    }
    if declared.atomic == Some(false) {
        let why = "unknown: its driver is not known to cut at one instant; if it does, label the class ";
        warnings.push(bounded(why, &format!("{}=true", api::gate::ATOMIC), ""));
    }
    warnings
}

fn not_ready(database: &Database) -> Option<String> {
    let name = database.metadata.name.as_deref().unwrap_or_default();
    if database.spec.paused {
        return Some(bounded("not frozen: Database ", name, " is paused"));
    }
    let all = database.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let why = match conditions::find(all, types::READY) {
        Some(ready) if ready.status == "True" => return None,
        Some(ready) => ready.reason.as_str(),
        None => "it was not looked at yet",
    };
    Some(bounded("Database ", name, &format!(" is not ready ({why}): this copy may be crash-consistent")))
}

/// Of several members, as their agents were seen last: a cut of the others' volumes nobody is held for.
fn of_another_role(database: &Database, together: &Together) -> Option<String> {
    let pods = together.pods.get(database.metadata.name.as_ref()?)?;
    let members = database.status.as_ref().map(|status| status.members.as_slice()).unwrap_or_default();
    let wanted = database.spec.freeze.target.role;
    let other = members.iter().find(|member| pods.contains(&member.name) && member.role != wanted)?;
    let [is, wanted] = [other.role, wanted].map(|role| role.to_string().to_lowercase());
    let is = format!(" is a {is}, and its Database wants a {wanted}: nobody is held for it");
    Some(bounded("not frozen: ", &other.name, &is))
}

fn missing(together: &Together) -> Option<String> {
    let missing: Vec<&str> = together.of.difference(&together.cut).map(String::as_str).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// The middle gives way.
fn bounded(before: &str, middle: &str, after: &str) -> String {
    let room = LONGEST_WARNING.saturating_sub(before.len() + after.len());
    if middle.len() <= room {
        return format!("{before}{middle}{after}");
    }
    let end = middle.floor_char_boundary(room.saturating_sub("…".len()));
    format!("{before}{}…{after}", &middle[..end])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::Level;
    use serde_json::json;

    use super::*;

    fn database(paused: bool, ready: Option<&str>) -> Database {
        let conditions: Vec<_> = ready
            .iter()
            .map(|status| {
                json!({
                    "type": "Ready", "status": status, "reason": "Unreachable", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                })
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": "orders"},
            "spec": {"engine": "PostgreSQL", "endpoint": {"host": "pg"}, "paused": paused},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn told(database: &Database, of: &[&str], atomic: Option<bool>) -> Vec<String> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted::Hold(Together {
            namespace: "shop".to_owned(),
            databases: names(&["orders"]),
            level: Level::Durable,
            cut: names(&["data"]),
            of: names(of),
            names: BTreeMap::new(),
            pods: [("orders".to_owned(), names(&["pg-1"]))].into(),
            since: None,
        });
        let declared = Declared { group: Group::Single, wanted: &wanted, databases: &[database], atomic };
        warnings(&declared)
    }

    #[test]
    fn only_what_is_in_the_way_is_warned_of() {
        let ready = database(false, Some("True"));
        assert_eq!(told(&ready, &["data"], Some(true)), [""; 0]);
        assert_eq!(told(&ready, &["data"], None), [""; 0]);
        for (database, of, atomic, warning) in [
            (database(true, Some("True")), &["data"][..], Some(true), "not frozen: Database orders is paused"),
            (
                database(false, Some("False")),
                &["data"],
                Some(true),
                "Database orders is not ready (Unreachable): this copy may be crash-consistent",
            ),
            (
                database(false, None),
                &["data"],
                Some(true),
                "Database orders is not ready (it was not looked at yet): this copy may be crash-consistent",
            ),
            (
                ready.clone(),
                &["data", "wal"],
                Some(true),
                "partial: its database writes to wal, too; take a VolumeGroupSnapshot",
            ),
        ] {
            assert_eq!(told(&database, of, atomic), [warning]);
        }
        let of_driver = told(&ready, &["data"], Some(false));
        assert!(
            of_driver[0].contains("stillpoint.dev/atomic=true") && of_driver[0].len() <= LONGEST_WARNING,
            "{of_driver:?}"
        );
    }

    #[test]
    fn of_a_standbys_volume_it_is_said_that_nobody_is_held() {
        let with = |role: &str| {
            let mut database = database(false, Some("True"));
            let members = json!([
                {"name": "pg-0", "role": "Primary", "version": "", "id": ""},
                {"name": "pg-1", "role": role, "version": "", "id": ""},
            ]);
            database.status.as_mut().unwrap().members = serde_json::from_value(members).unwrap();
            told(&database, &["data"], Some(true))
        };
        let warning = "not frozen: pg-1 is a replica, and its Database wants a primary: nobody is held for it";
        assert_eq!((with("Replica"), with("Primary")), (vec![warning.to_owned()], vec![]));
    }

    #[test]
    fn a_warning_is_within_its_bound_and_keeps_its_end() {
        let long = "ä".repeat(300);
        let warning = told(&database(false, Some("True")), &["data", &long], Some(true));
        assert!(
            warning[0].len() <= LONGEST_WARNING && warning[0].ends_with("take a VolumeGroupSnapshot"),
            "{warning:?}"
        );
    }

    #[test]
    fn of_what_is_nobodys_nothing_is_said() {
        let wanted = Wanted::Nothing(crate::gates::cut::Why::NoDatabase);
        let declared = Declared { group: Group::Single, wanted: &wanted, databases: &[], atomic: Some(false) };
        assert_eq!(warnings(&declared), [""; 0]);
    }
}
