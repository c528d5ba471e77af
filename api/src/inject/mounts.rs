//! What the agent sees of the database's volumes: the directory of its socket and its data, both read-only, at the paths that the
//! database has them at.

use serde_json::{Value, json};

use super::{
    AGENT_BINARY, CREDENTIALS_DIRECTORY, PREFIX, RUN_DIRECTORY, RUN_VOLUME, SOCKET_VOLUME, TOKEN_DIRECTORY,
    TOKEN_VOLUME,
    database::Database,
    pod::{Container, Mount},
};
use crate::Engine;

/// Where the ServiceAccount plugin mounts a token for kube-apiserver, if nothing is there (`plugin/pkg/admission/serviceaccount`,
/// mountServiceAccountToken). The agent has no use for one: an empty directory is there.
pub(super) const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The directory of our own volume that is mounted there.
const EMPTY: &str = "none";
/// What is in these directories of an image is needed: a volume in its place would hide it.
const NEEDED: [&str; 10] = ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];

/// How the agent comes to the database's socket.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Socket {
    /// What the agent mounts.
    pub(super) mounts: Vec<Value>,
    /// The directory that a volume of its own is mounted at in both.
    pub(super) shared: Option<String>,
}

/// What every agent mounts.
pub(super) fn own(with_credentials: bool) -> Vec<Value> {
    let mut mounts = vec![
        json!({"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true}),
        json!({"name": RUN_VOLUME, "mountPath": RUN_DIRECTORY}),
        json!({"name": RUN_VOLUME, "mountPath": API_TOKEN, "subPath": EMPTY, "readOnly": true}),
    ];
    if with_credentials {
        let volume = super::CREDENTIALS_VOLUME;
        mounts.push(json!({"name": volume, "mountPath": CREDENTIALS_DIRECTORY, "readOnly": true}));
    }
    mounts
}

/// The directory that a socket is in: PostgreSQL is told the directory, MariaDB the file.
pub(super) fn directory(engine: Engine, socket: &str) -> Result<&str, String> {
    let (above, name) = socket.rsplit_once('/').unwrap_or_default();
    match engine {
        Engine::PostgreSQL if name.starts_with(".s.PGSQL.") => {
            Err(format!("{PREFIX}socket is {socket}; must be the directory that it is in"))
        }
        Engine::PostgreSQL => Ok(socket),
        Engine::MariaDB if above.is_empty() => Err(format!("{PREFIX}socket is {socket}; must be in a directory")),
        Engine::MariaDB => Ok(above),
    }
}

/// By a volume of the database that has the directory, or by one that is made for it when that is asked for.
pub(super) fn socket(database: &Database<'_>, socket: &str, make: bool) -> Result<Socket, String> {
    let directory = directory(database.engine, socket)?;
    let name = database.container.name();
    if let Some(mount) = covering(database.container, directory) {
        return Ok(Socket { mounts: vec![read_only(mount)?], shared: None });
    }
    if !make {
        return Err(format!(
            "{PREFIX}socket: container {name} has no volume at {directory}; mount one there, or annotate {PREFIX}shared-socket: true"
        ));
    }
    if let Some(hidden) = hidden_by(database.container, directory) {
        return Err(format!(
            "{PREFIX}shared-socket: a volume at {directory} would hide {hidden}; have the socket in another"
        ));
    }
    fits("socket", directory)?;
    let mounts = vec![json!({"name": SOCKET_VOLUME, "mountPath": directory, "readOnly": true})];
    Ok(Socket { mounts, shared: Some(directory.to_owned()) })
}

/// A volume of the database, at each place where it has it.
pub(super) fn data(database: &Database<'_>, volume: &str) -> Result<Vec<Value>, String> {
    let container = database.container;
    let mounts: Vec<Value> =
        container.mounts().filter(|mount| mount.volume == volume).map(read_only).collect::<Result<_, _>>()?;
    if mounts.is_empty() {
        let others = container.mounts().filter(|mount| mount.path != API_TOKEN);
        let all: Vec<&str> = others.map(|mount| mount.volume).collect();
        let (name, all) = (container.name(), if all.is_empty() { vec!["none"] } else { all });
        return Err(format!("{PREFIX}data-volume is {volume:?}; container {name} mounts {}", all.join(", ")));
    }
    Ok(mounts)
}

/// The deepest mount of the container that has the directory.
fn covering<'a>(container: Container<'a>, directory: &str) -> Option<Mount<'a>> {
    let of = container.mounts().filter(|mount| mount.volume != SOCKET_VOLUME && is_in(directory, mount.path));
    of.max_by_key(|mount| plain(mount.path).len())
}

fn read_only(mount: Mount<'_>) -> Result<Value, String> {
    let Mount { volume, path, whole } = mount;
    // It is made of the container's variables, which the agent has not.
    if whole["subPathExpr"].as_str().is_some_and(|expression| !expression.is_empty()) {
        return Err(format!(
            "the database's mount of {volume} has a subPathExpr, which the agent cannot have; use subPath"
        ));
    }
    fits(volume, path)?;
    let mut read_only = json!({"name": volume, "mountPath": path, "readOnly": true});
    if let Some(sub_path) = whole["subPath"].as_str().filter(|path| !path.is_empty()) {
        read_only["subPath"] = sub_path.into();
    }
    Ok(read_only)
}

/// Our own directories are made below no other volume: in one that is read-only they cannot be made at all, and the agent would not
/// start.
fn fits(what: &str, path: &str) -> Result<(), String> {
    let ours = [TOKEN_DIRECTORY, RUN_DIRECTORY, CREDENTIALS_DIRECTORY, API_TOKEN, AGENT_BINARY];
    match ours.into_iter().find(|ours| is_in(ours, path) || is_in(path, ours)) {
        Some(ours) => Err(format!("{what} is mounted at {path}, where the agent has its own {ours}")),
        None => Ok(()),
    }
}

/// What a volume at this directory of the container would hide.
fn hidden_by(container: Container<'_>, directory: &str) -> Option<String> {
    let directory = plain(directory);
    let mut mounts = container.mounts().filter(|mount| mount.volume != SOCKET_VOLUME);
    let is_above = mounts.find(|mount| is_in(mount.path, directory));
    let is_needed = NEEDED.into_iter().find(|needed| is_in(directory, needed));
    // Directories of one part are a system's, but for the one that is anybody's.
    let is_roots = directory.matches('/').count() == 1 && directory != "/tmp";
    match (is_above, is_needed) {
        (Some(mount), _) => Some(mount.path.to_owned()),
        (None, Some(needed)) => Some(format!("what is in {needed}")),
        (None, None) => (is_roots || directory == "/var/lib").then(|| format!("all of {directory}")),
    }
}

/// Whether a path is in a directory, or is that.
fn is_in(path: &str, directory: &str) -> bool {
    let (path, directory) = (plain(path), plain(directory));
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || directory.is_empty())
}

/// `/var/run` is `/run` wherever there is one (FHS 3.0, 5.13).
fn plain(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    match path.strip_prefix("/var/run") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => &path["/var".len()..],
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(engine: Engine, mounts: Value, what: impl Fn(&Database<'_>) -> T) -> T {
        let container = json!({"name": "db", "volumeMounts": mounts});
        what(&Database { container: Container(&container), engine, guessed_by: None })
    }

    #[test]
    fn a_socket_is_reached_by_the_deepest_volume_that_has_it() {
        let mounts = json!([
            {"name": "run", "mountPath": "/var/run/postgresql", "subPath": "pg"},
            {"name": "all", "mountPath": "/srv"},
            {"name": "deep", "mountPath": "/srv/pg/"},
        ]);
        let found = |path: &str| with(Engine::PostgreSQL, mounts.clone(), |database| socket(database, path, false));
        let mount = json!({"name": "run", "mountPath": "/var/run/postgresql", "subPath": "pg", "readOnly": true});
        assert_eq!(found("/run/postgresql").unwrap().mounts, [mount]);
        assert_eq!(found("/srv/pg/sockets").unwrap().mounts[0]["name"], "deep");
        assert_eq!(found("/srv/pgx").unwrap().mounts[0]["name"], "all");
        assert!(found("/opt/sockets").unwrap_err().contains("shared-socket"));
        assert!(found("/srv/.s.PGSQL.5432").unwrap_err().contains("directory"));
    }

    #[test]
    fn a_volume_is_made_only_when_asked_and_hides_nothing() {
        let mounts = json!([{"name": "data", "mountPath": "/opt/mysql/data"}]);
        let made = |path: &str| with(Engine::MariaDB, mounts.clone(), |database| socket(database, path, true));
        assert_eq!(made("/run/mysqld/mysqld.sock").unwrap().shared.as_deref(), Some("/run/mysqld"));
        assert_eq!(made("/tmp/mysqld.sock").unwrap().shared.as_deref(), Some("/tmp"));
        // It is on the data's volume already.
        assert_eq!(made("/opt/mysql/data/mysql.sock").unwrap().shared, None);
        for path in ["/opt/mysql/s", "/s", "/run/s", "/var/run/s", "/var/lib/s", "/usr/share/s", "/etc/s", "/var/s"] {
            let why = made(path).unwrap_err();
            assert!(why.contains("would hide") || why.contains("must be in a directory"), "{path}: {why}");
        }
    }

    #[test]
    fn data_is_mounted_where_the_database_has_it_and_nothing_over_what_is_ours() {
        let mounts = json!([
            {"name": "data", "mountPath": "/var/lib/mysql", "subPath": "mysql", "mountPropagation": "Bidirectional"},
            {"name": "data", "mountPath": "/backup", "subPath": "backup"},
            {"name": "strange", "mountPath": "/a", "subPathExpr": "$(HOST)"},
            {"name": "run", "mountPath": "/run"},
            {"name": "token", "mountPath": "/run/stillpoint/token/deep"},
            {"name": "root", "mountPath": "/"},
        ]);
        let mounted = |volume: &str| with(Engine::MariaDB, mounts.clone(), |database| data(database, volume));
        let both = json!([
            {"name": "data", "mountPath": "/var/lib/mysql", "subPath": "mysql", "readOnly": true},
            {"name": "data", "mountPath": "/backup", "subPath": "backup", "readOnly": true},
        ]);
        assert_eq!(json!(mounted("data").unwrap()), both);
        assert!(mounted("other").unwrap_err().contains("mounts data, data, strange"));
        assert!(mounted("strange").unwrap_err().contains("subPathExpr"));
        for volume in ["run", "token", "root"] {
            assert!(mounted(volume).unwrap_err().contains("has its own"), "{volume}");
        }
    }
}
