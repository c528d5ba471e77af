//! The annotations by which a Pod says what agent it wants. One table: by it they are read and judged, by it errors say what would
//! be right, and the table in docs/injection.md is written from it.

use std::collections::BTreeMap;

use json_patch::Patch;
use serde_json::Value;

use super::{
    HASH, LABEL, MESSAGE, PREFIX, STATUS, VERSION,
    pod::Pod,
    resources::Wanted,
    values::{self, Read, Wrong},
};
use crate::{Engine, Level, gate};

/// What a Pod says; what it does not say is guessed, or as the installation has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) engine: Option<Engine>,
    pub(super) container: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) socket: Option<String>,
    pub(super) shared_socket: bool,
    pub(super) credentials_secret: Option<String>,
    pub(super) username_key: Option<String>,
    pub(super) password_key: Option<String>,
    pub(super) level: Option<Level>,
    pub(super) ttl_seconds: Option<u32>,
    pub(super) data_volume: Option<String>,
    pub(super) agent_image: Option<String>,
    pub(super) agent_user: Option<i64>,
    pub(super) agent_resources: Wanted,
    pub(super) velero_hooks: bool,
    pub(super) k8up_command: bool,
    pub(super) json_patch: Option<Patch>,
}

/// What a Pod says of the Database that is made for it when none leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether one is to be made.
    pub database: bool,
    pub level: Option<Level>,
    pub ttl_seconds: Option<u32>,
}

/// One annotation.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Below [`PREFIX`].
    pub key: &'static str,
    /// What it must be.
    pub value: &'static str,
    /// What holds without it.
    pub without: &'static str,
    pub what: &'static str,
    read: fn(&mut Settings, &str) -> Read<()>,
}

/// All of them, in the order of the document.
pub const SETTINGS: [Setting; 18] = [
    Setting {
        key: "engine",
        value: "PostgreSQL or MariaDB",
        without: "guessed from the image; from port 5432 where the image says nothing and the Pod has the label",
        what: "the kind of server",
        read: |settings, text| set(&mut settings.engine, text.parse().map_err(|_| unserved(text)).map(Some)),
    },
    Setting {
        key: "container",
        value: "the name of a container of the Pod",
        without: "the one that looks like a server; with several, nothing is injected",
        what: "the container that the database runs in",
        read: |settings, text| set(&mut settings.container, values::label_name(text).map(Some)),
    },
    Setting {
        key: "port",
        value: "a number from 1 to 65535",
        without: "the only port that the container declares, else the engine's own",
        what: "where the server listens, at 127.0.0.1. With `socket`: which of PostgreSQL's sockets in that directory",
        read: |settings, text| set(&mut settings.port, values::port(text).map(Some)),
    },
    Setting {
        key: "socket",
        value: "an absolute path without .. and : in it",
        without: "the server is asked at its port",
        what: "PostgreSQL's socket directory, or MariaDB's socket file. A volume that the container has there is mounted into the agent, too",
        read: |settings, text| set(&mut settings.socket, values::path(text).map(Some)),
    },
    Setting {
        key: "shared-socket",
        value: "true or false",
        without: "false",
        what: "makes a volume (emptyDir) for the directory of `socket`, mounted in both: the one change to the database's container",
        read: |settings, text| set(&mut settings.shared_socket, values::boolean(text)),
    },
    Setting {
        key: "credentials-secret",
        value: "the name of a Secret",
        without: "the server asks for no password (peer authentication over a socket)",
        what: "the account to freeze with, of the Pod's namespace. Only the agent sees it; while it is missing, the Pod starts all the same",
        read: |settings, text| set(&mut settings.credentials_secret, values::object_name(text).map(Some)),
    },
    Setting {
        key: "username-key",
        value: "a key of the Secret",
        without: "username",
        what: "the key that holds the user's name",
        read: |settings, text| set(&mut settings.username_key, values::secret_key(text).map(Some)),
    },
    Setting {
        key: "password-key",
        value: "a key of the Secret",
        without: "password",
        what: "the key that holds the password",
        read: |settings, text| set(&mut settings.password_key, values::secret_key(text).map(Some)),
    },
    Setting {
        key: "level",
        value: "Recoverable, Durable or WriteBlocked",
        without: "as the Database says, else Durable",
        what: "the level of a freeze that names none",
        read: |settings, text| set(&mut settings.level, text.parse().map_err(|_| Wrong::Value).map(Some)),
    },
    Setting {
        key: "ttl",
        value: "a duration such as 90s, 10m or 1h, at most 6h",
        without: "as the Database says, else 60s, at WriteBlocked 10s",
        what: "how long a freeze lasts that does not say; at WriteBlocked at most 15s",
        read: |settings, text| set(&mut settings.ttl_seconds, values::seconds(text).map(Some)),
    },
    Setting {
        key: "database",
        value: "true or false",
        without: "true",
        what: "whether a Database is made for the workload when none leads to its Pods. It is of the workload's name, and stays when the workload goes",
        read: |_, text| values::boolean(text).map(drop),
    },
    Setting {
        key: "data-volume",
        value: "the name of a volume that the container mounts",
        without: "the agent sees no data",
        what: "mounted into the agent at the same places, read-only",
        read: |settings, text| set(&mut settings.data_volume, values::label_name(text).map(Some)),
    },
    Setting {
        key: "agent-image",
        value: "the name of an image",
        without: "the installation's",
        what: "the agent's image",
        read: |settings, text| set(&mut settings.agent_image, values::image(text).map(Some)),
    },
    Setting {
        key: "agent-user",
        value: "a user id from 1 to 2147483647",
        without: "the database's own (runAsUser of its container or of the Pod) unless that is root, else 65532",
        what: "whom the agent runs as. Peer authentication and the files of the data volume want the database's own user",
        read: |settings, text| set(&mut settings.agent_user, values::user(text).map(Some)),
    },
    Setting {
        key: "agent-resources",
        value: "a list of requests.cpu, requests.memory, limits.cpu and limits.memory, such as requests.cpu=10m,limits.memory=64Mi",
        without: "see [what it costs](#what-it-costs)",
        what: "the agent's requests and limits",
        read: |settings, text| set(&mut settings.agent_resources, values::resources(text)),
    },
    Setting {
        key: "velero-hooks",
        value: "true or false",
        without: "false",
        what: "adds the annotations by which Velero has the agent freeze before its backup of the Pod and thaw after it. Where [the gates](gates.md) are on, its snapshots are held for without them",
        read: |settings, text| set(&mut settings.velero_hooks, values::boolean(text)),
    },
    Setting {
        key: "k8up-command",
        value: "true or false",
        without: "false",
        what: "is to add the annotations by which K8up takes a dump from the agent. The agent makes none yet: nothing is added, and a warning says so",
        read: |settings, text| set(&mut settings.k8up_command, values::boolean(text)),
    },
    Setting {
        key: "json-patch",
        value: "a JSON Patch (RFC 6902) of at most 64 operations and 16 KiB",
        without: "nothing",
        what: "is applied to the agent's container last of all: paths begin there (`/env/-`). Name, restart policy, lifecycle and the probes that a Pod waits for stay as they are",
        read: |settings, text| set(&mut settings.json_patch, values::patch(text).map(Some)),
    },
];

/// Other annotations of ours that may be on a Pod.
const OTHERS: [&str; 6] = [STATUS, MESSAGE, HASH, VERSION, LABEL, gate::QUIESCE];
/// The most that are named which are none of ours.
const MOST_UNKNOWN: usize = 4;
/// So much of a value is repeated to whoever wrote it.
const SHOWN: usize = 40;

fn set<T>(place: &mut T, value: Read<T>) -> Read<()> {
    *place = value?;
    Ok(())
}

/// What there is to say of a Pod's annotations.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) settings: Settings,
    /// Each forbids the injection.
    pub(super) wrong: Vec<String>,
    /// Each is told.
    pub(super) unknown: Vec<String>,
}

pub(super) fn read(pod: Pod<'_>) -> Reading {
    let mut reading = Reading::default();
    for setting in &SETTINGS {
        let key = format!("{PREFIX}{}", setting.key);
        let Some(text) = pod.annotation(&key) else { continue };
        match (setting.read)(&mut reading.settings, text) {
            Ok(()) => {}
            Err(Wrong::Value) => reading.wrong.push(format!("{key} is {}; must be {}", shown(text), setting.value)),
            Err(Wrong::Because(why)) => reading.wrong.push(format!("{key}: {why}")),
        }
    }
    if reading.wrong.is_empty() {
        reading.wrong = reading.settings.fit_together();
    }
    reading.unknown = unknown(pod);
    reading
}

/// Whether a Pod says anything of the agent that it wants.
pub(super) fn any(pod: Pod<'_>) -> bool {
    SETTINGS.iter().any(|setting| pod.annotation(&format!("{PREFIX}{}", setting.key)).is_some())
}

impl Settings {
    fn fit_together(&self) -> Vec<String> {
        let keys = self.username_key.is_some() || self.password_key.is_some();
        let longest = crate::Copy::Files.longest(self.level.unwrap_or_default()).as_secs();
        let rules = [
            (
                self.shared_socket && self.socket.is_none(),
                format!("{PREFIX}shared-socket without {PREFIX}socket; say where it is"),
            ),
            (
                keys && self.credentials_secret.is_none(),
                format!("a key without {PREFIX}credentials-secret; name the Secret"),
            ),
            (
                self.ttl_seconds.is_some_and(|seconds| u64::from(seconds) > longest),
                format!("{PREFIX}ttl is too long for {PREFIX}level; at most {longest}s"),
            ),
        ];
        rules.into_iter().filter(|(broken, _)| *broken).map(|(_, why)| why).collect()
    }
}

fn unserved(text: &str) -> Wrong {
    if text.eq_ignore_ascii_case("mysql") {
        return Wrong::Because("MySQL is not served yet; PostgreSQL and MariaDB are".to_owned());
    }
    Wrong::Value
}

fn unknown(pod: Pod<'_>) -> Vec<String> {
    let annotations = pod.0.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
    let is_unknown = |key: &&str| {
        let name = key.strip_prefix(PREFIX);
        name.is_some_and(|name| !OTHERS.contains(key) && SETTINGS.iter().all(|setting| setting.key != name))
    };
    let unknown = annotations.map(|(key, _)| key.as_str()).filter(is_unknown).take(MOST_UNKNOWN);
    unknown.map(|key| format!("{} is no annotation that injection knows", cut(key, SHOWN * 2))).collect()
}

fn shown(text: &str) -> String {
    format!("{:?}", cut(text, SHOWN))
}

pub(super) fn cut(text: &str, longest: usize) -> String {
    let end = text.floor_char_boundary(longest);
    if end == text.len() { text.to_owned() } else { format!("{}…", &text[..end]) }
}

/// The table of the document, in Markdown.
pub fn table() -> String {
    let head = "| `stillpoint.dev/…` | value | without it | what it does |\n|---|---|---|---|\n";
    let row = |setting: &Setting| {
        let Setting { key, value, without, what, .. } = setting;
        format!("| `{key}` | {value} | {without} | {what} |\n")
    };
    head.to_owned() + &SETTINGS.iter().map(row).collect::<String>()
}

impl Default for Policy {
    fn default() -> Self {
        Self { database: true, level: None, ttl_seconds: None }
    }
}

impl Policy {
    /// As annotations say; what is wrong there says nothing.
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let said = |key: &str| annotations.get(&format!("{PREFIX}{key}")).map(String::as_str);
        Self {
            database: said("database").and_then(|text| values::boolean(text).ok()).unwrap_or(true),
            level: said("level").and_then(|text| text.parse().ok()),
            ttl_seconds: said("ttl").and_then(|text| values::seconds(text).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf};

    use serde_json::json;

    use super::*;

    /// Of each setting: what is right, and what is not.
    const VALUES: [(&str, &[&str], &[&str]); 18] = [
        ("engine", &["PostgreSQL", "mariadb"], &["", "MySQL", "Oracle"]),
        ("container", &["db", "orders-db-1"], &["", "a b", "DB"]),
        ("port", &["1", "5433", "65535"], &["", "0", "65536", "-1", "http"]),
        ("socket", &["/run/postgresql", "/tmp/"], &["", "/", "run", "/a/../b", "/a:b", "/$(A)"]),
        ("shared-socket", &["false"], &["", "yes", "True", "1"]),
        ("credentials-secret", &["orders", "orders.db"], &["", "Orders", "a/b"]),
        ("username-key", &[], &["", "a/b", ".."]),
        ("password-key", &[], &["", "a/b", ".."]),
        ("level", &["Durable", "writeblocked"], &["", "Perfect"]),
        ("ttl", &["90", "90s", "10m", "6h"], &["", "0", "7h", "soon", "1d"]),
        ("database", &["true", "false"], &["", "orders"]),
        ("data-volume", &["data"], &["", "Data", "a/b"]),
        ("agent-image", &["registry.example/agent@sha256:0"], &["", "a b"]),
        ("agent-user", &["1", "999"], &["", "0", "-1", "root", "2147483648"]),
        ("agent-resources", &["requests.cpu=1m", "limits.memory=16Mi,limits.cpu=1"], &["", "cpu=1", "limits.memory=1"]),
        ("velero-hooks", &["true", "false"], &["", "on"]),
        ("k8up-command", &["true", "false"], &["", "on"]),
        (
            "json-patch",
            &["[]", r#"[{"op":"remove","path":"/env"}]"#],
            &["", "{}", r#"[{"op":"copy","from":"","path":"/a"}]"#],
        ),
    ];

    fn reading(annotations: &[(&str, &str)]) -> Reading {
        let annotations: Value =
            annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), Value::from(*value))).collect();
        read(Pod(&json!({"metadata": {"annotations": annotations}})))
    }

    #[test]
    fn of_its_database_a_pod_says_what_can_be_read_and_nothing_else() {
        let policy = |annotations: &[(&str, &str)]| {
            let annotations = annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned()));
            Policy::of(&annotations.collect())
        };
        assert_eq!(policy(&[]), Policy::default());
        assert_eq!(policy(&[("level", "Perfect"), ("ttl", "soon"), ("database", "orders")]), Policy::default());
        let said = policy(&[("level", "WriteBlocked"), ("ttl", "5s"), ("database", "false")]);
        assert_eq!(said, Policy { database: false, level: Some(Level::WriteBlocked), ttl_seconds: Some(5) });
    }

    #[test]
    fn every_setting_takes_what_is_right_and_says_what_would_be() {
        for (setting, (key, right, wrong)) in SETTINGS.iter().zip(VALUES) {
            assert_eq!(setting.key, key);
            for text in right {
                assert_eq!(reading(&[(key, text)]).wrong, [""; 0], "{key}: {text}");
            }
            for text in wrong {
                let said = reading(&[(key, text)]).wrong;
                assert_eq!(said.len(), 1, "{key}: {text:?}");
                let because = said[0].starts_with(&format!("stillpoint.dev/{key}: "));
                let right = said[0].starts_with(&format!("stillpoint.dev/{key} is \""));
                assert!(
                    because || (right && said[0].ends_with(&format!("; must be {}", setting.value))),
                    "{}",
                    said[0]
                );
            }
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once_and_long_values_by_their_beginning() {
        let said = reading(&[("port", "no"), ("level", &"x".repeat(300)), ("ttl", "never")]).wrong;
        assert_eq!(said.len(), 3);
        assert!(said.iter().all(|said| said.len() < 120), "{said:?}");
    }

    #[test]
    fn settings_that_mean_nothing_alone_are_not_taken_alone() {
        for (alone, with) in [
            (("shared-socket", "true"), ("socket", "/run/postgresql")),
            (("username-key", "user"), ("credentials-secret", "orders")),
            (("password-key", "pass"), ("credentials-secret", "orders")),
        ] {
            assert_eq!(reading(&[alone]).wrong.len(), 1, "{alone:?}");
            assert_eq!(reading(&[alone, with]).wrong, [""; 0], "{alone:?}");
        }
        assert_eq!(reading(&[("ttl", "16s"), ("level", "WriteBlocked")]).wrong.len(), 1);
        assert_eq!(reading(&[("ttl", "15s"), ("level", "WriteBlocked")]).wrong, [""; 0]);
    }

    #[test]
    fn what_is_misspelt_is_told_and_what_is_others_is_not() {
        let annotations =
            json!({"stillpoint.dev/prot": "1", STATUS: INJECTED, gate::QUIESCE: "skip", "other.dev/port": "1"});
        let reading = read(Pod(&json!({"metadata": {"annotations": annotations}})));
        assert_eq!(reading.unknown, ["stillpoint.dev/prot is no annotation that injection knows"]);
    }

    use super::super::INJECTED;

    const BEGINS: &str =
        "<!-- the table of api/src/inject/settings.rs: STILLPOINT_WRITE=1 cargo test -p api writes it -->\n";
    const ENDS: &str = "<!-- the end of that table -->\n";

    /// The document, with the table as it should be.
    fn document(written: &str) -> String {
        let (before, rest) = written.split_once(BEGINS).expect("docs/injection.md has lost the mark before its table");
        let (_, after) = rest.split_once(ENDS).expect("docs/injection.md has lost the mark after its table");
        format!("{before}{BEGINS}{}{ENDS}{after}", table())
    }

    #[test]
    fn the_document_has_the_table() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/injection.md");
        let written = fs::read_to_string(&path).unwrap();
        if env::var_os("STILLPOINT_WRITE").is_some() {
            fs::write(&path, document(&written)).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap();
        assert_eq!(written, document(&written), "run STILLPOINT_WRITE=1 cargo test -p api");
        // The control.
        let edited = written.replacen("| `port` |", "| `prot` |", 1);
        assert_ne!(edited, document(&edited));
    }
}
