//! Plans as they are printed: the order, the quoting, and that they ask before they do anything.

use std::process::Command;

use api::{Database, LiveSnapshot, RepositorySpec};
use serde_json::{Value, json};

use super::script::{Plan, quoted, said};

/// A plan of these files, for a Database whose endpoint is this.
fn plan(engine: &str, files: Value, endpoint: Option<Value>) -> String {
    let files = files.as_array().unwrap().iter().map(|file| {
        let mut file = file.clone();
        file["size"] = 1.into();
        file["sha256"] = "5ac3".into();
        file
    });
    let copy = json!({
        "apiVersion": "", "kind": "", "metadata": {"name": "first"},
        "spec": {"databases": ["orders"], "repository": "nightly"},
        "status": {
            "known": "Snapshot", "phase": "Ready", "id": "1234abcd", "locations": ["disk", "offsite"],
            "contents": [{
                "database": "orders", "engine": engine, "version": "15.4", "tool": "pg_dump", "files": files.collect::<Vec<_>>(),
            }],
        },
    });
    let repository = json!({
        "locations": [
            {"name": "gone", "directory": {"path": "/gone"}},
            {"name": "disk", "directory": {"path": "/var/it's here"}},
            {"name": "offsite", "s3": {
                "bucket": "backups", "endpoint": "https://s3.example.org", "credentials": {"secretRef": {"name": "account"}},
                "caSecretRef": {"name": "ca"},
            }},
        ],
        "encryption": {"passwordSecretRef": {"name": "nightly-key"}},
    });
    let target = endpoint.map(|endpoint| {
        let spec =
            json!({"engine": engine, "endpoint": endpoint, "credentials": {"secretRef": {"name": "orders-freezer"}}});
        Database::new("fresh", serde_json::from_value(spec).unwrap())
    });
    let (copy, repository): (LiveSnapshot, RepositorySpec) =
        (serde_json::from_value(copy).unwrap(), serde_json::from_value(repository).unwrap());
    let of = &copy.status.contents[0];
    Plan { copy: &copy, of, repository: &repository, namespace: "shop", target: target.as_ref() }.script().unwrap()
}

fn postgresql_files(database: &str) -> Value {
    json!([
        {"path": "orders/x.dump", "format": "PostgreSQLCustom", "database": database},
        {"path": "orders/postgres.dump", "format": "PostgreSQLCustom", "database": "postgres"},
        {"path": "orders/globals.sql", "format": "PostgreSQLGlobals"},
    ])
}

fn parses(script: &str) {
    let output = Command::new("sh").args(["-n", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn everything_is_checked_before_anything_is_restored_and_roles_come_first() {
    let script = plan("PostgreSQL", postgresql_files("shop"), Some(json!({"host": "127.0.0.1", "port": 5433})));
    parses(&script);
    let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("{text} is not in\n{script}"));
    let order = [
        "export RESTIC_REPOSITORY='/var/it'\\''s here'",
        "need RESTIC_PASSWORD 'key password of Secret nightly-key in namespace shop' RESTIC_PASSWORD_FILE RESTIC_PASSWORD_COMMAND",
        "checked '/orders/globals.sql' '5ac3'",
        "checked '/orders/x.dump' '5ac3'",
        "need PGUSER 'an account",
        "export PGHOST='127.0.0.1' PGPORT=5433",
        "dump '/orders/globals.sql' | psql",
        "dump '/orders/x.dump' | pg_restore --exit-on-error --create --dbname postgres\nwhole",
        "dump '/orders/postgres.dump' | pg_restore --exit-on-error --dbname postgres\nwhole",
    ];
    assert!(order.map(at).is_sorted(), "{script}");
    assert!(!script.contains("/gone"), "a location that does not have it is none to restore from");
    let offsite = "'offsite')\n  export RESTIC_REPOSITORY='s3:https://s3.example.org/backups'\n  need AWS_ACCESS_KEY_ID 'key access-key-id of Secret account in namespace shop'\n";
    assert!(script.contains(offsite), "{script}");
    assert!(script.contains("repository() { restic '--cacert' \"$CA_FILE\" \"$@\"; }"), "{script}");
}

#[test]
fn mariadb_gets_its_users_after_what_they_may_use() {
    let files = json!([
        {"path": "orders/users.sql", "format": "MariaDBUsers"}, {"path": "orders/databases.sql", "format": "MariaDBSql"},
    ]);
    let script = plan("MariaDB", files.clone(), Some(json!({"socket": "/run/my db.sock"})));
    parses(&script);
    let (databases, users) =
        (script.find("dump '/orders/databases.sql' | server"), script.find("dump '/orders/users.sql' | server"));
    assert!(databases.is_some() && databases < users, "{script}");
    assert!(
        script.contains("server() { mariadb --socket='/run/my db.sock' --skip-ssl --user=\"$MYSQL_USER\""),
        "{script}"
    );
    let nowhere = plan("MariaDB", files, None);
    parses(&nowhere);
    assert!(nowhere.contains("need MYSQL_HOST"), "{nowhere}");
}

#[test]
fn no_name_is_read_as_anything_but_a_name() {
    for name in ["a b", "it's", "$(touch /tmp/no)", "`x`", "a\nrm -rf /", "\"", "-x", "a=b", "ä;exit"] {
        let script = plan("PostgreSQL", postgresql_files(name), None);
        parses(&script);
        assert!(script.contains("--create --dbname postgres"), "{script}");
        for line in script.lines().filter(|line| line.contains(&said(name)) && name.len() > 3) {
            assert!(line.starts_with('#'), "{line}");
        }
        let echoed = Command::new("sh").args(["-c", &format!("printf %s {}", quoted(name))]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&echoed.stdout), name);
    }
}

#[test]
fn what_is_missing_is_asked_for_and_nothing_is_done() {
    let script = plan("PostgreSQL", postgresql_files("shop"), None);
    let run = |from: &str| {
        Command::new("sh")
            .args(["-c", &script])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("FROM", from)
            .output()
            .unwrap()
    };
    for (from, wanted) in [
        ("", "set RESTIC_PASSWORD: key password of Secret nightly-key"),
        ("offsite", "set AWS_ACCESS_KEY_ID"),
        ("moon", "FROM is one of disk|offsite"),
    ] {
        let output = run(from);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.starts_with(wanted), "{from}: {said}");
    }
}
