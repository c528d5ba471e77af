//! The freezer's journal as `Freeze` objects, and what people see of it: Events and the Database's last
//! freeze. The object is the truth; Events are told after it, and their failure is only logged.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use api::{Freeze, FreezeSpec, FreezeStatus, LastFreeze, Phase};
use async_trait::async_trait;
use freeze::{FreezeName, Journal, JournalError};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::{error::ApiError, metrics::Metrics, records::Records, replicas::Replicas};

/// Writes freezes down, and tells of each phase once.
pub struct RecordsJournal {
    records: Arc<dyn Records>,
    metrics: Arc<Metrics>,
    told: mpsc::Sender<Told>,
    replicas: Arc<OnceLock<Replicas>>,
    /// The phase that was told last, of each freeze: a phase is written again with every claim that comes or goes.
    last: Mutex<HashMap<FreezeName, Phase>>,
}

/// A freeze entered a phase.
#[derive(Clone, Debug)]
pub struct Told {
    pub freeze: FreezeName,
    pub status: FreezeStatus,
    pub at: Timestamp,
}

/// Phases that wait to be told as Events; when it is full, Events are dropped, never the freeze delayed.
const TOLD: usize = 1024;
/// Freezes whose last told phase is remembered. Beyond that, one may be told twice.
const REMEMBERED: usize = 4096;

impl RecordsJournal {
    pub(crate) fn new(
        records: Arc<dyn Records>,
        metrics: Arc<Metrics>,
        replicas: Arc<OnceLock<Replicas>>,
    ) -> (Arc<Self>, mpsc::Receiver<Told>) {
        let (told, hear) = mpsc::channel(TOLD);
        (Arc::new(Self { records, metrics, told, replicas, last: Mutex::default() }), hear)
    }

    fn tell(&self, freeze: &FreezeName, status: &FreezeStatus) {
        let worth_telling = matches!(status.phase, Phase::Frozen) || status.phase.is_finished();
        if worth_telling && self.is_new(freeze, status.phase) {
            self.metrics.phase(status);
            self.told.try_send(Told { freeze: freeze.clone(), status: status.clone(), at: Timestamp::now() }).ok();
        }
    }

    fn is_new(&self, freeze: &FreezeName, phase: Phase) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= REMEMBERED {
            last.clear();
        }
        last.insert(freeze.clone(), phase) != Some(phase)
    }
}

#[async_trait]
impl Journal for RecordsJournal {
    async fn open(&self, freeze: &FreezeName, spec: &FreezeSpec, status: &FreezeStatus) -> Result<(), JournalError> {
        let mut object = Freeze::new(&freeze.name, spec.clone());
        object.metadata.namespace = Some(freeze.namespace.clone());
        object.metadata.finalizers = Some(vec![api::FINALIZER_THAW.to_owned()]);
        let database = spec.targets.first().map(|target| target.database.clone()).unwrap_or_default();
        object.metadata.labels = Some([(api::LABEL_DATABASE.to_owned(), label(&database))].into());
        object.status = Some(status.clone());
        self.records.create_freeze(&object).await.map_err(unavailable)
    }

    async fn write(&self, freeze: &FreezeName, status: &FreezeStatus) -> Result<(), JournalError> {
        let written = self.records.write_status(freeze, status).await;
        let over = |error: &ApiError| matches!(error.code.as_u16(), 404 | 410);
        written.map_err(|error| if over(&error) { JournalError::Gone } else { unavailable(error) })?;
        self.tell(freeze, status);
        Ok(())
    }

    fn may_hold(&self, namespace: &str, databases: &[&str]) -> Result<(), JournalError> {
        let Some(replicas) = self.replicas.get() else { return Ok(()) };
        match databases.iter().find(|database| !replicas.may_hold(namespace, database)) {
            None => Ok(()),
            Some(database) => Err(JournalError::NotOurs((*database).to_owned())),
        }
    }
}

/// A Database's name as a label's value, which is shorter than a name may be (Kubernetes: "Labels and Selectors").
fn label(database: &str) -> String {
    const LONGEST: usize = 63;
    let digest =
        || Sha256::digest(database).iter().take(4).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    match database.get(..LONGEST - 9) {
        Some(begin) if database.len() > LONGEST => format!("{begin}.{}", digest()),
        _ => database.to_owned(),
    }
}

impl fmt::Debug for RecordsJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordsJournal").finish_non_exhaustive()
    }
}

/// What a Database says of its newest freeze.
pub fn last_freeze(freeze: &FreezeName, status: &FreezeStatus) -> LastFreeze {
    let proofs: Vec<bool> =
        status.targets.iter().filter_map(|target| target.proof.as_ref()).map(|proof| proof.held).collect();
    LastFreeze {
        name: freeze.name.clone(),
        phase: status.phase,
        level: status.level.unwrap_or_default(),
        frozen_at: status.frozen_at.clone(),
        frozen_milliseconds: status.frozen_milliseconds,
        proved: status.phase == Phase::Thawed
            && proofs.len() == status.targets.len()
            && proofs.iter().all(|held| *held),
    }
}

fn unavailable(error: ApiError) -> JournalError {
    JournalError::Unavailable(error.internal.unwrap_or(error.message))
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;

    #[test]
    fn a_name_that_is_too_long_for_a_label_is_cut_and_told_from_others() {
        let (one, other) = (format!("{}a", "n".repeat(200)), format!("{}b", "n".repeat(200)));
        assert_eq!(label("orders.shop"), "orders.shop");
        assert_eq!(label(&"n".repeat(63)).len(), 63);
        assert_eq!(label(&one).len(), 63);
        assert_ne!(label(&one), label(&other));
    }

    use crate::{registry::Registry, resources, store::Store};

    #[tokio::test]
    async fn a_phase_is_told_once_however_often_it_is_written() {
        let registry = Registry::new(Store::in_memory(&resources::stored(), &TaskTracker::new()));
        let (journal, mut told) = RecordsJournal::new(Arc::new(registry), Arc::new(Metrics::new()), Arc::default());
        let freeze = FreezeName { namespace: "ns".into(), name: "f".into() };
        for phase in [Phase::Preparing, Phase::Frozen, Phase::Frozen, Phase::Thawed, Phase::Thawed, Phase::Frozen] {
            journal.tell(&freeze, &FreezeStatus { phase, ..FreezeStatus::default() });
        }
        let mut phases = Vec::new();
        while let Ok(told) = told.try_recv() {
            phases.push(told.status.phase);
        }
        assert_eq!(phases, [Phase::Frozen, Phase::Thawed, Phase::Frozen], "the last is another object of that name");
    }
}
