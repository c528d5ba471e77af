//! How many runs go on at once: each is a load for its servers, and without a cluster a process beside us.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::{
    Copies,
    kept::{Kept, Kind, is_unwanted},
};
use crate::error::ApiError;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    free: Arc<Semaphore>,
    most: usize,
}

/// How often it is looked whether what waits is wanted still.
const LOOK: Duration = Duration::from_secs(2);

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), most }
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// One that is free now.
    fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// Waits for one. `None`: it is `unwanted` before.
    async fn next(&self, unwanted: impl Future<Output = ()>) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            slot = Arc::clone(&self.free).acquire_owned() => slot.ok(),
            () = unwanted => None,
        }
    }
}

impl Copies {
    /// Waits for one, and has it said if there is none now. `None`: the object is not wanted any more, or not ours.
    pub(super) async fn slot<K: Kind + kube::Resource>(
        &self,
        slots: &Slots,
        kept: &dyn Kept<K>,
        object: &K,
        say: impl Future<Output = Result<(), ApiError>>,
    ) -> Option<OwnedSemaphorePermit> {
        if let Some(slot) = slots.free() {
            return Some(slot);
        }
        // That it could not be said is no reason not to wait.
        say.await.ok();
        let unwanted = async {
            while self.lead.is_ours() && !is_unwanted(kept, object).await {
                sleep(LOOK).await;
            }
        };
        slots.next(unwanted).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn who_waits_has_the_next_one_unless_he_has_gone() {
        let slots = Slots::new(1);
        let first = slots.free();
        assert!(first.is_some() && slots.free().is_none());
        let (second, ()) = tokio::join!(slots.next(pending()), async { drop(first) });
        assert!(second.is_some());
        assert!(slots.next(ready(())).await.is_none());
        drop(second);
        assert!(slots.free().is_some(), "who went has none");
    }
}
