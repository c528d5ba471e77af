//! One process on loopback, without a cluster: our own store, authority, tokens and kubeconfigs.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use certs::{Bound, Leaf};
use freeze::Drivers;
use futures::FutureExt;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::interval;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    auth::standalone::{Known, Roles},
    controllers,
    copies::Copies,
    data_dir::{DataDir, LEAF_LIFE},
    recovery,
    registry::Registry,
    resources::{self, NAMESPACES, Served},
    server::{Core, Ending, Parts, Server},
    store::Store,
};

/// Renewed when a third of its life is left.
const RENEW_EVERY: Duration = Duration::from_secs(LEAF_LIFE.as_secs() * 2 / 3);

/// Opens the data directory, listens, and takes care of what a dead server left. `drivers`: tests bring their own.
pub async fn bind(path: &Path, listen: SocketAddr, ending: Ending, drivers: Drivers) -> anyhow::Result<Server> {
    if !listen.ip().is_loopback() {
        bail!("--listen {listen} is not a loopback address: a standalone server is for this machine only");
    }
    let now = Timestamp::now();
    let data_dir = DataDir::open(path)?;
    let authority = data_dir.authority(now)?;
    let tokens = data_dir.tokens()?;
    let bound = Bound::bind(listen).await?;
    let address = bound.address().context("the address that we listen on")?;
    let leaf = Leaf::new(&DataDir::leaf(&authority, address, now)?)?;
    let tls = certs::server_config(Arc::clone(&leaf) as _)?;
    data_dir.write_kubeconfigs(address, &authority, &tokens)?;
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    let store = Store::open(&data_dir.objects(), &resources::stored(), &tasks)?;
    let registry = Registry::new(store);
    ensure_default_namespace(&registry).await?;
    let copies = Copies::standalone(&registry, data_dir.runs(), &tasks)?;
    let core = Core::new(Parts {
        served: Served::Standalone,
        identity: format!("standalone/{}", std::process::id()),
        records: Arc::new(registry.clone()),
        registry: Some(registry.clone()),
        drivers,
        agents: None,
        copies: Some(copies.clone()),
        authenticator: Arc::new(Known::new(authority.certificate().into(), tokens)),
        authorizer: Arc::new(Roles),
        conditions: Vec::new(),
        tasks,
        stopping,
        over: CancellationToken::new(),
    });
    recovery::recover(&core.verbs);
    let mut loops = vec![
        ("namespaces", controllers::housekeeping::namespaces(registry.clone()).boxed()),
        ("events", controllers::housekeeping::events(registry).boxed()),
        ("serving certificate", renew_leaf(data_dir, leaf, address).boxed()),
    ];
    loops.extend(copies.loops());
    Ok(Server { bound, tls, address, core, loops, ending })
}

async fn ensure_default_namespace(registry: &Registry) -> anyhow::Result<()> {
    if registry.get(&NAMESPACES, None, "default").is_ok() {
        return Ok(());
    }
    let namespace = json!({"metadata": {"name": "default"}, "status": {"phase": "Active"}});
    match registry.create_with_status(&NAMESPACES, "", &namespace).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("the namespace \"default\" could not be made: {}", error.internal.unwrap_or(error.message)),
    }
}

async fn renew_leaf(data_dir: DataDir, leaf: Arc<Leaf>, address: SocketAddr) {
    let mut tick = interval(RENEW_EVERY);
    tick.tick().await;
    loop {
        tick.tick().await;
        let now = Timestamp::now();
        let renewed = data_dir.authority(now).and_then(|authority| DataDir::leaf(&authority, address, now));
        match renewed.map(|pair| leaf.replace(&pair)) {
            Ok(Ok(())) => info!("the serving certificate was renewed"),
            Ok(Err(error)) => warn!(%error, "the serving certificate was not renewed"),
            Err(error) => warn!(%error, "the serving certificate was not renewed"),
        }
    }
}
