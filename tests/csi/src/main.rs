//! `csi-driver`: see the library.

use anyhow::Result;
use clap::Parser;

#[tokio::main]
async fn main() -> Result<()> {
    csi::serve(csi::Settings::parse()).await
}
