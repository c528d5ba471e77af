//! `snapshot delete`: Snapshots, and what they stored.

use std::time::Duration;

use api::{KnownBy, LiveSnapshot, Snapshot};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use crate::{
    client::Api,
    commands::agreed,
    failure::{Failure, LOST},
    follow::{Followed, follow},
    print::{self, Output},
    progress::Shown,
    times,
};

/// Delete Snapshots, and what they stored with them; wait until both are gone. A run that goes on is ended.
///
/// Examples:
///
///   kubectl still snapshot delete before-upgrade
///
///   kubectl still snapshot delete before-upgrade --keep-copy     # the copy stays in the catalogue
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// The Snapshots.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// What was stored stays, and can be restored.
    #[arg(long)]
    keep_copy: bool,
    /// Do not ask on a terminal.
    #[arg(long, short)]
    yes: bool,
    /// Wait no longer than this (90s, 30m) for each to be gone; the exit code is 124.
    #[arg(long, value_name = "DURATION", value_parser = times::duration)]
    timeout: Option<Duration>,
}

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let snapshots = api.objects::<Snapshot>();
        let mut found = Vec::new();
        // All that cannot be is told before anything is done.
        for name in &self.names {
            match snapshots.get_opt(name).await? {
                Some(snapshot) => found.push(snapshot),
                None => return Err(is_none(name, api.copy(name).await)),
            }
        }
        let what = if self.keep_copy { "their copies stay" } else { "and what they stored" };
        if !self.yes && !agreed(&format!("delete {} ({what})?", self.names.join(", ")))? {
            return Err(Failure::new("nothing was deleted"));
        }
        for snapshot in &found {
            self.delete(api, snapshot).await?;
            let name = snapshot.name_any();
            if output == Output::Text {
                println!(
                    "snapshot {name} deleted{}",
                    if self.keep_copy { "; its copy stays" } else { ", and what it stored" }
                );
            }
        }
        if output == Output::Json {
            print::json(&json!({"deleted": self.names, "copiesKept": self.keep_copy}))?;
        }
        Ok(0)
    }

    async fn delete(&self, api: &Api, snapshot: &Snapshot) -> Result<(), Failure> {
        let (snapshots, name) = (api.objects::<Snapshot>(), snapshot.name_any());
        // The one that was looked at, whatever else has its name since somebody was asked.
        let uid = snapshot.uid();
        if self.keep_copy {
            let retain = Patch::Merge(json!({"metadata": {"uid": uid}, "spec": {"deletionPolicy": "Retain"}}));
            snapshots.patch(&name, &PatchParams::default(), &retain).await.map_err(|error| not_it(error, &name))?;
        }
        let as_seen = Preconditions { uid, resource_version: None };
        let delete = DeleteParams { preconditions: Some(as_seen), ..DeleteParams::default() };
        snapshots.delete(&name, &delete).await.map_err(|error| not_it(error, &name))?;
        let said = |of: &Snapshot| of.status.as_ref().and_then(|status| status.message.clone());
        let (mut shown, before) = (Shown::new(), said(snapshot));
        let followed = follow(snapshots, snapshot, self.timeout, |now| {
            match said(now).filter(|message| before.as_ref() != Some(message)) {
                Some(message) => shown.say(&format!("{name}: {message}")),
                None => shown.show(&format!("deleting {name}"), None),
            }
            false
        });
        match followed.await? {
            Followed::Gone => Ok(()),
            Followed::Late => {
                Err(Failure::new(format!("{name} is not gone within --timeout; it will be, by itself")).code(LOST))
            }
            other => other.reached(&name, "it will be gone, by itself").map(drop),
        }
    }
}

/// Another took its name while somebody was asked.
fn not_it(error: kube::Error, name: &str) -> Failure {
    let is_another = matches!(&error, kube::Error::Api(status) if status.code == 409);
    let failure = Failure::from(error);
    if is_another {
        failure.detail(format!(
            "another Snapshot is called {name} now, or it has just been changed: look at it, then ask again"
        ))
    } else {
        failure
    }
}

/// Why there is nothing to delete, and what can be done.
fn is_none(name: &str, copy: Result<LiveSnapshot, kube::Error>) -> Failure {
    let copy = match copy {
        Ok(copy) => copy,
        Err(error) => return error.into(),
    };
    let repository = copy.spec.repository.unwrap_or_default();
    let id = copy.status.id.unwrap_or_default();
    let who = match copy.status.known {
        KnownBy::Foreign => "another program wrote it",
        KnownBy::Snapshot | KnownBy::Repository | KnownBy::Newer => "another server took it, or its Snapshot is gone",
    };
    Failure::new(format!("{name} is a copy in Repository {repository} that there is no Snapshot of here ({who})"))
        .detail(format!(
            "to remove it, with the Repository's own location and password: restic -r … forget --prune {id}"
        ))
        .detail("it can be restored or downloaded as it is; where its Snapshot is, that can be deleted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_copy_alone_says_what_can_be_done() {
        let copy = json!({
            "apiVersion": "", "kind": "", "metadata": {"name": "nightly-1234"},
            "spec": {"databases": ["orders"], "repository": "nightly"},
            "status": {"known": "Repository", "phase": "Ready", "id": "1234abcd"},
        });
        let failure = is_none("nightly-1234", Ok(serde_json::from_value(copy).unwrap()));
        assert!(failure.to_string().contains("no Snapshot of here"), "{failure}");
        assert!(format!("{failure:?}").contains("forget --prune 1234abcd"), "{failure:?}");
    }
}
