//! Files of a copy, in ranges: `?file=PATH&offset=N&length=N`, at most 16 MiB an answer, for it passes through the API.

use std::{sync::Arc, time::Duration};

use api::{LiveSnapshot, SnapshotMethod};
use bytes::Bytes;
use repository::Restorable;
use serde_json::json;
use tokio::time::timeout;

use super::{Copies, depot::Closed};
use crate::{error::ApiError, query::Query};

/// What comes back.
pub(crate) enum Download {
    /// No file was named: which there are.
    Files(serde_json::Value),
    Part {
        bytes: Bytes,
        offset: u64,
        size: u64,
    },
}

/// Of one answer.
pub(crate) const LARGEST: u64 = 16 << 20;
/// Of one request, opening the repository included.
const LONGEST: Duration = Duration::from_secs(50);

impl Copies {
    /// `range`: of the request's header, first and last byte.
    pub(crate) async fn download(
        &self,
        namespace: &str,
        copy: &LiveSnapshot,
        query: &Query,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Download, ApiError> {
        if copy.spec.method == SnapshotMethod::VolumeSnapshot {
            return Err(ApiError::conflict_message(
                "there is nothing to download of VolumeSnapshots: restore them to new claims, by a Restore of this Snapshot",
            ));
        }
        let Some(file) = query.get("file") else {
            let files = copy.status.contents.iter().flat_map(|copy| &copy.files);
            let files: Vec<_> =
                files.map(|file| json!({"path": file.path, "size": file.size, "sha256": file.sha256})).collect();
            return Ok(Download::Files(json!({"files": files, "largestRange": LARGEST})));
        };
        let (offset, length) = match range {
            Some((first, last)) => (first, last.map(|last| last.saturating_sub(first) + 1)),
            None => (query.number("offset")?.unwrap_or(0), query.number("length")?),
        };
        let length = length.unwrap_or(LARGEST).min(LARGEST);
        let restorable = self.restorable(namespace, copy).await?;
        // As restic shows it, too.
        let file = file.strip_prefix('/').unwrap_or(file).to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let size = restorable.size(&file)?;
            let bytes = restorable.range(&file, offset, usize::try_from(length).unwrap_or(usize::MAX))?;
            Ok::<_, repository::Error>((bytes, size))
        });
        let late = || ApiError::timeout(format!("the repository did not answer within {} s", LONGEST.as_secs()));
        let (bytes, size) = timeout(LONGEST, read)
            .await
            .map_err(|_| late())?
            .map_err(ApiError::internal)?
            .map_err(|error| refused(&super::depot::closed(error)))?;
        if offset > size {
            return Err(ApiError::bad_request(format!("offset {offset} is beyond the end: the file has {size} bytes")));
        }
        Ok(Download::Part { bytes, offset, size })
    }

    /// Open for a while: who reads one range will read the next.
    async fn restorable(&self, namespace: &str, copy: &LiveSnapshot) -> Result<Arc<Restorable>, ApiError> {
        let (name, id) = (copy.spec.repository.clone().unwrap_or_default(), copy.status.id.clone().unwrap_or_default());
        if id.is_empty() {
            return Err(ApiError::conflict_message(format!("nothing is stored of it: it is {}", copy.status.phase)));
        }
        let repository = self.repositories.get(namespace, &name).await?;
        self.depot.restorable(namespace, &name, &repository.spec, &id).await.map_err(|closed| refused(&closed))
    }
}

pub(crate) fn refused(closed: &Closed) -> ApiError {
    use api::conditions::reasons;
    match closed.reason {
        reasons::NOT_FOUND => ApiError::bad_request(closed.message.clone()),
        reasons::DAMAGED => ApiError::internal(closed.message.clone()).told(closed.message.clone()),
        _ => ApiError::unavailable(closed.message.clone()),
    }
}
