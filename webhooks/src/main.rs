//! `stillpoint-webhooks`: crypto provider, arguments, run.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    certs::use_ring();
    let args = webhooks::Args::parse();
    // Two threads: a review of megabytes must not hold up all others.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(args.run())
}
