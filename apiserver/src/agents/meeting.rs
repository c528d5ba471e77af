//! How an agent is let in: it says who it is, and has to show a token of that Pod's, and to come from there.

use std::{net::IpAddr, sync::Arc, time::Duration};

use api::{
    Engine,
    agent::{self, Hello, POD_NAME, POD_UID, Welcome},
};
use certs::{Bound, Peer};
use freeze::remote::{self, Link};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Agent, Agents, MOST, wishes};
use crate::{
    auth::{Authenticator, User},
    keyring::Keyring,
    metrics::Metrics,
    own_account::OwnAccount,
    verbs::Verbs,
};

/// What lets agents in.
pub(crate) struct Door {
    pub(crate) agents: Agents,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) verbs: Verbs,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) own: OwnAccount,
    pub(crate) keyring: Arc<Keyring>,
    /// This replica, for people.
    pub(crate) identity: String,
    pub(crate) over: CancellationToken,
}

/// Whoever has not said who he is within this has to go.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Those that may be about to say it.
const AT_THE_DOOR: usize = 256;
/// How often it is looked whether the authority is another.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Serves until `over`.
pub(crate) async fn serve(bound: Bound, tls: ServerConfig, door: Door) {
    let (waiting, over) = (Arc::new(Semaphore::new(AT_THE_DOOR)), door.over.clone());
    let door = Arc::new(door);
    let of = Arc::clone(&door);
    let service = move |stream, peer: Peer| {
        let (door, waiting) = (Arc::clone(&of), Arc::clone(&waiting));
        async move {
            let Ok(place) = waiting.try_acquire_owned() else {
                return debug!(address = %peer.address, "too many agents come at once; it comes again");
            };
            let mut stream = Box::new(stream);
            // On the heap, so that nothing of it is left as long as the agent is there: they are many.
            let met = timeout(INTRODUCTION, Box::pin(meet(&door, &mut stream, peer.address.ip()))).await;
            drop(place);
            match met {
                Ok(Some(known)) => live(&door, stream, known).await,
                Ok(None) => {}
                Err(_) => debug!(address = %peer.address, "it did not say in time who it is"),
            }
        }
    };
    tokio::join!(
        bound.serve_streams(tls, agent::PROTOCOL, MOST, service, over.clone()),
        over.run_until_cancelled(tell(&door)),
    );
}

/// Whoever was let in.
struct Known {
    pod: (String, String),
    engine: Engine,
}

async fn meet(door: &Door, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), from: IpAddr) -> Option<Known> {
    let hello: Hello = match remote::read(stream).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return None,
        Err(error) => {
            debug!(%from, %error, "somebody does not speak as an agent");
            return None;
        }
    };
    let (welcome, hello) = match admitted(door, &hello, from).await {
        Ok(()) => (Welcome::Come { replica: door.identity.clone() }, Some(hello)),
        Err(why) => {
            warn!(%from, namespace = hello.namespace, pod = hello.pod, why, "an agent is not let in");
            (Welcome::Refused { why }, None)
        }
    };
    remote::write(stream, &welcome).await.ok()?;
    hello.map(|hello| Known { pod: (hello.namespace, hello.pod), engine: hello.engine })
}

async fn admitted(door: &Door, hello: &Hello, from: IpAddr) -> Result<(), String> {
    let mut headers = HeaderMap::new();
    let token = HeaderValue::try_from(format!("Bearer {}", hello.token)).map_err(|_| "its token is none".to_owned())?;
    headers.insert(AUTHORIZATION, token);
    let peer = Peer { address: (from, 0).into(), certificates: [].into() };
    let user = door.authenticator.authenticate(&peer, &mut headers, Timestamp::now()).await;
    is_the_pods(&user.map_err(|error| error.message)?, hello)?;
    // A token that was stolen is of no use elsewhere.
    match door.agents.0.watched.addresses_of(&hello.namespace, &hello.pod) {
        Some(addresses) if addresses.contains(&from) => Ok(()),
        Some(addresses) => Err(format!("it comes from {from}, and its Pod is at {addresses:?}")),
        None => Err("its Pod is not known here yet".to_owned()),
    }
}

/// Whether a token is that of the Pod which it is shown for. Pure.
fn is_the_pods(user: &User, hello: &Hello) -> Result<(), String> {
    let prefix = format!("system:serviceaccount:{}:", hello.namespace);
    let said = |key: &str| user.extra.get(key).and_then(|values| values.first());
    match (said(POD_NAME), said(POD_UID)) {
        (Some(pod), Some(uid)) if user.name.starts_with(&prefix) && *pod == hello.pod && *uid == hello.pod_uid => {
            Ok(())
        }
        (Some(pod), Some(_)) => Err(format!("its token is of {} in Pod {pod}", user.name)),
        _ => Err(format!("its token, of {}, is bound to no Pod", user.name)),
    }
}

/// For as long as the stream lasts.
async fn live(door: &Arc<Door>, stream: Box<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>, known: Known) {
    let Known { pod, engine } = known;
    let metrics = Arc::clone(&door.metrics);
    let told = Arc::new(move |order, outcome, took: Duration| metrics.ordered(order, outcome, took.as_secs_f64()));
    let (link, sending) = Link::new(format!("Pod {}/{}", pod.0, pod.1), told);
    let agent = Agent { pod: pod.1.clone(), engine, link: link.clone() };
    let _present = Present::enter(door, pod.clone(), agent);
    let grant = {
        let (door, pod) = (Arc::clone(door), pod.clone());
        move |wish| {
            let (door, pod) = (Arc::clone(&door), pod.clone());
            Box::pin(async move { wishes::grant(&door, &pod, wish).await }) as _
        }
    };
    let told = link.clone();
    let bundle = door.keyring.now().bundle.clone();
    tokio::select! {
        () = async { tokio::join!(link.run(stream, sending, grant), told.trust(bundle)); } => {}
        () = door.over.cancelled() => link.close(),
    }
}

/// As long as an agent is there, however that ends.
struct Present<'d> {
    door: &'d Door,
    pod: (String, String),
    link: Link,
}

impl<'d> Present<'d> {
    fn enter(door: &'d Door, pod: (String, String), agent: Agent) -> Self {
        let link = agent.link.clone();
        door.agents.enter(pod.clone(), agent);
        door.metrics.agent_came();
        Self { door, pod, link }
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.link.close();
        self.door.agents.leave(&self.pod, &self.link);
        self.door.metrics.agent_went();
    }
}

/// Tells agents of another authority before it signs anything, for ever.
async fn tell(door: &Door) {
    let mut known = door.keyring.now().bundle.clone();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = door.keyring.now().bundle.clone();
        if now != known {
            door.agents.trust(&now).await;
            known = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_token_that_is_bound_to_the_pod_which_it_is_shown_for_is_good() {
        let hello = Hello {
            token: String::new(),
            namespace: "shop".to_owned(),
            pod: "pg-0".to_owned(),
            pod_uid: "u".to_owned(),
            engine: Engine::PostgreSQL,
            version: String::new(),
        };
        let user = |name: &str, pod: &str, uid: &str| User {
            name: name.to_owned(),
            extra: [(POD_NAME, pod), (POD_UID, uid)]
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]))
                .collect(),
            ..User::default()
        };
        let ours = "system:serviceaccount:shop:default";
        assert_eq!(is_the_pods(&user(ours, "pg-0", "u"), &hello), Ok(()));
        for (name, pod, uid) in [
            (ours, "pg-1", "u"),
            (ours, "pg-0", "another run of it"),
            (ours, "", ""),
            (ours, "pg-0", ""),
            ("system:serviceaccount:shopping:default", "pg-0", "u"),
            ("somebody", "pg-0", "u"),
        ] {
            assert!(is_the_pods(&user(name, pod, uid), &hello).is_err(), "{name} {pod} {uid}");
        }
    }
}
