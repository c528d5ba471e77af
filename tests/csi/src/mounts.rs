//! Commands of the system, and what is mounted.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// Runs a command to its end; its complaint is the error. `accepted` is the highest exit code that is none.
pub(crate) async fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A], accepted: i32) -> Result<()> {
    // The caller of a method may give up, and asks again: nothing of the first attempt may still be at work then.
    let output = Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("{program} is missing: run `make setup`"))?;
    if output.status.code().is_none_or(|code| code > accepted) {
        bail!("{program} ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Mounts, unless something is mounted there.
pub(crate) async fn mount(options: &str, what: &Path, path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    if is_mounted(path)? {
        return Ok(());
    }
    run("mount", &["-o".as_ref(), options.as_ref(), what.as_os_str(), path.as_os_str()], 0).await
}

/// Unmounts what is mounted there, and removes the directory.
pub(crate) async fn unmount(path: &Path) -> Result<()> {
    if is_mounted(path)? {
        run("umount", &[path], 0).await?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&mounts).any(|point| point == path))
}

/// Field 5 of /proc/PID/mountinfo (proc(5)).
fn mount_points(mounts: &str) -> impl Iterator<Item = PathBuf> {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let plain = move |field: &str| escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to));
    mounts.lines().filter_map(move |line| Some(PathBuf::from(plain(line.split(' ').nth(4)?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read() {
        let mounts =
            "36 35 98:0 /mnt1 /it\\040is\\040mine rw - ext3 /dev/root rw\n37 36 7:1 / /b rw - ext4 /dev/loop1 rw\n";
        assert_eq!(mount_points(mounts).collect::<Vec<_>>(), ["/it is mine", "/b"].map(PathBuf::from));
    }

    #[tokio::test]
    async fn a_command_that_fails_says_why() {
        let error = run("sh", &["-c", "echo no such luck >&2; exit 3"], 2).await.unwrap_err().to_string();
        assert!(error.contains("no such luck"), "{error}");
        run("sh", &["-c", "exit 1"], 1).await.unwrap();
    }
}
