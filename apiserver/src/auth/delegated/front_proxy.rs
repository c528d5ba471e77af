//! For whom a front proxy asks: headers, believed only beside its certificate
//! (apiserver `pkg/authentication/request/headerrequest`). Pure; time is an argument.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

use super::config::FrontProxy;
use crate::{
    auth::{User, strip_where},
    query::percent_decode,
};

impl FrontProxy {
    /// For whom the proxy with this certificate asks. An error is the certificate's fault, or the headers'.
    pub fn user(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap, now: Timestamp) -> Result<User, String> {
        self.authorities.verify(chain, now).map_err(|error| format!("as a front proxy: {error}"))?;
        if !self.allowed_names.is_empty() {
            let name = certs::identity(chain).map_err(|error| error.to_string())?.name;
            if !self.allowed_names.contains(&name) {
                return Err(format!("{name:?} is not among the names that a front proxy may have"));
            }
        }
        let name = first(headers, &self.username_headers)?;
        let name = name.ok_or("the front proxy does not say for whom it asks")?;
        let groups = self.group_headers.iter().flat_map(|header| headers.get_all(header)).map(text);
        let groups: Vec<&str> = groups.collect::<Result<_, _>>()?;
        Ok(User {
            name: name.to_owned(),
            uid: first(headers, &self.uid_headers)?.map(str::to_owned),
            groups: groups.into_iter().filter(|group| !group.is_empty()).map(str::to_owned).collect(),
            extra: self.extra(headers)?,
        })
    }

    /// Takes out the headers that a front proxy would set, whoever set them.
    pub fn strip(&self, headers: &mut HeaderMap) {
        let named = [&self.username_headers, &self.uid_headers, &self.group_headers];
        strip_where(headers, |name| {
            named.iter().any(|names| names.contains(name))
                || self.extra_prefixes.iter().any(|prefix| name.as_str().starts_with(prefix))
        });
    }

    /// What follows the prefix is the key. A proxy escapes what a header's name cannot hold.
    fn extra(&self, headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for prefix in &self.extra_prefixes {
            for name in headers.keys() {
                // Names are in lower case here, as upstream has the keys before they are decoded.
                let Some(key) = name.as_str().strip_prefix(prefix.as_str()) else { continue };
                let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
                let values = headers.get_all(name).iter().map(|value| text(value).map(str::to_owned));
                extra.entry(key).or_default().extend(values.collect::<Result<Vec<_>, _>>()?);
            }
        }
        Ok(extra)
    }
}

/// The first header that is there and says something; of a header that comes twice, its first value.
fn first<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Result<Option<&'a str>, String> {
    for name in names {
        match headers.get(name).map(text).transpose()? {
            Some("") | None => {}
            found => return Ok(found),
        }
    }
    Ok(None)
}

/// Half a name is somebody else's: what cannot be read refuses the whole.
fn text(value: &HeaderValue) -> Result<&str, String> {
    std::str::from_utf8(value.as_bytes()).map_err(|_| "a header of the front proxy is not UTF-8".to_owned())
}
