//! A fake of the apiserver's gate port, for what a real one cannot be made to do: over real TLS it answers, hangs and hangs up as it
//! is told.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::pending,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::gate::{GateAnswer, GateRequest};
use bytes::Bytes;
use certs::{Authority, Leaf, Names};
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use webhooks::{connection::Upstream, credentials::Files};

pub(crate) const NAME: &str = "stillpoint-apiserver.stillpoint.svc";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Answer(u16, Value),
    Hang,
    HangUp,
}

/// It listens; dropped, it is gone.
pub(crate) struct Apiserver {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    next: Mutex<VecDeque<Behaviour>>,
    asked: Mutex<Vec<GateRequest>>,
    connections: AtomicUsize,
}

pub(crate) fn allow() -> Behaviour {
    Behaviour::Answer(200, serde_json::to_value(GateAnswer::allow()).unwrap())
}

pub(crate) fn deny() -> Behaviour {
    Behaviour::Answer(
        200,
        json!({"decision": {"Deny": {"code": 429, "reason": "TooManyRequests", "message": "orders is held"}}}),
    )
}

impl Apiserver {
    /// With a certificate of this authority, for whoever shows `token`.
    pub(crate) async fn start(authority: &Authority, token: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let names = Names { dns: vec![NAME.to_owned()], addresses: Vec::new() };
        let leaf = Leaf::new(&authority.serve(&names, Timestamp::now(), DAY).unwrap()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(certs::server_config(leaf).unwrap()));
        let state = Arc::new(State::default());
        let task = tokio::spawn(accept(listener, acceptor, Arc::clone(&state), token));
        Self { address, state, _task: AbortOnDropHandle::new(task) }
    }

    /// What it does next; after that it allows.
    pub(crate) fn will(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.state.next.lock().unwrap().extend(behaviours);
    }

    pub(crate) fn asked(&self) -> Vec<GateRequest> {
        self.state.asked.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn upstream(&self) -> Upstream {
        upstream_at(self.address)
    }
}

pub(crate) fn upstream_at(address: SocketAddr) -> Upstream {
    Upstream { host: address.ip().to_string(), port: address.port(), name: NAME.try_into().unwrap() }
}

/// The files of an installation, in `directory`.
pub(crate) fn files(directory: &Path, authority: &Authority, token: &str) -> Files {
    let path = |name: &str| directory.join(name);
    let files = Files {
        certificate: path("tls.crt"),
        key: path("tls.key"),
        authority: path("ca.crt"),
        token: path("token"),
        clients: None,
    };
    show(&files, authority);
    std::fs::write(&files.authority, authority.certificate()).unwrap();
    std::fs::write(&files.token, token).unwrap();
    files
}

/// A serving certificate of this authority.
pub(crate) fn show(files: &Files, authority: &Authority) {
    let names = Names { dns: vec!["localhost".to_owned()], addresses: Vec::new() };
    let pair = authority.serve(&names, Timestamp::now(), DAY).unwrap();
    std::fs::write(&files.certificate, pair.certificate).unwrap();
    std::fs::write(&files.key, pair.key).unwrap();
}

pub(crate) fn authority(name: &str) -> Authority {
    Authority::create(name, Timestamp::now()).unwrap().0
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>, token: &'static str) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            state.connections.fetch_add(1, Ordering::SeqCst);
            let hang_up = CancellationToken::new();
            let service = service_fn(|request| answer(request, Arc::clone(&state), token, hang_up.clone()));
            let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            tokio::select! { _ = connection => {}, () = hang_up.cancelled() => {} }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
    token: &'static str,
    hang_up: CancellationToken,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_known = request.headers().get(AUTHORIZATION).is_some_and(|shown| shown == &format!("Bearer {token}"));
    assert_eq!(request.uri().path(), api::gate::PATH);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    state.asked.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    let next = state.next.lock().unwrap().pop_front().unwrap_or_else(allow);
    let (code, body) = match next {
        _ if !is_known => (401, json!({"message": "Unauthorized"})),
        Behaviour::Answer(code, body) => (code, body),
        Behaviour::Hang => pending().await,
        Behaviour::HangUp => {
            hang_up.cancel();
            pending().await
        }
    };
    Ok(Response::builder().status(code).body(Full::from(body.to_string())).unwrap())
}
