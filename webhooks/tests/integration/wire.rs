//! kube-apiserver's side of the wire: HTTP/2 over TLS, kept alive.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use certs::KeyPairPem;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// A connection.
#[derive(Clone)]
pub(crate) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

pub(crate) type Answer = (u16, Bytes);

impl Wire {
    /// To a server whose certificate this authority (PEM) has signed, with a certificate that is shown, if one is.
    pub(crate) async fn connect(to: SocketAddr, authority: &str, shown: Option<&KeyPairPem>) -> std::io::Result<Self> {
        let stream = dial(to, authority, shown, "h2").await?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(std::io::Error::other)?;
        let task = tokio::spawn(async move {
            connection.await.ok();
        });
        Ok(Self { sender, _task: Arc::new(AbortOnDropHandle::new(task)) })
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> hyper::Result<Answer> {
        let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await?;
        let code = response.status().as_u16();
        Ok((code, response.into_body().collect().await?.to_bytes()))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Bytes::new()).await.unwrap()
    }

    /// A review, and the response in its answer.
    pub(crate) async fn review(&self, path: &str, review: &Value) -> Value {
        let (code, body) = self.send(Method::POST, path, review.to_string().into()).await.unwrap();
        let answered: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!((code, &answered["kind"]), (200, &"AdmissionReview".into()), "{body:?}");
        answered["response"].clone()
    }
}

/// The same, for whoever speaks that protocol (ALPN).
pub(crate) async fn dial(
    to: SocketAddr,
    authority: &str,
    shown: Option<&KeyPairPem>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}
