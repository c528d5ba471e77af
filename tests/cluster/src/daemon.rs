//! A cluster that stays: for a person at a terminal, and for several runs of tests.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    cgroups::Cgroups,
    cluster::{Cluster, Options},
    components::Component,
    machine::CGROUPS,
    own::PROCESSES,
    process::{Lifetime, group_members, signal_group, started},
    wait::until,
};

/// A process that is killed is gone at once, unless the disk holds it.
const GONE: Duration = Duration::from_secs(20);

/// A cluster that stays.
#[derive(Debug)]
pub struct Up {
    pub kubeconfig: PathBuf,
    /// It ran before it was asked for.
    pub already: bool,
}

/// A line of the file of processes.
#[derive(Debug, PartialEq, Eq)]
struct Recorded {
    name: String,
    group: u32,
    started: u64,
}

/// Starts a cluster in `directory` that goes on when we end, or finds the one that runs there.
pub async fn up(directory: &Path, options: Options) -> Result<Up> {
    let _lock = lock(directory)?;
    let recorded = recorded(directory)?;
    let kubeconfig = directory.join("admin.kubeconfig");
    let wanted: Vec<&str> = options.components().into_iter().map(Component::name).collect();
    let runs = |name: &&str| recorded.iter().any(|process| process.name == *name && process.runs());
    if wanted.iter().all(runs) {
        return Ok(Up { kubeconfig, already: true });
    }
    let plane = Component::CONTROL_PLANE.map(Component::name);
    ensure!(!plane.iter().all(runs), "a cluster runs without all of {wanted:?}: run `make cluster-down` first");
    // What a start that failed or a machine that was switched off left.
    end(directory, &recorded).await?;
    fs::create_dir_all(directory.join("home"))?;
    // Ours from now on, also if we die in the next line.
    fs::write(directory.join(PROCESSES), "")?;
    Cluster::start_in(directory, options, Lifetime::Its).await?.leave();
    Ok(Up { kubeconfig, already: false })
}

/// Ends the cluster in `directory` and removes it; answers what ran.
pub async fn down(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let _lock = lock(directory)?;
    let recorded = recorded(directory)?;
    let running = recorded.iter().filter(|process| process.runs()).map(|process| process.name.clone()).collect();
    end(directory, &recorded).await?;
    Ok(running)
}

async fn end(directory: &Path, recorded: &[Recorded]) -> Result<()> {
    let ours: Vec<&Recorded> = recorded.iter().filter(|process| process.is_not_anothers()).collect();
    for process in &ours {
        if !group_members(process.group).is_empty() {
            signal_group(process.group, Signal::SIGKILL)?;
        }
    }
    until("all processes of the cluster are gone", GONE, || async {
        let left: Vec<_> = ours.iter().filter(|process| !group_members(process.group).is_empty()).collect();
        ensure!(left.is_empty(), "{left:?} are still there");
        Ok(())
    })
    .await?;
    if let Ok(name) = fs::read_to_string(directory.join(CGROUPS)) {
        let emptied = || async { Cgroups::new(&name).remove() };
        until("the control groups of the node's Pods are empty", GONE, emptied).await?;
    }
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    Ok(())
}

/// What was started in `directory`. It is removed in the end, so it must be one that we made.
fn recorded(directory: &Path) -> Result<Vec<Recorded>> {
    let path = directory.join(PROCESSES);
    if let Ok(text) = fs::read_to_string(&path) {
        return text.lines().map(|line| Recorded::read(line).with_context(|| path.display().to_string())).collect();
    }
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty, and no cluster's: choose another directory", directory.display());
    }
    Ok(Vec::new())
}

/// Held for a whole `up` or `down`, so that two do not come between each other. Beside the directory, which comes and goes.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.with_extension("lock");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.lock()?;
    Ok(file)
}

impl Recorded {
    fn read(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let mut next = || words.next().with_context(|| format!("a broken line: {line}"));
        Ok(Self { name: next()?.to_owned(), group: next()?.parse()?, started: next()?.parse()? })
    }

    fn runs(&self) -> bool {
        started(self.group) == Some(self.started) && !group_members(self.group).is_empty()
    }

    /// A number is given again when its process, and its whole group, are gone.
    fn is_not_anothers(&self) -> bool {
        started(self.group).is_none_or(|started| started == self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_ended_or_removed_that_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("thesis"), "").unwrap();
        assert!(down(&home).await.unwrap_err().to_string().contains("no cluster's"));
        assert!(up(&home, Options::default()).await.unwrap_err().to_string().contains("no cluster's"));
        assert!(home.join("thesis").exists());

        // Our own number with another's time: a machine that was switched off in between.
        let own = std::process::id();
        fs::write(home.join(PROCESSES), format!("etcd {own} {}\n", started(own).unwrap() + 1)).unwrap();
        assert_eq!(down(&home).await.unwrap(), Vec::<String>::new());
        assert!(!home.exists());
        assert_eq!(down(&home).await.unwrap(), Vec::<String>::new());
    }
}
