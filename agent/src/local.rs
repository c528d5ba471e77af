//! The agent's own socket, by which commands in its container ask it: one wish a connection.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
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
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

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
const WAY_BACK: Duration = Duration::from_secs(2);
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
    let mut answering = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        while answering.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if answering.len() < MOST => {
                let replicas = replicas.clone();
                answering.spawn(async move {
                    if let Err(error) = answer(stream, &replicas).await {
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

async fn answer(mut stream: UnixStream, replicas: &Replicas) -> std::io::Result<()> {
    let Some(wish) = timeout(INTRODUCTION, remote::read::<Wish>(&mut stream)).await?? else { return Ok(()) };
    let longest = match &wish {
        Wish::Freeze { within, .. } => Duration::from_secs((*within).into()) + WAY_BACK,
        Wish::Thaw | Wish::Status => LONGEST,
    };
    let granted = timeout(longest, replicas.wish(wish)).await;
    let late = |_| Granted::Refused { why: format!("no answer within {} s", longest.as_secs()) };
    remote::write(&mut stream, &granted.unwrap_or_else(late)).await
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
