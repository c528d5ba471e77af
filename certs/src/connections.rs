//! Who is connected, and who has to go: a connection that asks nothing is not kept for ever, and where there is no room for
//! another, whoever has been idle longest makes it. So whoever opens many and says nothing shuts nobody out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. For one more, one that is idle has to go.
    pub connections: usize,
    /// How long a connection may take to ask the first thing.
    pub first: Duration,
    /// How long it may ask nothing. As long as Go's servers let it (apiserver `pkg/server/secure_serving.go`).
    pub idle: Duration,
    /// Requests at once on one HTTP/2 connection. Upstream gives a front proxy 1000: it carries all users' watches.
    pub streams: u32,
    /// How long open requests may go on after shutdown began.
    pub drain: Duration,
}

/// Upstream's header timeout.
pub(crate) const HEADERS: Duration = Duration::from_secs(32);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            first: HEADERS,
            idle: Duration::from_secs(90),
            streams: 1000,
            drain: Duration::from_secs(5),
        }
    }
}

/// All that are open.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: Limits,
    open: Mutex<Open>,
    /// One has ended, or has become idle.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Arc<Connection>>,
}

#[derive(Debug)]
struct Connection {
    state: Mutex<State>,
    leave: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// It has asked something, ever.
    asked: bool,
    /// Requests that are not answered to the end.
    requests: usize,
    /// When it came, or when the last answer ended.
    since: Instant,
}

/// A connection's place. Dropped, it is another's.
#[derive(Debug)]
pub(crate) struct Entry {
    number: u64,
    connections: Arc<Connections>,
    connection: Arc<Connection>,
}

/// A request that is being answered, until the answer's last byte.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Connections>, Arc<Connection>);

impl Connections {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default(), changed: Notify::new() })
    }

    /// A place for one more. Waits only while every connection has a request that is being answered.
    pub(crate) async fn enter(self: &Arc<Self>) -> Entry {
        loop {
            let changed = self.changed.notified();
            if let Some(entry) = self.try_enter() {
                return entry;
            }
            changed.await;
        }
    }

    fn try_enter(self: &Arc<Self>) -> Option<Entry> {
        if lock(&self.open).all.len() >= self.limits.connections && !self.make_room() {
            return None;
        }
        let state = State { asked: false, requests: 0, since: Instant::now() };
        let connection = Arc::new(Connection { state: Mutex::new(state), leave: CancellationToken::new() });
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.all.insert(number, Arc::clone(&connection));
        Some(Entry { number, connections: Arc::clone(self), connection })
    }

    /// Sends away who never asked anything, the oldest first; then who has been idle longest.
    pub(crate) fn make_room(&self) -> bool {
        let mut open = lock(&self.open);
        let idle = open.all.iter().filter_map(|(number, connection)| {
            let state = *lock(&connection.state);
            (state.requests == 0).then_some(((state.asked, state.since), *number))
        });
        let Some((_, number)) = idle.min() else { return false };
        if let Some(connection) = open.all.remove(&number) {
            connection.leave.cancel();
        }
        true
    }
}

impl Entry {
    /// Returns when the connection is to end: its place is needed, or it has been idle for too long.
    pub(crate) async fn leaves(&self) {
        tokio::select! {
            () = self.connection.leave.cancelled() => {}
            () = self.idle() => {}
        }
    }

    async fn idle(&self) {
        let Limits { first, idle, .. } = self.connections.limits;
        loop {
            let State { asked, requests, since } = *lock(&self.connection.state);
            let now = Instant::now();
            let until = if requests > 0 { now + idle } else { since + if asked { idle } else { first } };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }

    pub(crate) fn request(&self) -> Busy {
        let mut state = lock(&self.connection.state);
        state.asked = true;
        state.requests += 1;
        Busy(Arc::clone(&self.connections), Arc::clone(&self.connection))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.connections.open).all.remove(&self.number);
        self.connections.changed.notify_one();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = lock(&self.1.state);
        state.requests -= 1;
        state.since = Instant::now();
        if state.requests == 0 {
            self.0.changed.notify_one();
        }
    }
}

/// Nothing panics while it holds one of these, and what is in them is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn room(connections: usize) -> Arc<Connections> {
        Connections::new(Limits { connections, first: 10 * SECOND, idle: 90 * SECOND, ..Limits::default() })
    }

    async fn leaves(entry: &Entry) -> bool {
        timeout(Duration::ZERO, entry.leaves()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asked_makes_room_first_and_then_who_is_idle_longest_and_nobody_who_is_answered() {
        let room = room(3);
        let (answered, asked, silent) = (room.enter().await, room.enter().await, room.enter().await);
        let busy = answered.request();
        drop(asked.request());
        advance(SECOND).await;
        let fourth = room.enter().await;
        assert!(leaves(&silent).await && !leaves(&asked).await && !leaves(&answered).await);
        let fourth_is_busy = fourth.request();
        let fifth = room.enter().await;
        assert!(leaves(&asked).await && !leaves(&answered).await && !leaves(&fourth).await);
        let fifth_is_busy = fifth.request();
        assert!(timeout(SECOND, room.enter()).await.is_err(), "all are being answered");
        drop(busy);
        room.enter().await;
        assert!(leaves(&answered).await);
        drop((fourth_is_busy, fifth_is_busy));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_leaves_and_who_is_answered_stays() {
        let room = room(9);
        let (silent, asked, answered) = (room.enter().await, room.enter().await, room.enter().await);
        drop(asked.request());
        let _busy = answered.request();
        advance(11 * SECOND).await;
        assert!(leaves(&silent).await && !leaves(&asked).await);
        advance(80 * SECOND).await;
        assert!(leaves(&asked).await && !leaves(&answered).await);
    }

    #[tokio::test]
    async fn a_place_that_is_left_is_anothers() {
        let room = room(1);
        let one = room.enter().await;
        let _busy = one.request();
        let waiting = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.enter().await.number }
        });
        drop(one);
        assert_eq!(timeout(SECOND, waiting).await.unwrap().unwrap(), 1);
    }
}
