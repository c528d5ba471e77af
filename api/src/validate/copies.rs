//! `Repository`, `Snapshot` and `Restore`: what makes them valid.

use super::{
    Cause, CauseKind, MOST_TARGETS, cause, invalid, locations::one_location, required, tools::tool_use, within,
};
use crate::{
    DeletionPolicy, ExistingPolicy, RepositorySpec, RestoreSource, RestoreSpec, SnapshotMethod, SnapshotSpec,
    inject::{bytes, is_image},
    runner::RunnerTemplate,
};

/// The most locations of a Repository.
const MOST_LOCATIONS: usize = 8;
/// The longest that a Snapshot may be tried: a week.
const LONGEST_DEADLINE: u32 = 7 * 24 * 3600;

/// What is said of a Snapshot that says too much, or too little: by a CRD, too.
pub(crate) const DUMP_WHERE: &str =
    "a dump goes to a Repository: name one; or say method: VolumeSnapshot, in a cluster";
pub(crate) const VOLUMES_WHERE: &str = "VolumeSnapshots are kept by their storage: leave the repository out";
pub(crate) const NOT_OF_A_DUMP: &str = "is for method: VolumeSnapshot";
pub(crate) const INTO_A_SERVER: &str = "are restored into no Database: give volumes, or a database";
pub(crate) const OF_NO_DUMP: &str =
    "to new claims (without a database) only a Snapshot is restored that is named, with existing: Never";
pub(crate) const TOOLS_DUMP: &str = "a DumpTool makes dumps: say method: Dump, and a repository";
pub(crate) const TOOLS_RESTORE_INTO: &str = "a DumpTool restores into a Database: name one";
/// The most claims of a Restore.
const MOST_CLAIMS: usize = 64;

/// `Repository.spec`.
pub fn repository(spec: &RepositorySpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    if spec.locations.is_empty() {
        causes.push(cause("spec.locations", CauseKind::Required, "name at least one place".into()));
    }
    if spec.locations.len() > MOST_LOCATIONS {
        causes.push(invalid("spec.locations", format!("names {}; at most {MOST_LOCATIONS}", spec.locations.len())));
    }
    for (at, location) in spec.locations.iter().enumerate() {
        let field = format!("spec.locations[{at}]");
        if spec.locations[..at].iter().any(|earlier| earlier.name == location.name) {
            causes.push(cause(
                &format!("{field}.name"),
                CauseKind::Duplicate,
                format!("{:?} is used twice", location.name),
            ));
        }
        one_location(&field, location, &mut causes);
    }
    required("spec.encryption.passwordSecretRef.name", &spec.encryption.password_secret_ref.name, &mut causes);
    required("spec.encryption.passwordKey", &spec.encryption.password_key, &mut causes);
    runner(spec.runner.as_ref(), &mut causes);
    causes
}

/// A change of `Repository.spec`: locations come and go, and what a location is may change as long as it holds the same.
pub fn repository_update(new: &RepositorySpec, _old: &RepositorySpec) -> Vec<Cause> {
    repository(new)
}

/// Volumes of a run's own.
const OURS: [&str; 4] = ["bin", "secrets", "tmp", "scratch"];
const MOST_OBJECTS: usize = 64;

/// How Pods of runs are made.
fn runner(template: Option<&RunnerTemplate>, causes: &mut Vec<Cause>) {
    let Some(template) = template else { return };
    let at = |field: &str| format!("spec.runner.{field}");
    if template.image.as_ref().is_some_and(|image| !is_image(image)) {
        causes.push(invalid(&at("image"), "must be the name of an image"));
    }
    for (field, count) in [
        ("env", template.env.len()),
        ("volumes", template.volumes.len()),
        ("volumeMounts", template.volume_mounts.len()),
    ] {
        if count > MOST_OBJECTS {
            causes.push(invalid(&at(field), format!("has {count}; at most {MOST_OBJECTS}")));
        }
    }
    for (number, volume) in template.volumes.iter().enumerate() {
        if OURS.contains(&volume.name.as_str()) {
            causes.push(invalid(
                &at(&format!("volumes[{number}].name")),
                format!("{} is the run's own; give it another name", volume.name),
            ));
        }
    }
    for (number, mount) in template.volume_mounts.iter().enumerate() {
        let field = at(&format!("volumeMounts[{number}]"));
        if !template.volumes.iter().any(|volume| volume.name == mount.name) {
            causes.push(invalid(
                &format!("{field}.name"),
                format!("there is no volume {:?} in spec.runner.volumes", mount.name),
            ));
        }
        let inside = ["/run/stillpoint", "/scratch"].iter().any(|own| mount.mount_path.starts_with(own));
        if !mount.mount_path.starts_with('/') || inside {
            causes.push(invalid(
                &format!("{field}.mountPath"),
                "must be absolute, and neither below /run/stillpoint nor /scratch",
            ));
        }
    }
    if template.env.iter().any(|variable| variable.name.starts_with("STILLPOINT_")) {
        causes.push(invalid(&at("env"), "STILLPOINT_… are the run's own"));
    }
}

/// `Snapshot.spec`.
pub fn snapshot(spec: &SnapshotSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    if spec.databases.is_empty() {
        causes.push(cause("spec.databases", CauseKind::Required, "name at least one Database".into()));
    }
    if spec.databases.len() > MOST_TARGETS {
        causes.push(invalid("spec.databases", format!("names {}; at most {MOST_TARGETS}", spec.databases.len())));
    }
    for (at, name) in spec.databases.iter().enumerate() {
        let field = format!("spec.databases[{at}]");
        required(&field, name, &mut causes);
        if spec.databases[..at].contains(name) {
            causes.push(cause(&field, CauseKind::Duplicate, format!("{name:?} is named twice")));
        }
    }
    match (spec.method, &spec.repository) {
        (SnapshotMethod::Dump, None) => {
            causes.push(cause("spec.repository", CauseKind::Required, DUMP_WHERE.into()));
        }
        (SnapshotMethod::Dump, Some(name)) => required("spec.repository", name, &mut causes),
        (SnapshotMethod::VolumeSnapshot, None) => {}
        (SnapshotMethod::VolumeSnapshot, Some(_)) => {
            causes.push(cause("spec.repository", CauseKind::Forbidden, VOLUMES_WHERE.into()));
        }
    }
    let of_volumes = [
        ("spec.volumeSnapshotClassName", spec.volume_snapshot_class_name.is_some()),
        ("spec.volumeGroupSnapshotClassName", spec.volume_group_snapshot_class_name.is_some()),
        ("spec.onMissed", spec.on_missed.is_some()),
    ];
    for (field, _) in of_volumes.into_iter().filter(|(_, said)| *said && spec.method == SnapshotMethod::Dump) {
        causes.push(cause(field, CauseKind::Forbidden, NOT_OF_A_DUMP.into()));
    }
    if spec.tool.is_some() && spec.method != SnapshotMethod::Dump {
        causes.push(cause("spec.tool", CauseKind::Forbidden, TOOLS_DUMP.into()));
    }
    tool_use(spec.tool.as_ref(), &mut causes);
    let classes = [
        ("spec.volumeSnapshotClassName", &spec.volume_snapshot_class_name),
        ("spec.volumeGroupSnapshotClassName", &spec.volume_group_snapshot_class_name),
    ];
    for (field, class) in classes.into_iter().filter_map(|(field, class)| Some((field, class.as_ref()?))) {
        required(field, class, &mut causes);
    }
    within("spec.deadlineSeconds", spec.deadline_seconds, 1, LONGEST_DEADLINE, &mut causes);
    runner(spec.runner.as_ref(), &mut causes);
    causes
}

/// A change of `Snapshot.spec`: only what becomes of it may change.
pub fn snapshot_update(new: &SnapshotSpec, old: &SnapshotSpec) -> Vec<Cause> {
    let mut causes = snapshot(new);
    let policy = DeletionPolicy::default();
    let same = |spec: &SnapshotSpec| SnapshotSpec { deletion_policy: policy, ..spec.clone() };
    if same(new) != same(old) {
        causes.push(cause(
            "spec",
            CauseKind::Forbidden,
            "only spec.deletionPolicy may change; make another Snapshot for anything else".into(),
        ));
    }
    causes
}

/// `Restore.spec`.
pub fn restore(spec: &RestoreSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    claims(spec, &mut causes);
    if spec.tool.is_some() && spec.database.is_empty() {
        causes.push(cause("spec.tool", CauseKind::Forbidden, TOOLS_RESTORE_INTO.into()));
    }
    tool_use(spec.tool.as_ref(), &mut causes);
    let RestoreSource { repository, snapshot, latest, as_of, database: _ } = &spec.source;
    let said = [snapshot.is_some(), *latest == Some(true), as_of.is_some()];
    if said.into_iter().filter(|said| *said).count() != 1 {
        causes.push(invalid("spec.source", "must say exactly one of snapshot, latest: true, asOf"));
    } else if snapshot.is_none() && repository.is_none() {
        causes.push(cause("spec.source.repository", CauseKind::Required, "say in which Repository to look".into()));
    }
    for (at, name) in spec.databases.iter().enumerate() {
        let field = format!("spec.databases[{at}]");
        required(&field, name, &mut causes);
        if spec.databases[..at].contains(name) {
            causes.push(cause(&field, CauseKind::Duplicate, format!("{name:?} is named twice")));
        }
    }
    runner(spec.runner.as_ref(), &mut causes);
    causes
}

/// Into a server or to new claims, and what that needs.
fn claims(spec: &RestoreSpec, causes: &mut Vec<Cause>) {
    if !spec.database.is_empty() {
        if !spec.volumes.is_empty() {
            causes.push(cause("spec.volumes", CauseKind::Forbidden, INTO_A_SERVER.into()));
        }
        return;
    }
    if spec.source.snapshot.is_none() || spec.existing != ExistingPolicy::Never || !spec.databases.is_empty() {
        causes.push(cause("spec.database", CauseKind::Required, OF_NO_DUMP.into()));
    }
    if spec.volumes.len() > MOST_CLAIMS {
        causes.push(invalid("spec.volumes", format!("names {}; at most {MOST_CLAIMS}", spec.volumes.len())));
    }
    for (at, wanted) in spec.volumes.iter().enumerate() {
        let field = format!("spec.volumes[{at}].name");
        required(&field, &wanted.name, causes);
        if spec.volumes[..at].iter().any(|earlier| earlier.name == wanted.name) {
            causes.push(cause(&field, CauseKind::Duplicate, format!("{:?} is named twice", wanted.name)));
        }
        if wanted.size.as_ref().is_some_and(|size| bytes(size).is_none_or(|bytes| bytes == 0)) {
            causes.push(invalid(&format!("spec.volumes[{at}].size"), "must be a size, as 20Gi"));
        }
    }
}

/// A change of `Restore.spec`: there is none.
pub fn restore_update(new: &RestoreSpec, old: &RestoreSpec) -> Vec<Cause> {
    if new == old {
        return Vec::new();
    }
    vec![cause("spec", CauseKind::Forbidden, "is for good; make another Restore".into())]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(causes: &[Cause]) -> Vec<&str> {
        causes.iter().map(|cause| cause.field.as_str()).collect()
    }

    #[test]
    fn every_wrong_field_of_a_repository_is_named() {
        let of = |locations: serde_json::Value| {
            let spec = json!({"locations": locations, "encryption": {"passwordSecretRef": {"name": "key"}}});
            repository(&serde_json::from_value(spec).unwrap())
        };
        let dir = |name: &str, path: &str| json!({"name": name, "directory": {"path": path}});
        assert_eq!(
            of(json!([dir("a", "/backups"), {"name": "b", "s3": {"bucket": "x", "endpoint": "https://s3:9000"}}])),
            []
        );
        for (locations, field) in [
            (json!([]), "spec.locations"),
            (json!([{"name": "a"}]), "spec.locations[0]"),
            (json!([{"name": "a", "directory": {"path": "/b"}, "gcs": {"bucket": "c"}}]), "spec.locations[0]"),
            (json!([dir("A b", "/b")]), "spec.locations[0].name"),
            (json!([dir("a", "/b"), dir("a", "/c")]), "spec.locations[1].name"),
            (json!([dir("a", "b")]), "spec.locations[0].directory.path"),
            (json!([dir("a", "/b/../c")]), "spec.locations[0].directory.path"),
            (json!([{"name": "a", "s3": {"bucket": ""}}]), "spec.locations[0].s3.bucket"),
            (
                json!([{"name": "a", "s3": {"bucket": "x", "endpoint": "https://me:pw@host"}}]),
                "spec.locations[0].s3.endpoint",
            ),
            (json!([{"name": "a", "azure": {"account": "me1", "container": ""}}]), "spec.locations[0].azure.container"),
            (
                json!([{"name": "a", "azure": {"account": "evil.example/x", "container": "box"}}]),
                "spec.locations[0].azure.account",
            ),
        ] {
            assert_eq!(fields(&of(locations.clone())), [field], "{locations}");
        }
    }

    #[test]
    fn a_dump_names_its_databases_and_where_it_goes_and_stays_what_it_is() {
        let of = |value| serde_json::from_value::<SnapshotSpec>(value).unwrap();
        let good = of(json!({"databases": ["orders"], "repository": "nightly"}));
        assert_eq!(snapshot(&good), []);
        assert_eq!(fields(&snapshot(&of(json!({"databases": [], "repository": "r"})))), ["spec.databases"]);
        assert_eq!(fields(&snapshot(&of(json!({"databases": ["a", "a"], "repository": "r"})))), ["spec.databases[1]"]);
        assert_eq!(fields(&snapshot(&of(json!({"databases": ["a"]})))), ["spec.repository"]);
        assert_eq!(
            snapshot_update(&SnapshotSpec { deletion_policy: DeletionPolicy::Retain, ..good.clone() }, &good),
            []
        );
        let other = of(json!({"databases": ["orders"], "repository": "other"}));
        assert_eq!(fields(&snapshot_update(&other, &good)), ["spec"]);
    }

    #[test]
    fn a_restore_says_which_copy_in_exactly_one_way() {
        let of = |source: serde_json::Value| {
            fields(&restore(&serde_json::from_value(json!({"database": "orders", "source": source})).unwrap()))
                .iter()
                .map(|field| (*field).to_owned())
                .collect::<Vec<_>>()
        };
        assert!(of(json!({"snapshot": "s"})).is_empty());
        assert!(of(json!({"latest": true, "repository": "r"})).is_empty());
        assert!(of(json!({"asOf": "2026-11-29T12:00:00+01:00", "repository": "r"})).is_empty());
        assert_eq!(of(json!({})), ["spec.source"]);
        assert_eq!(of(json!({"latest": false})), ["spec.source"]);
        assert_eq!(of(json!({"latest": true})), ["spec.source.repository"]);
        assert_eq!(of(json!({"snapshot": "s", "latest": true})), ["spec.source"]);
    }
}
