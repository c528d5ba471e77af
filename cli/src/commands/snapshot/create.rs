//! `snapshot create`: asks for a copy, and follows it until it is everywhere.

use std::time::Duration;

use api::{DeletionPolicy, Snapshot, SnapshotMethod, SnapshotPhase, SnapshotSpec, SnapshotStatus};
use jiff::Timestamp;
use kube::{ResourceExt, api::PostParams};

use crate::{
    client::Api,
    commands::tool::Tool,
    failure::Failure,
    follow::{Waiting, follow},
    print::{self, Output},
    progress::Shown,
    times,
};

/// Take a copy of one or several Databases now, and wait until every location of the Repository has it.
///
/// Exit code: 0 ready; 1 there is none; 124 it is not ready within --timeout; 130 after Ctrl-C. The copy goes on without us.
///
/// Examples:
///
///   kubectl still snapshot create orders
///
///   kubectl still snapshot create orders billing --repository nightly --name before-upgrade --deadline 1h
///
///   kubectl still snapshot create orders --tool mydumper --set threads=8
///
///   kubectl still snapshot create orders --volumes
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// The Databases that are copied.
    #[arg(required = true, value_name = "DATABASE")]
    databases: Vec<String>,
    /// The Repository that it goes to; may be left out where there is one only.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    #[command(flatten)]
    tool: Tool,
    /// In a cluster: of the volumes, by VolumeSnapshots, in place of a dump.
    #[arg(long, conflicts_with_all = ["repository", "tool"])]
    volumes: bool,
    /// With --volumes: the VolumeSnapshotClass; the driver's default when absent.
    #[arg(long, value_name = "NAME", requires = "volumes")]
    class: Option<String>,
    /// What it is called; DATABASE-YYYYMMDD-HHMMSS in UTC when absent.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// For this long it may be tried (30m, 2h); a day when absent.
    #[arg(long, value_name = "DURATION", value_parser = times::duration)]
    deadline: Option<Duration>,
    /// What was stored stays when the Snapshot is deleted.
    #[arg(long)]
    retain: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let (waiting, made) = self.make(api).await?;
        let name = made.name_any();
        if !waiting.waits() {
            match output {
                Output::Json => print::json(&made)?,
                Output::Text => println!("snapshot {name} asked for; {}", how(api, &name)),
            }
            return Ok(0);
        }
        let (mut shown, mut is_restorable) = (Shown::new(), false);
        shown.say(&format!("snapshot {name}"));
        let followed = follow(api.objects::<Snapshot>(), &made, waiting.timeout(), |now| {
            let status = now.status.clone().unwrap_or_default();
            is_restorable = status.phase.is_restorable();
            // How it ended is said below.
            if !status.phase.is_finished() {
                show(&mut shown, &status);
            }
            status.phase.is_finished()
        });
        let followed = followed.await?;
        drop(shown);
        let done = followed.reached(&format!("snapshot {name}"), &how(api, &name)).map_err(|failure| {
            if is_restorable {
                failure.detail("it can be restored already, from the locations that have it")
            } else {
                failure
            }
        })?;
        let status = done.status.clone().unwrap_or_default();
        if status.phase == SnapshotPhase::Failed {
            let message = status.message.unwrap_or_default();
            let log = format!("more: kubectl still snapshot log {name} -n {}", api.namespace);
            return Err(Failure::new(format!("snapshot {name} failed: {message}")).detail(log));
        }
        match output {
            Output::Json => print::json(&done)?,
            Output::Text => print!("{}", told(&name, done.spec.repository.as_deref(), &status)),
        }
        Ok(0)
    }

    async fn make(self, api: &Api) -> Result<(Waiting, Snapshot), Failure> {
        let Self { databases, repository, tool, volumes, class, name, deadline, retain, waiting } = self;
        let repository = if volumes { None } else { Some(api.repository(repository).await?) };
        let first = databases.first().map(String::as_str).unwrap_or_default();
        let name = name.unwrap_or_else(|| times::stamped(first, Timestamp::now()));
        let spec = SnapshotSpec {
            databases,
            method: if volumes { SnapshotMethod::VolumeSnapshot } else { SnapshotMethod::Dump },
            repository,
            tool: tool.used(),
            volume_snapshot_class_name: class,
            volume_group_snapshot_class_name: None,
            on_missed: None,
            deadline_seconds: deadline.map(|deadline| u32::try_from(deadline.as_secs()).unwrap_or(u32::MAX)),
            deletion_policy: if retain { DeletionPolicy::Retain } else { DeletionPolicy::Delete },
            runner: None,
        };
        let made = api.objects::<Snapshot>().create(&PostParams::default(), &Snapshot::new(&name, spec)).await?;
        Ok((waiting, made))
    }
}

fn how(api: &Api, name: &str) -> String {
    let namespace = &api.namespace;
    format!(
        "follow it with kubectl wait --for=condition=Ready snapshots.stillpoint.dev/{name} -n {namespace}, \
         or end it with kubectl still snapshot delete {name} -n {namespace}"
    )
}

fn show(shown: &mut Shown, status: &SnapshotStatus) {
    let what = match (&status.progress, &status.message) {
        (Some(progress), _) => format!("{}: {}", status.phase, progress.step),
        // What it said is a line that stays.
        (None, Some(message)) => {
            shown.say(&format!("{}: {message}", status.phase));
            return;
        }
        (None, None) => status.phase.to_string(),
    };
    shown.show(&what, status.progress.as_ref());
}

/// What became of it, for a person. Pure.
fn told(name: &str, repository: Option<&str>, status: &SnapshotStatus) -> String {
    let mut text = format!("snapshot {name} is {}", status.phase);
    if let Some(consistency) = &status.consistency {
        let level = consistency.level.map(|level| format!(" at {level}")).unwrap_or_default();
        text += &format!(": {}{level}", consistency.verdict);
    }
    if let Some(size) = status.size {
        text += &format!(", {}", print::bytes(size));
    }
    if let Some(stored) = status.stored {
        text += &format!(" ({} new)", print::bytes(stored));
    }
    let locations: Vec<&str> = status.locations.iter().filter(|at| at.stored).map(|at| at.name.as_str()).collect();
    let volumes: Vec<&str> = status.volumes.iter().map(|volume| volume.volume_snapshot.as_str()).collect();
    text += &match repository {
        Some(repository) => format!(" in {repository} ({})\n", locations.join(", ")),
        None => format!(" in VolumeSnapshots ({})\n", volumes.join(", ")),
    };
    if let Some(cut) = &status.cut_between {
        text += &format!("cut between {} and {}\n", cut.frozen_at.0, cut.thawed_at.0);
    }
    if let Some(consistency) = status.consistency.as_ref().filter(|found| found.verdict != api::Verdict::Application) {
        text += &format!("warning: {}\n", consistency.reason);
    }
    text + &print::warnings(&status.warnings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_it_is_worth_is_said_and_why_when_it_is_less() {
        let of = |verdict: &str| {
            let status = json!({
                "phase": "Ready", "size": 3 << 20, "stored": 1536, "warnings": ["a table is odd"],
                "consistency": {"verdict": verdict, "level": "Durable", "reason": "table x is of MyISAM"},
                "locations": [{"name": "disk", "stored": true}, {"name": "offsite", "stored": false}],
            });
            told("first", Some("nightly"), &serde_json::from_value(status).unwrap())
        };
        assert_eq!(
            of("application"),
            "snapshot first is Ready: application at Durable, 3.0 MiB (1.5 KiB new) in nightly (disk)\nwarning: a table is odd\n"
        );
        assert!(of("partial").contains("partial") && of("partial").contains("warning: table x is of MyISAM"));
    }
}
