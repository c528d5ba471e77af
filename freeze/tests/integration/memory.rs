//! The in-memory server as a subject of the contract, and the suite's negative controls.

use std::{sync::Arc, time::Duration};

use api::{ConnectionAddress, TlsMode};
use async_trait::async_trait;
use freeze::{
    Driver, Member, Tls,
    contract::{self, Subject},
    engines::memory::MemoryServer,
};

pub(crate) fn member(port: u16) -> Member {
    Member {
        address: ConnectionAddress::Tcp { host: "memory".to_owned(), port },
        account: None,
        tls: Tls { mode: TlsMode::Disable, roots: None },
        databases: Vec::new(),
    }
}

#[derive(Default)]
pub(crate) struct InMemory {
    server: MemoryServer,
    /// A control: an engine that says it holds and does not.
    never_blocks: bool,
    /// A control: an engine that leaves something behind.
    leaves_something: bool,
}

#[async_trait]
impl Subject for InMemory {
    fn name(&self) -> String {
        "in memory".to_owned()
    }

    fn driver(&self) -> Arc<dyn Driver> {
        self.server.driver()
    }

    fn member(&self) -> Member {
        member(5432)
    }

    fn black_hole(&self) -> Member {
        member(1)
    }

    async fn commit(&self, limit: Duration) -> bool {
        self.never_blocks || self.server.commit(limit).await
    }

    async fn kill_sessions(&self) {
        self.server.kill_sessions();
    }

    async fn restart(&self) {
        self.server.restart();
    }

    async fn leftovers(&self) -> String {
        if self.leaves_something { "something".to_owned() } else { self.server.leftovers() }
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_in_memory_keeps_the_contract() {
    contract::run(&InMemory::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_an_engine_that_does_not_block() {
    let error = contract::run(&InMemory { never_blocks: true, ..InMemory::default() }).await.unwrap_err();
    assert!(error.contains("WriteBlocked blocks every commit"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_an_engine_that_leaves_something() {
    let error = contract::run(&InMemory { leaves_something: true, ..InMemory::default() }).await.unwrap_err();
    assert!(error.contains("leaves nothing"), "{error}");
}
