//! Files of a copy on this machine: where they go, what is there of them, and whether it is what was dumped.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{catalogue, failure::Failure};

/// A file that is not whole yet.
#[derive(Debug)]
pub struct Part {
    file: File,
    path: PathBuf,
    whole: PathBuf,
    hash: Sha256,
    length: u64,
}

/// Of what is read of a file at once.
const BUFFER: usize = 1 << 20;

/// Where a file of a copy goes below `home`. What would leave it is refused, whoever wrote that into a repository. Pure.
pub fn place(home: &Path, path: &str) -> Result<PathBuf, Failure> {
    let refuse = || {
        Failure::new(format!("the copy has a file {path:?}, which is no path within a directory: it is not written"))
    };
    if path.is_empty() || path.contains(|c: char| c.is_control()) || path.ends_with('/') {
        return Err(refuse());
    }
    let relative = Path::new(path);
    // `a/./b` and `a//b` are read as `a/b`, which is within, too.
    if relative.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(home.join(relative))
    } else {
        Err(refuse())
    }
}

/// Those that were named, or all. Pure.
pub fn chosen(files: Vec<catalogue::File>, named: &[String]) -> Result<Vec<catalogue::File>, Failure> {
    if let Some(missing) = named.iter().find(|name| !files.iter().any(|file| file.path == **name)) {
        let there = files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(format!("the copy has no file {missing}; it has: {there}")));
    }
    Ok(files.into_iter().filter(|file| named.is_empty() || named.contains(&file.path)).collect())
}

/// Whether a whole file is there already. Another of that name is not overwritten.
pub fn is_there(path: &Path, wanted: &catalogue::File) -> Result<bool, Failure> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at(path, &error)),
    };
    let (mut hash, mut length) = (Sha256::new(), 0);
    read(&mut file, &mut hash, &mut length).map_err(|error| at(path, &error))?;
    if length == wanted.size && hex(hash) == wanted.sha256 {
        return Ok(true);
    }
    Err(Failure::new(format!("{} is there, and is another file: move it away, or say another --to", path.display())))
}

impl Part {
    /// Opens `FILE.part` where it is there, and reads what is in it; else makes it, for nobody else's eyes.
    pub fn open(whole: PathBuf, wanted: &catalogue::File) -> Result<Self, Failure> {
        let mut path = whole.clone().into_os_string();
        path.push(".part");
        let path = PathBuf::from(path);
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| at(directory, &error))?;
        }
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| at(&path, &error))?;
        if file.try_lock().is_err() {
            return Err(Failure::new(format!("{} is being written by another download", path.display())));
        }
        let mut part = Self { file, path, whole, hash: Sha256::new(), length: 0 };
        part.resume(wanted.size).map_err(|error| at(&part.path, &error))?;
        Ok(part)
    }

    /// What is longer than the whole is of something else.
    fn resume(&mut self, size: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > size {
            self.file.set_len(0)?;
        }
        read(&mut self.file, &mut self.hash, &mut self.length)?;
        self.file.seek(SeekFrom::Start(self.length)).map(drop)
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| at(&self.path, &error))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Takes its name, if it is what was dumped. Else it is removed, so that the next download begins anew.
    pub fn finish(self, wanted: &catalogue::File) -> Result<PathBuf, Failure> {
        let sha256 = hex(self.hash);
        if self.length != wanted.size || sha256 != wanted.sha256 {
            fs::remove_file(&self.path).ok();
            return Err(Failure::new(format!(
                "{} is not what was dumped: {} bytes with SHA-256 {sha256}, and not {} bytes with {}; it was removed, download it again",
                self.path.display(),
                self.length,
                wanted.size,
                wanted.sha256
            )));
        }
        self.file.sync_all().map_err(|error| at(&self.path, &error))?;
        fs::rename(&self.path, &self.whole).map_err(|error| at(&self.whole, &error))?;
        Ok(self.whole)
    }
}

pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn read(file: &mut File, hash: &mut Sha256, length: &mut u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => {
                hash.update(&buffer[..read]);
                *length += read as u64;
            }
        }
    }
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wanted(content: &[u8]) -> catalogue::File {
        let sha256 = hex(Sha256::new_with_prefix(content));
        catalogue::File { path: "orders/shop.dump".to_owned(), size: content.len() as u64, sha256 }
    }

    #[test]
    fn no_path_of_a_copy_leaves_its_directory() {
        let home = Path::new("/backups");
        assert_eq!(place(home, "orders/shop.dump").unwrap(), Path::new("/backups/orders/shop.dump"));
        assert_eq!(place(home, "orders/..%2f.dump").unwrap(), Path::new("/backups/orders/..%2f.dump"));
        for wrong in ["", "/etc/passwd", "../x", "orders/../../x", "..", ".", "orders/", "a\0b", "a\nb", "orders/.."] {
            assert!(place(home, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let files = || vec![wanted(b"a"), catalogue::File { path: "orders/globals.sql".to_owned(), ..wanted(b"b") }];
        assert_eq!(chosen(files(), &[]).unwrap().len(), 2);
        assert_eq!(chosen(files(), &["orders/globals.sql".to_owned()]).unwrap().len(), 1);
        let failure = chosen(files(), &["orders/x".to_owned()]).unwrap_err().to_string();
        assert!(failure.contains("orders/shop.dump, orders/globals.sql"), "{failure}");
    }

    #[test]
    fn a_part_goes_on_where_it_ended_and_takes_its_name_when_it_is_right() {
        let home = tempfile::tempdir().unwrap();
        let (whole, wanted) = (home.path().join("orders/shop.dump"), wanted(b"first and second"));
        let mut part = Part::open(whole.clone(), &wanted).unwrap();
        part.append(b"first and ").unwrap();
        assert!(Part::open(whole.clone(), &wanted).is_err(), "two write one file");
        drop(part);
        let mut part = Part::open(whole.clone(), &wanted).unwrap();
        assert_eq!(part.length(), 10);
        part.append(b"second").unwrap();
        assert_eq!(part.finish(&wanted).unwrap(), whole);
        assert_eq!(fs::read(&whole).unwrap(), b"first and second");
        assert_eq!(fs::metadata(&whole).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(is_there(&whole, &wanted).unwrap());
        fs::write(&whole, b"first and Second").unwrap();
        assert!(is_there(&whole, &wanted).is_err(), "another file is not overwritten");
    }

    #[test]
    fn what_is_not_what_was_dumped_never_takes_its_name() {
        let home = tempfile::tempdir().unwrap();
        let (whole, wanted) = (home.path().join("shop.dump"), wanted(b"first and second"));
        let part = home.path().join("shop.dump.part");
        fs::write(&part, b"First and ").unwrap();
        let mut flipped = Part::open(whole.clone(), &wanted).unwrap();
        flipped.append(b"second").unwrap();
        assert!(flipped.finish(&wanted).unwrap_err().to_string().contains("is not what was dumped"));
        assert!(!whole.exists() && !part.exists(), "the next begins anew");
        fs::write(&part, b"something that is longer than all of it").unwrap();
        assert_eq!(Part::open(whole, &wanted).unwrap().length(), 0);
    }
}
