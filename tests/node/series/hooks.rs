//! What is done without Stillpoint: a lock by an exec before the snapshot, and its end by an exec after it.

use anyhow::Result;
use fixtures::Engine;

use crate::gates::world::World;

/// A lock that a session in the Pod holds.
pub(super) struct Hooked;

impl Hooked {
    /// The pre hook: it ends when the lock is held. The session lives on by itself, for at most two minutes.
    pub(super) async fn before(world: &World<'_>, pod: &str, engine: Engine) -> Result<Self> {
        let (lock, tell, client) = match engine {
            Engine::PostgreSQL => (
                "BEGIN; LOCK TABLE a, b, ledger IN SHARE MODE;",
                r"\! echo > /tmp/locked",
                "psql -q -h localhost -U postgres bank",
            ),
            Engine::MariaDB => (
                "FLUSH TABLES WITH READ LOCK;",
                r"\! echo > /tmp/locked",
                "mariadb --no-defaults -h 127.0.0.1 -u root bank",
            ),
        };
        // An exec lasts until nobody has its streams any more.
        let hook = format!(
            "rm -f /tmp/locked; {{ (echo '{lock}'; echo '{tell}'; sleep 120) | {client} & echo $! > /tmp/session; wait; }} \
             </dev/null >/dev/null 2>&1 & until [ -e /tmp/locked ]; do sleep 0.05; done"
        );
        world.kubectl(&["exec", pod, "--", "/bin/sh", "-c", &hook]).await?;
        Ok(Self)
    }

    /// The post hook.
    pub(super) async fn after(self, world: &World<'_>, pod: &str) -> Result<()> {
        let hook = "kill $(cat /tmp/session)";
        world.kubectl(&["exec", pod, "--", "/bin/sh", "-c", hook]).await.map(drop)
    }
}
