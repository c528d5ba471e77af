//! One TLS connection and what is said on it, as it is said: nothing in between puts a path in order, follows a redirect or
//! asks again.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use certs::KeyPairPem;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longer than any server here takes over a request.
const LIMIT: Duration = Duration::from_secs(75);

/// Who is dialled, and how it is known to be that.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// What its certificate must be for.
    pub(crate) name: String,
    /// Its authority, PEM.
    pub(crate) authority: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A connection on which requests can be sent.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) took: Duration,
}

impl Server {
    /// A TLS connection with the certificate that is shown, if one is.
    pub(crate) async fn dial(&self, shown: Option<&KeyPairPem>, protocol: Protocol) -> Result<TlsStream<TcpStream>> {
        let config = Arc::new(self.config(shown, protocol)?);
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.name.clone())?;
        Ok(TlsConnector::from(config).connect(name, tcp).await?)
    }

    pub(crate) async fn connect(&self, shown: Option<&KeyPairPem>, protocol: Protocol) -> Result<Connection> {
        let io = TokioIo::new(self.dial(shown, protocol).await?);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Ok(Connection::Http1(sender))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Ok(Connection::Http2(sender))
            }
        }
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, shown: Option<&KeyPairPem>, request: Request<Body>) -> Result<Answer> {
        self.connect(shown, Protocol::Http2).await?.send(request).await
    }

    /// Of somebody who shows nothing.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(None, Request::get(format!("https://{}{path}", self.address)).body(whole(""))?).await
    }

    fn config(&self, shown: Option<&KeyPairPem>, protocol: Protocol) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.authority.as_bytes()) {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match shown {
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<_, _>>()?;
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?)?
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = match protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
        };
        Ok(config)
    }
}

impl Connection {
    /// Another hand on the same connection; HTTP/2 alone can do more than one thing at a time.
    pub(crate) fn again(&self) -> Result<Self> {
        match self {
            Self::Http1(_) => bail!("one request after the other"),
            Self::Http2(sender) => Ok(Self::Http2(sender.clone())),
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Answer> {
        let began = tokio::time::Instant::now();
        let asked = format!("{} {}", request.method(), request.uri());
        let sent = async {
            let answer = match self {
                Self::Http1(sender) => sender.send_request(request).await?,
                Self::Http2(sender) => sender.send_request(request).await?,
            };
            let (head, body) = answer.into_parts();
            Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
        };
        let (head, body) = timeout(LIMIT, sent).await.with_context(|| asked.clone())?.context(asked)?;
        Ok(Answer { code: head.status.as_u16(), headers: head.headers, body, took: began.elapsed() })
    }
}

impl Answer {
    /// Its body; null when that is no JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether a header has this value: kube-apiserver puts its own before what the server behind it said.
    pub(crate) fn has(&self, name: &str, value: &str) -> bool {
        self.headers.get_all(name).iter().any(|found| found.as_bytes() == value.as_bytes())
    }

    /// For messages of failed tests.
    pub(crate) fn brief(&self) -> String {
        let text: String = String::from_utf8_lossy(&self.body).chars().take(600).collect();
        format!("{} {:?} {text}", self.code, self.headers)
    }
}

pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}
