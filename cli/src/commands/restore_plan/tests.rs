//! That plans do what they say, in their order, and nothing else.

use serde_json::{Value, json};

use super::runs::{Ran, Stage};

const ROLES: &str = "--\n-- Roles\n--\nCREATE ROLE admin;\nALTER ROLE admin WITH SUPERUSER PASSWORD 'x';\nCREATE ROLE \"a \"\"b\";\n\
    ALTER ROLE \"a \"\"b\" SET application_name TO 'one\nALTER ROLE app it''s\n';\nCREATE ROLE \"c\nd\";\nCREATE ROLE app;\n\
    ALTER ROLE app WITH LOGIN PASSWORD 'y';\nGRANT app TO admin;\n";
const DUMP: &str = "-- x\n--\n-- Current Database: `it's ``a\\`\n--\nx\n-- Current Database: `no`\n\
    CREATE USER IF NOT EXISTS `admin`@`%` IDENTIFIED BY PASSWORD '*X';\nGRANT ALL PRIVILEGES ON *.* TO `admin`@`%` IDENTIFIED BY PASSWORD '*X';\n\
    GRANT SELECT ON `a`.`b` TO `new`@`%`;\n/*M!100005 SET DEFAULT ROLE NONE FOR 'admin'@'%' */;\n/*M!100005 SET DEFAULT ROLE r FOR 'new'@'%' */;\n";

fn status(engine: &str, files: &Value) -> Value {
    json!({
        "known": "Snapshot", "phase": "Ready", "id": "1234abcd", "locations": ["disk", "offsite"],
        "contents": [{"database": "orders", "engine": engine, "version": "15.4", "tool": "dump", "files": files}],
    })
}

fn repository() -> Value {
    json!({
        "locations": [
            {"name": "gone", "directory": {"path": "/gone"}},
            {"name": "disk", "directory": {"path": "/var/backups"}},
            {"name": "offsite", "s3": {
                "bucket": "backups", "endpoint": "https://s3.example.org", "credentials": {"secretRef": {"name": "account"}},
                "caSecretRef": {"name": "ca"},
            }},
        ],
        "encryption": {"passwordSecretRef": {"name": "nightly-key"}},
    })
}

fn target(engine: &str, tls: &Value) -> Value {
    json!({"engine": engine, "endpoint": {"host": "db.example.org"}, "tls": tls})
}

fn of(stage: &Stage, engine: &str, tls: Value) -> String {
    let files = if engine == "MariaDB" {
        json!([
            {"path": "orders/users.sql", "format": "MariaDBUsers"},
            {"path": "orders/databases.sql", "format": "MariaDBSql"},
        ])
    } else {
        json!([
            {"path": "orders/shop.dump", "format": "PostgreSQLCustom", "database": "shop"},
            {"path": "orders/postgres.dump", "format": "PostgreSQLCustom", "database": "postgres"},
            {"path": "orders/globals.sql", "format": "PostgreSQLGlobals"},
        ])
    };
    stage.script(status(engine, &files), &repository(), Some(target(engine, &tls)), "shop")
}

fn ran(stage: &Stage, engine: &str) -> Ran {
    stage.run(&of(stage, engine, json!({"mode": "Require"})))
}

/// The files that restic was asked for.
fn dumped(ran: &Ran) -> Vec<String> {
    ran.arguments("restic").into_iter().filter_map(|arguments| arguments.last().cloned()).collect()
}

#[test]
fn everything_is_checked_before_anything_is_restored_and_roles_come_first() {
    let done = ran(&Stage::new(ROLES).set("THERE", "admin"), "PostgreSQL");
    assert_eq!(done.code, 0, "{}", done.said);
    let order = ["/orders/globals.sql", "/orders/shop.dump", "/orders/postgres.dump"];
    assert_eq!(dumped(&done), order.repeat(2));
    let create = ["--exit-on-error", "--create", "--dbname", "template1"];
    assert_eq!(done.arguments("pg_restore"), [&create[..], &["--exit-on-error", "--dbname", "postgres"]]);
    let done = ran(&Stage::new(DUMP), "MariaDB");
    assert_eq!(done.code, 0, "{}", done.said);
    let [databases, users] = ["/orders/databases.sql", "/orders/users.sql"];
    assert_eq!(
        dumped(&done),
        [databases, users, databases, databases, users],
        "to know what is in the way it is read again"
    );
}

#[test]
fn what_is_there_already_is_refused_before_anything_is_touched() {
    let there = Stage::new(ROLES).set("COUNT", "1");
    let refused = ran(&there, "PostgreSQL");
    assert!(
        refused.code != 0 && refused.said.contains("Database shop is there already. Nothing was touched. REPLACE=yes")
    );
    assert!(refused.wrote("psql.stdin").is_none() && refused.calls("pg_restore").is_empty());
    let replaced = ran(&there.set("REPLACE", "yes"), "PostgreSQL");
    assert_eq!(replaced.code, 0, "{}", replaced.said);
    let said: Vec<_> =
        replaced.arguments("psql").into_iter().filter_map(|arguments| arguments.last().cloned()).collect();
    for name in ["shop", "postgres"] {
        assert!(said.contains(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")), "{said:?}");
    }
    assert_eq!(replaced.arguments("pg_restore"), [["--exit-on-error", "--create", "--dbname", "template1"]; 2]);

    let there = Stage::new(DUMP).set("NAMES", "it's `a\\");
    let refused = ran(&there, "MariaDB");
    assert!(
        refused.code != 0 && refused.said.contains("There already: it's `a\\. Nothing was touched. REPLACE=yes"),
        "{}",
        refused.said
    );
    let query = refused.wrote("mariadb.query").unwrap();
    assert!(query.ends_with("schema_name IN ('', 'it''s `a\\');\n"), "{query}");
    assert!(refused.wrote("mariadb.users").is_none());
    assert_eq!(dumped(&refused).len(), 3, "nothing is read to be restored");
    let replaced = ran(&there.set("REPLACE", "yes"), "MariaDB");
    assert_eq!((replaced.code, dumped(&replaced).len()), (0, 4), "{}", replaced.said);
}

#[test]
fn a_name_that_cannot_be_told_is_in_the_way() {
    let refused = ran(&Stage::new("--\n-- Current Database: `a\n-- b`\n--\n"), "MariaDB");
    assert!(refused.code != 0 && refused.said.contains("Nothing was touched"), "{}", refused.said);
    assert!(refused.wrote("mariadb.users").is_none());
}

#[test]
fn who_is_there_already_keeps_what_he_has() {
    let done = ran(&Stage::new(ROLES).set("THERE", "admin\na \"b\nc\u{1}d"), "PostgreSQL");
    let new = "--\n-- Roles\n--\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'y';\nGRANT app TO admin;\n";
    assert_eq!(done.wrote("psql.stdin").as_deref(), Some(new), "{}", done.said);
    // The negative control: who is not there gets all of it.
    assert_eq!(ran(&Stage::new(ROLES).set("THERE", "other"), "PostgreSQL").wrote("psql.stdin").as_deref(), Some(ROLES));

    let done = ran(&Stage::new(DUMP).set("THERE", "`admin`@`%`\t'admin'@'%'"), "MariaDB");
    let users = done.wrote("mariadb.users").unwrap();
    assert!(!users.contains("TO `admin`") && !users.contains("FOR 'admin'"), "{users}");
    assert!(users.contains("TO `new`@`%`;") && users.contains("FOR 'new'"), "{users}");
    assert_eq!(ran(&Stage::new(DUMP).set("THERE", "x\ty"), "MariaDB").wrote("mariadb.users").as_deref(), Some(DUMP));
}

#[test]
fn a_server_that_is_away_is_no_server_that_refuses_some_users() {
    for engine in ["PostgreSQL", "MariaDB"] {
        let away = ran(&Stage::new(DUMP).set("AWAY", "yes"), engine);
        assert!(
            away.code != 0 && away.said.contains("The server cannot be asked. Nothing was touched"),
            "{}",
            away.said
        );
    }
    let some = ran(&Stage::new(DUMP).set("REFUSES", "1"), "MariaDB");
    assert!(some.code == 0 && some.said.contains("some users or grants were refused"), "{}", some.said);
    let gone = ran(&Stage::new(DUMP).set("REFUSES", "1").set("GOES", "yes"), "MariaDB");
    assert!(gone.code != 0 && !gone.said.contains("some users"), "{}", gone.said);
    assert!(!ran(&Stage::new(DUMP), "MariaDB").said.contains("refused"));
}

#[test]
fn the_encryption_is_that_of_the_database() {
    let ca = json!({"name": "its-ca"});
    let (plain, ssl) = (&["--skip-ssl"][..], "--ssl-ca=/its ca");
    for (tls, libpq, mariadb) in [
        (json!({"mode": "Disable", "caSecretRef": ca}), "PGSSLMODE=disable", plain),
        (json!({"mode": "Require"}), "PGSSLMODE=require", &["--ssl", "--skip-ssl-verify-server-cert"][..]),
        (
            json!({"mode": "VerifyCA", "caSecretRef": ca}),
            "PGSSLMODE=verify-ca",
            &["--ssl", "--ssl-verify-server-cert", ssl],
        ),
        (
            json!({"mode": "VerifyFull", "caSecretRef": ca}),
            "PGSSLMODE=verify-full",
            &["--ssl", "--ssl-verify-server-cert", ssl],
        ),
        (json!({"caSecretRef": ca}), "PGSSLMODE=verify-full", &["--ssl", "--ssl-verify-server-cert", ssl]),
    ] {
        let has_ca = mariadb.contains(&ssl);
        let stage = Stage::new(DUMP).set("SERVER_CA_FILE", "/its ca").set("PGSSLROOTCERT", "/its ca");
        let done = stage.run(&of(&stage, "PostgreSQL", tls.clone()));
        assert!(done.calls("psql").iter().all(|(environment, _)| environment.contains(&libpq.to_owned())), "{tls}");
        let done = stage.run(&of(&stage, "MariaDB", tls.clone()));
        for arguments in done.arguments("mariadb") {
            let said: Vec<&str> = arguments.iter().map(String::as_str).filter(|one| one.contains("ssl")).collect();
            assert_eq!(said, mariadb, "{tls}");
        }
        for (engine, variable) in [("PostgreSQL", "PGSSLROOTCERT"), ("MariaDB", "SERVER_CA_FILE")] {
            let bare = Stage::new(DUMP);
            let asked = bare.run(&of(&bare, engine, tls.clone())).said;
            let wanted = format!("set {variable}: a file that holds key ca.crt of Secret its-ca in namespace shop\n");
            assert_eq!(asked == wanted, has_ca, "{tls}: {asked}");
        }
    }
}

#[test]
fn what_is_missing_is_asked_for_and_nothing_is_done() {
    for (variable, from, wanted) in [
        ("RESTIC_PASSWORD", "", "set RESTIC_PASSWORD: key password of Secret nightly-key in namespace shop"),
        ("AWS_ACCESS_KEY_ID", "offsite", "set AWS_ACCESS_KEY_ID: key access-key-id of Secret account"),
        ("PGUSER", "", "set PGUSER: an account"),
        ("x", "offsite", "set CA_FILE"),
        ("x", "moon", "FROM is one of disk|offsite"),
    ] {
        let done = ran(&Stage::new(ROLES).set(variable, "").set("FROM", from), "PostgreSQL");
        assert!(done.code != 0 && done.said.starts_with(wanted), "{from}: {}", done.said);
        assert!(done.calls("psql").is_empty());
    }
    let stage = Stage::new(DUMP);
    let files = json!([{"path": "orders/databases.sql", "format": "MariaDBSql"}]);
    let nowhere = stage.run(&stage.script(status("MariaDB", &files), &repository(), None, "shop"));
    assert!(nowhere.said.starts_with("set MYSQL_HOST"), "{}", nowhere.said);
}
