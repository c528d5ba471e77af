//! Tokens as kube-apiserver would have made them at another time: signed with its own key.

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use cluster::Cluster;
use rustls::{
    SignatureScheme,
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

/// The same token with its times put off by so many seconds.
pub(super) fn at_another_time(cluster: &Cluster, token: &str, seconds: i64) -> Result<String> {
    let [header, claims, _] = token.split('.').collect::<Vec<_>>().try_into().ok().context("it is no token")?;
    let mut claims: Value = serde_json::from_slice(&BASE64.decode(claims)?)?;
    for key in ["iat", "nbf", "exp"] {
        claims[key] = (claims[key].as_i64().with_context(|| format!("no {key}"))? + seconds).into();
    }
    let signed = format!("{header}.{}", BASE64.encode(claims.to_string()));
    let key = std::fs::read(cluster.root().join("pki/service-accounts.key"))?;
    let signer = any_ecdsa_type(&PrivateKeyDer::from_pem_slice(&key)?)?;
    let signer =
        signer.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).context("the key is of another kind")?;
    Ok(format!("{signed}.{}", BASE64.encode(fixed(&signer.sign(signed.as_bytes())?)?)))
}

/// As JWS has it (RFC 7518, 3.4): both numbers with 32 bytes each, where DER has a sequence of two integers.
fn fixed(der: &[u8]) -> Result<[u8; 64]> {
    let mut both = [0; 64];
    let mut rest = der.get(2..).context("no sequence")?;
    for half in both.chunks_mut(32) {
        ensure!(rest.first() == Some(&2), "no integer");
        let length = usize::from(*rest.get(1).context("no length")?);
        let number = rest.get(2..2 + length).context("it is cut off")?;
        let number = &number[number.len().saturating_sub(32)..];
        half[32 - number.len()..].copy_from_slice(number);
        rest = &rest[2 + length..];
    }
    Ok(both)
}
