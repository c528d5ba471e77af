//! Groups of snapshots: all volumes of one are cut at one instant.
//!
//! All volumes are files of one btrfs subvolume, and a snapshot of a subvolume is one transaction of btrfs for all its files
//! (btrfs-subvolume(8)). It holds whatever was flushed to any of them before it; so of what depends on each other across
//! volumes it holds nothing without what that depends on, as after a power cut of all at once. Each image is then cloned out
//! of that, and nobody minds how long that takes.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Kind, Pool, Snapshot, clone, id, internal, now};
use crate::mounts::run;

/// Snapshots that were cut together, and go together.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Group {
    pub(crate) id: String,
    /// Nanoseconds since 1970.
    pub(crate) made: u64,
    pub(crate) snapshots: Vec<Snapshot>,
}

impl Pool {
    /// The cut of all these volumes: of that name, now, or the one that was made before.
    pub(crate) async fn create_group(&self, name: &str, volumes: &[String]) -> Result<Group, Status> {
        let _changing = self.changing.lock().await;
        let promised = self.promised_group(name, volumes)?;
        if let Some(group) = self.read::<Group>(Kind::Group, &promised.id)? {
            if !group.is_of(volumes) {
                return Err(Status::already_exists(format!("{name} is there, of other volumes")));
            }
            return Ok(group);
        }
        let cut = internal(self.cut_all(&promised.id).await)?;
        let group = promised.made_at(now());
        for snapshot in &group.snapshots {
            let from = cut.join(format!("{}.img", snapshot.volume));
            internal(clone(from, self.image(Kind::Snapshot, &snapshot.id)).await)?;
            self.write(Kind::Snapshot, &snapshot.id, snapshot)?;
        }
        internal(delete_subvolume(&cut).await)?;
        self.write(Kind::Group, &group.id, &group)?;
        Ok(group)
    }

    /// What a cut of that name would be called if it were made now.
    pub(crate) fn promised_group(&self, name: &str, volumes: &[String]) -> Result<Group, Status> {
        let group = id(name);
        let member = |volume: &String| {
            let snapshot = self.promised(&format!("{name}/{volume}"), volume)?;
            Ok(Snapshot { group: Some(group.clone()), ..snapshot })
        };
        let snapshots = volumes.iter().map(member).collect::<Result<Vec<_>, Status>>()?;
        Ok(Group { id: group, made: 0, snapshots }.made_at(now()))
    }

    /// `members`: whom the caller takes for its snapshots.
    pub(crate) fn group(&self, id: &str, members: &[String]) -> Result<Group, Status> {
        let group = self.read::<Group>(Kind::Group, id)?;
        let group = group.ok_or_else(|| Status::not_found(format!("there is no group {id}")))?;
        if !group.has(members) {
            return Err(Status::invalid_argument(format!("these are not the snapshots of group {id}")));
        }
        Ok(group)
    }

    pub(crate) async fn delete_group(&self, id: &str, members: &[String]) -> Result<(), Status> {
        let _changing = self.changing.lock().await;
        let group = match self.group(id, members) {
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
            group => group?,
        };
        // The group last: whoever asks again finds what is left by it.
        for snapshot in &group.snapshots {
            self.remove(Kind::Snapshot, &snapshot.id)?;
        }
        self.remove(Kind::Group, id)
    }

    /// A copy of all volumes there are, as of one instant, until it is deleted.
    async fn cut_all(&self, id: &str) -> Result<PathBuf> {
        let cut = self.directory.join(format!("{id}.cut"));
        // Of a driver, or a call, that died between.
        if cut.exists() {
            delete_subvolume(&cut).await?;
        }
        let volumes = self.directory.join(Kind::Volume.folder());
        run("btrfs", &["subvolume".as_ref(), "snapshot".as_ref(), volumes.as_os_str(), cut.as_os_str()], 0).await?;
        Ok(cut)
    }
}

async fn delete_subvolume(path: &Path) -> Result<()> {
    run("btrfs", &["subvolume".as_ref(), "delete".as_ref(), path.as_os_str()], 0).await
}

impl Group {
    fn made_at(self, made: u64) -> Self {
        let snapshots = self.snapshots.into_iter().map(|snapshot| Snapshot { made, ..snapshot }).collect();
        Self { made, snapshots, ..self }
    }

    fn is_of(&self, volumes: &[String]) -> bool {
        same(self.snapshots.iter().map(|snapshot| &snapshot.volume), volumes)
    }

    fn has(&self, members: &[String]) -> bool {
        same(self.snapshots.iter().map(|snapshot| &snapshot.id), members)
    }
}

/// In whatever order.
fn same<'g>(ours: impl Iterator<Item = &'g String>, theirs: &'g [String]) -> bool {
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (ours.collect(), theirs.iter().collect());
    ours.sort();
    theirs.sort();
    ours == theirs
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::FileExt,
        process::Command,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        time::Duration,
    };

    use tonic::Code;

    use super::*;
    use crate::pool::Source;

    /// The pool is a file system of its own, and what a test mounts must end with it: the others run in mounts of their own.
    #[test]
    fn groups() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: mounts need root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let output = Command::new("unshare")
            .args(["--mount".as_ref(), own.as_os_str()])
            .args(["pool::group::tests::", "--ignored", "--nocapture"])
            .env("TMPDIR", directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("2 passed; 0 failed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn pool() -> Pool {
        let directory = tempfile::tempdir().unwrap().keep();
        Pool::open(&directory, 1).await.unwrap()
    }

    async fn volumes(pool: &Pool, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(pool.create_volume(&format!("volume-{number}"), 1, None).await.unwrap().id);
        }
        ids
    }

    /// All are written in turns, each write flushed before the next, until `stop`.
    fn write_in_turns(images: &[PathBuf], stop: &AtomicBool, written: &AtomicU64) {
        let files: Vec<_> = images.iter().map(|image| fs::File::options().write(true).open(image).unwrap()).collect();
        let mut number = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            for file in &files {
                // Over ext4's first block, which is nobody's here.
                file.write_at(&number.to_be_bytes(), 0).unwrap();
                file.sync_data().unwrap();
            }
            written.store(number, Ordering::Relaxed);
        }
    }

    fn numbers(pool: &Pool, snapshots: &[Snapshot]) -> Vec<u64> {
        let read = |snapshot: &Snapshot| {
            let mut first = [0; 8];
            fs::File::open(pool.image(Kind::Snapshot, &snapshot.id)).unwrap().read_at(&mut first, 0).unwrap();
            u64::from_be_bytes(first)
        };
        snapshots.iter().map(read).collect()
    }

    /// Each is written only when those before it are.
    fn is_one_instant(numbers: &[u64]) -> bool {
        let (first, last) = (numbers.first().unwrap(), numbers.last().unwrap());
        numbers.is_sorted_by(|one, next| one >= next) && first - last <= 1
    }

    #[tokio::test]
    #[ignore = "groups runs it, in mounts of its own"]
    async fn a_group_is_of_one_instant_and_two_cuts_are_not() {
        let pool = pool().await;
        let volumes = volumes(&pool, 8).await;
        let images: Vec<_> = volumes.iter().map(|volume| pool.image(Kind::Volume, volume)).collect();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = tokio::task::spawn_blocking({
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            move || write_in_turns(&images, &stop, &written)
        });
        let (mut apart, mut last) = (0, 0);
        for round in 0..30 {
            let group = pool.create_group(&format!("group-{round}"), &volumes).await.unwrap();
            let together = numbers(&pool, &group.snapshots);
            assert!(is_one_instant(&together) && together[7] >= last, "round {round}: {together:?} after {last}");
            last = together[7];
            // The control: cut one after the other, while the writer goes on.
            let mut singles = Vec::new();
            for (at, volume) in [&volumes[0], &volumes[7]].into_iter().enumerate() {
                singles.push(pool.create_snapshot(&format!("single-{round}-{at}"), volume).await.unwrap());
                let now = written.load(Ordering::Relaxed);
                while written.load(Ordering::Relaxed) < now + 2 && !writer.is_finished() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            apart += u32::from(!is_one_instant(&numbers(&pool, &singles)));
        }
        stop.store(true, Ordering::Relaxed);
        writer.await.unwrap();
        assert!(last > 0 && apart == 30, "{last} writes, {apart} apart");
        let left = fs::read_dir(&pool.directory).unwrap().flatten();
        assert!(!left.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with(".cut")));
    }

    #[tokio::test]
    #[ignore = "groups runs it, in mounts of its own"]
    async fn a_group_is_made_once_and_goes_whole() {
        let pool = pool().await;
        let volumes = volumes(&pool, 2).await;
        let group = pool.create_group("noon", &volumes).await.unwrap();
        fs::File::options().write(true).open(pool.image(Kind::Volume, &volumes[0])).unwrap().write_all(b"x").unwrap();
        let reversed: Vec<String> = volumes.iter().rev().cloned().collect();
        assert_eq!(pool.create_group("noon", &reversed).await.unwrap(), group);
        let other = pool.create_group("noon", &volumes[..1]).await.unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists);
        let unheard_of = pool.create_group("one", &["0".repeat(32)]).await.unwrap_err();
        assert_eq!(unheard_of.code(), Code::NotFound);

        let members: Vec<String> = group.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect();
        assert_eq!(pool.group(&group.id, &members).unwrap(), group);
        assert_eq!(pool.group(&group.id, &members[..1]).unwrap_err().code(), Code::InvalidArgument);
        let alone = pool.delete_snapshot(&members[0]).await.unwrap_err();
        assert_eq!(alone.code(), Code::FailedPrecondition);
        let restored = pool.create_volume("copy", 1, Some(Source::Snapshot(members[0].clone()))).await;
        assert_eq!(fs::read(pool.device(&restored.unwrap())).unwrap()[0], 0, "what came after the cut is not in it");

        assert_eq!(pool.delete_group(&group.id, &members[..1]).await.unwrap_err().code(), Code::InvalidArgument);
        for _ in 0..2 {
            pool.delete_group(&group.id, &members).await.unwrap();
            assert!(pool.snapshots().unwrap().is_empty());
        }
        assert_eq!(pool.group(&group.id, &members).unwrap_err().code(), Code::NotFound);
    }
}
