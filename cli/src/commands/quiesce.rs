//! `quiesce`: freeze and say how to go on, or freeze, run, thaw whatever happens, and prove.

mod run;

use std::{ffi::OsString, path::PathBuf};

use api::{QuiesceSpec, QuiesceStatus};
use uuid::Uuid;

use super::WhatToHold;

use crate::{
    client::{Api, Connection},
    failure::{Failure, NOT_HELD},
    print::{self, Output},
};

/// Without a command: holds, prints how, and leaves. The lease ends it, or `kubectl still unquiesce`.
///
/// With a command: holds, runs it, thaws whatever happens (its failure, Ctrl-C, our own death, a freeze that is lost: then
/// the command is killed), prints the proof and how to restore.
///
/// Exit code: the command's; 124 the freeze was lost or expired; 125 it never held, or could not be proved; 126, 127 the
/// command cannot be run, or is not there; 128+N after signal N.
///
/// The command sees STILLPOINT_FREEZE, _UID, _NAMESPACE, _DATABASE, _LEVEL, _COPY, _POSITION, _POSITION_JSON, _FROZEN_AT
/// and _EXPIRES_AT. The second command (--then) also STILLPOINT_BACKUP_LABEL_FILE, _TABLESPACE_MAP_FILE, _WAL_FIRST and
/// _WAL_LAST.
///
/// Examples:
///
///   kubectl still quiesce orders -- btrfs subvolume snapshot -r /var/lib/db /snap/db
///
///   kubectl still quiesce orders --with billing -- ./snapshot-both
///
///   kubectl still quiesce orders --copy files --then ./copy-wal -- rsync -a --exclude pg_wal "$PGDATA"/ /copy/
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    #[command(flatten)]
    what: WhatToHold,
    /// How long it holds unless ended before, in seconds.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// What the claim is known by; repeat it and you get the same freeze.
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// Why, for people who look.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do not wait until it holds.
    #[arg(long, conflicts_with = "run")]
    no_wait: bool,
    /// Do not ask for a later end while the command runs. At WriteBlocked that is never done: writers wait.
    #[arg(long)]
    no_renew: bool,
    /// `--copy files`: run by the shell after the data phase was stopped, to copy WAL.
    #[arg(long, value_name = "COMMAND2", requires = "run")]
    then: Option<String>,
    /// Write what happened to a file, as JSON.
    #[arg(long, value_name = "FILE", requires = "run")]
    result_file: Option<PathBuf>,
    /// What to run while it holds.
    #[arg(last = true, value_name = "COMMAND")]
    run: Vec<OsString>,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        if self.run.is_empty() {
            return self.hold(&api, output).await;
        }
        run::run(self, api, output).await
    }

    /// Freezes and leaves.
    async fn hold(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let spec = self.spec(self.uid.clone());
        let answered =
            api.quiesce(&self.what.name, spec, false).await.map_err(|error| Failure::from(error).code(NOT_HELD))?;
        let status = answered.status.unwrap_or_default();
        if output == Output::Json {
            return print::json(&status).map(|()| 0);
        }
        print!("{}", held(&self.what.name, &status));
        let uid = self.uid.map(|uid| format!(" --uid {uid}")).unwrap_or_default();
        println!("end it: kubectl still unquiesce {}{uid} -n {}", self.what.name, api.namespace);
        Ok(0)
    }

    fn spec(&self, uid: Option<String>) -> QuiesceSpec {
        QuiesceSpec {
            uid,
            level: self.what.level,
            copy: self.what.copy,
            ttl_seconds: self.ttl,
            with: self.what.with.clone(),
            member: None,
            wait: self.no_wait.then_some(false),
            reason: self.reason.clone(),
        }
    }

    /// A claim of this run alone: never joined to another run of the same user.
    fn own_uid(&self) -> String {
        self.uid.clone().unwrap_or_else(|| Uuid::new_v4().to_string())
    }
}

/// What holds, for a person.
fn held(name: &str, status: &QuiesceStatus) -> String {
    let mut text = format!("{name}: {}", status.phase);
    if let Some(level) = status.level {
        text += &format!(" at {level}");
    }
    if let Some(position) = &status.position {
        text += &format!(", {}", position.summary());
    }
    if let Some(until) = &status.expires_at {
        text += &format!(", until {}", until.0);
    }
    for check in &status.checks {
        text += &format!("\nwarning: {}: {}", check.name, check.message);
    }
    text + "\n"
}
