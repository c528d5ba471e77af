//! What only `live.stillpoint.dev` has of copies: the catalogue with its warnings, files in ranges, logs, checks, what is made for them.

use api::{LIVE_API_VERSION, LiveSnapshot, Repository, RepositoryCheck, RepositoryCheckSpec};
use http::{HeaderMap, Request, header};
use kube::{
    api::ListParams,
    client::Body,
    core::{Status, metadata::ListMeta},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{client::Api, failure::Failure};

/// A list, and what a person should know of it.
#[derive(Debug, Default)]
pub struct Catalogued {
    pub copies: Vec<LiveSnapshot>,
    pub warnings: Vec<String>,
}

/// The files of a copy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Files {
    pub files: Vec<File>,
    /// The longest range that is answered, bytes.
    pub largest_range: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct File {
    pub path: String,
    pub size: u64,
    pub sha256: String,
}

/// Copies that are asked for at once.
const PAGE: u32 = 500;

impl Api {
    /// All of it, page by page.
    pub async fn catalogue(&self, labels: Option<&str>, repository: Option<&str>) -> Result<Catalogued, Failure> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            metadata: ListMeta,
            items: Vec<LiveSnapshot>,
        }
        let mut selected = String::new();
        if let Some(labels) = labels {
            selected += &format!("&labelSelector={}", encoded(labels));
        }
        if let Some(repository) = repository {
            selected += &format!("&fieldSelector={}", encoded(&format!("spec.repository={repository}")));
        }
        let (mut found, mut after) = (Catalogued::default(), String::new());
        loop {
            let path = format!("{}?limit={PAGE}{selected}{after}", self.of("snapshots", ""));
            let (headers, bytes) = self.bytes(Request::get(path), Vec::new()).await?;
            let page: Page = json_of(&bytes)?;
            found.copies.extend(page.items);
            let new = warnings(&headers).into_iter().filter(|warning| !found.warnings.contains(warning));
            found.warnings.extend(new.collect::<Vec<_>>());
            match page.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => after = format!("&continue={}", encoded(&more)),
                None => return Ok(found),
            }
        }
    }

    /// One copy, whether there is a Snapshot of it or not.
    pub async fn copy(&self, name: &str) -> Result<LiveSnapshot, kube::Error> {
        let request = Request::get(self.of("snapshots", name)).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    pub async fn files(&self, copy: &str) -> Result<Files, Failure> {
        let (_, bytes) =
            self.bytes(Request::get(self.of("snapshots", &format!("{copy}/download"))), Vec::new()).await?;
        json_of(&bytes)
    }

    /// At most `length` bytes of a file; fewer at its end.
    pub async fn range(&self, copy: &str, file: &str, offset: u64, length: u64) -> Result<bytes::Bytes, kube::Error> {
        let path = self.of("snapshots", &format!("{copy}/download"));
        let path = format!("{path}?file={}&offset={offset}&length={length}", encoded(file));
        Ok(self.bytes(Request::get(path), Vec::new()).await?.1)
    }

    /// What the runs of a Snapshot or a Restore said.
    pub async fn log(&self, plural: &str, name: &str) -> Result<String, Failure> {
        let (_, bytes) = self.bytes(Request::get(self.of(plural, &format!("{name}/log"))), Vec::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What is made for a Snapshot or a Restore, and what a person should know of it: for the one of this name, or for one that is sent.
    pub async fn generated(
        &self,
        plural: &str,
        name: &str,
        sent: Option<&Value>,
    ) -> Result<(Vec<Value>, Vec<String>), kube::Error> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Value>,
        }
        let path = self.of(plural, &format!("{name}/generate"));
        let (headers, bytes) = match sent {
            None => self.bytes(Request::get(path), Vec::new()).await?,
            Some(object) => {
                let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
                self.bytes(request, object.to_string().into_bytes()).await?
            }
        };
        let list: List = serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?;
        Ok((list.items, warnings(&headers)))
    }

    /// Has a repository checked; that may take long.
    pub async fn check(&self, repository: &str, spec: RepositoryCheckSpec) -> Result<RepositoryCheck, Failure> {
        let body = json!({"apiVersion": LIVE_API_VERSION, "kind": "RepositoryCheck", "spec": spec});
        let request = Request::post(self.of("repositories", &format!("{repository}/check")))
            .header(header::CONTENT_TYPE, "application/json");
        let (_, bytes) = self.bytes(request, body.to_string().into_bytes()).await?;
        json_of(&bytes)
    }

    /// The Repository that was named; else the only one that there is.
    pub async fn repository(&self, named: Option<String>) -> Result<String, Failure> {
        if let Some(name) = named {
            return Ok(name);
        }
        let all = self.objects::<Repository>().list_metadata(&ListParams::default()).await?;
        let names: Vec<String> = all.items.into_iter().filter_map(|one| one.metadata.name).collect();
        only(names, &self.namespace)
    }

    /// A path of the live group, `rest` below a resource.
    fn of(&self, plural: &str, rest: &str) -> String {
        let parts = rest.split('/').filter(|part| !part.is_empty()).map(encoded);
        let below = format!("/apis/{LIVE_API_VERSION}/namespaces/{}/{plural}", encoded(&self.namespace));
        parts.fold(below, |path, part| path + "/" + &part)
    }

    /// The answer, with its headers: kube's own calls have none.
    async fn bytes(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<(HeaderMap, bytes::Bytes), kube::Error> {
        let request = request.body(Body::from(body)).map_err(kube::Error::HttpError)?;
        let (parts, body) = self.client.send(request).await?.into_parts();
        let bytes = body.collect_bytes().await?;
        if parts.status.is_success() {
            return Ok((parts.headers, bytes));
        }
        let said =
            || Status::failure(String::from_utf8_lossy(&bytes).trim(), "Unknown").with_code(parts.status.as_u16());
        Err(kube::Error::Api(serde_json::from_slice(&bytes).unwrap_or_else(|_| said()).boxed()))
    }
}

/// Pure.
fn only(mut names: Vec<String>, namespace: &str) -> Result<String, Failure> {
    match (names.pop(), names.len()) {
        (Some(only), 0) => Ok(only),
        (Some(last), _) => {
            Err(Failure::new(format!("there are several Repositories: say --repository {}|{last}", names.join("|"))))
        }
        (None, _) => Err(Failure::new(format!(
            "there is no Repository in namespace {namespace}; make one: kubectl still repository create --help"
        ))),
    }
}

fn json_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::new(format!("the server's answer cannot be read: {error}; is it of this version?")))
}

/// The texts of `Warning` headers: `299 - "TEXT"` (RFC 7234, 5.5).
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let text = |value: &http::HeaderValue| {
        // As UTF-8, which is more than HTTP promises.
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let (_, quoted) = value.split_once('"')?;
        let text = quoted.strip_suffix('"')?;
        Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
    };
    headers.get_all(header::WARNING).iter().filter_map(text).collect()
}

/// As a part of a path or a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_what_was_said() {
        let mut headers = HeaderMap::new();
        for value in [r#"299 - "Repository \"nightly\": no answer""#, "199 nonsense", r#"299 - "C:\\x""#] {
            headers.append(header::WARNING, value.parse().unwrap());
        }
        assert_eq!(warnings(&headers), ["Repository \"nightly\": no answer", "C:\\x"]);
    }

    #[test]
    fn nothing_of_a_name_is_read_as_a_part_of_the_path() {
        assert_eq!(encoded("orders/a b.dump"), "orders%2Fa%20b.dump");
        assert_eq!(encoded("ä?&=#%"), "%C3%A4%3F%26%3D%23%25");
        assert_eq!(encoded("app=x,y!=z"), "app%3Dx%2Cy%21%3Dz");
    }

    #[test]
    fn the_only_repository_need_not_be_named() {
        let of = |names: &[&str]| only(names.iter().map(|name| (*name).to_owned()).collect(), "shop");
        assert_eq!(of(&["nightly"]).unwrap(), "nightly");
        assert!(of(&["nightly", "weekly"]).unwrap_err().to_string().contains("--repository nightly|weekly"));
        assert!(of(&[]).unwrap_err().to_string().contains("repository create"));
    }
}
