//! Behind a kube-apiserver: what is stored is the cluster's, who asks and what they may is the cluster's to say, and we are
//! trusted by an authority that lies in a Secret and in the APIService.

mod skew;
mod trust;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use certs::Bound;
use freeze::Drivers;
use futures::FutureExt;
use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    agents::{self, Agents, Door, Workloads},
    auth::delegated::{Delegated, KubeReviews, SubjectAccessReviews, Trust},
    copies::{self, Ambient, Copies, Storage},
    gates::{self, Gates, Keeper},
    health::Condition,
    indexed::Watched,
    own_account::OwnAccount,
    records::{Cluster, Records},
    recovery,
    replicas::{Replicas, Us, WithPeers},
    resources::Served,
    server::{Core, Ending, Parts, Server},
};
use trust::Certificates;
pub use trust::{Service, Serving};

/// How a server is reached, and reaches its cluster.
#[derive(Clone, Debug)]
pub struct Place {
    pub listen: SocketAddr,
    /// What the APIService names.
    pub service: Service,
    pub serving: Serving,
    /// How long an old and a new authority of ours are both trusted, when one is exchanged for the other.
    pub overlap: Duration,
    /// `None`: the ServiceAccount of the pod that we are.
    pub kubeconfig: Option<PathBuf>,
    /// This replica, for people and in leases.
    pub identity: String,
    /// Where the other replicas reach us; our port is the one that we listen on.
    pub advertise: IpAddr,
    /// Where gates are asked. `None`: nobody asks them, and no snapshot is followed.
    pub gates: Option<SocketAddr>,
    /// Where agents come. `None`: every server is dialled.
    pub agents: Option<SocketAddr>,
    /// What Jobs of dumps and restores copy the runner from. `None`: there are none.
    pub runner_image: Option<String>,
    /// Whether a Repository that names no account is reached by ours.
    pub lends_identity: bool,
}

/// How long a connection to an API server may say nothing while we wait for its answer. The watch of Leases, too: on it our own
/// renewal is heard every two seconds.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a watch may be silent: an API server says once a minute how far it is (apiserver `storage/cacher`, bookmarks).
const SILENCE: Duration = Duration::from_secs(100);

/// Listens, and begins to learn what the cluster says. It answers discovery at once; it is ready, and freezes, when it knows
/// whom to trust and what is stored.
pub async fn bind(place: Place, ending: Ending, drivers: Drivers) -> anyhow::Result<Server> {
    let mut config = config(place.kubeconfig.as_deref()).await?;
    // A freeze that cannot be written down within a second is let go: nobody may try again behind its back for minutes.
    config.default_retry = false;
    config.read_timeout = Some(ANSWER);
    let client = Client::try_from(config.clone()).context("a client of the cluster")?;
    let mut watching = config.clone();
    watching.read_timeout = Some(SILENCE);
    let watching = Client::try_from(watching).context("a client that watches")?;
    let bound = Bound::bind(place.listen).await?;
    let address = bound.address().context("the address that we listen on")?;
    let authority = Arc::new(Condition::new("authority"));
    let certificates = Certificates::begin(&place.service, place.serving, place.overlap, address, &authority)?;
    let (tls, keyring) = (certificates.tls()?, Arc::clone(&certificates.keyring));
    let asked = match place.gates {
        Some(listen) => Some((Bound::bind(listen).await?, certificates.tls()?)),
        None => None,
    };
    let dialled = match place.agents {
        Some(listen) => Some((Bound::bind(listen).await?, certificates.tls()?)),
        None => None,
    };
    let watched = Watched::here();
    let agents = dialled.is_some().then(|| Agents::new(watched.clone()));

    // Another run of the same pod is another replica.
    let identity = format!("{}-{:x}", place.identity, Timestamp::now().as_millisecond());
    let (tasks, stopping, over) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let cluster = Cluster::begin(client.clone(), watching.clone(), &tasks, &over);
    let records = Arc::new(cluster.clone()) as Arc<dyn Records>;
    let storage = Storage::new(client.clone(), watched.clone(), asked.is_some());
    let of_copies = copies::Place {
        client: client.clone(),
        watching: watching.clone(),
        storage,
        watched: watched.clone(),
        runner_image: place.runner_image,
        ambient: if place.lends_identity { Ambient::Identity } else { Ambient::Nothing },
    };
    let copies = Copies::in_cluster(Arc::clone(&records), &of_copies, &tasks, &over);
    let (trust, schema) = (Arc::new(Trust::default()), Arc::new(Condition::new("crds")));
    let reviews = Arc::new(KubeReviews::connect(config).context("a client for reviews")?);
    let core = Core::new(Parts {
        served: Served::Aggregated,
        identity: identity.clone(),
        records,
        registry: None,
        drivers,
        agents: agents.clone(),
        copies: Some(copies.clone()),
        authenticator: Arc::new(WithPeers::new(
            Delegated::new(Arc::clone(&trust), Arc::clone(&reviews) as _, Vec::new(), true),
            Arc::clone(&keyring),
        )),
        authorizer: Arc::new(SubjectAccessReviews::new(Arc::clone(&reviews) as _)),
        conditions: vec![Arc::clone(&authority), Arc::clone(&schema)],
        tasks,
        stopping,
        over,
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
    let namespace = place.service.namespace;
    let mut loops = watched.loops(&watching);
    let verbs = core.verbs.clone();
    loops.extend(copies.loops_in_cluster(of_copies, &(Arc::new(move || verbs.leads()) as _)));
    let own = OwnAccount::new(Arc::clone(&core.app), &namespace, core.stopping.clone());
    if let (Some((bound, tls)), Some(agents)) = (dialled, agents) {
        let workloads = Workloads {
            client: client.clone(),
            namespace: namespace.clone(),
            agents: agents.clone(),
            verbs: core.verbs.clone(),
        };
        loops.push(("workloads of agents", workloads.follow().boxed()));
        let audience = vec![api::agent::AUDIENCE.to_owned()];
        let door = Door {
            agents,
            authenticator: Arc::new(Delegated::new(Arc::clone(&trust), Arc::clone(&reviews) as _, audience, false)),
            verbs: core.verbs.clone(),
            metrics: Arc::clone(&core.app.metrics),
            own: own.clone(),
            keyring: Arc::clone(&keyring),
            identity: identity.clone(),
            over: core.over.clone(),
        };
        loops.push(("agents", agents::serve(bound, tls, door).boxed()));
    }
    if let Some((bound, tls)) = asked {
        let over = core.over.clone();
        let gates = Gates::new(Arc::clone(&core.app), core.verbs.clone(), client.clone(), watched, own, over);
        loops.extend(gates.loops(&watching));
        let keeper = Keeper {
            client: client.clone(),
            namespace: namespace.clone(),
            keyring: Arc::clone(&keyring),
            shared: authority,
            injects: place.agents.is_some(),
        };
        loops.push(("what the webhooks need", keeper.keep(gates.clone()).boxed()));
        // A token that is meant for kube-apiserver is none for us.
        let audience = vec![api::gate::AUDIENCE.to_owned()];
        let authenticator = Arc::new(Delegated::new(Arc::clone(&trust), reviews as _, audience, false));
        let asker = api::install::webhooks_user(&namespace);
        loops.push(("gates", gates::serve(bound, tls, gates, authenticator, asker, core.over.clone()).boxed()));
    }
    let replicas = Replicas::new(Us {
        client: client.clone(),
        namespace,
        identity,
        address: SocketAddr::new(place.advertise, address.port()).to_string(),
        keyring,
        records: Arc::clone(&core.verbs.records),
        freezer: core.freezer.clone(),
    });
    let verbs = core.verbs.clone();
    let leads = move || verbs.leads();
    loops.extend([
        ("whom to trust", trust.follow(watching).boxed()),
        ("our certificates", certificates.keep(client.clone(), leads).boxed()),
        ("the CRDs' version", skew::look(client, schema).boxed()),
        ("what others finished", recovery::follow(core.verbs.clone(), Arc::clone(&core.app.metrics)).boxed()),
    ]);
    loops.extend(replicas.loops(core.verbs.stored.clone(), core.verbs.recovered.clone()));
    core.verbs.replicas.set(replicas).ok();
    Ok(Server { bound, tls, address, core, loops, ending })
}

async fn config(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<Config> {
    let Some(path) = kubeconfig else {
        return Config::incluster().context("not in a pod; give --kubeconfig, or --standalone to do without a cluster");
    };
    let read = Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
    Ok(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?)
}
