//! The control groups below which a node's Pods are. They are the one thing of a node that the kernel does not remove with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const MOUNTED: &str = "/sys/fs/cgroup";
/// Of cgroup v1: without them no process can be put below (cpuset(7)).
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

#[derive(Debug)]
pub(crate) struct Cgroups {
    name: String,
    /// One in each hierarchy.
    directories: Vec<PathBuf>,
}

impl Cgroups {
    pub(crate) fn new(name: &str) -> Self {
        let directories = hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)).collect();
        Self { name: name.to_owned(), directories }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn create(&self) -> Result<()> {
        for directory in &self.directories {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
            for file in CPUSET.map(|file| directory.join(file)).iter().filter(|file| file.exists()) {
                let above = Path::new(MOUNTED).join("cpuset").join(file.file_name().unwrap_or_default());
                fs::write(file, fs::read(above)?).with_context(|| file.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Removes those of names that begin so and that nobody is in; the others are somebody's who is about to do so.
    pub(crate) fn sweep(prefix: &str) {
        let begins = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        for hierarchy in hierarchies() {
            let entries = fs::read_dir(hierarchy).into_iter().flatten().flatten();
            entries.filter(begins).for_each(|entry| drop(remove(&entry.path())));
        }
    }

    /// Fails while a process is in one: one that was killed may be for a moment.
    pub(crate) fn remove(&self) -> Result<()> {
        self.directories.iter().try_for_each(|directory| remove(directory))
    }
}

/// With cgroup v2 there is one, with v1 one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    let mounted = Path::new(MOUNTED);
    let is_one = |path: &Path| path.join("cgroup.procs").exists();
    if is_one(mounted) {
        return vec![mounted.to_owned()];
    }
    let entries = fs::read_dir(mounted).into_iter().flatten().flatten().map(|entry| entry.path());
    // /sys/fs/cgroup/cpu,cpuacct is also called cpu.
    entries.filter(|path| !path.is_symlink() && is_one(path)).collect()
}

/// From the innermost: only a group without groups can be removed, and its files go with it.
fn remove(directory: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path())?;
    }
    fs::remove_dir(directory).with_context(|| directory.display().to_string())
}
