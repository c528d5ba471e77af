//! `stillpoint-apiserver`: crypto provider, arguments, run.

use std::{process::ExitCode, time::Duration};

use clap::Parser;

/// What goes on on threads that may wait for a store is not waited for longer: a check of a repository may take hours, and of what is
/// written there each object is whole or is not there.
const LAST_WORK: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<ExitCode> {
    certs::use_ring();
    // A child of a standalone server: it is told what to do by its environment.
    if std::env::args_os().nth(1).is_some_and(|first| first == apiserver::RUNNER) {
        return Ok(runner::run());
    }
    let args = apiserver::Args::parse();
    // Two threads: freezes wait for databases, they do not compute.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(args.run());
    runtime.shutdown_timeout(LAST_WORK);
    done.map(|()| ExitCode::SUCCESS)
}
