//! Work on many objects side by side, and on each one after the other: what comes up while an object is worked on is done once
//! more after it, however often it came up.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Turns<K: Eq + Hash>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K: Eq + Hash> {
    room: Semaphore,
    /// Those that wait for their turn or have it, and whether something came up meanwhile.
    taken: Mutex<HashMap<K, bool>>,
}

/// Of one object; others may begin once it is dropped.
struct Turn<K: Eq + Hash> {
    inner: Arc<Inner<K>>,
    key: Option<K>,
}

impl<K: Eq + Hash + Clone + Send + Sync + 'static> Turns<K> {
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Inner { room: Semaphore::new(at_once), taken: Mutex::default() }))
    }

    /// Works on `key` as a task of `tasks`, now or after what is done on it already.
    pub(super) fn take<F>(&self, tasks: &TaskTracker, key: K, work: impl Fn(K) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        match self.0.taken().entry(key.clone()) {
            Entry::Occupied(mut taken) => {
                taken.insert(true);
                return;
            }
            Entry::Vacant(free) => drop(free.insert(false)),
        }
        let mut turn = Turn { inner: Arc::clone(&self.0), key: Some(key.clone()) };
        tasks.spawn(async move {
            loop {
                let inner = Arc::clone(&turn.inner);
                let Ok(_room) = inner.room.acquire().await else { return };
                work(key.clone()).await;
                if turn.is_over() {
                    return;
                }
            }
        });
    }
}

impl<K: Eq + Hash> Inner<K> {
    fn taken(&self) -> MutexGuard<'_, HashMap<K, bool>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Turn<K> {
    /// Unless something came up meanwhile.
    fn is_over(&mut self) -> bool {
        let Some(key) = &self.key else { return true };
        let mut taken = self.inner.taken();
        let again = taken.get_mut(key).is_some_and(std::mem::take);
        if !again {
            taken.remove(key);
            drop(taken);
            self.key = None;
        }
        !again
    }
}

impl<K: Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.inner.taken().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_object_has_one_turn_at_a_time_and_one_more_for_all_that_came_up() {
        let (turns, tasks) = (Turns::new(8), TaskTracker::new());
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = || {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            move |_| {
                let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
                async move {
                    begun.fetch_add(1, Ordering::Relaxed);
                    go.notified().await;
                }
            }
        };
        turns.take(&tasks, "one", work());
        tokio::task::yield_now().await;
        for _ in 0..5 {
            turns.take(&tasks, "one", work());
        }
        turns.take(&tasks, "other", work());
        tokio::task::yield_now().await;
        assert_eq!(begun.load(Ordering::Relaxed), 2, "the other does not wait for the one");
        for _ in 0..3 {
            go.notify_one();
            tokio::task::yield_now().await;
            go.notify_one();
            tokio::task::yield_now().await;
        }
        tasks.close();
        tasks.wait().await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert!(turns.0.taken().is_empty());
    }

    #[tokio::test]
    async fn a_turn_that_panics_is_over() {
        let (turns, tasks) = (Turns::new(1), TaskTracker::new());
        turns.take(&tasks, "one", |_| async { panic!("on purpose") });
        tasks.close();
        tasks.wait().await;
        assert!(turns.0.taken().is_empty());
    }
}
