//! What a run says: one JSON document a line, on standard output, whole lines only. What came of it is always said: a copy of which that
//! could not be told is not begun.

use std::{io::Write, time::Duration};

use api::{
    conditions::reasons,
    runner::{FailedRun, LONGEST_LINE, Report, Restored},
};
use tokio::{task::JoinHandle, time::interval};

use crate::failure::Failure;

const EVERY: Duration = Duration::from_secs(1);
/// What the files of a copy may take in a report, and in the status that it becomes, which etcd limits to 1.5 MiB (its documentation,
/// "System limits"): it leaves enough of both for all the rest.
const MOST_OF_FILES: usize = 3 << 18;
/// What a file takes besides its path and the name of its database: names of fields, its format, size and checksum.
const OF_FILE: usize = 176;
/// Of a text for people.
const LONGEST_TEXT: usize = 8 << 10;
/// Of a list for people.
const LISTED: usize = 32;
/// Of what was restored.
const NAMED: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reports {}

impl Reports {
    /// Nobody may hear it; the run goes on.
    #[expect(clippy::unused_self, reason = "whoever is given this may speak")]
    pub(crate) fn say(self, report: &Report) {
        let mut line = line(report);
        line.push('\n');
        let mut output = std::io::stdout().lock();
        output.write_all(line.as_bytes()).and_then(|()| output.flush()).ok();
    }

    /// Says how it goes, once a second, until the work is done.
    pub(crate) async fn during<T>(
        self,
        mut work: JoinHandle<Result<T, Failure>>,
        how: impl Fn() -> Report,
    ) -> Result<T, Failure> {
        let mut tick = interval(EVERY);
        loop {
            tokio::select! {
                done = &mut work => return done.map_err(|error| Failure::bug(format!("the run broke: {error}")))?,
                _ = tick.tick() => self.say(&how()),
            }
        }
    }

    pub(crate) fn log(self, text: impl Into<String>) {
        self.say(&Report::Log(text.into()));
    }
}

/// Before anything is read of it: whether a copy of these files can be told of when it is stored.
pub(crate) fn can_be_told<'p>(paths: impl Iterator<Item = &'p str>) -> Result<(), Failure> {
    // A name is no longer than its path in JSON, but where its characters are written as `\u0007`: by three.
    let sizes: Vec<usize> = paths.map(|path| OF_FILE + 4 * path.len()).collect();
    let (size, files) = (sizes.iter().sum::<usize>(), sizes.len());
    if size <= MOST_OF_FILES {
        return Ok(());
    }
    let most = MOST_OF_FILES / (size / files).max(1);
    let message = format!(
        "{files} files are more than the status of one Snapshot can name: about {most} are not. Name fewer databases in spec.databases of \
         a Database, and take several Snapshots"
    );
    Err(Failure::new(reasons::UNSUPPORTED, message))
}

/// For a message.
pub(crate) fn listed(names: &[String]) -> String {
    match names.get(LISTED..) {
        Some([]) | None => names.join(", "),
        Some(more) => format!("{}, and {} more", names[..LISTED].join(", "), more.len()),
    }
}

/// No longer than [`LONGEST_LINE`], and never nothing.
fn line(report: &Report) -> String {
    match serde_json::to_string(report) {
        Ok(line) if line.len() < LONGEST_LINE => line,
        Ok(line) => serde_json::to_string(&shortened(report, line.len())).unwrap_or_default(),
        Err(error) => serde_json::to_string(&untold(&error.to_string())).unwrap_or_default(),
    }
}

fn shortened(report: &Report, length: usize) -> Report {
    match report {
        Report::Log(text) => Report::Log(cut(text)),
        Report::Progress { step, bytes, total } => Report::Progress { step: cut(step), bytes: *bytes, total: *total },
        Report::Failed(failed) => Report::Failed(FailedRun {
            reason: cut(&failed.reason),
            message: cut(&failed.message),
            again: failed.again,
            target: failed.target.as_deref().map(cut),
        }),
        Report::Restored(Restored { databases, bytes, warnings }) => {
            let more = databases.len().saturating_sub(NAMED);
            let more = (more > 0).then(|| format!("{more} more databases were restored than are named"));
            Report::Restored(Restored {
                databases: databases.iter().take(NAMED).cloned().collect(),
                bytes: *bytes,
                warnings: warnings.iter().take(LISTED).map(|text| cut(text)).chain(more).collect(),
            })
        }
        Report::Replicated(results) => {
            Report::Replicated(results.iter().map(|(at, why)| (at.clone(), why.as_deref().map(cut))).collect())
        }
        // Whoever hears that looks into the repository, where it is.
        Report::Dumped(_) => untold(&format!("it takes {length} bytes")),
    }
}

fn untold(why: &str) -> Report {
    let message = format!("what came of the run could not be told: {why}");
    Report::Failed(FailedRun { reason: reasons::SERVER_ERROR.to_owned(), message, again: true, target: None })
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST_TEXT / 4).collect()
}

#[cfg(test)]
mod tests {
    use api::{DatabaseCopy, DumpFile, DumpFormat, Engine, runner::Dumped};

    use super::*;
    use crate::postgresql::file_name;

    /// What etcd takes.
    const LARGEST_OBJECT: usize = 3 << 19;

    fn file(name: &str) -> DumpFile {
        DumpFile {
            path: format!("orders/{}.dump", file_name(name)),
            format: DumpFormat::PostgreSQLCustom,
            database: Some(name.to_owned()),
            size: u64::MAX,
            sha256: "f".repeat(64),
        }
    }

    fn dumped(files: Vec<DumpFile>) -> Report {
        let copy = DatabaseCopy {
            database: "orders".into(),
            engine: Engine::PostgreSQL,
            version: "18.1".into(),
            dump_tool: None,
            tool: "pg_dump".into(),
            position: None,
            files,
        };
        Report::Dumped(Box::new(Dumped {
            id: "ab".into(),
            consistency: serde_json::from_value(serde_json::json!({"verdict": "application", "reason": "x"})).unwrap(),
            cut_between: serde_json::from_value(
                serde_json::json!({"frozenAt": "2026-11-29T03:00:00.000000Z", "thawedAt": "2026-11-29T03:00:01.000000Z"}),
            )
            .unwrap(),
            contents: vec![copy],
            stored: 1,
            whole: vec!["disk".into()],
            failed: Vec::new(),
            warnings: vec!["w".repeat(LONGEST_TEXT); LISTED / 4],
        }))
    }

    #[test]
    fn whatever_may_be_begun_can_be_told_and_nothing_else_may() {
        for name in ["a", "shop_of_a_customer", &"ä".repeat(31), &"\u{7}".repeat(63), &"\"".repeat(63)] {
            let path = file(name).path;
            let may = |files: &usize| can_be_told(std::iter::repeat_n(path.as_str(), *files)).is_ok();
            let most = (1..5000).rev().find(may).unwrap();
            assert!(most > 700, "{name:?}: {most}");
            let told = line(&dumped(vec![file(name); most]));
            assert!(told.len() < LONGEST_LINE && told.len() < LARGEST_OBJECT, "{name:?}: {}", told.len());
            assert!(matches!(serde_json::from_str(&told).unwrap(), Report::Dumped(_)), "{name:?}");
        }
        let many = vec!["orders/shop_of_a_customer.dump"; 5000];
        let refused = can_be_told(many.into_iter()).unwrap_err();
        assert!(refused.reason == reasons::UNSUPPORTED && !refused.again, "{refused:?}");
        assert!(refused.message.contains("5000 files") && refused.message.contains("spec.databases"), "{refused:?}");
    }

    #[test]
    fn whatever_is_said_is_heard() {
        let long = "x".repeat(LONGEST_LINE);
        let failed =
            FailedRun { reason: "Exists".into(), message: long.clone(), again: false, target: Some(long.clone()) };
        let restored = Restored { databases: vec!["d".repeat(63); 20_000], bytes: 7, warnings: vec![long.clone()] };
        let said = [
            Report::Log(long.clone()),
            Report::Progress { step: long.clone(), bytes: 7, total: None },
            Report::Replicated(vec![("disk".into(), Some(long))]),
            Report::Failed(failed),
            Report::Restored(restored),
        ];
        for report in said {
            let heard = line(&report);
            assert!(heard.len() < LONGEST_LINE);
            let heard: Report = serde_json::from_str(&heard).unwrap();
            assert_eq!(std::mem::discriminant(&heard), std::mem::discriminant(&report));
        }
        let heard = line(&dumped(vec![file("shop"); 20_000]));
        let Report::Failed(failed) = serde_json::from_str(&heard).unwrap() else { panic!("{heard}") };
        assert!(failed.again && failed.message.contains("could not be told"), "{failed:?}");
    }

    #[test]
    fn a_list_says_how_many_more_there_are() {
        let names: Vec<String> = (0..LISTED + 2).map(|number| number.to_string()).collect();
        assert!(listed(&names).ends_with("31, and 2 more"), "{}", listed(&names));
        assert_eq!(listed(&names[..2]), "0, 1");
    }
}
