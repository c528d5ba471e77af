//! `snapshots` of `live.stillpoint.dev`: the catalogue, a copy taken now, its files, its log, the way back, and what is made for each.

use api::{LiveSnapshot, RestoreSource, SnapshotMethod};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::{
    Objects,
    lists::{Continue, KUBECTL_CHUNK, MOST_ROWS, check_list_version, partial_list, streamed},
};
use crate::{
    admission::Author,
    answer::{Answer, json_answer},
    asked::Asked,
    body::{self, Body},
    copies::{Copies, Download},
    error::ApiError,
    negotiate::Form,
    registry::{Write, Written},
    resources::{RESTORES, Resource, SNAPSHOTS},
    target::{ResourceTarget, Verb},
};

/// What becomes of one that is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Unless it is a dry run.
    AsAsked,
    Never,
}

impl Objects {
    pub(super) async fn live_snapshots(&self, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let copies = self.copies.as_ref().ok_or_else(ApiError::no_such_path)?;
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        match (asked.target.subresource.as_deref(), asked.target.verb) {
            (None, Verb::List) => self.list_snapshots(copies, asked).await,
            (None, Verb::Get) => asked.one(&value(&copies.find(namespace, asked.name()).await?)?),
            (None, _) => self.take_snapshot(copies, asked, bytes).await,
            (Some("download"), _) => download(copies, asked, namespace).await,
            (Some("log"), _) => {
                let copy = copies.find(namespace, asked.name()).await?;
                Ok(text(copies.log(&copy)))
            }
            (Some("generate"), _) => self.generate_snapshot(copies, asked, bytes).await,
            (Some("restore"), _) => self.restore_snapshot(copies, asked, bytes).await,
            (Some(_), _) => Err(ApiError::no_such_path()),
        }
    }

    async fn list_snapshots(&self, copies: &Copies, asked: &Asked<'_>) -> Result<Answer, ApiError> {
        check_list_version(asked, self.revision())?;
        let query = &asked.parts.query;
        let after = query.get("continue").map(Continue::decode).transpose()?;
        let selection = asked.selection()?;
        let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
        let mut found = copies.catalogue(asked.target.namespace.as_deref()).await;
        if let Some(after) = &after {
            let after = (after.namespace.as_str(), after.name.as_str());
            found.items.retain(|item| item.key() > after);
        }
        let is_whole = asked.parts.form == Form::Table && limit.is_some_and(|limit| limit >= KUBECTL_CHUNK);
        let limit = limit.filter(|_| !is_whole || found.items.len() > MOST_ROWS).unwrap_or(usize::MAX);
        let everything = selection.labels.is_empty() && selection.fields.is_empty();
        let mut items = Vec::new();
        let mut rest = found.items.iter();
        let mut last = None;
        while items.len() < limit
            && let Some(item) = rest.next()
        {
            let shown = value(&item.live())?;
            if everything || crate::registry::selected(&selection, &shown) {
                items.push(shown);
                last = Some(item.key());
            }
        }
        let mut list = json!({"resourceVersion": self.verbs.records.revision()});
        if let (Some((namespace, name)), true) = (last, rest.len() > 0) {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            list["continue"] = Continue { revision: self.revision(), namespace, name }.encode().into();
            if everything {
                list["remainingItemCount"] = rest.len().into();
            }
        }
        let answer = match asked.parts.form {
            Form::Table => asked.table(&items, list),
            Form::PartialObjectMetadata => partial_list(&items, &list),
            _ => streamed(asked.resource, &list, items.into_iter().map(Ok)),
        };
        answer.map(|answer| warned(answer, found.warnings))
    }

    /// A `Snapshot` is made of it, named after its first Database where it has no name.
    async fn take_snapshot(&self, copies: &Copies, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let mut body = body::decode(asked.content_type(), bytes)?.value;
        let first = body["spec"]["databases"][0].as_str().unwrap_or("snapshot").to_owned();
        name(&mut body, &first);
        self.make(copies, &SNAPSHOTS, asked, body).await
    }

    /// A `Restore` is made of it, of this very copy.
    async fn restore_snapshot(&self, copies: &Copies, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        let copy = copies.find(namespace, asked.name()).await?;
        let mut body = body::decode(asked.content_type(), bytes)?.value;
        let of_it = RestoreSource {
            repository: copy.spec.repository.clone(),
            snapshot: copy.metadata.name.clone(),
            database: body["spec"]["source"]["database"].as_str().map(str::to_owned),
            ..RestoreSource::default()
        };
        if !body["spec"].is_object() {
            body["spec"] = json!({});
        }
        body["spec"]["source"] = serde_json::to_value(of_it).map_err(ApiError::internal)?;
        let is_dump = copy.spec.method == SnapshotMethod::Dump;
        if let (Value::Null, [only], true) = (&body["spec"]["database"], copy.spec.databases.as_slice(), is_dump) {
            body["spec"]["database"] = only.as_str().into();
        }
        name(&mut body, asked.name());
        self.make(copies, &RESTORES, asked, body).await
    }

    /// An object of a stored kind, by the rules of that kind, for whoever asked.
    async fn make(
        &self,
        copies: &Copies,
        resource: &'static Resource,
        asked: &Asked<'_>,
        mut body: Value,
    ) -> Result<Answer, ApiError> {
        body["apiVersion"] = resource.api_version().into();
        body["kind"] = resource.kind.into();
        let target = creation(resource, asked.target);
        let asked = Asked { resource, target: &target, ..*asked };
        let body = Body { value: body, duplicates: Vec::new() };
        let written = self.declared(copies, &asked, body, Stored::AsAsked).await?;
        asked.written(&written.object, StatusCode::CREATED, written.warnings)
    }

    /// One that is to be made, checked as its kind wants it, and admitted.
    pub(super) async fn declared(
        &self,
        copies: &Copies,
        asked: &Asked<'_>,
        mut body: Body,
        stored: Stored,
    ) -> Result<Written, ApiError> {
        super::declare(asked.resource, &mut body, asked.user);
        let author = Author { authorizer: self.authorizer.as_ref(), verbs: &self.verbs, asked };
        let write = asked.write(&author)?;
        let write = Write { dry_run: write.dry_run || stored == Stored::Never, ..write };
        let namespace = asked.target.namespace.as_deref();
        match &self.registry {
            Some(kept) => kept.create(asked.resource, namespace, body, write, asked.now).await,
            None => copies.declare(asked.resource, namespace.unwrap_or_default(), body, write).await,
        }
    }
}

/// What whoever makes one of this kind asks for.
pub(super) fn creation(resource: &Resource, asked: &ResourceTarget) -> ResourceTarget {
    ResourceTarget {
        verb: Verb::Create,
        group: resource.group.to_owned(),
        version: resource.version.to_owned(),
        namespace: asked.namespace.clone(),
        resource: resource.plural.to_owned(),
        name: None,
        subresource: None,
    }
}

async fn download(copies: &Copies, asked: &Asked<'_>, namespace: &str) -> Result<Answer, ApiError> {
    let copy = copies.find(namespace, asked.name()).await?;
    let range = asked.parts.headers.get(header::RANGE).map(|value| value.to_str().ok().and_then(range));
    let range = match range {
        Some(None) => return Err(ApiError::bad_request("one range is served: bytes=FIRST-[LAST]")),
        Some(Some(range)) => Some(range),
        None => None,
    };
    match copies.download(namespace, &copy, &asked.parts.query, range).await? {
        Download::Files(files) => json_answer(&files),
        Download::Part { bytes, offset, size } => {
            let end = offset + bytes.len() as u64;
            let is_all = offset == 0 && end == size;
            let code = if is_all { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
            let mut headers = vec![(header::ACCEPT_RANGES, "bytes".to_owned())];
            if !is_all {
                let last = end.saturating_sub(1).max(offset);
                let range =
                    if bytes.is_empty() { format!("bytes */{size}") } else { format!("bytes {offset}-{last}/{size}") };
                headers.push((header::CONTENT_RANGE, range));
            }
            Ok(Answer::Other { code, content_type: "application/octet-stream", bytes, headers })
        }
    }
}

/// `bytes=5-`, `bytes=5-9`.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
    let first = first.parse().ok()?;
    last.is_none_or(|last| last >= first).then_some((first, last))
}

fn name(body: &mut Value, base: &str) {
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    let metadata = &mut body["metadata"];
    if metadata["name"].is_null() && metadata["generateName"].is_null() {
        metadata["generateName"] = format!("{base}-").into();
    }
}

fn value(copy: &LiveSnapshot) -> Result<Value, ApiError> {
    serde_json::to_value(copy).map_err(ApiError::internal)
}

pub(super) fn text(text: String) -> Answer {
    let content_type = "text/plain; charset=utf-8";
    Answer::Other { code: StatusCode::OK, content_type, bytes: text.into(), headers: Vec::new() }
}

fn warned(answer: Answer, more: Vec<String>) -> Answer {
    match answer {
        Answer::Json { code, bytes, mut warnings } => {
            warnings.extend(more);
            Answer::Json { code, bytes, warnings }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_and_nothing_else() {
        assert_eq!(range("bytes=5-9"), Some((5, Some(9))));
        assert_eq!(range("bytes=5-"), Some((5, None)));
        for wrong in ["bytes=-5", "bytes=9-5", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b", ""] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }
}
