//! A command inside a freeze. Whatever happens to the command, to us or to the freeze, the database is thawed; and the
//! command does not go on when nothing holds any more.

use std::{
    fs,
    io::{IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use api::{
    Artifact, ArtifactKind, Copy, Freeze, Level, Phase, QuiesceStatus, RenewSpec, Stage, UnquiesceSpec, UnquiesceStatus,
};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::api::{WatchEvent, WatchParams};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::Command;
use crate::{
    client::Api,
    commands::{driver, status::seconds},
    failure::{Failure, NOT_HELD},
    print::{self, Output},
    supervise::Supervised,
    verdict::{self, Ending},
};

/// A freeze of ours, and when it ends by itself by our own clock.
struct Held {
    status: QuiesceStatus,
    uid: String,
    expires: Instant,
    /// As long as the claim was given.
    ttl: Duration,
}

/// How often a thaw that the server did not hear is tried again, and for how long: the lease ends it anyway.
const THAW_TRIES: u32 = 5;
/// How long the server may take for one answer to a thaw.
const THAW: Duration = Duration::from_secs(40);
/// How long the server may take to renew.
const RENEW: Duration = Duration::from_secs(2);
const COUNTDOWN: Duration = Duration::from_millis(200);

pub(super) async fn run(command: Command, api: Api, output: Output) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let uid = command.own_uid();
    let held = tokio::select! {
        held = freeze(&command, &api, uid.clone()) => held?,
        number = signals.next() => {
            // It may be granted already, and nobody heard the answer.
            if let Err(failure) = thaw(&api, &command.what.name, &uid).await {
                eprintln!("warning: the claim could not be ended: {failure}; its lease ends it");
            }
            return Ok(u8::try_from(128 + number).unwrap_or(u8::MAX));
        }
    };
    if output == Output::Text {
        eprint!("{}", super::held(&command.what.name, &held.status));
    }
    let files = TempDir::new()?;
    let (ending, stopped) = hold(&command, &api, &held, &mut signals, files.path(), output).await;
    let thawed = thaw(&api, &command.what.name, &held.uid).await;
    let status = match thawed {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("warning: the thaw was not heard: {failure}; the lease ends it at {}", shown(&held.status));
            UnquiesceStatus::default()
        }
    };
    finish(&command, &held, &ending, stopped, &status, output)
}

/// Asks until it is heard: the uid makes asking twice harmless.
async fn freeze(command: &Command, api: &Api, uid: String) -> Result<Held, Failure> {
    let mut tries = 0;
    let answered = loop {
        match api.quiesce(&command.what.name, command.spec(Some(uid.clone())), false).await {
            Ok(answered) => break answered,
            Err(error @ kube::Error::Api(_)) => return Err(Failure::from(error).code(NOT_HELD)),
            Err(error) if tries >= 2 => return Err(Failure::from(error).code(NOT_HELD)),
            Err(_) => {
                tries += 1;
                sleep(Duration::from_millis(200)).await;
            }
        }
    };
    let status = answered.status.unwrap_or_default();
    let ttl = left(&status);
    Ok(Held { uid: status.uid.clone().unwrap_or(uid), expires: Instant::now() + ttl, ttl, status })
}

/// Runs the commands; answers how that ended, and what the stop of a Files copy gave.
async fn hold(
    command: &Command,
    api: &Api,
    held: &Held,
    signals: &mut Signals,
    files: &Path,
    output: Output,
) -> (Ending, Vec<Artifact>) {
    let mut expires = held.expires;
    let environment = environment(api, command, held);
    let first = attend(command, api, &command.run, &environment, &mut expires, held, signals, output).await;
    let is_files = held.status.copy == Some(Copy::Files);
    if !is_files || first != Ending::Command(0) {
        return (first, Vec::new());
    }
    let spec = UnquiesceSpec { uid: Some(held.uid.clone()), stage: Stage::Stop, force: false };
    let stopped = match api.unquiesce(&command.what.name, spec).await {
        Ok(answered) => answered.status.unwrap_or_default(),
        Err(error) => {
            return (Ending::Lost(format!("the data phase could not be ended: {error}")), Vec::new());
        }
    };
    let Some(then) = &command.then else {
        eprintln!(
            "warning: without --then nobody copies WAL: do it from the server's archive, or the copy is incomplete"
        );
        return (first, stopped.artifacts);
    };
    let environment = match with_artifacts(environment, &stopped.artifacts, files) {
        Ok(environment) => environment,
        Err(failure) => {
            return (Ending::Lost(format!("the artifacts could not be written: {failure}")), stopped.artifacts);
        }
    };
    let shell = ["sh".into(), "-c".into(), then.into()];
    let second = attend(command, api, &shell, &environment, &mut expires, held, signals, output).await;
    (second, stopped.artifacts)
}

/// Runs one command while the freeze is watched.
#[expect(clippy::too_many_arguments, reason = "each is another thing that may end it")]
async fn attend(
    command: &Command,
    api: &Api,
    what: &[std::ffi::OsString],
    environment: &[(String, String)],
    expires: &mut Instant,
    held: &Held,
    signals: &mut Signals,
    output: Output,
) -> Ending {
    let mut child = match Supervised::start(what, environment) {
        Ok(child) => child,
        Err(failure) => {
            eprintln!("error: {failure}");
            return Ending::Command(crate::failure::CANNOT_RUN);
        }
    };
    let renews = !command.no_renew && held.status.level != Some(Level::WriteBlocked);
    let countdown = output == Output::Text && std::io::stderr().is_terminal();
    let name = held.status.freeze.clone().unwrap_or_default();
    let lost = lost(api, &name);
    tokio::pin!(lost);
    let mut renew_at = Instant::now() + held.ttl / 2;
    let ending = loop {
        tokio::select! {
            biased;
            ended = child.wait() => break match ended {
                Ok(code) => Ending::Command(code),
                Err(error) => Ending::Lost(format!("the command cannot be waited for: {error}")),
            },
            number = signals.next() => {
                if let Ok(signal) = Signal::try_from(number) {
                    child.signal(signal);
                }
                break Ending::Signal(number);
            }
            why = &mut lost => break Ending::Lost(why),
            () = sleep_until(*expires) => break Ending::Lost("it expired while the command ran; use a longer --ttl".to_owned()),
            () = sleep_until(renew_at), if renews => {
                renew_at = Instant::now() + held.ttl / 2;
                let spec = RenewSpec { uid: Some(held.uid.clone()), ttl_seconds: None };
                // Everything else that may end it waits meanwhile, so this does not take long.
                let renewed = timeout(RENEW, api.renew(&command.what.name, spec)).await;
                let Ok(renewed) = renewed else {
                    eprintln!("warning: the freeze was not renewed: no answer within {} s", RENEW.as_secs());
                    continue;
                };
                match renewed.map(|renewed| renewed.status.and_then(|status| status.expires_at)) {
                    Ok(Some(until)) => *expires = Instant::now() + until_then(until.0),
                    Ok(None) => {}
                    Err(error) => eprintln!("warning: the freeze was not renewed: {error}"),
                }
            }
            () = sleep(COUNTDOWN), if countdown => {
                let left = expires.saturating_duration_since(Instant::now());
                eprint!("\r\x1b[K{} frozen, {:.1} s left", command.what.name, left.as_secs_f64());
            }
        }
    };
    if countdown {
        eprint!("\r\x1b[K");
    }
    if !matches!(ending, Ending::Command(_)) {
        child.kill().await;
    }
    ending
}

/// Ends when the Freeze object says that nothing holds any more.
async fn lost(api: &Api, name: &str) -> String {
    let freezes = api.objects::<Freeze>();
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    loop {
        if let Ok(stream) = freezes.watch(&only, "0").await {
            let mut stream = stream.boxed();
            while let Ok(Some(event)) = stream.try_next().await {
                let freeze = match event {
                    WatchEvent::Added(freeze) | WatchEvent::Modified(freeze) | WatchEvent::Deleted(freeze) => freeze,
                    WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
                };
                let status = freeze.status.unwrap_or_default();
                if status.phase.is_finished() {
                    return format!("{}: {}", status.phase, status.message.unwrap_or_default());
                }
            }
        }
        // The server may be down; whether the database is still held, only the lease can tell then.
        sleep(Duration::from_millis(300)).await;
    }
}

/// Asked until it is heard, or for good: the lease ends it.
async fn thaw(api: &Api, database: &str, uid: &str) -> Result<UnquiesceStatus, Failure> {
    let mut tries = 0;
    loop {
        let spec = UnquiesceSpec { uid: Some(uid.to_owned()), ..UnquiesceSpec::default() };
        let failure = match timeout(THAW, api.unquiesce(database, spec)).await {
            Ok(Ok(answered)) => return Ok(answered.status.unwrap_or_default()),
            Ok(Err(error)) => Failure::from(error),
            Err(_) => Failure::new("no answer"),
        };
        tries += 1;
        if tries == THAW_TRIES {
            return Err(failure);
        }
        sleep(Duration::from_millis(200 * u64::from(tries))).await;
    }
}

fn finish(
    command: &Command,
    held: &Held,
    ending: &Ending,
    stopped: Vec<Artifact>,
    status: &UnquiesceStatus,
    output: Output,
) -> Result<u8, Failure> {
    let lost_meanwhile = status.phase.is_some_and(|phase| matches!(phase, Phase::Lost | Phase::Expired));
    let ending = match ending {
        Ending::Command(0) if lost_meanwhile => &Ending::Lost(status.message.clone().unwrap_or_default()),
        ending => ending,
    };
    let proved = print::proved(status);
    let artifacts = if status.artifacts.is_empty() { stopped } else { status.artifacts.clone() };
    let result = json!({
        "freeze": held.status.freeze, "uid": held.uid, "level": held.status.level, "copy": held.status.copy,
        "outcome": verdict::outcome(ending, proved), "exitCode": verdict::exit_code(ending, proved),
        "frozenAt": held.status.frozen_at, "thawedAt": status.thawed_at, "frozenMilliseconds": status.frozen_milliseconds,
        "position": held.status.position, "targets": if status.targets.is_empty() { &held.status.targets } else { &status.targets },
        "artifacts": artifacts, "message": status.message,
    });
    if let Some(path) = &command.result_file {
        write_atomically(path, &format!("{result:#}\n"))?;
    }
    if output == Output::Json {
        print::json(&result)?;
    } else {
        tell(command, held, ending, status, &artifacts);
    }
    Ok(verdict::exit_code(ending, proved))
}

fn tell(command: &Command, held: &Held, ending: &Ending, status: &UnquiesceStatus, artifacts: &[Artifact]) {
    match ending {
        Ending::Lost(why) => eprintln!("{}: the freeze did not last: {why}. Throw the copy away.", command.what.name),
        Ending::Signal(number) => eprintln!("{}: stopped by signal {number}; thawed", command.what.name),
        Ending::Command(_) => {}
    }
    if let Some(milliseconds) = status.frozen_milliseconds {
        eprintln!("{}: thawed after {:.3} s", command.what.name, seconds(milliseconds));
    }
    eprint!("{}", print::proofs(&status.targets));
    if *ending != Ending::Command(0) {
        return;
    }
    let copy = held.status.copy.unwrap_or_default();
    for target in &status.targets {
        if let Ok(driver) = driver(target.engine) {
            let artifacts = if target.database == command.what.name { artifacts } else { &[] };
            eprintln!("\nTo restore {}:", target.database);
            eprint!("{}", driver.restore_recipe(copy, target.position.as_ref(), artifacts));
        }
    }
}

fn environment(api: &Api, command: &Command, held: &Held) -> Vec<(String, String)> {
    let status = &held.status;
    let position = status.position.as_ref();
    let time = |at: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime>| {
        at.as_ref().map(|at| at.0.to_string()).unwrap_or_default()
    };
    [
        ("FREEZE", status.freeze.clone().unwrap_or_default()),
        ("UID", held.uid.clone()),
        ("NAMESPACE", api.namespace.clone()),
        ("DATABASE", command.what.name.clone()),
        ("LEVEL", status.level.map(|level| level.to_string()).unwrap_or_default()),
        ("COPY", status.copy.map(|copy| copy.to_string()).unwrap_or_default()),
        ("POSITION", position.map(api::Position::summary).unwrap_or_default()),
        ("POSITION_JSON", position.and_then(|position| serde_json::to_string(position).ok()).unwrap_or_default()),
        ("FROZEN_AT", time(&status.frozen_at)),
        ("EXPIRES_AT", time(&status.expires_at)),
    ]
    .into_iter()
    .map(|(name, value)| (format!("STILLPOINT_{name}"), value))
    .collect()
}

/// Label and map as files of mode 0600 (their directory is private), the WAL range as names.
fn with_artifacts(
    mut environment: Vec<(String, String)>,
    artifacts: &[Artifact],
    directory: &Path,
) -> Result<Vec<(String, String)>, Failure> {
    for artifact in artifacts {
        let variable = match artifact.kind {
            ArtifactKind::BackupLabel => "STILLPOINT_BACKUP_LABEL_FILE",
            ArtifactKind::TablespaceMap => "STILLPOINT_TABLESPACE_MAP_FILE",
            ArtifactKind::WalRange => {
                let (first, last) = artifact.content.split_once(' ').unwrap_or((&artifact.content, &artifact.content));
                environment.push(("STILLPOINT_WAL_FIRST".to_owned(), first.to_owned()));
                environment.push(("STILLPOINT_WAL_LAST".to_owned(), last.to_owned()));
                continue;
            }
        };
        let path = directory.join(&artifact.name);
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(artifact.content.as_bytes())?;
        environment.push((variable.to_owned(), path.display().to_string()));
    }
    Ok(environment)
}

fn write_atomically(path: &Path, content: &str) -> Result<(), Failure> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(content.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error| Failure::new(format!("--result-file {}: {error}", path.display())))
}

fn left(status: &QuiesceStatus) -> Duration {
    status.expires_at.as_ref().map_or(Duration::ZERO, |until| until_then(until.0))
}

fn until_then(until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

fn shown(status: &QuiesceStatus) -> String {
    status.expires_at.as_ref().map(|at| at.0.to_string()).unwrap_or_default()
}

/// The signals that end us.
struct Signals {
    all: [(i32, tokio::signal::unix::Signal); 3],
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind: SignalKind| Ok::<_, Failure>((kind.as_raw_value(), signal(kind)?));
        Ok(Self {
            all: [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?],
        })
    }

    /// The number of the next. Safe to cancel.
    async fn next(&mut self) -> i32 {
        let [(int, interrupt), (term, terminate), (hup, hangup)] = &mut self.all;
        tokio::select! {
            _ = interrupt.recv() => *int,
            _ = terminate.recv() => *term,
            _ = hangup.recv() => *hup,
        }
    }
}
