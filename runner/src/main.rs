//! `stillpoint-runner`: does the task that its environment names. `stillpoint-runner install DIRECTORY` copies it there, for a container
//! of another image, which has a server's own programs and none of ours.

use std::{fs, path::Path, process::ExitCode};

use api::runner::job::{BINARY, INSTALL};

fn main() -> ExitCode {
    certs::use_ring();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => runner::run(),
        [install, directory] if install == INSTALL => match installed(Path::new(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{} was not copied to {}: {error}", BINARY.trim_start_matches('/'), directory.display());
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!(
                "usage: stillpoint-runner [{INSTALL} DIRECTORY]; it is started by Stillpoint, which says in its environment what to do"
            );
            ExitCode::FAILURE
        }
    }
}

/// With the rights that it has itself: whoever may read the volume may run it.
fn installed(directory: &Path) -> std::io::Result<()> {
    fs::copy(std::env::current_exe()?, directory.join(BINARY.trim_start_matches('/'))).map(drop)
}
