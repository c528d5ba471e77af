//! What benchmarks need and nobody else: a repository with as many snapshots as years of use would leave.

use jiff::{SignedDuration, tz::TimeZone};
use rustic_core::{FileType, repofile::SnapshotFile};

use crate::{Error, Repository, copies::name_of, error::Result, format::id_of, location::for_each};

impl Repository {
    /// Writes `count` snapshots of what one snapshot has, each an hour older than the one before, in its first location.
    pub fn multiply(&self, id: &str, count: u32) -> Result<()> {
        let location = &self.inner.locations[0];
        let runtime = &self.inner.runtime;
        let bytes = runtime.block_on(location.read(&format!("{}/{id}", FileType::Snapshot.dirname())))?;
        let file: SnapshotFile = self.inner.seal.read(&bytes).map_err(Error::Format)?;
        let copies = (1..=count).map(|number| {
            let older = SignedDuration::from_hours(number.into());
            let time = file.time.timestamp().checked_sub(older).unwrap_or_default().to_zoned(TimeZone::UTC);
            let description =
                file.description.as_ref().map(|text| text.replace("\"uid\":\"", &format!("\"uid\":\"{number}-")));
            let bytes =
                self.inner.seal.file(&SnapshotFile { time, description, ..file.clone() }).map_err(Error::Format)?;
            Ok((name_of(FileType::Snapshot, &id_of(&bytes)), bytes.into()))
        });
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let write = |(name, bytes): (String, bytes::Bytes)| async move { location.write(&name, &[bytes]).await };
        Ok(runtime.block_on(for_each(copies, write))?)
    }
}
