//! Behind a kube-apiserver: what is stored is the cluster's, who asks and what they may is the cluster's to say, and we are
//! trusted by an authority that lies in a Secret and in the APIService.

mod trust;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use certs::{Bound, Leaf};
use freeze::Drivers;
use futures::{FutureExt, future::pending};
use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    auth::delegated::{Delegated, KubeReviews, SubjectAccessReviews, Trust},
    records::{Cluster, Records},
    recovery,
    replicas::{Replicas, Us, WithPeers},
    resources::Served,
    server::{Core, Parts, Server},
};
pub use trust::Service;

/// How a server is reached, and reaches its cluster.
#[derive(Clone, Debug)]
pub struct Place {
    pub listen: SocketAddr,
    /// What the APIService names.
    pub service: Service,
    /// `None`: the ServiceAccount of the pod that we are.
    pub kubeconfig: Option<PathBuf>,
    /// This replica, for people and in leases.
    pub identity: String,
    /// Where the other replicas reach us; our port is the one that we listen on.
    pub advertise: IpAddr,
}

/// A pod is told to stop when its endpoint is taken away; kube-apiserver, which hears of that by a watch, must not find the door
/// shut before.
const LINGER: Duration = Duration::from_secs(5);

/// Listens, and begins to learn what the cluster says. It answers discovery at once; it is ready, and freezes, when it knows
/// whom to trust and what is stored.
pub async fn bind(place: Place, drain: Duration, drivers: Drivers) -> anyhow::Result<Server> {
    let mut config = config(place.kubeconfig.as_deref()).await?;
    // A freeze that cannot be written down within a second is let go: nobody may try again behind its back for minutes.
    config.default_retry = false;
    let client = Client::try_from(config.clone()).context("a client of the cluster")?;
    let bound = Bound::bind(place.listen).await?;
    let address = bound.address().context("the address that we listen on")?;
    let authority = trust::authority(&client, &place.service).await?;
    let leaf = Leaf::new(&trust::leaf(&authority, &place.service, address, Timestamp::now())?)?;
    let tls = certs::server_config(Arc::clone(&leaf))?;

    // Another run of the same pod is another replica.
    let identity = format!("{}-{:x}", place.identity, Timestamp::now().as_millisecond());
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    // While freezes are drained, what is stored is followed still.
    let over = CancellationToken::new();
    let cluster = Cluster::begin(client.clone(), &tasks, &over);
    let trust = Arc::new(Trust::default());
    let reviews = Arc::new(KubeReviews::connect(config).context("a client for reviews")?);
    let core = Core::new(Parts {
        served: Served::Aggregated,
        identity: identity.clone(),
        records: Arc::new(cluster.clone()) as Arc<dyn Records>,
        registry: None,
        drivers,
        authenticator: Arc::new(WithPeers::new(
            Delegated::new(Arc::clone(&trust), Arc::clone(&reviews) as _, Vec::new(), true),
            &authority,
        )?),
        authorizer: Arc::new(SubjectAccessReviews::new(reviews)),
        tasks,
        stopping,
    });
    core.tasks.spawn({
        let (verbs, stopping) = (core.verbs.clone(), core.stopping.clone());
        async move {
            if stopping.run_until_cancelled(cluster.complete()).await.is_some() {
                info!("what is stored is known");
                recovery::remember(&verbs);
                verbs.stored.cancel();
            }
        }
    });
    let replicas = Replicas::new(Us {
        client: client.clone(),
        service: place.service.clone(),
        identity,
        address: SocketAddr::new(place.advertise, address.port()).to_string(),
        authority: Arc::clone(&authority),
        records: Arc::clone(&core.verbs.records),
        freezer: core.freezer.clone(),
    })?;
    let over = over.drop_guard();
    let stored = async move {
        let _until_the_loops_end = over;
        pending::<()>().await;
    };
    let mut loops = vec![
        ("what is stored", stored.boxed()),
        ("whom to trust", trust.follow(client.clone()).boxed()),
        ("our certificates", trust::keep(client, authority, leaf, place.service, address).boxed()),
    ];
    loops.extend(replicas.loops(&core.verbs));
    core.verbs.replicas.set(replicas).ok();
    Ok(Server { bound, tls, address, core, loops, drain, linger: LINGER })
}

async fn config(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<Config> {
    let Some(path) = kubeconfig else {
        return Config::incluster().context("not in a pod; give --kubeconfig, or --standalone to do without a cluster");
    };
    let read = Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
    Ok(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?)
}
