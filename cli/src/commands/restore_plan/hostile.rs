//! That no name is read as anything but a name: every field of a plan is one that a shell, SQL or a program would take for more.

use serde_json::{Value, json};

use super::runs::{Ran, Stage};

/// Nothing that a shell, SQL or an option would leave as it is.
const HOSTILE: [&str; 12] = [
    "$(touch no)",
    "`touch no`",
    "it's; touch no #",
    "\"; touch no; \"",
    "-x",
    "--help",
    "a b",
    "a\ntouch no\n",
    "*",
    "\\' OR 1=1 --\\",
    "${HOME}!~&|<>",
    "ä=%s%n",
];

/// Every field, each with a value of its own.
struct Fields<'h>(&'h str);

impl Fields<'_> {
    fn of(&self, field: &str) -> String {
        format!("{}{field}", self.0)
    }

    fn secret(&self, field: &str) -> Value {
        json!({"name": self.of(field)})
    }

    fn repository(&self) -> Value {
        json!({
            "locations": [
                {"name": self.of("first"), "directory": {"path": format!("/{}", self.of("path"))}},
                {"name": self.of("second"), "s3": {
                    "bucket": self.of("bucket"), "prefix": self.of("prefix"), "endpoint": self.of("endpoint"), "region": self.of("region"),
                    "pathStyle": true, "caSecretRef": self.secret("ca"), "credentials": {
                        "secretRef": self.secret("account"), "accessKeyIdKey": self.of("id"), "secretAccessKeyKey": self.of("secret"),
                    },
                }},
                {"name": self.of("third"), "azure": {
                    "account": self.of("azure"), "container": self.of("container"), "secretRef": self.secret("azure"),
                }},
                {"name": self.of("fourth"), "gcs": {"bucket": self.of("gcs"), "serviceAccountSecretRef": self.secret("gcs")}},
            ],
            "encryption": {"passwordSecretRef": self.secret("password"), "passwordKey": self.of("key")},
        })
    }

    /// Where a location of them is, as restic is told, and with which options.
    fn places(&self) -> [(&'static str, Vec<String>, Vec<String>); 4] {
        let is = |name: &str, value: String| format!("{name}={value}");
        let [endpoint, bucket, prefix] = ["endpoint", "bucket", "prefix"].map(|field| self.of(field));
        let url = |url: String| is("RESTIC_REPOSITORY", url);
        let region = is("AWS_DEFAULT_REGION", self.of("region"));
        let options = ["--cacert", "-ca $x", "-o", "s3.bucket-lookup=path"].map(str::to_owned);
        [
            ("first", vec![url(format!("/{}", self.of("path")))], Vec::new()),
            ("second", vec![url(format!("s3:{endpoint}/{bucket}/{prefix}")), region], options.into()),
            (
                "third",
                vec![url(format!("azure:{}:/", self.of("container"))), is("AZURE_ACCOUNT_NAME", self.of("azure"))],
                Vec::new(),
            ),
            ("fourth", vec![url(format!("gs:{}:/", self.of("gcs")))], Vec::new()),
        ]
    }

    fn status(&self, engine: &str, files: &Value) -> Value {
        let locations = ["first", "second", "third", "fourth"].map(|field| self.of(field));
        json!({
            "known": "Snapshot", "phase": "Ready", "id": self.of("snapshot"), "locations": locations,
            "contents": [{
                "database": self.of("of"), "engine": engine, "version": self.of("version"), "tool": self.of("tool"), "files": files,
            }],
        })
    }

    fn target(&self, engine: &str, endpoint: &Value) -> Value {
        json!({
            "engine": engine, "endpoint": endpoint, "tls": {"mode": "VerifyFull", "caSecretRef": self.secret("server-ca")},
            "credentials": {"secretRef": self.secret("freezer"), "usernameKey": self.of("user"), "passwordKey": self.of("password")},
        })
    }

    fn script(&self, stage: &Stage, engine: &str, endpoint: &Value) -> String {
        let files = if engine == "MariaDB" {
            json!([{"path": self.of("sql"), "format": "MariaDBSql"}, {"path": self.of("users"), "format": "MariaDBUsers"}])
        } else {
            json!([
                {"path": self.of("globals"), "format": "PostgreSQLGlobals"},
                {"path": self.of("dump"), "format": "PostgreSQLCustom", "database": self.of("database")},
            ])
        };
        stage.script(
            self.status(engine, &files),
            &self.repository(),
            Some(self.target(engine, endpoint)),
            &self.of("namespace"),
        )
    }

    /// What restic is told when it is asked for these files of the copy.
    fn dumps(&self, options: &[String], files: &[&str]) -> Vec<Vec<String>> {
        let call = |file: &&str| {
            let path = format!("/{}", self.of(file));
            [options, &["dump".to_owned(), "--".to_owned(), self.of("snapshot"), path]].concat()
        };
        files.iter().map(call).collect()
    }
}

fn stage(from: &str) -> Stage {
    let files = [("CA_FILE", "-ca $x"), ("SERVER_CA_FILE", "-ca $x"), ("PGSSLROOTCERT", "-ca $x")];
    let keys =
        [("AZURE_ACCOUNT_KEY", "k"), ("GOOGLE_APPLICATION_CREDENTIALS", "k"), ("FROM", from), ("REPLACE", "yes")];
    [&files[..], &keys[..]].concat().into_iter().fold(Stage::new("x\n"), |stage, (name, value)| stage.set(name, value))
}

fn well(done: Ran, script: &str) -> Ran {
    assert_eq!(done.code, 0, "{}\n{script}", done.said);
    assert!(done.wrote("no").is_none(), "it was run\n{script}");
    done
}

/// What a literal of SQL's says, read as the server would.
fn meant(literal: &str) -> String {
    let (is_escaped, text) = match literal.strip_prefix('E') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let inside = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap();
    assert!(!inside.replace("''", "").contains('\'') && (is_escaped || !inside.contains('\\')), "{literal}");
    inside.replace("''", "'").replace("\\\\", "\\")
}

#[test]
fn of_postgresql() {
    for fields in HOSTILE.map(Fields) {
        for (from, environment, options) in fields.places() {
            let (stage, host) = (stage(&fields.of(from)), fields.of("host"));
            let script = fields.script(&stage, "PostgreSQL", &json!({"host": host, "port": 5433}));
            let done = well(stage.run(&script), &script);
            for (said, _) in done.calls("restic") {
                assert_eq!(said[..environment.len()], environment);
            }
            let files = ["globals", "dump"].repeat(2);
            assert_eq!(done.arguments("restic"), fields.dumps(&options, &files), "{script}");
            let place = [
                format!("PGHOST={host}"),
                "PGPORT=5433".into(),
                "PGSSLMODE=verify-full".into(),
                "PGSSLROOTCERT=-ca $x".into(),
            ];
            for program in ["psql", "pg_restore"] {
                assert!(done.calls(program).iter().all(|(said, _)| said.ends_with(&place)), "{program}");
            }
            let asked = done.arguments("psql");
            let ask = "--no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --dbname template1 --command";
            let globals = "--no-psqlrc --quiet --output /dev/null --dbname template1";
            for (asked, wanted) in asked.iter().zip([ask, ask, globals, ask]) {
                let length = wanted.split(' ').count();
                assert_eq!(
                    (asked[..length].join(" "), asked.len()),
                    (wanted.to_owned(), length + usize::from(wanted == ask))
                );
            }
            let (name, said) = (fields.of("database"), |number: usize| asked[number].last().unwrap());
            let literal = said(1).strip_prefix("SELECT count(*) FROM pg_database WHERE datname = ").unwrap();
            assert_eq!(meant(literal), name);
            assert_eq!(*said(3), format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", name.replace('"', "\"\"")));
            assert_eq!(asked.len(), 4);
            assert_eq!(done.arguments("pg_restore"), [["--exit-on-error", "--create", "--dbname", "template1"]]);
        }
    }
}

#[test]
fn of_mariadb() {
    for fields in HOSTILE.map(Fields) {
        for (endpoint, place) in [
            (
                json!({"host": fields.of("host")}),
                vec!["--protocol=tcp".to_owned(), format!("--host={}", fields.of("host")), "--port=3306".to_owned()],
            ),
            (json!({"socket": fields.of("socket")}), vec![format!("--socket={}", fields.of("socket"))]),
        ] {
            let stage = stage("");
            let script = fields.script(&stage, "MariaDB", &endpoint);
            let done = well(stage.run(&script), &script);
            assert_eq!(done.arguments("restic"), fields.dumps(&[], &["sql", "users"].repeat(2)), "{script}");
            let way = ["--ssl", "--ssl-verify-server-cert", "--ssl-ca=-ca $x", "--user=-me $x"].map(str::to_owned);
            let way = [&place[..], &way].concat();
            let asked = done.arguments("mariadb");
            assert_eq!(asked.len(), 3);
            assert!(asked.iter().all(|asked| asked.starts_with(&way)), "{asked:?}");
        }
    }
}

/// The negative control: one word that is not in its quotes is heard.
#[test]
fn what_is_not_quoted_is_noticed() {
    let fields = Fields("$(touch no) it's ");
    let stage = stage("");
    let script = fields.script(&stage, "PostgreSQL", &json!({"host": "h"}));
    for (quoted, bare) in [
        ("dump -- \"$snapshot\" \"$1\" ||", "dump -- $snapshot $1 ||"),
        ("restic \"$@\"", "restic $@"),
        ("RESTIC_REPOSITORY='/$(touch no) it'\\''s path'", "RESTIC_REPOSITORY=\"/$(touch no) it's path\""),
    ] {
        let loose = script.replace(quoted, bare);
        assert_ne!(loose, script, "{quoted}");
        let done = stage.run(&loose);
        let is_told_the_same = done.arguments("restic") == fields.dumps(&[], &["globals", "dump"].repeat(2));
        assert!(!is_told_the_same || done.wrote("no").is_some(), "{bare}");
    }
}
