//! The contract suite on every server that there is.

use fixtures::ServerKind;
use freeze::contract;

use crate::real::Real;

async fn holds_on(kind: ServerKind) {
    let subject = Real::start(kind).await;
    contract::run(&subject).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_15_keeps_the_contract() {
    holds_on(ServerKind::POSTGRESQL_15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_18_keeps_the_contract() {
    holds_on(ServerKind::POSTGRESQL_18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_10_11_keeps_the_contract() {
    holds_on(ServerKind::MARIADB_10_11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_11_4_keeps_the_contract() {
    holds_on(ServerKind::MARIADB_11_4).await;
}
