//! Plans as they are run: under `sh`, with programs that write down what they were told and answer what a test says.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process};

use api::{Database, LiveSnapshot, RepositorySpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::script::Plan;

/// What every file of the copy is, and what else the programs go by.
pub struct Stage {
    home: TempDir,
    content: String,
    environment: BTreeMap<&'static str, String>,
}

/// How a plan ended.
pub struct Ran {
    pub code: i32,
    pub said: String,
    /// Files that are there now.
    files: BTreeMap<String, String>,
}

/// Before what it does: what it was told, and what its environment says.
const RECORDS: &str = r#"#!/bin/sh
name=${0##*/}
{
  for variable in RESTIC_REPOSITORY AWS_DEFAULT_REGION AZURE_ACCOUNT_NAME PGHOST PGPORT PGSSLMODE PGSSLROOTCERT; do
    eval "value=\${$variable-}"
    if test -n "$value"; then printf '%s=%s\000' "$variable" "$value"; fi
  done
  printf '\002\000'
  printf '%s\000' "$@"
  printf '\001\000'
} >>"$RECORD/$name"
for last; do :; done
has() { word=$1; shift; for one; do if test "$one" = "$word"; then return 0; fi; done; return 1; }
away() { test -n "${AWAY:-}" || test -e "$RECORD/away"; }
"#;
const PROGRAMS: [(&str, &str); 4] = [
    ("restic", r#"cat "$RECORD/content""#),
    (
        "psql",
        r#"if away; then echo 'no server' >&2; exit 2; fi
if ! has --command "$@"; then cat >"$RECORD/psql.stdin"; exit; fi
case $last in *pg_roles*) printf '%s\n' "${THERE:-}" ;; DROP*) ;; *) echo "${COUNT:-0}" ;; esac"#,
    ),
    ("pg_restore", "cat >/dev/null"),
    (
        "mariadb",
        r#"if away; then echo 'no server' >&2; exit 1; fi
if has --execute "$@"; then
  case $last in *mysql.user*) printf '%s\n' "${THERE:-}" ;; *) echo 1 ;; esac
elif has --batch "$@"; then
  cat >"$RECORD/mariadb.query"
  printf '%s' "${NAMES:-}"
elif has --force "$@"; then
  cat >"$RECORD/mariadb.users"
  if test -n "${GOES:-}"; then : >"$RECORD/away"; fi
  exit "${REFUSES:-0}"
else
  cat >/dev/null
fi"#,
    ),
];

impl Stage {
    pub fn new(content: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        for (name, does) in PROGRAMS {
            let path = home.path().join("bin").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("{RECORDS}{does}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(home.path().join("content"), content).unwrap();
        Self { home, content: content.to_owned(), environment: BTreeMap::new() }
    }

    #[must_use]
    pub fn set(mut self, variable: &'static str, value: &str) -> Self {
        self.environment.insert(variable, value.to_owned());
        self
    }

    /// `copy`: a `LiveSnapshot`'s status; its files get the sums of what they are here.
    pub fn script(&self, mut status: Value, repository: &Value, target: Option<Value>, namespace: &str) -> String {
        let sum = Sha256::digest(&self.content).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        for file in status["contents"][0]["files"].as_array_mut().unwrap() {
            file["size"] = self.content.len().into();
            file["sha256"] = sum.clone().into();
        }
        let copy = json!({
            "apiVersion": "", "kind": "", "metadata": {"name": namespace}, "spec": {"databases": ["orders"], "repository": "nightly"},
            "status": status,
        });
        let (copy, repository): (LiveSnapshot, RepositorySpec) =
            (serde_json::from_value(copy).unwrap(), serde_json::from_value(repository.clone()).unwrap());
        let target = target.map(|spec| Database::new("fresh", serde_json::from_value(spec).unwrap()));
        let of = &copy.status.contents[0];
        Plan { copy: &copy, of, repository: &repository, namespace, target: target.as_ref() }.script().unwrap()
    }

    pub fn run(&self, script: &str) -> Ran {
        let home = self.home.path();
        for left in
            ["restic", "psql", "pg_restore", "mariadb", "psql.stdin", "mariadb.query", "mariadb.users", "away", "no"]
        {
            fs::remove_file(home.join(left)).ok();
        }
        let path = home.join("plan.sh");
        fs::write(&path, script).unwrap();
        let output = process::Command::new("sh")
            .arg(path)
            .current_dir(home)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", home.join("bin").display()))
            .env("RECORD", home)
            .envs([("RESTIC_PASSWORD", "p"), ("AWS_ACCESS_KEY_ID", "i"), ("AWS_SECRET_ACCESS_KEY", "s")])
            .envs([("PGUSER", "me"), ("MYSQL_USER", "-me $x")])
            .envs(&self.environment)
            .stdin(process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
        let files = fs::read_dir(home).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file());
        let files = files.map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned())
        });
        Ran { code: output.status.code().unwrap_or(-1), said, files: files.collect() }
    }
}

impl Ran {
    /// Of each call of a program: its environment, and its arguments.
    pub fn calls(&self, program: &str) -> Vec<(Vec<String>, Vec<String>)> {
        let all = self.wrote(program).unwrap_or_default();
        let words = |text: &str| text.split_terminator('\0').map(str::to_owned).collect();
        all.split_terminator("\u{1}\0")
            .map(|call| {
                let (environment, arguments) = call.split_once("\u{2}\0").unwrap();
                (words(environment), words(arguments))
            })
            .collect()
    }

    pub fn arguments(&self, program: &str) -> Vec<Vec<String>> {
        self.calls(program).into_iter().map(|(_, arguments)| arguments).collect()
    }

    /// What a program got, or said that it was told.
    pub fn wrote(&self, name: &str) -> Option<String> {
        self.files.get(name).cloned()
    }
}
