//! Where volumes and snapshots are: image files on a btrfs that is itself an image, so that a copy is a reflink, which is
//! atomic (FICLONE, ioctl_ficlonerange(2)): btrfs holds the inode, and with it all writers, while it clones the extents.
//!
//! What there is, the file system knows: an image with its description beside it, written last and removed first. A driver
//! that is killed has nothing else to remember.

mod group;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use rustix::fs::ioctl_ficlone;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tonic::Status;

use crate::mounts::{mount, run};

pub(crate) use group::Group;

/// Smaller, and there would be no room for ext4's journal.
const SMALLEST: u64 = 32 << 20;

#[derive(Debug)]
pub(crate) struct Pool {
    directory: PathBuf,
    /// One change at a time: a sidecar that gave up asks again while the first is still at work.
    changing: Mutex<()>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) bytes: u64,
    pub(crate) source: Option<Source>,
}

/// What a volume began as.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Source {
    Snapshot(String),
    Volume(String),
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) volume: String,
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970.
    pub(crate) made: u64,
    /// The [`Group`] that it was cut with, and goes with.
    pub(crate) group: Option<String>,
}

#[derive(Clone, Copy)]
enum Kind {
    Volume,
    Snapshot,
    Group,
}

impl Pool {
    /// Mounts the one that is in `directory`, or makes it.
    pub(crate) async fn open(directory: &Path, gigabytes: u64) -> Result<Self> {
        let (image, path) = (directory.join("pool.img"), directory.join("pool"));
        if !image.exists() {
            let new = directory.join("pool.new");
            File::create(&new)?.set_len(gigabytes << 30)?;
            run("mkfs.btrfs", &["-q".as_ref(), "-f".as_ref(), new.as_os_str()], 0).await?;
            fs::rename(&new, &image)?;
        }
        mount("loop,noatime", &image, &path).await?;
        let volumes = path.join(Kind::Volume.folder());
        if !volumes.exists() {
            run("btrfs", &["subvolume".as_ref(), "create".as_ref(), volumes.as_os_str()], 0).await?;
        }
        Self::at(path)
    }

    /// On whatever file system that can clone files.
    fn at(directory: PathBuf) -> Result<Self> {
        for kind in [Kind::Volume, Kind::Snapshot, Kind::Group] {
            fs::create_dir_all(directory.join(kind.folder()))?;
        }
        Ok(Self { directory, changing: Mutex::default() })
    }

    /// One of that name, of at least so many bytes: a new one, or the one that was made before.
    pub(crate) async fn create_volume(&self, name: &str, bytes: u64, source: Option<Source>) -> Result<Volume, Status> {
        let _changing = self.changing.lock().await;
        let id = id(name);
        if let Some(volume) = self.read::<Volume>(Kind::Volume, &id)? {
            if volume.bytes < bytes || volume.source != source {
                return Err(Status::already_exists(format!("{name} is there, with another size or content")));
            }
            return Ok(volume);
        }
        let image = self.image(Kind::Volume, &id);
        let bytes = match &source {
            None => {
                let bytes = bytes.max(SMALLEST);
                internal(sparse(&image, bytes))?;
                internal(run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()], 0).await)?;
                bytes
            }
            Some(source) => self.restore(source, &image, bytes).await?,
        };
        let volume = Volume { id, bytes, source };
        self.write(Kind::Volume, &volume.id, &volume)?;
        Ok(volume)
    }

    async fn restore(&self, source: &Source, image: &Path, bytes: u64) -> Result<u64, Status> {
        let (kind, id, size) = match source {
            Source::Snapshot(id) => (Kind::Snapshot, id, self.snapshot(id)?.bytes),
            Source::Volume(id) => (Kind::Volume, id, self.volume(id)?.bytes),
        };
        internal(clone(self.image(kind, id), image.to_owned()).await)?;
        if bytes > size {
            internal(grow(image, bytes).await)?;
        }
        Ok(bytes.max(size))
    }

    pub(crate) async fn delete_volume(&self, id: &str) -> Result<(), Status> {
        let _changing = self.changing.lock().await;
        self.remove(Kind::Volume, id)
    }

    /// The cut: of that name, now, or the one that was made before.
    pub(crate) async fn create_snapshot(&self, name: &str, volume: &str) -> Result<Snapshot, Status> {
        let _changing = self.changing.lock().await;
        let id = id(name);
        if let Some(snapshot) = self.read::<Snapshot>(Kind::Snapshot, &id)? {
            if snapshot.volume != volume {
                return Err(Status::already_exists(format!("{name} is there, of another volume")));
            }
            return Ok(snapshot);
        }
        let snapshot = self.promised(name, volume)?;
        internal(clone(self.image(Kind::Volume, volume), self.image(Kind::Snapshot, &id)).await)?;
        let snapshot = Snapshot { made: now(), ..snapshot };
        self.write(Kind::Snapshot, &snapshot.id, &snapshot)?;
        Ok(snapshot)
    }

    /// What a cut of that name would be called if it were made now.
    pub(crate) fn promised(&self, name: &str, volume: &str) -> Result<Snapshot, Status> {
        let bytes = self.volume(volume)?.bytes;
        Ok(Snapshot { id: id(name), volume: volume.to_owned(), bytes, made: now(), group: None })
    }

    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let _changing = self.changing.lock().await;
        if let Some(group) = self.read::<Snapshot>(Kind::Snapshot, id)?.and_then(|snapshot| snapshot.group) {
            return Err(Status::failed_precondition(format!("{id} goes with its group, {group}")));
        }
        self.remove(Kind::Snapshot, id)
    }

    /// All, in the order of their ids.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, Status> {
        let folder = internal(fs::read_dir(self.directory.join(Kind::Snapshot.folder())).map_err(Into::into))?;
        let names = folder.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        ids.sort();
        let snapshots = ids.iter().map(|id| self.read(Kind::Snapshot, id));
        Ok(snapshots.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    pub(crate) fn snapshot(&self, id: &str) -> Result<Snapshot, Status> {
        self.read(Kind::Snapshot, id)?.ok_or_else(|| Status::not_found(format!("there is no snapshot {id}")))
    }

    pub(crate) fn volume(&self, id: &str) -> Result<Volume, Status> {
        self.read(Kind::Volume, id)?.ok_or_else(|| Status::not_found(format!("there is no volume {id}")))
    }

    /// The file that is a volume's device.
    pub(crate) fn device(&self, volume: &Volume) -> PathBuf {
        self.image(Kind::Volume, &volume.id)
    }

    fn image(&self, kind: Kind, id: &str) -> PathBuf {
        self.directory.join(kind.folder()).join(format!("{id}.img"))
    }

    fn description(&self, kind: Kind, id: &str) -> PathBuf {
        self.image(kind, id).with_extension("json")
    }

    fn read<T: DeserializeOwned>(&self, kind: Kind, id: &str) -> Result<Option<T>, Status> {
        // Ids come back from outside: no path is made of what is not one.
        if !is_id(id) {
            return Ok(None);
        }
        match fs::read(self.description(kind, id)) {
            Ok(text) => internal(serde_json::from_slice(&text).map(Some).map_err(Into::into)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => internal(Err(error.into())),
        }
    }

    fn write<T: Serialize>(&self, kind: Kind, id: &str, described: &T) -> Result<(), Status> {
        let path = self.description(kind, id);
        let new = path.with_extension("new");
        let written = || -> Result<()> {
            File::create(&new)?.write_all(&serde_json::to_vec(described)?)?;
            Ok(fs::rename(&new, &path)?)
        };
        internal(written())
    }

    fn remove(&self, kind: Kind, id: &str) -> Result<(), Status> {
        for path in [self.description(kind, id), self.image(kind, id)] {
            match if is_id(id) { fs::remove_file(path) } else { Ok(()) } {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return internal(Err(error.into())),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Volume => "volumes",
            Self::Snapshot => "snapshots",
            Self::Group => "groups",
        }
    }
}

/// Names are anybody's; the same name always has the same id.
fn id(name: &str) -> String {
    let hash = Sha256::digest(name);
    format!("{:032x}", hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first)))
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn sparse(image: &Path, bytes: u64) -> Result<()> {
    Ok(File::create(image)?.set_len(bytes)?)
}

async fn clone(from: PathBuf, to: PathBuf) -> Result<()> {
    let cloned = tokio::task::spawn_blocking(move || -> Result<()> {
        let (from, to) = (File::open(&from)?, File::create(&to)?);
        Ok(ioctl_ficlone(to, from)?)
    });
    cloned.await?.context("a reflink")
}

/// Offline: whoever restores does not use it yet. What the journal holds is replayed by the check that resize2fs asks for.
async fn grow(image: &Path, bytes: u64) -> Result<()> {
    File::options().write(true).open(image)?.set_len(bytes)?;
    // 1: something was corrected.
    run("e2fsck", &["-f".as_ref(), "-y".as_ref(), image.as_os_str()], 1).await?;
    run("resize2fs", &[image], 0).await
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn internal<T>(result: Result<T>) -> Result<T, Status> {
    result.map_err(|error| Status::internal(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_made_is_answered_again_and_nothing_else_under_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::at(directory.path().to_owned()).unwrap();
        let volume = pool.create_volume("a/../b", 1, None).await.unwrap();
        assert_eq!(volume.bytes, SMALLEST);
        assert_eq!(pool.create_volume("a/../b", SMALLEST, None).await.unwrap(), volume);
        let larger = pool.create_volume("a/../b", SMALLEST + 1, None).await.unwrap_err();
        assert_eq!(larger.code(), tonic::Code::AlreadyExists);
        for id in ["../volumes/x", "", "00000000000000000000000000000000"] {
            assert_eq!(pool.volume(id).unwrap_err().code(), tonic::Code::NotFound);
            pool.delete_volume(id).await.unwrap();
        }
        pool.delete_volume(&volume.id).await.unwrap();
        assert!(!pool.device(&volume).exists());
    }
}
