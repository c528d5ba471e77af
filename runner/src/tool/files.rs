//! What a command has left in a directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// So many are written down in a Snapshot's status, with a checksum each.
const MOST_FILES: usize = 2000;
const DEEPEST: usize = 32;

/// Every file below it, by its path there; in the order of these. Directories without files are left out.
pub(super) fn below(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut left = vec![(String::new(), directory.to_owned(), 0)];
    while let Some((at, directory, depth)) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry
                .file_name()
                .into_string()
                .map_err(|name| wrong(&at, &name.to_string_lossy(), "has a name that is no text"))?;
            let kind = entry.file_type()?;
            if kind.is_dir() && depth < DEEPEST {
                left.push((format!("{at}{name}/"), entry.path(), depth + 1));
            } else if kind.is_file() && found.len() < MOST_FILES {
                found.push((format!("{at}{name}"), entry.path()));
            } else if kind.is_file() {
                return Err(io::Error::other(format!(
                    "it left more than {MOST_FILES} files: have it write one archive to its standard output (output: Stdout)"
                )));
            } else {
                let why =
                    if kind.is_dir() { "is too deep below $(SCRATCH)" } else { "is neither a file nor a directory" };
                return Err(wrong(&at, &name, why));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn wrong(at: &str, name: &str, why: &str) -> io::Error {
    io::Error::other(format!("{at}{name} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_found_and_what_is_none_is_no_copy() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("b/c")).unwrap();
        for file in ["z", "b/c/x", "b/a"] {
            fs::write(directory.path().join(file), file).unwrap();
        }
        let found = below(directory.path()).unwrap();
        assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["b/a", "b/c/x", "z"]);
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("b/link")).unwrap();
        let error = below(directory.path()).unwrap_err().to_string();
        assert_eq!(error, "b/link is neither a file nor a directory");
    }
}
