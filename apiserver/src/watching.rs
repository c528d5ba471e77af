//! Watches: events as lines of JSON, until the client's timeout, the server's end, or the client falls behind.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Answer,
    asked::Asked,
    error::ApiError,
    negotiate::Form,
    query::Selection,
    registry::{Page, Registry, concerns, selected, value},
    resources::Resource,
    store::{Change, Event, Stored, Watch},
    table::{self, Include},
};

/// Upstream closes watches after 30 to 60 minutes, so that clients spread.
const TIMEOUT: (u64, u64) = (1800, 3600);
/// About once a minute, as upstream.
const BOOKMARK: Duration = Duration::from_secs(60);

struct Stream {
    watch: Watch,
    resource: &'static Resource,
    namespace: Option<String>,
    selection: Selection,
    form: Form,
    include: Include,
    first_table: bool,
    /// Lines that are ready.
    ready: Option<Bytes>,
    until: Instant,
    bookmarks: Option<Interval>,
    registry: Registry,
    stopping: CancellationToken,
}

/// Answers a watch.
pub(crate) fn watch(registry: &Registry, asked: &Asked<'_>, stopping: CancellationToken) -> Result<Answer, ApiError> {
    let query = &asked.parts.query;
    let version = query.number("resourceVersion")?;
    let initial = query.is_true("sendInitialEvents");
    let matching = query.get("resourceVersionMatch");
    if query.get("sendInitialEvents").is_some() && matching != Some("NotOlderThan") {
        let cause = api::validate::Cause {
            field: "resourceVersionMatch".into(),
            kind: api::validate::CauseKind::Forbidden,
            message: "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
        };
        return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &[cause]));
    }
    let namespace = asked.target.namespace.clone();
    let mut selection = asked.selection()?;
    if let Some(name) = &asked.target.name {
        selection.fields =
            crate::selector::FieldSelector::parse(&format!("metadata.name={name}")).map_err(ApiError::bad_request)?;
    }
    let seconds = query.number("timeoutSeconds")?.unwrap_or_else(|| rand::rng().random_range(TIMEOUT.0..TIMEOUT.1));
    let (page, watch) = match version {
        None | Some(0) => {
            registry.list_and_watch(asked.resource, namespace.as_deref()).map(|(page, watch)| (Some(page), watch))?
        }
        Some(_) if initial => {
            registry.list_and_watch(asked.resource, namespace.as_deref()).map(|(page, watch)| (Some(page), watch))?
        }
        Some(version) => match registry.watch(asked.resource, version) {
            Ok(watch) => (None, watch),
            Err(error) if error.code == 410 => return Ok(one_error(&error)),
            Err(error) => return Err(error),
        },
    };
    let bookmarks = query.is_true("allowWatchBookmarks").then(|| {
        let mut tick = interval_at(Instant::now() + BOOKMARK, BOOKMARK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick
    });
    let mut stream = Stream {
        watch,
        resource: asked.resource,
        namespace,
        selection,
        form: asked.parts.form,
        include: asked.include()?,
        first_table: true,
        ready: None,
        until: Instant::now() + Duration::from_secs(seconds),
        bookmarks,
        registry: registry.clone(),
        stopping,
    };
    if let Some(page) = page {
        stream.ready = Some(stream.initial(&page, initial));
    }
    let frames = stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), stream))
    });
    Ok(Answer::Stream(StreamBody::new(frames).boxed_unsync()))
}

/// An error as the only event: what a client does not know of is told within the stream.
fn one_error(error: &ApiError) -> Answer {
    let mut line = json!({"type": "ERROR", "object": error.status()}).to_string().into_bytes();
    line.push(b'\n');
    Answer::Stream(http_body_util::Full::new(Bytes::from(line)).boxed_unsync())
}

impl Stream {
    /// The next lines, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(ready) = self.ready.take().filter(|ready| !ready.is_empty()) {
                return Some(ready);
            }
            let bookmark = async {
                match &mut self.bookmarks {
                    Some(tick) => drop(tick.tick().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                event = self.watch.next() => {
                    let event = event?;
                    self.ready = self.line(&event);
                }
                () = sleep_until(self.until) => return None,
                () = bookmark => self.ready = Some(self.bookmark(self.registry.revision(), false)),
            }
        }
    }

    /// The state now as ADDED events, closed by the bookmark that a streaming list waits for.
    fn initial(&mut self, page: &Page, streaming_list: bool) -> Bytes {
        let mut lines = BytesMut::new();
        for (_, stored) in &page.items {
            let plain = self.selects_all() && self.form == Form::Object;
            let object = if plain { None } else { value(stored) };
            if object.as_ref().is_none_or(|object| selected(&self.selection, object)) {
                self.put(&mut lines, "ADDED", stored, object);
            }
        }
        if streaming_list && self.bookmarks.is_some() {
            lines.put_slice(&self.bookmark(page.revision, true));
        }
        lines.freeze()
    }

    /// One event as this watcher sees it: entering its selection is ADDED, leaving it is DELETED.
    fn line(&mut self, event: &Arc<Event>) -> Option<Bytes> {
        if !concerns(event, self.namespace.as_deref()) {
            return None;
        }
        let mut line = BytesMut::new();
        if self.selects_all() {
            let word = word(event.change);
            let object = if self.form == Form::Object { None } else { value(&event.object) };
            self.put(&mut line, word, &event.object, object);
            return Some(line.freeze());
        }
        let object = value(&event.object)?;
        let before = event.previous.as_ref().and_then(value).is_some_and(|object| selected(&self.selection, &object));
        let now = event.change != Change::Deleted && selected(&self.selection, &object);
        let word = match (before, now) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        self.put(&mut line, word, &event.object, Some(object));
        Some(line.freeze())
    }

    fn put(&mut self, line: &mut BytesMut, word: &str, stored: &Stored, object: Option<Value>) {
        line.put_slice(b"{\"type\":\"");
        line.put_slice(word.as_bytes());
        line.put_slice(b"\",\"object\":");
        match (self.form, object) {
            (Form::Table, Some(object)) => {
                let list = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let columns = std::mem::replace(&mut self.first_table, false);
                let table = table::table(self.resource, &[object], list, self.include, columns, Timestamp::now());
                line.put_slice(table.to_string().as_bytes());
            }
            (Form::PartialObjectMetadata, Some(object)) => {
                line.put_slice(table::partial(&object).to_string().as_bytes());
            }
            _ => line.put_slice(&stored.bytes),
        }
        line.put_slice(b"}\n");
    }

    fn bookmark(&self, revision: u64, end_of_list: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_list {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": null, "rows": [],
            }),
            Form::PartialObjectMetadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            _ => json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata}),
        };
        let mut line = json!({"type": "BOOKMARK", "object": object}).to_string().into_bytes();
        line.push(b'\n');
        line.into()
    }

    fn selects_all(&self) -> bool {
        self.selection.labels.is_empty() && self.selection.fields.is_empty()
    }
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Added => "ADDED",
        Change::Modified => "MODIFIED",
        Change::Deleted => "DELETED",
    }
}
