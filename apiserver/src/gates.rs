//! Gates: `stillpoint-webhooks` asks right before a cut, and is answered once the Databases whose data is on the volumes stand still;
//! whoever holds them lets them go as soon as the driver has said that it has cut, and says on the snapshot what it is worth.
//!
//! ```text
//! GateRequest ─► claims of the volumes ─► Databases behind them ─► held (by whichever replica has them) ─► GateAnswer
//! content gets its handle ─► every replica ends the claims that it holds for it ─► verdict ─► labels
//! ```

mod ask;
mod contents;
mod cut;
mod declared;
mod endpoint;
mod holding;
mod judge;
mod keep;
mod known;
pub(crate) mod policy;
mod preflight;
mod real;
mod said;
mod thaw;
mod verb;
mod verdict;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{gate::Group, install::webhooks::CONTENT_DRIVERS};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, api::DynamicObject};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    app::App,
    csi_snapshots::{Kind, Kinds},
    indexed::Watched,
    own_account::OwnAccount,
    verbs::Verbs,
};
use contents::{Content, Of};
use holding::InVain;
use known::Known;

pub(crate) use endpoint::serve;
pub(crate) use keep::Keeper;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gates(Arc<Inner>);

struct Inner {
    app: Arc<App>,
    verbs: Verbs,
    kinds: Kinds,
    watched: Watched,
    /// As whom Databases are held.
    own: OwnAccount,
    /// Cancelled when nothing is held any more.
    over: CancellationToken,
    known: Mutex<Known>,
    asked: Mutex<Asked>,
    in_vain: Mutex<InVain>,
    learnt: Mutex<Learnt>,
}

/// What became of questions that this replica was asked.
#[derive(Debug, Default)]
struct Asked {
    /// Why it held nothing for a cut, by the content's uid.
    missed: HashMap<String, Missed>,
    /// Why it let a claim go before there was a cut, by the claim's.
    let_go: HashMap<String, (Instant, String)>,
}

#[derive(Debug)]
struct Missed {
    at: Instant,
    /// When people were told last.
    told: Instant,
    why: String,
}

/// What the webhooks' configuration says, or is going to say.
#[derive(Debug, Default)]
struct Learnt {
    /// Since when anybody could have been asked.
    installed: Option<Timestamp>,
    /// Drivers whose snapshotter was seen to cut without its mark.
    drivers: BTreeSet<String>,
    /// Of those, the ones that were seen to mark since: whatever the configuration still says.
    marking: BTreeSet<String>,
}

/// How long it is remembered why nothing was held: a cut that is not made by then is asked about again.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How often people are told of the same cut why it waits.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Drivers that do not tell when they cut: more than a cluster has drivers.
const MOST_DRIVERS: usize = 64;
/// How many of those at most; the others are judged as if nobody had been asked.
const MOST_REMEMBERED: usize = 10_000;

impl Gates {
    pub(crate) fn new(
        app: Arc<App>,
        verbs: Verbs,
        client: Client,
        watched: Watched,
        own: OwnAccount,
        over: CancellationToken,
    ) -> Self {
        let kinds = Kinds::new(client);
        let (known, asked, in_vain, learnt) = Default::default();
        Self(Arc::new(Inner { app, verbs, kinds, watched, own, over, known, asked, in_vain, learnt }))
    }

    /// `watching`: a client whose requests may be silent for long.
    pub(crate) fn loops(&self, watching: &Client) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        vec![("contents of snapshots", Box::pin(thaw::run(self.clone(), self.0.kinds.with(watching.clone()))))]
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing was held for this content, if this replica was asked about it.
    fn missed(&self, uid: &str) -> Option<String> {
        self.0.asked().missed.get(uid).map(|missed| missed.why.clone())
    }

    /// Answers whether this is news, of which there is no more than one a minute.
    fn note_missed(&self, uid: &str, why: &str) -> bool {
        let (mut asked, now) = (self.0.asked(), Instant::now());
        let before = asked.missed.get(uid).map(|missed| (missed.told, missed.why != why));
        if asked.missed.len() >= MOST_REMEMBERED && before.is_none() {
            return true;
        }
        let news = before.is_none_or(|(told, other)| other && now.duration_since(told) >= TELL_AGAIN);
        let told = if news { now } else { before.map_or(now, |(told, _)| told) };
        asked.missed.insert(uid.to_owned(), Missed { at: now, told, why: why.to_owned() });
        news
    }

    fn forget_missed(&self, uid: &str) {
        self.0.asked().missed.remove(uid);
    }

    fn was_let_go(&self, claim: &str, why: &str) {
        let mut asked = self.0.asked();
        if asked.let_go.len() < MOST_REMEMBERED {
            asked.let_go.insert(claim.to_owned(), (Instant::now(), why.to_owned()));
        }
    }

    /// Why this claim was let go here before there was a cut, if it was.
    fn let_go(&self, claim: &str) -> Option<String> {
        self.0.asked().let_go.get(claim).map(|(_, why)| why.clone())
    }

    fn in_vain(&self) -> MutexGuard<'_, InVain> {
        self.0.in_vain()
    }

    /// `None`: it is gone, and another of the same name is another.
    async fn snapshot(&self, group: Group, of: &Of) -> Result<Option<Box<ObjectMeta>>, kube::Error> {
        let found = self.0.kinds.snapshots(group, &of.namespace).get_opt(&of.name).await?;
        let found = found.map(|found| Box::new(found.metadata));
        Ok(found.filter(|found| of.uid.is_none() || found.uid == of.uid))
    }

    async fn class(&self, group: Group, name: &str) -> Result<Option<DynamicObject>, kube::Error> {
        self.0.kinds.all(Kind::Class, group).get_opt(name).await
    }

    /// Since when anybody could have been asked.
    fn installed(&self) -> Option<Timestamp> {
        self.0.learnt().installed
    }
}

impl Inner {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_vain(&self) -> MutexGuard<'_, InVain> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cut has begun: it was not held for in vain.
    fn begun(&self, content: &Content) {
        self.in_vain().begun(content);
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was decided long ago.
    fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).forget(Instant::now());
        let mut asked = self.asked();
        asked.missed.retain(|_, missed| missed.at.elapsed() < REMEMBERED);
        asked.let_go.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
    }

    /// From the webhooks' configuration; `None`: there is none.
    fn learn(&self, configuration: Option<&ObjectMeta>) {
        let mut learnt = self.learnt();
        let made = configuration.and_then(|metadata| metadata.creation_timestamp.as_ref());
        learnt.installed = made.map(|made| made.0);
        let said = configuration.and_then(|metadata| metadata.annotations.as_ref()?.get(CONTENT_DRIVERS));
        let drivers = said.iter().flat_map(|said| said.split(',')).filter(|driver| !driver.is_empty());
        for driver in drivers.take(MOST_DRIVERS).filter(|driver| !learnt.marking.contains(*driver)).collect::<Vec<_>>()
        {
            learnt.drivers.insert(driver.to_owned());
        }
    }

    /// Whether a driver's snapshotter says when it is about to cut. Where it does not, databases are held from when a content is made.
    fn marks(&self, driver: &str, marks: bool) {
        let mut learnt = self.learnt();
        if marks && learnt.drivers.remove(driver) {
            learnt.marking.insert(driver.to_owned());
            info!(driver, "its snapshotter tells when it cuts, after all");
        }
        if !marks && learnt.drivers.len() < MOST_DRIVERS && learnt.drivers.insert(driver.to_owned()) {
            learnt.marking.remove(driver);
            info!(driver, "its snapshotter cuts without telling: databases are held from when a content is made");
        }
    }

    fn is_unmarked(&self, driver: &str) -> bool {
        self.learnt().drivers.contains(driver)
    }

    fn drivers(&self) -> Vec<String> {
        self.learnt().drivers.iter().cloned().collect()
    }
}
