//! What is made for a Snapshot or a Restore, for people to see. It is built as what is made is, by the very same functions: there is no
//! second way. Nothing is made, and no value of a Secret is read.

use std::sync::Arc;

use api::{Restore, Snapshot, SnapshotMethod, runner::FailedRun};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Copies,
    runs::Order,
    snapshots::{NO_VOLUMES, run_now},
};
use crate::error::ApiError;

impl Copies {
    pub(crate) async fn snapshot(&self, namespace: &str, name: &str) -> Result<Arc<Snapshot>, ApiError> {
        self.snapshots.get(namespace, name).await
    }

    pub(crate) async fn restore(&self, namespace: &str, name: &str) -> Result<Arc<Restore>, ApiError> {
        self.restores.get(namespace, name).await
    }

    /// The Job of its run, or its VolumeSnapshots.
    pub(crate) async fn generate_snapshot(&self, snapshot: &Snapshot) -> Result<Value, ApiError> {
        match (snapshot.spec.method, &self.storage) {
            (SnapshotMethod::Dump, _) => self.job(self.order(snapshot, run_now(snapshot)).await).await,
            (SnapshotMethod::VolumeSnapshot, Some(storage)) => list(&self.volume_snapshots(storage, snapshot).await?),
            (SnapshotMethod::VolumeSnapshot, None) => Err(ApiError::bad_request(NO_VOLUMES)),
        }
    }

    /// The Job of its run, or its claims.
    pub(crate) async fn generate_restore(&self, restore: &Restore) -> Result<Value, ApiError> {
        match self.storage.as_ref().filter(|_| self.is_to_claims(restore)) {
            Some(storage) => list(&self.claims(storage, restore).await?),
            None => self.job(self.restore_order(restore).await.map(|planned| planned.order)).await,
        }
    }

    /// Why there is no order is what its status says then.
    async fn job(&self, order: Result<Order, FailedRun>) -> Result<Value, ApiError> {
        let order = order.map_err(|failed| ApiError::conflict_message(failed.message))?;
        list(&[self.runs.job(&order).await?])
    }
}

/// As kubectl has several objects.
fn list(items: &[impl Serialize]) -> Result<Value, ApiError> {
    let items: Result<Vec<Value>, _> = items.iter().map(serde_json::to_value).collect();
    let items = items.map_err(ApiError::internal)?;
    Ok(json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}))
}
