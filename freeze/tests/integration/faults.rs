//! Faults at every place of the conversation with a real server: whatever breaks, nothing stays frozen.
//!
//! A relay between freezer and server stalls at the nth piece that it reads, from either side; then the network stays
//! silent, is cut, the server is killed and started again, or our sessions are ended. So a place is met by its number in the
//! conversation, and not by a guess at its time.

mod bench;

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use api::Phase;
use fixtures::{Engine, ServerKind};
use freeze::contract::Subject;
use futures::future::join_all;

use bench::{Bench, LEASE, Place, Row, SECOND, Strike};

/// Places in the conversation for each strike; together the strikes meet four times as many.
const PLACES: usize = 12;
/// Servers of one kind that work off the strikes at once.
const BENCHES: usize = 3;

/// Each strike at places evenly spread over the `pieces` of a freeze, and at those where nobody speaks.
fn all(pieces: usize) -> VecDeque<(Strike, Place)> {
    let mut all = VecDeque::new();
    for (offset, strike) in Strike::ALL.into_iter().enumerate() {
        let spread =
            |at: usize| 1 + (at * Strike::ALL.len() + offset) * (pieces - 1) / (PLACES * Strike::ALL.len() - 1);
        all.extend((0..PLACES).map(|at| (strike, Place::Piece(spread(at)))));
        all.extend([Place::KeptWaiting, Place::JustFrozen, Place::BetweenHeartbeats].map(|place| (strike, place)));
    }
    all
}

async fn nothing_stays_frozen(kind: ServerKind) {
    let benches = join_all((0..BENCHES).map(|_| Bench::start(kind))).await;
    let pieces = benches[0].undisturbed().await;
    let queue = Mutex::new(all(pieces));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = benches.iter().map(async |bench| {
        let mut rows = Vec::new();
        while let Some((strike, place)) = next() {
            rows.push(bench.strike(strike, place).await);
        }
        rows
    });
    let mut rows: Vec<Row> = join_all(work).await.into_iter().flatten().collect();
    for (strike, phase) in missed(&rows) {
        // A freeze has more pieces when its servers are slow: those of this phase are where other strikes met it.
        let places: Vec<Place> = rows.iter().filter(|row| row.met == Some(phase)).map(|row| row.place).collect();
        for place in places.into_iter().filter(|place| matches!(place, Place::Piece(_))) {
            rows.push(benches[0].strike(strike, place).await);
            if rows.last().is_some_and(|row| row.met == Some(phase)) {
                break;
            }
        }
    }
    rows.sort_by_key(|row| (row.strike, row.place));
    println!("{kind}: {pieces} pieces in a freeze that nothing disturbs");
    for row in &rows {
        println!("{kind} {row}");
    }
    let wrong: Vec<String> = rows.iter().filter_map(Row::wrong).collect();
    assert!(wrong.is_empty(), "{kind}:\n{}", wrong.join("\n"));
    let missed = missed(&rows);
    assert!(missed.is_empty(), "{kind}: never met: {missed:?}");
}

/// Which strike met no freeze in which phase.
fn missed(rows: &[Row]) -> Vec<(Strike, Phase)> {
    let phases = [Phase::Preparing, Phase::Acquiring, Phase::Frozen, Phase::Thawing];
    let all = Strike::ALL.into_iter().flat_map(|strike| phases.map(|phase| (strike, phase)));
    all.filter(|(strike, phase)| !rows.iter().any(|row| row.strike == *strike && row.met == Some(*phase))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_anywhere_leaves_postgresql_frozen() {
    nothing_stays_frozen(ServerKind::POSTGRESQL_15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_anywhere_leaves_mariadb_frozen() {
    nothing_stays_frozen(ServerKind::MARIADB_10_11).await;
}

/// The control: a session that nobody ends is found by the writer, and by what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_left_frozen_is_noticed() {
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::MARIADB_10_11] {
        let bench = Bench::start(kind).await;
        let (lock, unlock) = match kind.engine {
            Engine::PostgreSQL => ("BEGIN; LOCK TABLE t IN SHARE MODE", "ROLLBACK"),
            Engine::MariaDB => (
                "DO GET_LOCK('stillpoint', 0); SET GLOBAL sync_binlog = 1; BACKUP STAGE START; BACKUP STAGE BLOCK_COMMIT",
                "BACKUP STAGE END; SET GLOBAL sync_binlog = 0; DO RELEASE_LOCK('stillpoint')",
            ),
        };
        let mut frozen = bench.real.session().await;
        frozen.run(lock).await.unwrap();
        assert!(!bench.real.commit(LEASE + SECOND).await, "{kind}: the writer");
        assert_ne!(bench.real.leftovers().await, "", "{kind}: what is left");
        frozen.run(unlock).await.unwrap();
        drop(frozen);
        assert!(bench.real.commit(SECOND).await, "{kind}: and only as long as it lasts");
    }
}
