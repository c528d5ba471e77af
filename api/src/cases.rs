//! Objects that are right, and objects that are wrong, and where: what [`crate::validate`] says of them, and whether the CRDs
//! say so too. One table, so that the two cannot drift apart.

use serde_json::{Value, json};

/// An object, or the change of one.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub kind: &'static str,
    pub old: Option<Value>,
    pub spec: Value,
    pub verdict: Verdict,
}

/// What is to be said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// By both.
    Wrong,
    /// By `validate` alone: a CRD cannot say it, and who writes past us is told when it is frozen.
    WrongForUs,
}

use Verdict::{Right, Wrong, WrongForUs};

/// All of them.
pub fn all() -> Vec<Case> {
    databases()
        .into_iter()
        .chain(dump_tools())
        .chain(freezes())
        .chain(repositories())
        .chain(snapshots())
        .chain(restores())
        .collect()
}

fn databases() -> Vec<Case> {
    let case = |name, old: Option<Value>, spec, verdict| Case { name, kind: "Database", old, spec, verdict };
    let pg = |more: Value| merged(json!({"engine": "PostgreSQL", "endpoint": {"host": "db"}}), more);
    let of_pods = |selector| json!({"engine": "PostgreSQL", "agent": "Required", "podSelector": selector});
    let without = |mut spec: Value, field: &str| {
        spec.as_object_mut().and_then(|spec| spec.remove(field));
        spec
    };
    let changed = Some(pg(json!({})));
    vec![
        case("the least", None, pg(json!({})), Right),
        case("a socket", None, json!({"engine": "MariaDB", "endpoint": {"socket": "/run/mysqld.sock"}}), Right),
        case("all of a policy", None, pg(json!({"freeze": {"level": "WriteBlocked", "maxFrozenSeconds": 10}})), Right),
        case("no endpoint", None, json!({"engine": "PostgreSQL"}), Wrong),
        case("members by their labels", None, of_pods(json!({"matchLabels": {"app": "orders"}})), Right),
        case(
            "members that nobody could reach",
            None,
            without(of_pods(json!({"matchLabels": {"a": "b"}})), "agent"),
            Wrong,
        ),
        case("all Pods as members", None, of_pods(json!({})), Wrong),
        case("an empty endpoint", None, json!({"engine": "PostgreSQL", "endpoint": {}}), Wrong),
        case("host and socket", None, pg(json!({"endpoint": {"host": "db", "socket": "/run/s"}})), Wrong),
        case("a relative socket", None, json!({"engine": "MariaDB", "endpoint": {"socket": "run/s"}}), WrongForUs),
        case("an engine that nobody serves", None, pg(json!({"engine": "Oracle"})), Wrong),
        case("port 0", None, pg(json!({"endpoint": {"host": "db", "port": 0}})), Wrong),
        case("a port too high", None, pg(json!({"endpoint": {"host": "db", "port": 70_000}})), Wrong),
        case("an acquire timeout too long", None, pg(json!({"freeze": {"acquireTimeoutSeconds": 16}})), Wrong),
        case("a prepare timeout of nothing", None, pg(json!({"freeze": {"prepareTimeoutSeconds": 0}})), Wrong),
        case("a level that is none", None, pg(json!({"freeze": {"level": "Perfect"}})), Wrong),
        case("a database twice", None, pg(json!({"databases": ["a", "a"]})), WrongForUs),
        case("verified without a CA", None, pg(json!({"tls": {"mode": "VerifyFull"}})), WrongForUs),
        case("another host", changed.clone(), pg(json!({"endpoint": {"host": "other"}})), Right),
        case("another engine", changed, pg(json!({"engine": "MariaDB"})), Wrong),
    ]
}

fn dump_tools() -> Vec<Case> {
    let case = |name, old: Option<Value>, spec, verdict| Case { name, kind: "DumpTool", old, spec, verdict };
    let stdout = |command: &[&str], more: Value| merged(json!({"dump": {"command": command}}), more);
    let directory = |restore: Value| {
        let dump = json!({"command": ["mydumper", "--outputdir=$(SCRATCH)"], "output": "Directory"});
        json!({"dump": dump, "restore": merged(json!({"command": ["myloader", "--directory=$(SCRATCH)"]}), restore)})
    };
    let with = |settings: Value| stdout(&["t"], json!({"settings": settings}));
    vec![
        case("the least", None, stdout(&["pg_dumpall"], json!({})), Right),
        case("files, and back", None, directory(json!({})), Right),
        case("files on standard input", None, directory(json!({"input": "Stdin"})), Wrong),
        case("no program", None, stdout(&[], json!({})), Wrong),
        case("an engine that nobody serves", None, stdout(&["t"], json!({"engines": ["Oracle"]})), Wrong),
        case("an output that is none", None, json!({"dump": {"command": ["t"], "output": "Paper"}}), Wrong),
        case(
            "one name for many files",
            None,
            json!({"dump": {"command": ["t", "$(SCRATCH)"], "output": "Directory", "file": "a"}}),
            Wrong,
        ),
        case("a setting twice", None, with(json!([{"name": "a"}, {"name": "a"}])), Wrong),
        case("a variable that is none", None, stdout(&["t", "$(PASSWORD)"], json!({})), WrongForUs),
        case("a value in a script", None, stdout(&["sh", "-c", "t $(HOST)"], json!({})), WrongForUs),
        case("files that go nowhere", None, json!({"dump": {"command": ["t"], "output": "Directory"}}), WrongForUs),
        case("a pattern that is none", None, with(json!([{"name": "a", "pattern": "["}])), WrongForUs),
        case("another program", Some(stdout(&["a"], json!({}))), stdout(&["b"], json!({})), Right),
    ]
}

fn freezes() -> Vec<Case> {
    let case = |name, old: Option<Value>, spec, verdict| Case { name, kind: "Freeze", old, spec, verdict };
    let of = |more: Value| merged(json!({"targets": [{"database": "orders"}]}), more);
    let group = |names: &[&str]| {
        let targets: Vec<_> = names.iter().map(|name| json!({"database": name})).collect();
        json!({"targets": targets})
    };
    let many: Vec<String> = (0..17).map(|n| format!("d{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let held = Some(of(json!({"level": "Durable", "ttlSeconds": 30})));
    let thawed = Some(of(json!({"desired": "Thawed"})));
    vec![
        case("the least", None, of(json!({})), Right),
        case("a group", None, group(&["orders", "billing"]), Right),
        case("as many as may be", None, group(&many[..16]), Right),
        case("one too many", None, group(&many), Wrong),
        case("nothing to hold", None, json!({"targets": []}), Wrong),
        case("a Database without a name", None, group(&[""]), Wrong),
        case("a Database twice", None, group(&["orders", "orders"]), Wrong),
        case("no time at all", None, of(json!({"ttlSeconds": 0})), Wrong),
        case("longer than may be", None, of(json!({"ttlSeconds": 21_601})), Wrong),
        case("a copy that is none", None, of(json!({"copy": "Whole"})), Wrong),
        case("a long reason", None, of(json!({"reason": "x".repeat(257)})), Wrong),
        case("thawed", held.clone(), of(json!({"level": "Durable", "ttlSeconds": 30, "desired": "Thawed"})), Right),
        case("another level", held.clone(), of(json!({"level": "WriteBlocked", "ttlSeconds": 30})), Wrong),
        case("no level any more", held.clone(), of(json!({"ttlSeconds": 30})), Wrong),
        case("more time", held.clone(), of(json!({"level": "Durable", "ttlSeconds": 60})), Wrong),
        case(
            "another target",
            held,
            json!({"targets": [{"database": "billing"}], "level": "Durable", "ttlSeconds": 30}),
            Wrong,
        ),
        case("taken again", thawed, of(json!({"desired": "Frozen"})), Wrong),
    ]
}

fn repositories() -> Vec<Case> {
    let case = |name, kind: &str, location, verdict| {
        let mut place = json!({"name": "a"});
        place[kind] = location;
        let spec = json!({"locations": [place], "encryption": {"passwordSecretRef": {"name": "key"}}});
        Case { name, kind: "Repository", old: None, spec, verdict }
    };
    let azure = |account: &str, container: &str| json!({"account": account, "container": container});
    let minio = |bucket: &str, endpoint: &str| json!({"bucket": bucket, "endpoint": endpoint});
    vec![
        case("Amazon's", "s3", json!({"bucket": "backups.example.org", "region": "eu-central-1"}), Right),
        case("another S3", "s3", minio("Old_Backups", "http://[::1]:9000/base"), Right),
        case("Google's", "gcs", json!({"bucket": "my_backups", "prefix": "shop/orders"}), Right),
        case("Azure's", "azure", azure("backups1", "dumps-of-2026"), Right),
        case("an account that is a host", "azure", azure("evil.example/x", "box"), Wrong),
        case("a container that is a path", "azure", azure("backups1", "../other"), Wrong),
        case("a container with two hyphens", "azure", azure("backups1", "a--b"), Wrong),
        case("a bucket that is a path", "gcs", json!({"bucket": "evil/x"}), Wrong),
        case("a bucket that is a host", "s3", json!({"bucket": "evil.example/x"}), Wrong),
        case("a bucket that Amazon does not name so", "s3", json!({"bucket": "Backups"}), WrongForUs),
        case("a region that is a host", "s3", json!({"bucket": "backups", "region": "x.evil.example/"}), Wrong),
        case("an endpoint without a scheme", "s3", minio("b", "s3.example.org"), Wrong),
        case("an endpoint without a host", "s3", minio("b", "https:///x"), Wrong),
        case("an endpoint with an account", "s3", minio("b", "https://me:pw@host"), Wrong),
        case("a port that is none", "s3", minio("b", "https://host:0"), WrongForUs),
        case("a prefix that leads out", "gcs", json!({"bucket": "backups", "prefix": "a/../b"}), WrongForUs),
    ]
}

fn snapshots() -> Vec<Case> {
    let case = |name, old: Option<Value>, spec, verdict| Case { name, kind: "Snapshot", old, spec, verdict };
    let dump = |more: Value| merged(json!({"databases": ["orders"], "repository": "nightly"}), more);
    let cut = |more: Value| merged(json!({"databases": ["orders"], "method": "VolumeSnapshot"}), more);
    let many: Vec<String> = (0..17).map(|n| format!("d{n}")).collect();
    let volume = |kind: &str| json!({"runner": {"volumes": [{"name": "more", (kind): {}}]}});
    vec![
        case("a dump", None, dump(json!({})), Right),
        case("a dump to nowhere", None, json!({"databases": ["orders"]}), Wrong),
        case("a dump of a class", None, dump(json!({"volumeSnapshotClassName": "fast"})), Wrong),
        case("a dump of a group", None, dump(json!({"volumeGroupSnapshotClassName": "all"})), Wrong),
        case("a dump that may be missed", None, dump(json!({"onMissed": "Fail"})), Wrong),
        case(
            "a dump by a tool",
            None,
            dump(json!({"tool": {"name": "mydumper", "settings": {"threads": "4"}}})),
            Right,
        ),
        case("a tool without a name", None, dump(json!({"tool": {"name": ""}})), Wrong),
        case("volumes by a tool", None, cut(json!({"tool": {"name": "mydumper"}})), Wrong),
        case("another tool", Some(dump(json!({"tool": {"name": "a"}}))), dump(json!({"tool": {"name": "b"}})), Wrong),
        case("volumes", None, cut(json!({})), Right),
        case(
            "volumes as they are wanted",
            None,
            cut(json!({"volumeSnapshotClassName": "fast", "volumeGroupSnapshotClassName": "all", "onMissed": "Fail"})),
            Right,
        ),
        case("volumes to a Repository", None, cut(json!({"repository": "nightly"})), Wrong),
        case("of nothing", None, cut(json!({"databases": []})), Wrong),
        case("of too many", None, cut(json!({"databases": many})), Wrong),
        case("a Database without a name", None, cut(json!({"databases": [""]})), Wrong),
        case("a Database twice", None, cut(json!({"databases": ["a", "a"]})), Wrong),
        case("a method that is none", None, cut(json!({"method": "Photograph"})), Wrong),
        case("no time at all", None, cut(json!({"deadlineSeconds": 0})), Wrong),
        case("kept after all", Some(cut(json!({}))), cut(json!({"deletionPolicy": "Retain"})), Right),
        case("another Database", Some(cut(json!({}))), cut(json!({"databases": ["billing"]})), Wrong),
        case("another class", Some(cut(json!({}))), cut(json!({"volumeSnapshotClassName": "fast"})), Wrong),
        case("another group", Some(cut(json!({}))), cut(json!({"volumeGroupSnapshotClassName": "all"})), Wrong),
        case("more time", Some(cut(json!({}))), cut(json!({"deadlineSeconds": 60})), Wrong),
        case("a dump after all", Some(cut(json!({}))), dump(json!({})), Wrong),
        case("a runner", None, dump(runner()), Right),
        case(
            "the same runner",
            Some(dump(runner())),
            dump(merged(runner(), json!({"deletionPolicy": "Retain"}))),
            Right,
        ),
        case("a runner after all", Some(dump(json!({}))), dump(runner()), Wrong),
        case("no runner any more", Some(dump(runner())), dump(json!({})), Wrong),
        case("another runner", Some(dump(runner())), dump(json!({"runner": {"image": "mine"}})), Wrong),
        // What kube-apiserver takes for the same (deploy/src/policies.rs); a policy asks.
        case("a volume of another kind", Some(dump(volume("emptyDir"))), dump(volume("secret")), WrongForUs),
        case(
            "a value that is no text",
            None,
            dump(json!({"runner": {"env": [{"name": "P", "value": 8080}]}})),
            WrongForUs,
        ),
    ]
}

fn restores() -> Vec<Case> {
    let case = |name, old: Option<Value>, spec, verdict| Case { name, kind: "Restore", old, spec, verdict };
    let of = |source: Value, more: Value| merged(json!({"source": source}), more);
    let noon = |more: Value| of(json!({"snapshot": "noon"}), more);
    let into = || json!({"database": "orders"});
    let as_of = |time: &str| of(json!({"asOf": time, "repository": "r"}), into());
    let claims = |names: &[&str]| {
        let volumes: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"volumes": volumes})
    };
    vec![
        case("into a Database", None, noon(into()), Right),
        case("the newest", None, of(json!({"latest": true, "repository": "r"}), into()), Right),
        case("the newest of nowhere", None, of(json!({"latest": true}), into()), Wrong),
        case("none", None, of(json!({"repository": "r"}), into()), Wrong),
        case("two", None, of(json!({"snapshot": "noon", "latest": true}), into()), Wrong),
        case("by a tool", None, noon(merged(into(), json!({"tool": {"name": "mydumper"}}))), Right),
        case("by a tool to new claims", None, noon(json!({"tool": {"name": "mydumper"}})), Wrong),
        case("to new claims", None, noon(json!({})), Right),
        case("to claims by their names", None, noon(claims(&["copy", "copy-wal"])), Right),
        case("one claim twice", None, noon(claims(&["copy", "copy"])), Wrong),
        case("a claim without a name", None, noon(claims(&[""])), Wrong),
        case("a size that is none", None, noon(json!({"volumes": [{"name": "copy", "size": "large"}]})), WrongForUs),
        case("claims into a Database", None, noon(merged(into(), claims(&["copy"]))), Wrong),
        case("over claims that are there", None, noon(json!({"existing": "Replace"})), Wrong),
        case("the newest to new claims", None, of(json!({"latest": true, "repository": "r"}), json!({})), Wrong),
        case("another name", Some(noon(json!({}))), noon(claims(&["copy"])), Wrong),
        case("the same", Some(noon(json!({}))), noon(json!({})), Right),
        case("a runner after all", Some(noon(into())), noon(merged(into(), runner())), Wrong),
        case(
            "a user that is a text",
            None,
            noon(json!({"runner": {"securityContext": {"runAsUser": "999"}}})),
            WrongForUs,
        ),
        case("a zone that is none", None, as_of("2026-11-29T03:00:00+99:99"), Wrong),
        case("a time without a zone", None, as_of("2026-11-29T03:00:00"), Wrong),
        case("a time finer than there is", None, as_of("2026-11-29T03:00:00.0123456789Z"), WrongForUs),
    ]
}

/// Of each kind of field: text, a list of objects, and what a schema leaves open.
fn runner() -> Value {
    json!({"runner": {
        "image": "postgres:18", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
        "volumes": [{"name": "more", "emptyDir": {}}], "securityContext": {"runAsUser": 999},
    }})
}

fn merged(mut object: Value, more: Value) -> Value {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate;

    #[test]
    fn validate_says_of_each_what_is_to_be_said() {
        for case in all() {
            let right = match case.kind {
                "Database" => judge(&case, validate::database, validate::database_update),
                "DumpTool" => judge(&case, validate::dump_tool, validate::dump_tool_update),
                "Repository" => judge(&case, validate::repository, validate::repository_update),
                "Snapshot" => judge(&case, validate::snapshot, validate::snapshot_update),
                "Restore" => judge(&case, validate::restore, validate::restore_update),
                _ => judge(&case, validate::freeze, validate::freeze_update),
            };
            assert_eq!(right, case.verdict == Right, "{}: {}", case.kind, case.name);
        }
    }

    fn judge<S: serde::de::DeserializeOwned>(
        case: &Case,
        new: fn(&S) -> Vec<validate::Cause>,
        update: fn(&S, &S) -> Vec<validate::Cause>,
    ) -> bool {
        let read = |spec: &Value| serde_json::from_value::<S>(spec.clone()).ok();
        let Some(spec) = read(&case.spec) else { return false };
        match &case.old {
            Some(old) => update(&spec, &read(old).unwrap()).is_empty(),
            None => new(&spec).is_empty(),
        }
    }
}
