//! Real servers as subjects of the contract.

use std::{sync::Arc, time::Duration};

use api::{ConnectionAddress, TlsMode};
use async_trait::async_trait;
use fixtures::{Engine, Fault, Options, PASSWORD, Proxy, Server, ServerKind, Session, USER};
use freeze::{Account, Driver, Drivers, Member, Tls, contract::Subject};
use tokio::sync::Mutex;

pub(crate) struct Real {
    kind: ServerKind,
    pub(crate) port: u16,
    server: Mutex<Server>,
    hole: Proxy,
}

impl Real {
    pub(crate) async fn start(kind: ServerKind) -> Self {
        let options = match kind.engine {
            Engine::PostgreSQL => Options::default(),
            Engine::MariaDB => Self::lax(),
        };
        let server = Server::start(kind, options).await.unwrap();
        let table = match kind.engine {
            Engine::PostgreSQL => "CREATE TABLE t (n serial PRIMARY KEY)",
            Engine::MariaDB => {
                "CREATE DATABASE shop; CREATE TABLE shop.t (n int AUTO_INCREMENT PRIMARY KEY); \
                 CREATE TABLE shop.other (n int) ENGINE = MyISAM"
            }
        };
        server.execute("postgres", table).await.unwrap();
        let hole = Proxy::to(server.port).await.unwrap();
        hole.set(Fault::Stall);
        Self { kind, port: server.port, server: Mutex::new(server), hole }
    }

    /// The settings of MariaDB under which most has to be done, and undone.
    pub(crate) fn lax() -> Options {
        Options::default()
            .set("log-bin", "bin")
            .set("server-id", "7")
            .set("innodb-flush-log-at-trx-commit", "2")
            .set("sync-binlog", "0")
    }

    pub(crate) fn at(port: u16) -> Member {
        Member {
            address: ConnectionAddress::Tcp { host: "127.0.0.1".to_owned(), port },
            account: Some(Account { user: USER.to_owned(), password: Some(PASSWORD.to_owned()) }),
            tls: Tls { mode: TlsMode::Disable, roots: None },
            databases: Vec::new(),
        }
    }

    /// A session of an ordinary client, where the table is.
    pub(crate) async fn session(&self) -> Session {
        let database = if self.kind.engine == Engine::PostgreSQL { "postgres" } else { "shop" };
        Session::open(self.kind.engine, self.port, database).await.unwrap()
    }

    /// Sessions that keep a write block waiting, and no writer. They let go when they are dropped.
    pub(crate) async fn blocker(&self) -> Session {
        let mut first = self.session().await;
        match self.kind.engine {
            Engine::PostgreSQL => first.run("BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE").await.unwrap(),
            // A statement that writes a table without transactions, for as long as the first session lives.
            Engine::MariaDB => {
                first.run("DO GET_LOCK('gate', 0)").await.unwrap();
                let mut second = self.session().await;
                tokio::spawn(async move { second.run("INSERT INTO other SELECT GET_LOCK('gate', 60)").await });
            }
        }
        first
    }

    /// The first column of the first row, as the administrator sees it.
    pub(crate) async fn scalar(&self, sql: &str) -> String {
        self.server.lock().await.scalar("postgres", sql).await.unwrap()
    }

    /// Whether a session of ours waits for another.
    pub(crate) async fn waits(&self) -> bool {
        let sql = match self.kind.engine {
            Engine::PostgreSQL => {
                "SELECT count(*)::text FROM pg_locks JOIN pg_stat_activity USING (pid) \
                 WHERE NOT granted AND application_name LIKE 'stillpoint/%'"
            }
            Engine::MariaDB => {
                "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
                 WHERE STATE LIKE 'Waiting for%' AND INFO LIKE 'BACKUP STAGE%'"
            }
        };
        self.server.lock().await.scalar("postgres", sql).await.unwrap() != "0"
    }
}

#[async_trait]
impl Subject for Real {
    fn name(&self) -> String {
        self.kind.to_string()
    }

    fn driver(&self) -> Arc<dyn Driver> {
        let engine = match self.kind.engine {
            Engine::PostgreSQL => api::Engine::PostgreSQL,
            Engine::MariaDB => api::Engine::MariaDB,
        };
        Arc::clone(Drivers::real().of(engine).unwrap())
    }

    fn member(&self) -> Member {
        Self::at(self.port)
    }

    fn black_hole(&self) -> Member {
        Self::at(self.hole.port)
    }

    async fn commit(&self, limit: Duration) -> bool {
        let server = self.server.lock().await;
        let sql = match self.kind.engine {
            Engine::PostgreSQL => "INSERT INTO t DEFAULT VALUES",
            Engine::MariaDB => "INSERT INTO shop.t VALUES ()",
        };
        tokio::time::timeout(limit, server.execute("postgres", sql)).await.is_ok_and(|done| done.is_ok())
    }

    async fn kill_sessions(&self) {
        let server = self.server.lock().await;
        match self.kind.engine {
            Engine::PostgreSQL => server
                .execute(
                    "postgres",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/%'",
                )
                .await
                .unwrap(),
            Engine::MariaDB => {
                let id = server.scalar("", "SELECT COALESCE(IS_USED_LOCK('stillpoint'), 0)").await.unwrap();
                if id != "0" {
                    server.execute("", &format!("KILL CONNECTION {id}")).await.unwrap();
                }
            }
        }
    }

    async fn restart(&self) {
        self.server.lock().await.restart().await.unwrap();
    }

    async fn leftovers(&self) -> String {
        let sql = match self.kind.engine {
            Engine::PostgreSQL => {
                "SELECT coalesce(string_agg(what, ', '), '') FROM (SELECT 'session ' || pid AS what FROM pg_stat_activity \
                 WHERE application_name LIKE 'stillpoint%' UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots \
                 UNION ALL SELECT 'lock ' || relation::text FROM pg_locks WHERE mode = 'ShareLock' AND locktype = 'relation') left_over"
            }
            Engine::MariaDB => {
                "SELECT CONCAT(IF(IS_USED_LOCK('stillpoint') IS NULL, '', 'the user lock '), \
                 (SELECT COALESCE(GROUP_CONCAT('session ', ID, ' '), '') FROM information_schema.PROCESSLIST \
                   WHERE USER = 'admin' AND ID <> CONNECTION_ID()), \
                 IF(@@global.innodb_flush_log_at_trx_commit = 2 AND @@global.sync_binlog = 0, '', 'raised settings'))"
            }
        };
        self.server.lock().await.scalar("postgres", sql).await.unwrap_or_else(|error| error.to_string())
    }
}
