//! Compiles proto/ with protox, which is Rust: no protoc has to be installed.

use anyhow::Result;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let files = ["proto/csi.proto", "proto/pluginregistration.proto", "proto/control.proto"];
    // What the driver does not offer answers UNIMPLEMENTED, as the specification asks.
    tonic_prost_build::configure().generate_default_stubs(true).compile_fds(protox::compile(files, ["proto"])?)?;
    Ok(())
}
