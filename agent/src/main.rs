//! `stillpoint-agent`: crypto provider, arguments, run.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    certs::use_ring();
    // One thread: it waits nearly always, and stands beside somebody who needs the cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(agent::Args::parse().run()));
    ended.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
