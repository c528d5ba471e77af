//! Over real TLS: what a handshake lets pass, and what each request on it is judged by.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use certs::{Authority, Bound, Leaf, Limits, Names, Peer};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{Cluster, delegated};
use crate::auth::{
    Authenticator,
    delegated::testing::{FakeKubeApi, Reply, Signed, Wanted, config_map, now},
};

/// A client's end of one connection.
struct Connection(BufReader<TlsStream<TcpStream>>);

impl Connection {
    /// One request on it, with more header lines; the answer's body.
    async fn ask(&mut self, headers: &str) -> String {
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            assert_ne!(self.0.read_line(&mut line).await.unwrap(), 0, "the connection was closed");
        }
        line.clear();
        self.0.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }
}

async fn connect(address: std::net::SocketAddr, authority: &str, shown: Signed) -> Connection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(shown.chain, shown.key)
        .unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    Connection(BufReader::new(stream))
}

#[tokio::test]
async fn an_authority_that_is_replaced_counts_no_longer_on_connections_that_are_open() {
    let cluster = Cluster::new();
    let trust = cluster.trust();
    let fake = FakeKubeApi::new(|_| Reply::Status(json!({"authenticated": true, "user": {"username": "carol"}})));
    let delegated = Arc::new(delegated(Arc::clone(&trust), &fake, &[]));
    // Tells who asked, or the code of the refusal.
    let service = move |request: Request<Incoming>, peer: Peer| {
        let delegated = Arc::clone(&delegated);
        async move {
            let mut headers = request.into_parts().0.headers;
            let told = match delegated.authenticate(&peer, &mut headers, now()).await {
                Ok(user) => user.name,
                Err(error) => error.code.as_u16().to_string(),
            };
            Response::new(Full::new(Bytes::from(format!("{told}\n"))))
        }
    };
    let (authority, _) = Authority::create("serving", Timestamp::now()).unwrap();
    let names = Names { dns: vec!["localhost".into()], addresses: Vec::new() };
    let serving = authority.serve(&names, Timestamp::now(), Duration::from_secs(3600)).unwrap();
    let tls = certs::server_config(Leaf::new(&serving).unwrap()).unwrap();
    let bound = Bound::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, stop) = (bound.address().unwrap(), CancellationToken::new());
    let server = tokio::spawn(bound.serve(tls, service, Limits::default(), stop.clone()));

    let proxy = Wanted::client("front-proxy-client");
    let mut old = connect(address, authority.certificate(), cluster.proxies.sign(&proxy)).await;
    let mut new = connect(address, authority.certificate(), cluster.others.sign(&proxy)).await;
    let alice = "X-Remote-User: alice\r\n";
    assert_eq!(old.ask(alice).await, "alice");
    assert_eq!(new.ask(alice).await, "401", "a foreign certificate gets an answer");
    assert_eq!(new.ask("Authorization: Bearer carols\r\n").await, "carol", "and does not spoil a token");
    trust.learn(&config_map(&cluster.others, Some(&cluster.people)));
    assert_eq!(old.ask(alice).await, "401");
    assert_eq!(new.ask(alice).await, "alice");
    stop.cancel();
    drop((old, new));
    server.await.unwrap();
}
