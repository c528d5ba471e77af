//! Which systems that keep data run in a Pod, as far as can be seen: for whoever looks for databases that nobody has asked for. Nothing
//! is decided by it.

use std::fmt;

use serde_json::Value;

use super::{
    Asked, database,
    engine::{self, Kind, Look, of_image, of_ports, words_of},
    pod::{Container, Pod},
    settings,
};
use crate::Engine;

/// A container that looks like a server of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looks<'a> {
    pub container: &'a str,
    pub system: System,
    /// The volumes of the Pod that it mounts, or has as devices, by their names in it.
    pub volumes: Vec<&'a str>,
}

/// What keeps data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum System {
    Served(Engine),
    /// One that has no driver here.
    Other(&'static str),
}

/// Words in the names of images of systems that have no driver here.
const OTHERS: [(&str, &str); 28] = [
    ("arangodb", "ArangoDB"),
    ("cassandra", "Cassandra"),
    ("clickhouse", "ClickHouse"),
    ("cockroach", "CockroachDB"),
    ("couchbase", "Couchbase"),
    ("couchdb", "CouchDB"),
    ("dgraph", "Dgraph"),
    ("elasticsearch", "Elasticsearch"),
    ("etcd", "etcd"),
    ("influxdb", "InfluxDB"),
    ("kafka", "Kafka"),
    ("keydb", "KeyDB"),
    ("meilisearch", "Meilisearch"),
    ("mongo", "MongoDB"),
    ("mongod", "MongoDB"),
    ("mongodb", "MongoDB"),
    ("mssql", "SQL Server"),
    ("nats", "NATS"),
    ("neo4j", "Neo4j"),
    ("opensearch", "OpenSearch"),
    ("qdrant", "Qdrant"),
    ("rabbitmq", "RabbitMQ"),
    ("redis", "Redis"),
    ("scylla", "ScyllaDB"),
    ("solr", "Solr"),
    ("tidb", "TiDB"),
    ("valkey", "Valkey"),
    ("zookeeper", "ZooKeeper"),
];

/// What the Pod says of itself goes before what its images look like.
pub fn looks(pod: &Value) -> Vec<Looks<'_>> {
    let pod = Pod(pod);
    if !pod.is_well_formed() {
        return Vec::new();
    }
    let said = database::find(pod, &settings::read(pod).settings, Asked::Label).ok();
    let running = pod.running().filter(|container| !container.is_agent());
    let looks = running.filter_map(|container| {
        let said = said.filter(|said| said.container.name() == container.name());
        let system = said.map_or_else(|| system(container), |said| Some(System::Served(said.engine)))?;
        let volumes = container.mounts().map(|mount| mount.volume).chain(container.devices()).collect();
        Some(Looks { container: container.name(), system, volumes })
    });
    looks.collect()
}

/// The operator whose Pod it is, if one's that holds its own databases for its own snapshots: what its labels begin with.
pub fn operator(pod: &Value) -> Option<&'static str> {
    engine::operator(Pod(pod))
}

fn system(container: Container<'_>) -> Option<System> {
    match of_image(container.image()) {
        Look::Server(Kind::Served(engine)) => Some(System::Served(engine)),
        Look::Server(Kind::MySql) => Some(System::Other("MySQL")),
        Look::Tool if !is_server_of_others(container.image()) => None,
        Look::Tool | Look::Unknown => {
            let other = other(container.image()).map(System::Other);
            other.or_else(|| of_ports(container).map(System::Served))
        }
    }
}

fn other(image: &str) -> Option<&'static str> {
    let words = words_of(image);
    OTHERS.iter().find(|(word, _)| words.contains(word)).map(|(_, name)| *name)
}

/// MongoDB's name tells an image of Percona's from one of MySQL: it is a word among the tools.
fn is_server_of_others(image: &str) -> bool {
    let words = words_of(image);
    words.iter().filter(|word| engine::is_tools(word)).all(|word| OTHERS.iter().any(|(other, _)| other == word))
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(engine) => engine.fmt(f),
            Self::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_keeps_data_is_seen_and_what_stands_beside_it_is_not() {
        for (image, port, expected) in [
            ("postgres:16", 5432, Some("PostgreSQL")),
            ("bitnami/mariadb:11", 3306, Some("MariaDB")),
            ("mysql:8", 3306, Some("MySQL")),
            ("corp/base:1", 5432, Some("PostgreSQL")),
            ("corp/base:1", 3306, None),
            ("mongo:7", 27017, Some("MongoDB")),
            ("percona/percona-server-mongodb:7.0", 27017, Some("MongoDB")),
            ("docker.elastic.co/elasticsearch/elasticsearch:8.1.0", 9200, Some("Elasticsearch")),
            ("redis:7-alpine", 6379, Some("Redis")),
            ("neo4j:5", 7687, Some("Neo4j")),
            ("bitnami/redis-exporter:1", 9121, None),
            ("percona/mongodb_exporter:0.40", 9216, None),
            ("prom/mysqld-exporter", 9104, None),
            ("bitnami/pgbouncer", 5432, None),
            ("nginx", 80, None),
        ] {
            let pod = json!({"spec": {"containers": [{
                "name": "c", "image": image, "ports": [{"containerPort": port}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }]}});
            let looks = looks(&pod);
            let found = looks.first().map(|one| one.system.to_string());
            assert_eq!(found.as_deref(), expected, "{image}");
            assert!(looks.iter().all(|one| one.container == "c" && one.volumes == ["data"]));
        }
    }

    #[test]
    fn what_a_pod_says_of_itself_counts() {
        let pod = |annotations| {
            json!({
                "metadata": {"annotations": annotations},
                "spec": {"containers": [{"name": "web", "image": "corp/web"}, {"name": "db", "image": "corp/base"}]},
            })
        };
        assert!(looks(&pod(json!({}))).is_empty());
        let said = pod(json!({"stillpoint.dev/engine": "MariaDB", "stillpoint.dev/container": "db"}));
        let found: Vec<_> = looks(&said).iter().map(|one| (one.container, one.system)).collect();
        assert_eq!(found, [("db", System::Served(Engine::MariaDB))]);
        assert!(looks(&json!({"spec": {"containers": 1}})).is_empty() && looks(&json!(null)).is_empty());
    }
}
