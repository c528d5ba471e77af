//! Which engine runs in a container, guessed from the name of its image, or from its port where the image says nothing.

use super::pod::{Container, Pod};
use crate::Engine;

/// What an image says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Server(Kind),
    /// Something beside a server: an exporter, a pooler, a tool.
    Tool,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Served(Engine),
    /// Not MariaDB, whatever the images have in common: it has no backup stages, and its own way to flush.
    MySql,
}

/// Words in the names of images of servers. The first that fits counts.
const SERVERS: [(&str, Kind); 12] = [
    ("mariadb", Kind::Served(Engine::MariaDB)),
    ("postgres", Kind::Served(Engine::PostgreSQL)),
    ("postgresql", Kind::Served(Engine::PostgreSQL)),
    ("postgis", Kind::Served(Engine::PostgreSQL)),
    ("timescaledb", Kind::Served(Engine::PostgreSQL)),
    ("pgvector", Kind::Served(Engine::PostgreSQL)),
    ("paradedb", Kind::Served(Engine::PostgreSQL)),
    ("citus", Kind::Served(Engine::PostgreSQL)),
    // Zalando's, of PostgreSQL with Patroni.
    ("spilo", Kind::Served(Engine::PostgreSQL)),
    ("mysql", Kind::MySql),
    // Percona's, of MySQL.
    ("xtradb", Kind::MySql),
    ("percona", Kind::MySql),
];

/// Words beside those of a server, in the names of what is none.
const TOOLS: [&str; 33] = [
    "admin",
    "agent",
    "backup",
    "backups",
    "bouncer",
    "cli",
    "client",
    "controller",
    "dump",
    "exporter",
    "init",
    "maxscale",
    "metrics",
    "migrate",
    "migration",
    "migrations",
    "mongodb",
    "monitor",
    "operator",
    "orchestrator",
    "pgadmin",
    "pgbouncer",
    "pgpool",
    "pmm",
    "pooler",
    "proxy",
    "proxysql",
    "restore",
    "router",
    "test",
    "tools",
    "upgrade",
    "wait",
];

/// Names that say only that something serves: then the repository above says what (`mariadb/server`).
const GENERIC: [&str; 8] = ["server", "enterprise", "community", "database", "db", "ee", "ce", "ha"];

/// Operators that hold their own databases for the snapshots that they take: what the labels and annotations of their Pods begin with
/// (CloudNativePG `pkg/utils/labels_annotations.go`, EDB's of the same make, mariadb-operator `pkg/metadata`, Crunchy's PGO
/// `internal/naming/labels.go`). A Namespace does not ask for those Pods; they may ask themselves.
pub const OPERATORS: [&str; 4] =
    ["cnpg.io/", "k8s.enterprisedb.io/", "k8s.mariadb.com/", "postgres-operator.crunchydata.com/"];

/// The words in the name of an image that say what it is.
pub(super) fn words_of(image: &str) -> Vec<&str> {
    let mut parts = segments(image).rev();
    let last: Vec<&str> = words(parts.next().unwrap_or_default()).collect();
    let above: Vec<&str> = words(parts.next().unwrap_or_default()).collect();
    let is_generic = last.iter().all(|word| GENERIC.contains(word));
    if is_generic { above } else { last }
}

/// Whether a word says that an image is a tool's.
pub(super) fn is_tools(word: &str) -> bool {
    TOOLS.contains(&word)
}

pub(super) fn of_image(image: &str) -> Look {
    let words = words_of(image);
    let server = SERVERS.iter().find(|(name, _)| words.contains(name));
    if words.iter().any(|word| is_tools(word)) {
        return Look::Tool;
    }
    server.map_or(Look::Unknown, |(_, kind)| Look::Server(*kind))
}

/// The engine whose port a container of an unknown image declares; 3306 is MySQL's, too.
pub(super) fn of_ports(container: Container<'_>) -> Option<Engine> {
    let is_unknown = of_image(container.image()) == Look::Unknown;
    let mut ports = container.ports();
    let port = Engine::PostgreSQL.default_port();
    (is_unknown && ports.any(|(declared, _)| declared == port)).then_some(Engine::PostgreSQL)
}

/// Where an engine listens in a container: at its own port if that is declared or nothing is, else at the only one declared.
pub(super) fn port(container: Container<'_>, engine: Engine) -> u16 {
    let ports: Vec<u16> = container.ports().map(|(port, _)| port).collect();
    match ports.as_slice() {
        [one] => *one,
        _ => engine.default_port(),
    }
}

/// Whose Pod it is, if an operator's that holds its own databases.
pub(super) fn operator(pod: Pod<'_>) -> Option<&'static str> {
    let mut keys = pod.keys();
    keys.find_map(|key| OPERATORS.into_iter().find(|prefix| key.starts_with(prefix)))
}

/// A regular expression (RE2) that every image matches which may be a server's: it keeps others from being asked about.
pub fn pattern() -> String {
    SERVERS.map(|(name, _)| name).join("|")
}

/// The parts of a repository's name, without its registry, tag and digest.
fn segments(image: &str) -> impl DoubleEndedIterator<Item = &str> {
    let image = image.split('@').next().unwrap_or_default();
    let (registry, path) = image.split_once('/').unwrap_or(("", image));
    let is_registry = registry.contains(['.', ':']) || registry == "localhost";
    let path = if is_registry { path } else { image };
    let end = path.rfind(':').filter(|colon| !path[*colon..].contains('/')).unwrap_or(path.len());
    path[..end].split('/')
}

/// `postgres-16.1` is `postgres` and numbers; so is `postgres16`.
fn words(name: &str) -> impl Iterator<Item = &str> {
    let words = name.split(['-', '_', '.']).map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    words.filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POSTGRESQL: Look = Look::Server(Kind::Served(Engine::PostgreSQL));
    const MARIADB: Look = Look::Server(Kind::Served(Engine::MariaDB));
    const MYSQL: Look = Look::Server(Kind::MySql);
    const IMAGES: [(&str, Look); 46] = [
        ("postgres", POSTGRESQL),
        ("postgres:16", POSTGRESQL),
        ("docker.io/library/postgres:16.4-bookworm", POSTGRESQL),
        ("postgres@sha256:0123", POSTGRESQL),
        ("registry.example:5000/dba/postgres16:prod@sha256:0123", POSTGRESQL),
        ("localhost/postgres", POSTGRESQL),
        ("bitnami/postgresql:16", POSTGRESQL),
        ("bitnami/postgresql-repmgr:16", POSTGRESQL),
        ("ghcr.io/cloudnative-pg/postgresql:17.2", POSTGRESQL),
        ("registry.redhat.io/rhel9/postgresql-16", POSTGRESQL),
        ("quay.io/sclorg/postgresql-15-c9s", POSTGRESQL),
        ("postgis/postgis:16-3.4", POSTGRESQL),
        ("timescale/timescaledb:latest-pg16", POSTGRESQL),
        ("timescale/timescaledb-ha:pg16", POSTGRESQL),
        ("pgvector/pgvector:pg16", POSTGRESQL),
        ("ghcr.io/zalando/spilo-16:3.2", POSTGRESQL),
        ("registry.developers.crunchydata.com/crunchydata/crunchy-postgres-gis:ubi8-16", POSTGRESQL),
        ("percona/percona-distribution-postgresql:16", POSTGRESQL),
        ("supabase/postgres:15", POSTGRESQL),
        ("citusdata/citus:12", POSTGRESQL),
        ("mariadb", MARIADB),
        ("mariadb:11.4", MARIADB),
        ("bitnami/mariadb-galera:11", MARIADB),
        ("lscr.io/linuxserver/mariadb", MARIADB),
        ("mariadb/server:10.3", MARIADB),
        ("docker.mariadb.com/mariadb/enterprise-server:10.6", MARIADB),
        ("rhel8/mariadb-1011", MARIADB),
        ("mysql:8.4", MYSQL),
        ("container-registry.oracle.com/mysql/community-server:8.4", MYSQL),
        ("percona/percona-server:8.0", MYSQL),
        ("percona/percona-xtradb-cluster:8.0", MYSQL),
        ("quay.io/prometheuscommunity/postgres-exporter:v0.15.0", Look::Tool),
        ("bitnami/pgbouncer", Look::Tool),
        ("bitnami/pgpool:4", Look::Tool),
        ("mariadb/maxscale:24", Look::Tool),
        ("ghcr.io/mariadb-operator/mariadb-operator:v0.38", Look::Tool),
        ("prodrigestivill/postgres-backup-local", Look::Tool),
        ("percona/percona-server-mongodb:7.0", Look::Tool),
        ("prom/mysqld-exporter", Look::Tool),
        ("mysql/mysql-router:8", Look::Tool),
        ("postgres.example.com/shop/web:1", Look::Unknown),
        ("shop/orders:postgres-16", Look::Unknown),
        ("redis:7", Look::Unknown),
        ("postgrest/postgrest", Look::Unknown),
        ("registry.example:5000", Look::Unknown),
        ("", Look::Unknown),
    ];

    #[test]
    fn images_are_what_their_names_say() {
        for (image, look) in IMAGES {
            assert_eq!(of_image(image), look, "{image}");
        }
    }

    #[test]
    fn no_server_is_kept_away_by_the_pattern() {
        let pattern = pattern();
        for (image, look) in IMAGES {
            let matches = pattern.split('|').any(|word| image.contains(word));
            assert!(matches || !matches!(look, Look::Server(_)), "{image}");
        }
        assert!(
            pattern.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'|'),
            "it is no plain alternation: {pattern}"
        );
    }

    #[test]
    fn a_port_tells_only_of_an_image_that_says_nothing() {
        let container = |image: &str, port: u16| json!({"image": image, "ports": [{"containerPort": port}]});
        let guess = |image, port| of_ports(Container(&container(image, port)));
        assert_eq!(guess("registry.example/dba/orders", 5432), Some(Engine::PostgreSQL));
        for (image, port) in
            [("registry.example/dba/orders", 3306), ("bitnami/pgbouncer", 5432), ("mysql", 5432), ("web", 80)]
        {
            assert_eq!(guess(image, port), None, "{image}");
        }
    }

    #[test]
    fn the_only_port_that_is_declared_is_the_servers() {
        let at = |ports: serde_json::Value| port(Container(&json!({"ports": ports})), Engine::MariaDB);
        assert_eq!(at(json!([])), 3306);
        assert_eq!(at(json!([{"containerPort": 3307}])), 3307);
        assert_eq!(at(json!([{"containerPort": 3307}, {"containerPort": 4567}])), 3306);
        assert_eq!(at(json!([{"containerPort": 3307}, {"containerPort": 4567, "protocol": "UDP"}])), 3307);
    }
}
