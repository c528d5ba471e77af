//! `manifests DIRECTORY`: writes what an operator applies below the directory.

use std::path::PathBuf;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let directory: PathBuf = std::env::args_os().nth(1).context("usage: manifests DIRECTORY")?.into();
    deploy::write(&directory)
}
