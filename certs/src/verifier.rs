//! Client certificates: asked for, never demanded, and judged per request.
//!
//! The handshake only proves that the client holds the key of the certificate that it shows. Whether that certificate
//! means anything is a question for the request, against roots that may have changed since.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::Identity;

/// Why a client certificate means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Untrusted {
    #[error("the client certificate is not signed by this server's authority, or not valid now: {0}")]
    Chain(String),
    #[error("the client certificate names nobody (it has no common name)")]
    Nobody,
    #[error("the authority's certificate is not usable: {0}")]
    Roots(String),
}

/// A TLS configuration that serves `leaf` (a [`Leaf`], or [`ByName`](crate::ByName)) over HTTP/2 and HTTP/1.1 and asks clients
/// for a certificate.
pub fn server_config(leaf: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(PossessionOnly(provider.signature_verification_algorithms));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A TLS configuration that trusts servers whose certificates these authorities (PEM, at least one) have signed, and speaks `protocol`.
pub fn client_config(authorities: &str, protocol: &str) -> Result<ClientConfig, Untrusted> {
    let mut roots = RootCertStore::empty();
    let unusable = |error: &dyn std::fmt::Display| Untrusted::Roots(error.to_string());
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"it holds no certificate"));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(config)
}

/// Who `chain` stands for, if `authority` (PEM) signed it for clients and it is valid at `now`.
pub fn verify_client(chain: &[CertificateDer<'_>], authority: &str, now: Timestamp) -> Result<Identity, Untrusted> {
    Authorities::parse(authority)?.verify(chain, now)?;
    identity(chain)
}

/// Authorities that sign clients. Reading them costs more than judging by them.
#[derive(Clone, Debug)]
pub struct Authorities(Arc<dyn ClientCertVerifier>);

impl Authorities {
    /// Reads one or several certificates (PEM).
    pub fn parse(pem: &str) -> Result<Self, Untrusted> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| Untrusted::Roots(error.to_string()))?;
            roots.add(certificate).map_err(|error| Untrusted::Roots(error.to_string()))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        verifier.map(Self).map_err(|error| Untrusted::Roots(error.to_string()))
    }

    /// Whether one of them signed `chain` for clients, and it is valid at `now`.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(), Untrusted> {
        let (leaf, intermediates) = chain.split_first().ok_or(Untrusted::Nobody)?;
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let verified = self.0.verify_client_cert(leaf, intermediates, now);
        verified.map(drop).map_err(|error| Untrusted::Chain(error.to_string()))
    }
}

/// From when to when the first certificate of `pem` is valid.
pub fn validity(pem: &str) -> Result<(Timestamp, Timestamp), Untrusted> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Untrusted::Roots(error.to_string()))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| Untrusted::Roots(error.to_string()))?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| Untrusted::Roots(error.to_string()))
    };
    Ok((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// Who `chain` says it stands for; whether that is so, [`Authorities::verify`] says. Common name is the user, organizations
/// are the groups (Kubernetes: "Authenticating", X509 client certificates). Of several common names the last counts, as in
/// Go's `crypto/x509`: nobody is somebody else here than at the kube-apiserver.
pub fn identity(chain: &[CertificateDer<'_>]) -> Result<Identity, Untrusted> {
    let leaf = chain.first().ok_or(Untrusted::Nobody)?;
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| Untrusted::Chain(error.to_string()))?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().last().and_then(|name| name.as_str().ok()).filter(|name| !name.is_empty());
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    Ok(Identity { name: name.ok_or(Untrusted::Nobody)?.to_owned(), groups })
}

#[derive(Debug)]
struct PossessionOnly(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for PossessionOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// Empty: Go clients send no certificate whose issuer is not among the hints.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{Authority, Names};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_client_is_who_its_certificate_says_while_it_is_valid_and_ours() {
        let now = Timestamp::now();
        let (ours, _) = Authority::create("ours", now).unwrap();
        let (theirs, _) = Authority::create("theirs", now).unwrap();
        let dba = Identity { name: "dba".into(), groups: vec!["stillpoint:freezer".into()] };
        let pair = ours.client("dba", "stillpoint:freezer", now, DAY).unwrap();
        let shown = chain(&pair.certificate);
        assert_eq!(verify_client(&shown, ours.certificate(), now), Ok(dba));
        assert!(matches!(verify_client(&shown, theirs.certificate(), now), Err(Untrusted::Chain(_))));
        assert!(matches!(verify_client(&shown, ours.certificate(), now + DAY + DAY), Err(Untrusted::Chain(_))));
        let serving = ours.serve(&Names::default(), now, DAY).unwrap();
        let shown = chain(&serving.certificate);
        assert!(matches!(verify_client(&shown, ours.certificate(), now), Err(Untrusted::Chain(_))), "not for clients");
    }

    #[test]
    fn a_certificate_says_how_long_it_is_valid() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (ours, _) = Authority::create_for("ours", now, DAY).unwrap();
        let (begin, end) = validity(ours.certificate()).unwrap();
        assert!(begin <= now && end == now + DAY, "{begin} {end}");
        assert!(validity("no certificate").is_err());
    }

    #[test]
    fn of_several_common_names_the_last_counts_and_an_empty_one_is_none() {
        let named = |names: [&str; 2]| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            // rcgen keeps one name of each kind, and takes the same kind spelled as numbers for another.
            let kinds = [rcgen::DnType::CommonName, rcgen::DnType::CustomDnType(vec![2, 5, 4, 3])];
            kinds.into_iter().zip(names).for_each(|(kind, name)| params.distinguished_name.push(kind, name));
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            identity(&[certificate.der().clone()]).map(|identity| identity.name)
        };
        assert_eq!(named(["first", "last"]), Ok("last".to_owned()));
        assert_eq!(named(["first", ""]), Err(Untrusted::Nobody));
    }
}
