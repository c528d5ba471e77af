//! `kubectl-still`, on PATH `kubectl still`: crypto provider, arguments, run, exit code.

mod args;
mod catalogue;
mod client;
mod commands;
mod failure;
mod follow;
mod manifests;
mod password;
mod print;
mod progress;
mod seen;
mod supervise;
#[cfg(test)]
mod testing;
mod times;
mod verdict;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    certs::use_ring();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::Failure::from(error).report(),
    };
    match runtime.block_on(args::Args::parse().run()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}
