//! The agent's own socket, by which commands in its container ask it: one wish a connection.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use api::{
    agent::{Granted, Wish},
    inject::RUN_DIRECTORY,
};
use freeze::remote;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::replicas::Replicas;

/// Where an agent keeps what is its own.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("STILLPOINT_RUN").map_or_else(|| PathBuf::from(RUN_DIRECTORY), PathBuf::from)
}

/// Whoever asks says what within this.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// And is answered within this, or hears that it was not.
const LONGEST: Duration = Duration::from_secs(90);
/// A replica that gives up has so long to say so.
const LATER: Duration = Duration::from_secs(5);
/// At once.
const MOST: usize = 16;

fn socket(directory: &Path) -> PathBuf {
    directory.join("agent.sock")
}

/// Answers until `stop`. What cannot be answered here the streams go on without.
pub(crate) async fn serve(directory: &Path, replicas: Replicas, stop: CancellationToken) -> anyhow::Result<()> {
    let path = socket(directory);
    // One of a run that is over: its own process is this one's container, of which there is one.
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| path.display().to_string())?;
    let (mut answering, told) = (JoinSet::new(), Told::default());
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        while answering.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if answering.len() < MOST => {
                let (replicas, told) = (replicas.clone(), told.clone());
                answering.spawn(async move {
                    if let Err(error) = answer(stream, &replicas, &told).await {
                        debug!(%error, "somebody asked, and did not wait for the answer");
                    }
                });
            }
            Ok(_) => debug!("too many ask at once"),
            Err(error) => warn!(%error, "accepting a connection failed"),
        }
    }
    std::fs::remove_file(&path).ok();
    Ok(())
}

/// Claims that somebody was told of and has not thawed since, and when each is over by itself.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<(String, Instant)>>>);

impl Told {
    /// A hook that never came back for its own is no matter of whoever comes now.
    fn tell(&self, claim: String, long: Duration) {
        let now = Instant::now();
        let mut claims = self.claims();
        claims.retain(|(_, over)| *over > now);
        claims.push((claim, now + long));
    }

    fn all(&self) -> Vec<String> {
        self.claims().iter().map(|(claim, _)| claim.clone()).collect()
    }

    fn thawed(&self, those: &[String]) {
        self.claims().retain(|(claim, _)| !those.contains(claim));
    }

    fn claims(&self) -> MutexGuard<'_, Vec<(String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(mut stream: UnixStream, replicas: &Replicas, told: &Told) -> std::io::Result<()> {
    let Some(wish) = timeout(INTRODUCTION, remote::read::<Wish>(&mut stream)).await?? else { return Ok(()) };
    match wish {
        Wish::Freeze { seconds, within, level, reason, .. } => {
            let claim = Uuid::new_v4().to_string();
            let wish = Wish::Freeze { claim: claim.clone(), seconds, within, level, reason };
            let granted = timeout(Duration::from_secs(within.into()) + LATER, replicas.wish(wish)).await;
            let is_late = granted.is_err();
            let granted = granted.unwrap_or_else(|_| Granted::Refused { why: format!("not held within {within} s") });
            let heard = remote::write(&mut stream, &granted).await;
            match granted {
                Granted::Frozen { .. } if heard.is_ok() => told.tell(claim, Duration::from_secs(seconds.into())),
                Granted::Elsewhere { .. } => told.thawed(&told.all()),
                // Nobody was told that it holds, or may come to hold: it is taken back.
                Granted::Frozen { .. } => take_back(replicas, claim).await,
                _ if is_late => take_back(replicas, claim).await,
                _ => {}
            }
            heard
        }
        Wish::Thaw { .. } => {
            let wished = told.all();
            let granted = bounded(replicas.wish(Wish::Thaw { claims: wished.clone() })).await;
            if !matches!(granted, Granted::Refused { .. }) {
                told.thawed(&wished);
            }
            remote::write(&mut stream, &granted).await
        }
        Wish::Status => remote::write(&mut stream, &bounded(replicas.wish(Wish::Status)).await).await,
    }
}

async fn bounded(granted: impl Future<Output = Granted>) -> Granted {
    let late = |_| Granted::Refused { why: format!("no answer within {} s", LONGEST.as_secs()) };
    timeout(LONGEST, granted).await.unwrap_or_else(late)
}

/// Where it cannot be, its lease ends it.
async fn take_back(replicas: &Replicas, claim: String) {
    let granted = bounded(replicas.wish(Wish::Thaw { claims: vec![claim] })).await;
    info!(?granted, "nobody waits for it any more: it is let go");
}

/// Asks the agent that runs.
pub(crate) async fn ask(wish: &Wish, patience: Duration) -> anyhow::Result<Granted> {
    let path = socket(&directory());
    let asked = async {
        let mut stream = UnixStream::connect(&path).await?;
        remote::write(&mut stream, wish).await?;
        remote::read(&mut stream).await
    };
    let late = || format!("given up: no answer within {} s", patience.as_secs());
    let granted = timeout(patience, asked).await.with_context(late)?;
    granted.with_context(|| format!("the agent at {}", path.display()))?.context("the agent went without an answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_thaws_is_told_of_what_was_granted_and_is_not_long_over() {
        let (told, long) = (Told::default(), Duration::from_secs(60));
        told.tell("forgotten".to_owned(), long);
        tokio::time::advance(long / 2).await;
        told.tell("one".to_owned(), long);
        assert_eq!(told.all(), ["forgotten", "one"]);
        tokio::time::advance(long / 2).await;
        told.tell("two".to_owned(), long);
        assert_eq!(told.all(), ["one", "two"]);
        tokio::time::advance(long * 2).await;
        assert_eq!(told.all(), ["one", "two"], "the last stay: whoever comes too late is told so");
        told.thawed(&["one".to_owned(), "two".to_owned()]);
        assert!(told.all().is_empty());
    }
}
