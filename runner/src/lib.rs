//! Dumps of databases into repositories, and back.
//!
//! ```text
//! api::runner::Task (environment) ─► dump       still point ─► the server's own programs ─► repository::capture
//!                                    replicate  what a location lacks
//!                                    restore    verified first, into databases of other names, which then take theirs
//!                                       │
//! api::runner::Report (output)  ◄───────┘
//! ```
//! The same code in a Job and in a child process. What it promises: a dump that is reported can be restored; a program that did not
//! end well, or whose output was cut off, stores nothing; whoever tells it to end (SIGTERM, the end of its standard input where it is
//! told so) finds the servers' sessions ended and nothing of the run in the catalogue. Secrets are read from files, and given to
//! programs by files: no argument and no variable holds one.

mod child;
mod dump;
mod failure;
mod mariadb;
mod options;
mod postgresql;
mod programs;
mod replicate;
mod report;
mod restore;
mod said;
mod secrets;
mod stop;
mod tool;

use std::process::ExitCode;

use api::runner::{Report, TASK, Task};
use tokio::runtime::Runtime;

use failure::Failure;
use report::Reports;
use secrets::Secrets;
use stop::Stop;

/// Does what the environment says. The last line of output says how it ended.
pub fn run() -> ExitCode {
    let reports = Reports::default();
    let result = task().and_then(|task| {
        let runtime = runtime()?;
        let secrets = Secrets::from_environment()?;
        runtime.block_on(async {
            let stop = Stop::begin();
            match task {
                Task::Dump(task) => {
                    dump::dump(*task, &secrets, &reports, &stop).await.map(|dumped| Report::Dumped(Box::new(dumped)))
                }
                Task::Restore(task) => restore::restore(*task, &secrets, &reports, &stop).await.map(Report::Restored),
                Task::Replicate(task) => replicate::replicate(*task, &secrets).await.map(Report::Replicated),
            }
        })
    });
    match result {
        Ok(report) => {
            reports.say(&report);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            reports.say(&Report::Failed(failure.told()));
            ExitCode::FAILURE
        }
    }
}

fn task() -> Result<Task, Failure> {
    let text = std::env::var(TASK).map_err(|_| {
        Failure::bug(format!("{TASK} is not set: a runner is started by a server, with what it is to do"))
    })?;
    serde_json::from_str(&text).map_err(|error| Failure::bug(format!("{TASK} cannot be read: {error}")))
}

/// Requests of several locations go on while streams are read on threads of their own.
fn runtime() -> Result<Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|error| Failure::bug(format!("no runtime: {error}")))
}
