//! `stillpoint-apiserver`: crypto provider, arguments, run.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    certs::use_ring();
    let args = apiserver::Args::parse();
    // Two threads: freezes wait for databases, they do not compute.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(args.run())
}
