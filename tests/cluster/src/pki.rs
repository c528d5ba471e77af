//! Two authorities, as kubeadm makes them, and what they sign: the cluster's, and the front proxy's, which vouches for
//! whatever user kube-apiserver names and therefore signs nothing else.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate and its key, PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Who signs.
pub(crate) struct Authority {
    pub(crate) certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Makes everything anew, and writes what the components read into `directory`. kube-apiserver is reached at `addresses`.
/// Answers the cluster's authority, which knows clients by what it signs.
pub(crate) fn make(directory: &Path, addresses: &[Ipv4Addr]) -> Result<Authority> {
    fs::create_dir_all(directory)?;
    let cluster = Authority::create(directory, "ca", "kubernetes")?;
    let front_proxy = Authority::create(directory, "front-proxy-ca", "front-proxy-ca")?;
    write(directory, "front-proxy-client", &front_proxy.client("front-proxy-client", None)?)?;
    write(directory, "apiserver", &cluster.serve(addresses)?)?;
    let kubelets = cluster.client("kube-apiserver-kubelet-client", Some("system:masters"))?;
    write(directory, "apiserver-kubelet-client", &kubelets)?;

    let service_accounts = KeyPair::generate()?;
    secret(&directory.join("service-accounts.key"), &service_accounts.serialize_pem())?;
    fs::write(directory.join("service-accounts.pub"), service_accounts.public_key_pem())?;

    Ok(cluster)
}

impl Authority {
    fn create(directory: &Path, file: &str, name: &str) -> Result<Self> {
        let mut params = dated(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pair = Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        write(directory, file, &pair)?;
        Ok(Self { certificate: pair.certificate, issuer: Issuer::new(params, key) })
    }

    pub(crate) fn client(&self, name: &str, group: Option<&str>) -> Result<Pair> {
        let mut params = dated(name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn serve(&self, addresses: &[Ipv4Addr]) -> Result<Pair> {
        let mut params = dated("kube-apiserver");
        let service =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
        for name in ["localhost"].into_iter().chain(service) {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        for address in [&Ipv4Addr::LOCALHOST].into_iter().chain(addresses) {
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(*address)));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Pair> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        Ok(Pair { certificate: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

fn dated(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + LIFE).into();
    params
}

fn write(directory: &Path, name: &str, pair: &Pair) -> Result<()> {
    fs::write(directory.join(format!("{name}.crt")), &pair.certificate)?;
    secret(&directory.join(format!("{name}.key")), &pair.key)
}

/// Writes a file that only its owner reads.
pub(crate) fn secret(path: &Path, content: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())?;
    Ok(())
}
