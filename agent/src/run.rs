//! The assembly: settings → host → streams, until a signal.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use freeze::{Drivers, remote::Host};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{local, replicas::Replicas, settings::Settings, trust::Trust};

/// A kubelet brings a changed Secret within a minute or so.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Until a signal; what is held then is let go first.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let directory = local::directory();
    let trust = Trust::begin(&settings.authority, directory.join("ca.crt"))?;
    let driver = Drivers::real().of(settings.engine).cloned().context("no driver for this engine")?;
    let host = Host::new(driver, settings.member()?);
    let (settings, stop) = (Arc::new(settings), CancellationToken::new());
    let replicas = Replicas::new(Arc::clone(&settings), trust, host.clone());
    let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let signalled = async {
        let [terminate, interrupt] = &mut signals;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping: what is held is let go");
        stop.cancel();
    };
    let answering = async {
        if let Err(error) = local::serve(&directory, replicas.clone(), stop.clone()).await {
            warn!(error = %format!("{error:#}"), "commands in this Pod cannot be answered");
        }
    };
    info!(engine = %settings.engine, address = %settings.address, pod = settings.pod, "beside a database");
    tokio::join!(signalled, answering, replicas.keep(stop.clone()), follow(&settings, &host, &stop));
    Ok(())
}

/// Whom to be at the server, read again and again.
async fn follow(settings: &Settings, host: &Host, stop: &CancellationToken) {
    while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
        match settings.member() {
            Ok(member) => host.replace(member),
            Err(error) => warn!(error = %format!("{error:#}"), "the credentials stay as they were"),
        }
    }
}
