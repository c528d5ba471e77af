//! `restore`: brings a copy back into a Database, or to new claims, and follows that; `restore log` says what its run said.

mod claims;

use api::{ExistingPolicy, Restore, RestorePhase, RestoreSource, RestoreSpec, RestoreStatus};
use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, api::PostParams};

use super::{answer, is_asked, tool::Tool};
use crate::{
    client::{Api, Connection},
    failure::Failure,
    follow::{Waiting, follow},
    print::{self, Output},
    progress::Shown,
    times,
};
use claims::NewClaims;

/// Bring a copy back into a Database, and wait until it is there. Every byte is checked before anything of the Database is touched.
/// In a cluster a copy of volumes is brought back to new claims; a claim that is there already is never touched.
///
/// Exit code: 0 restored; 1 not, and in what state that left the Database is said; 124 not within --timeout; 130 after Ctrl-C.
/// A restore goes on without us.
///
/// Examples:
///
///   kubectl still restore fresh --snapshot before-upgrade
///
///   kubectl still restore fresh --latest --from orders --repository nightly
///
///   kubectl still restore orders --as-of 2026-11-29T03:00:00+01:00 --database shop --existing replace
///
///   kubectl still restore --to-claims --snapshot before-upgrade --claim copy=data:20Gi --storage-class fast
///
///   kubectl still restore log fresh-20261129-030405-678
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    log: Option<Log>,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, clap::Subcommand)]
enum Log {
    /// What the run of a Restore said, as far as the server remembers it.
    Log {
        /// The Restore.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Asked {
    /// The Database that it is restored into. One that is called `log` is named after `--`.
    #[arg(required_unless_present = "to_claims", value_name = "DATABASE")]
    target: Option<String>,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    to: NewClaims,
    /// The Repository that the copy is in; may be left out where there is one only, or with --snapshot.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// The Database whose copy it is; the target's own name when absent.
    #[arg(long, value_name = "DATABASE")]
    from: Option<String>,
    #[command(flatten)]
    tool: Tool,
    /// A database inside the server, by its own name there; repeat it. Absent: all of the copy.
    #[arg(long = "database", value_name = "NAME")]
    databases: Vec<String>,
    /// What becomes of databases of the same names: never (none may be there), if-empty, or replace.
    #[arg(long, value_name = "POLICY", value_parser = existing, default_value = "never")]
    existing: ExistingPolicy,
    /// Leave out roles, users and grants.
    #[arg(long)]
    no_globals: bool,
    /// What the Restore is called; DATABASE-YYYYMMDD-HHMMSS in UTC when absent, with --to-claims SNAPSHOT-YYYYMMDD-HHMMSS.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Do not ask on a terminal. Without one it is needed for --existing replace.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Which copy.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// This one: a Snapshot's name, or an entry's of the catalogue (`kubectl still snapshot list`).
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// The newest.
    #[arg(long)]
    latest: bool,
    /// The newest that was taken at this time or before, with its zone: 2026-11-29T03:00:00+01:00.
    #[arg(long, value_name = "TIME", value_parser = as_of)]
    as_of: Option<Timestamp>,
}

/// What a run advises, in the words of the API (runner/src/restore.rs), and what that is here.
const REPLACE: &str = "spec.existing: Replace";
const REPLACE_HERE: &str = "spec.existing: Replace (here: --existing replace)";

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        match self.log {
            Some(Log::Log { name }) => {
                print!("{}", api.log("restores", &name).await?);
                Ok(0)
            }
            None => self.asked.run(&api, output).await,
        }
    }
}

impl Asked {
    async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        if let Some(target) = &self.target {
            self.is_meant(target)?;
        }
        let target = self.target.clone();
        let waiting = self.waiting.clone();
        let (name, spec) = self.spec(api).await?;
        let made = api.objects::<Restore>().create(&PostParams::default(), &Restore::new(&name, spec)).await?;
        let how = format!(
            "follow it with kubectl wait --for=condition=Complete restores.stillpoint.dev/{name} -n {}",
            api.namespace
        );
        if !waiting.waits() {
            match output {
                Output::Json => print::json(&made)?,
                Output::Text => println!("restore {name} asked for; {how}"),
            }
            return Ok(0);
        }
        let mut shown = Shown::new();
        shown.say(&format!("restore {name}"));
        let followed = follow(api.objects::<Restore>(), &made, waiting.timeout(), |now| {
            let status = now.status.clone().unwrap_or_default();
            // How it ended is said below.
            if !status.phase.is_finished() {
                show(&mut shown, &status);
            }
            status.phase.is_finished()
        });
        let followed = followed.await?;
        drop(shown);
        let done = followed.reached(&format!("restore {name}"), &how)?;
        let status = done.status.clone().unwrap_or_default();
        if status.phase == RestorePhase::Failed {
            return Err(failed(&name, target.as_deref(), &status, &api.namespace));
        }
        match (output, target) {
            (Output::Json, _) => print::json(&done)?,
            (Output::Text, Some(target)) => print!("{}", told(&target, &done.name_any(), &status)),
            (Output::Text, None) => print!("{}", claims::told(&done.name_any(), &status)),
        }
        Ok(0)
    }

    /// What is there already is not replaced by a slip.
    fn is_meant(&self, target: &str) -> Result<(), Failure> {
        if self.existing != ExistingPolicy::Replace || self.yes {
            return Ok(());
        }
        if !is_asked() {
            return Err(Failure::new("--existing replace removes what is there: say --yes, as there is nobody to ask"));
        }
        let named = answer(&format!("databases of Database {target} are replaced; write its name to go on: "))?;
        if named == target { Ok(()) } else { Err(Failure::new("nothing was restored")) }
    }

    async fn spec(self, api: &Api) -> Result<(String, RestoreSpec), Failure> {
        let Self { target, which, to, repository, from, tool, databases, existing, no_globals, name, .. } = self;
        let repository = match (&which.snapshot, repository) {
            // It is its Snapshot's.
            (Some(_), repository) => repository,
            (None, repository) => Some(api.repository(repository).await?),
        };
        // To new claims there is none.
        let base = target.as_ref().or(which.snapshot.as_ref()).cloned().unwrap_or_default();
        let name = name.unwrap_or_else(|| times::stamped(&base, Timestamp::now()));
        let source = RestoreSource {
            repository,
            snapshot: which.snapshot,
            latest: which.latest.then_some(true),
            as_of: which.as_of.map(Time),
            database: from,
        };
        Ok((
            name,
            RestoreSpec {
                source,
                database: target.unwrap_or_default(),
                databases,
                existing,
                globals: !no_globals,
                tool: tool.used(),
                volumes: to.volumes(),
                runner: None,
            },
        ))
    }
}

fn show(shown: &mut Shown, status: &RestoreStatus) {
    if let Some(chosen) = &status.chosen {
        let taken = chosen.taken_at.as_ref().map(|at| format!(", taken at {}", at.0)).unwrap_or_default();
        let copy = match chosen.repository.as_str() {
            "" => format!("Snapshot {}", chosen.snapshot),
            repository => format!("copy {} of Repository {repository}", chosen.snapshot),
        };
        shown.say(&format!("{copy}{taken}"));
    }
    // Of claims, what they wait for.
    if let (None, Some(message)) = (&status.progress, &status.message) {
        return shown.show(&format!("{}: {message}", status.phase), None);
    }
    let step = status.progress.as_ref().map(|progress| format!(": {}", progress.step)).unwrap_or_default();
    shown.show(&format!("{}{step}", status.phase), status.progress.as_ref());
}

/// Pure.
fn told(target: &str, name: &str, status: &RestoreStatus) -> String {
    let of = status.chosen.as_ref().map(|chosen| format!(" from copy {}", chosen.snapshot)).unwrap_or_default();
    let warnings = print::warnings(&status.warnings);
    // What a DumpTool has restored, only that knows.
    let what = if status.databases.is_empty() { "all of it".to_owned() } else { status.databases.join(", ") };
    format!("restore {name} is {}: {what} into {target}{of}\n{warnings}", status.phase)
}

fn failed(name: &str, target: Option<&str>, status: &RestoreStatus, namespace: &str) -> Failure {
    let why = status.message.as_deref().unwrap_or("nobody said why").replace(REPLACE, REPLACE_HERE);
    let failure = Failure::new(format!("restore {name} failed: {why}"));
    let (state, more) = match target {
        Some(_) => ("the Database is ", format!("kubectl still restore log {name} -n {namespace}")),
        None => ("", format!("kubectl describe restores.stillpoint.dev {name} -n {namespace}")),
    };
    let failure = match &status.target {
        Some(target) => failure.detail(format!("{state}{target}")),
        None => failure,
    };
    failure.detail(format!("more: {more}"))
}

fn existing(text: &str) -> Result<ExistingPolicy, String> {
    let policies =
        [("never", ExistingPolicy::Never), ("ifempty", ExistingPolicy::IfEmpty), ("replace", ExistingPolicy::Replace)];
    let found = policies.iter().find(|(name, _)| text.replace('-', "").eq_ignore_ascii_case(name));
    found.map(|(_, policy)| *policy).ok_or_else(|| "want never, if-empty or replace".to_owned())
}

fn as_of(text: &str) -> Result<Timestamp, String> {
    times::instant(text, &TimeZone::system())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_what_is_there_is_one_of_three() {
        assert_eq!(existing("if-empty"), Ok(ExistingPolicy::IfEmpty));
        assert_eq!(existing("IfEmpty"), Ok(ExistingPolicy::IfEmpty));
        assert_eq!(existing("replace"), Ok(ExistingPolicy::Replace));
        assert!(existing("yes").is_err());
    }

    #[test]
    fn a_failure_says_in_what_state_the_database_is() {
        let status = RestoreStatus {
            message: Some("the copy has no database x".into()),
            target: Some("as it was: nothing was touched".into()),
            ..RestoreStatus::default()
        };
        let failure = format!("{:?}", failed("back", Some("fresh"), &status, "shop"));
        assert!(failure.contains("no database x") && failure.contains("the Database is as it was"), "{failure}");
        assert!(failure.contains("restore log back -n shop"), "{failure}");
        let message = "shop is there already: name other databases, or set spec.existing: Replace";
        let status = RestoreStatus { message: Some(message.into()), ..RestoreStatus::default() };
        let failure = failed("back", Some("fresh"), &status, "shop").to_string();
        assert!(failure.ends_with("spec.existing: Replace (here: --existing replace)"), "{failure}");
    }
    #[test]
    fn of_claims_no_state_of_a_database_is_told() {
        let status = RestoreStatus { target: Some("no claim was made".into()), ..RestoreStatus::default() };
        let failure = format!("{:?}", failed("back", None, &status, "shop"));
        assert!(failure.contains("\"no claim was made\"") && !failure.contains("Database"), "{failure}");
        assert!(failure.contains("kubectl describe restores.stillpoint.dev back -n shop"), "{failure}");
    }
}
