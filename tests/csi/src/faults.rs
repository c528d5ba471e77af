//! Delays and faults, around every method of CSI alike, and the record of calls.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, time::sleep};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::proto::control::{Call, Fault};

/// So many calls are remembered; kubelets and sidecars ask for as long as they run.
const REMEMBERED: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Faults {
    set: watch::Sender<BTreeMap<String, Fault>>,
    calls: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// How many were forgotten: a call keeps its number.
    forgotten: usize,
    calls: VecDeque<Call>,
}

impl Faults {
    pub(crate) fn set(&self, fault: Fault) {
        self.set.send_modify(|set| drop(set.insert(fault.method.clone(), fault)));
    }

    pub(crate) fn clear(&self) {
        self.set.send_modify(BTreeMap::clear);
    }

    pub(crate) fn of(&self, method: &str) -> Fault {
        self.set.borrow().get(method).cloned().unwrap_or_default()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.record().calls.iter().cloned().collect()
    }

    /// Delays and hangs as is set; answers the failure that is due, if one is.
    async fn before(&self, method: &str) -> Option<Failure> {
        let mut set = self.set.subscribe();
        sleep(Duration::from_millis(self.of(method).delay_ms)).await;
        // The sender lives as long as we do.
        set.wait_for(|set| set.get(method).is_none_or(|fault| !fault.hang)).await.ok()?;
        let mut due = None;
        self.set.send_if_modified(|set| {
            if let Some(fault) = set.get_mut(method).filter(|fault| fault.failures > 0) {
                fault.failures -= 1;
                let code = i32::try_from(fault.code).unwrap_or_default();
                let code = if code == 0 { Code::Unavailable } else { Code::from_i32(code) };
                due = Some(Failure { code, after: fault.answer_is_lost });
            }
            false
        });
        due
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Failure {
    code: Code,
    /// What was asked is done before.
    after: bool,
}

impl Failure {
    fn response(&self) -> http::Response<Body> {
        Status::new(self.code, "a fault that a test asked for").into_http()
    }
}

/// A call that runs. Whoever gives up waiting for it drops it, and it ends as cancelled.
struct Running<'f> {
    faults: &'f Faults,
    number: usize,
    code: Code,
}

impl<'f> Running<'f> {
    fn begin(faults: &'f Faults, method: &str) -> Self {
        let mut record = faults.record();
        if record.calls.len() == REMEMBERED {
            record.calls.pop_front();
            record.forgotten += 1;
        }
        record.calls.push_back(Call { method: method.to_owned(), began_ns: now(), ..Call::default() });
        Self { faults, number: record.forgotten + record.calls.len() - 1, code: Code::Cancelled }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut record = self.faults.record();
        let index = self.number.checked_sub(record.forgotten);
        if let Some(call) = index.and_then(|index| record.calls.get_mut(index)) {
            call.ended_ns = now();
            call.code = u32::try_from(i32::from(self.code)).unwrap_or_default();
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Clone)]
pub(crate) struct FaultsLayer(pub(crate) Arc<Faults>);

#[derive(Clone)]
pub(crate) struct Faulty<S> {
    inner: S,
    faults: Arc<Faults>,
}

impl<S> Layer<S> for FaultsLayer {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, faults: Arc::clone(&self.0) }
    }
}

impl<S> Service<http::Request<Body>> for Faulty<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The one that is ready is the one that was polled; the clone takes its place.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let faults = Arc::clone(&self.faults);
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let mut running = Running::begin(&faults, &method);
            let (outlives, done) =
                (faults.of(&method).outlives_caller, done(inner, request, method, Arc::clone(&faults)));
            let response = if outlives {
                // A task that nobody waits for any more goes on.
                let ended = tokio::spawn(done).await;
                ended.unwrap_or_else(|error| Ok(Status::internal(error.to_string()).into_http()))?
            } else {
                done.await?
            };
            // An error is in the headers; what has none there succeeds.
            running.code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
            drop(running);
            Ok(response)
        })
    }
}

/// What is asked, with what is wrong with it.
async fn done<S>(
    mut inner: S,
    request: http::Request<Body>,
    method: String,
    faults: Arc<Faults>,
) -> Result<S::Response, S::Error>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    match faults.before(&method).await {
        Some(failure) if !failure.after => Ok(failure.response()),
        failure => {
            let response = inner.call(request).await?;
            sleep(Duration::from_millis(faults.of(&method).answer_delay_ms)).await;
            Ok(failure.map_or(response, |failure| failure.response()))
        }
    }
}
