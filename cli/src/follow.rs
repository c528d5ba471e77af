//! An object that is followed until it is as wanted. Whoever follows may stop at any time: what was asked for goes on without us.

use std::{fmt::Debug, time::Duration};

use futures::{StreamExt, future::OptionFuture};
use kube::{
    Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, watch_object},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use crate::{
    failure::{Failure, LOST},
    times,
};

/// Whether, and for how long, a command waits for what it asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Waiting {
    /// Ask for it, and leave.
    #[arg(long)]
    no_wait: bool,
    /// Wait no longer than this (90s, 30m, 2h). What was asked for goes on; the exit code is 124.
    #[arg(long, value_name = "DURATION", value_parser = times::duration, conflicts_with = "no_wait")]
    timeout: Option<Duration>,
}

/// How following ended.
#[derive(Debug)]
pub enum Followed<K> {
    /// As wanted.
    Reached(K),
    /// It is not there any more.
    Gone,
    /// The time is over.
    Late,
    /// We were told to stop.
    Interrupted,
}

/// What a shell says of a command that was told to stop by Ctrl-C.
const INTERRUPTED: u8 = 130;

impl Waiting {
    pub fn waits(&self) -> bool {
        !self.no_wait
    }

    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl<K> Followed<K> {
    /// The object. Else how it goes on without us: `how` is what a person may do.
    pub fn reached(self, what: &str, how: &str) -> Result<K, Failure> {
        match self {
            Self::Reached(object) => Ok(object),
            Self::Gone => Err(Failure::new(format!("{what} was deleted"))),
            Self::Late => {
                Err(Failure::new(format!("{what} is not done within --timeout; it goes on: {how}")).code(LOST))
            }
            Self::Interrupted => Err(Failure::new(format!("{what} goes on without us: {how}")).code(INTERRUPTED)),
        }
    }
}

/// Shows every state of an object to `is_reached`, until that says so. A server that is away for a while is waited for.
pub async fn follow<K>(
    objects: kube::Api<K>,
    object: &K,
    timeout: Option<Duration>,
    mut is_reached: impl FnMut(&K) -> bool,
) -> Result<Followed<K>, Failure>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut stop = Stop::new()?;
    let (name, uid) = (object.name_any(), object.uid());
    let states = watch_object(objects, &name).default_backoff();
    let late = OptionFuture::from(timeout.map(sleep));
    tokio::pin!(states, late);
    let mut is_away = false;
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(Followed::Interrupted),
            Some(()) = &mut late => return Ok(Followed::Late),
            next = states.next() => match next {
                Some(Ok(Some(now))) if now.uid() == uid => {
                    is_away = false;
                    if is_reached(&now) {
                        return Ok(Followed::Reached(now));
                    }
                }
                // Gone, or another of the same name.
                Some(Ok(_)) | None => return Ok(Followed::Gone),
                Some(Err(error)) => match refused(error) {
                    Ok(failure) => return Err(failure),
                    Err(error) if !is_away => {
                        eprintln!("note: the server does not answer ({}); it is asked again", freeze::chain(&error));
                        is_away = true;
                    }
                    Err(_) => {}
                },
            },
        }
    }
}

/// What no patience helps against.
fn refused(error: watcher::Error) -> Result<Failure, watcher::Error> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403 | 404) =>
        {
            Ok(kube::Error::Api(status).into())
        }
        other => Err(other),
    }
}

/// Ctrl-C, or the end of our session.
struct Stop([Signal; 2]);

impl Stop {
    fn new() -> Result<Self, Failure> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
