//! `snapshot download`: files of a copy, in ranges, gone on with after whatever broke off, and checked before they take their names.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use api::Progress;
use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::files::{Part, chosen, hex, is_there, place};
use crate::{
    catalogue::File,
    client::Api,
    failure::Failure,
    print::{self, Output},
    progress::Shown,
};

/// Download files of a copy, as they were dumped. A download that broke off goes on where it ended; every file's SHA-256 is checked
/// before it takes its name.
///
/// Examples:
///
///   kubectl still snapshot download before-upgrade --to /srv/copy
///
///   kubectl still snapshot download before-upgrade --file orders/globals.sql -O - | less
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// A Snapshot, or an entry of the catalogue.
    name: String,
    /// A file of it, as `snapshots/NAME/download` lists them; repeat it. Absent: all.
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<String>,
    /// The directory that files go to, below their own paths; `-` writes one file to the standard output.
    #[arg(long, short = 'O', value_name = "DIR", default_value = ".")]
    to: PathBuf,
}

/// Of one request, even where a server would answer more.
const LARGEST: u64 = 16 << 20;
/// From so many bytes on it is known how fast they come.
const TELLING: u64 = 1 << 20;
/// Between tries of one range.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];

/// One download, and how far it is.
struct Download<'a> {
    api: &'a Api,
    copy: &'a str,
    range: u64,
    shown: Shown,
    began: Timestamp,
    /// Bytes that came in this run.
    came: u64,
}

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let all = api.files(&self.name).await?;
        if all.files.is_empty() {
            return Err(Failure::new(format!(
                "{} has no files that are ours to give: it is not stored yet, or another program wrote it, which has its own way",
                self.name
            )));
        }
        let files = chosen(all.files, &self.files)?;
        let range = all.largest_range.clamp(1, LARGEST);
        let mut download =
            Download { api, copy: &self.name, range, shown: Shown::exact(), began: Timestamp::now(), came: 0 };
        if self.to == Path::new("-") {
            let [file] = files.as_slice() else {
                return Err(Failure::new("the standard output takes one file: say which with --file"));
            };
            return download.pour(file).await.map(|()| 0);
        }
        // Of all, before one is written.
        let places: Vec<PathBuf> = files.iter().map(|file| place(&self.to, &file.path)).collect::<Result<_, _>>()?;
        for (file, place) in files.iter().zip(&places) {
            let said = download.fetch(file, place).await?;
            if output == Output::Text {
                download.shown.tell(&format!("{}  {said}", place.display()));
            }
        }
        if output == Output::Json {
            let told = files.iter().zip(&places).map(
                |(file, place)| json!({"path": file.path, "size": file.size, "sha256": file.sha256, "file": place}),
            );
            print::json(&told.collect::<Vec<_>>())?;
        }
        Ok(0)
    }
}

impl Download<'_> {
    async fn fetch(&mut self, file: &File, place: &Path) -> Result<String, Failure> {
        if is_there(place, file)? {
            return Ok("is there already".to_owned());
        }
        let mut part = Part::open(place.to_owned(), file)?;
        let resumed = part.length();
        while part.length() < file.size {
            self.show(file, part.length());
            part.append(&self.range(file, part.length()).await?)?;
        }
        part.finish(file)?;
        let after = if resumed > 0 { format!(", gone on with after {}", print::bytes(resumed)) } else { String::new() };
        Ok(format!("{}, SHA-256 is right{after}", print::bytes(file.size)))
    }

    async fn pour(&mut self, file: &File) -> Result<(), Failure> {
        let (mut out, mut hash, mut length) = (io::stdout().lock(), Sha256::new(), 0);
        while length < file.size {
            self.show(file, length);
            let bytes = self.range(file, length).await?;
            out.write_all(&bytes)?;
            hash.update(&bytes);
            length += bytes.len() as u64;
        }
        out.flush()?;
        if hex(hash) == file.sha256 {
            return Ok(());
        }
        Err(Failure::new(format!("what was written of {} is not what was dumped: throw it away", file.path)))
    }

    /// The next bytes of a file, at least one. What may be otherwise in a moment is tried again.
    async fn range(&mut self, file: &File, offset: u64) -> Result<bytes::Bytes, Failure> {
        let length = self.range.min(file.size - offset);
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.api.range(self.copy, &file.path, offset, length).await {
                Ok(bytes) if !bytes.is_empty() && bytes.len() as u64 <= length => {
                    self.came += bytes.len() as u64;
                    return Ok(bytes);
                }
                Ok(bytes) => {
                    let came = bytes.len();
                    Failure::new(format!(
                        "{}: {came} bytes came at {offset}, of {length} that were asked for",
                        file.path
                    ))
                }
                Err(error) if is_final(&error) => return Err(error.into()),
                Err(error) => error.into(),
            };
            let Some(pause) = pauses.next() else {
                return Err(error.detail("what came is kept: the same command goes on with it"));
            };
            self.shown.say(&format!("{error}; tried again in {} s", pause.as_secs_f32()));
            sleep(*pause).await;
        }
    }

    fn show(&mut self, file: &File, done: u64) {
        let milliseconds = u64::try_from(Timestamp::now().duration_since(self.began).as_millis()).unwrap_or(0);
        let rate =
            self.came.saturating_mul(1000).checked_div(milliseconds).filter(|_| self.came >= TELLING).unwrap_or(0);
        let progress = Progress {
            step: String::new(),
            bytes: done,
            total_bytes: Some(file.size),
            bytes_per_second: rate,
            remaining_seconds: (file.size - done).checked_div(rate),
        };
        self.shown.show(&file.path, Some(&progress));
    }
}

/// What no patience helps against.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 408 | 429))
}
