//! Work on many objects side by side, and on each one after the other: what comes up while an object is worked on is done once
//! more after it, however often it came up. Whoever waits for a turn costs its name only. Once the tasks are closed none begins.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{FutureExt, future::BoxFuture};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Turns<K: Name>(Arc<Inner<K>>);

/// What objects are told apart by.
pub(crate) trait Name: Clone + Eq + Hash + Send + Sync + 'static {}

struct Inner<K: Name> {
    work: Box<dyn Fn(K) -> BoxFuture<'static, ()> + Send + Sync>,
    at_once: usize,
    tasks: TaskTracker,
    runtime: Handle,
    state: Mutex<State<K>>,
}

struct State<K> {
    of: HashMap<K, Stage>,
    waiting: VecDeque<K>,
    working: usize,
}

/// Where an object is that something is to be done about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waits,
    Works,
    /// Something came up meanwhile.
    WorksAndWaits,
}

/// Ends when it is dropped, also by a panic.
struct Turn<K: Name> {
    inner: Arc<Inner<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Name for K {}

impl<K: Name> Turns<K> {
    /// `work` is done as tasks of `tasks`, on at most so many objects at once. Must be called within a Tokio runtime.
    pub(crate) fn new<F>(tasks: &TaskTracker, at_once: usize, work: impl Fn(K) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(Inner {
            work: Box::new(move |key| work(key).boxed()),
            at_once,
            tasks: tasks.clone(),
            runtime: Handle::current(),
            state: Mutex::new(State { of: HashMap::new(), waiting: VecDeque::new(), working: 0 }),
        }))
    }

    /// Something is to be done about `key`: now, or when there is room, or after what is done about it already.
    pub(crate) fn take(&self, key: K) {
        let mut state = self.0.state();
        match state.of.entry(key) {
            Entry::Occupied(mut stage) => {
                if *stage.get() == Stage::Works {
                    stage.insert(Stage::WorksAndWaits);
                }
            }
            Entry::Vacant(free) => {
                let key = free.key().clone();
                free.insert(Stage::Waits);
                state.waiting.push_back(key);
            }
        }
        self.0.go_on(state);
    }
}

impl<K: Name> Inner<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(self: &Arc<Self>, mut state: MutexGuard<'_, State<K>>) {
        while state.working < self.at_once
            && !self.tasks.is_closed()
            && let Some(key) = state.waiting.pop_front()
        {
            state.of.insert(key.clone(), Stage::Works);
            state.working += 1;
            let inner = Arc::clone(self);
            let turn = async move {
                let turn = Turn { inner, key };
                (turn.inner.work)(turn.key.clone()).await;
            };
            self.tasks.spawn_on(turn, &self.runtime);
        }
    }
}

impl<K: Name> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.working -= 1;
        if state.of.remove(&self.key) == Some(Stage::WorksAndWaits) {
            state.of.insert(self.key.clone(), Stage::Waits);
            state.waiting.push_back(self.key.clone());
        }
        self.inner.go_on(state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    async fn idle<K: Name>(turns: &Turns<K>) {
        while !turns.0.state().of.is_empty() || turns.0.state().working > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_object_has_one_turn_at_a_time_and_one_more_for_all_that_came_up() {
        let tasks = TaskTracker::new();
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let turns = Turns::new(&tasks, 8, {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            move |_: &str| {
                let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
                async move {
                    begun.fetch_add(1, Ordering::Relaxed);
                    go.acquire().await.unwrap().forget();
                }
            }
        });
        turns.take("one");
        tokio::task::yield_now().await;
        for _ in 0..5 {
            turns.take("one");
        }
        turns.take("other");
        tokio::task::yield_now().await;
        assert_eq!(begun.load(Ordering::Relaxed), 2, "the other does not wait for the one");
        go.add_permits(3);
        idle(&turns).await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        turns.take("late");
        turns.take("later");
        tasks.close();
        turns.take("too late");
        go.add_permits(3);
        tasks.wait().await;
        assert_eq!(begun.load(Ordering::Relaxed), 5, "none begins when the tasks are closed");
    }

    #[tokio::test]
    async fn a_turn_that_panics_is_over_and_the_next_begins() {
        let (tasks, done) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let turns = Turns::new(&tasks, 1, {
            let done = Arc::clone(&done);
            move |at: usize| {
                let done = Arc::clone(&done);
                async move {
                    assert!(at > 0, "on purpose");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        (0..3).for_each(|at| turns.take(at));
        idle(&turns).await;
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
