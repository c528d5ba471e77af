//! What goes on all the time: we say that we live, we look who else does, we give back what we do not need, and we take care of
//! what the dead left.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use freeze::Ending;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all, pending},
};
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Replicas, freezer_of, is_left,
    lease::{self, FENCE, Member, RENEW},
    members::Taken,
};
use crate::records::{Seen, database_name};

/// How often what is ours is looked through, and what the dead left.
const LOOK: Duration = Duration::from_secs(1);
/// A Lease of a replica that is dead for so long is nobody's business any more.
const BURY: Duration = Duration::from_secs(600);
/// How often it is looked for members' Leases whose Database is gone.
const SWEEP: Duration = Duration::from_secs(60);
/// How many of them are removed then: what is more urgent waits for it.
const MOST_SWEPT: usize = 100;
/// One write's share of the time between two renewals.
const WRITE: Duration = Duration::from_secs(2);

impl Replicas {
    /// Its loops; they end with the server.
    /// `stored`: cancelled once everything that is stored was read; then `recovered` is, as soon as it is known who lives.
    pub(crate) fn loops(
        &self,
        stored: CancellationToken,
        recovered: CancellationToken,
    ) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let (mirror, leases) = (self.0.mirror.clone(), &self.0.leases);
        let leases = Api::namespaced(leases.clone().into_client(), leases.namespace().unwrap_or_default());
        vec![
            ("leases", mirror.run(leases).boxed()),
            ("who lives", self.clone().look().boxed()),
            ("our lease", self.clone().renew().boxed()),
            ("members", self.clone().tidy(stored, recovered).boxed()),
        ]
    }

    /// When nothing is held any more: the others need not wait until we are believed dead.
    pub(crate) async fn leave(&self) {
        let inner = &self.0;
        inner.left.cancel();
        inner.set_renewed(None);
        inner.members.give_back(&inner.leases, |_| false, true).await;
        let name = lease::replica_name(&inner.identity);
        if let Err(error) = inner.leases.delete(&name, &DeleteParams::default()).await {
            warn!(%error, "our Lease could not be deleted; the others wait until it is old");
        }
    }

    async fn look(self) {
        let mut following = self.0.mirror.follow();
        while let Some(seen) = following.next().await {
            match seen {
                Seen::There(lease) if lease::is_replica(&lease) => self.0.alive().note(&lease, Instant::now()),
                Seen::Gone(lease) if lease::is_replica(&lease) => self.0.alive().forget(&lease),
                Seen::There(lease) | Seen::Gone(lease) => self.taken(&lease),
            }
        }
    }

    /// A member's Lease changed: one that somebody else has is not ours, whatever we thought.
    fn taken(&self, lease: &Lease) {
        let inner = &self.0;
        let Some(member) = lease::member_of(lease) else { return };
        let theirs = lease::holder(lease).is_some_and(|holder| holder != inner.identity);
        if theirs && inner.members.has(&member) && inner.members.lose(&member) {
            let (namespace, database) = member;
            let (freezer, why) = (inner.freezer.clone(), "another replica took its member over");
            // Nobody waits for it: others' renewals are heard here.
            tokio::spawn(async move { freezer.end(&namespace, &database, Ending::Withdrawn { why }).await });
        }
    }

    async fn renew(self) {
        let inner = &self.0;
        let mut current: Option<Lease> = None;
        let (mut may_freeze, mut told) = (false, false);
        let mut tick = interval(RENEW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                // The others learn at once that we leave.
                () = inner.leaving.cancelled(), if !told => told = true,
            }
            if inner.left.is_cancelled() {
                return pending().await;
            }
            // Also when this process was stopped meanwhile: what it had is not its any more.
            if may_freeze && inner.is_fenced() {
                may_freeze = false;
                self.let_go_of_everything();
            }
            let began = Instant::now();
            match timeout(WRITE * 2, self.write(current.clone())).await {
                Ok(Ok(lease)) => {
                    current = Some(lease);
                    inner.set_renewed(Some(began));
                    if !may_freeze {
                        info!(identity = inner.identity, "this replica may freeze");
                    }
                    may_freeze = true;
                }
                Ok(Err(error)) => {
                    warn!(%error, "our Lease was not renewed");
                    // It is not what we know, or not there; a slow one is tried as it was.
                    if matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
                        current = None;
                    }
                }
                Err(_) => warn!("our Lease was not renewed in time"),
            }
        }
    }

    /// Creates or renews; what it was is read again when it is not known.
    async fn write(&self, current: Option<Lease>) -> Result<Lease, kube::Error> {
        let inner = &self.0;
        let name = lease::replica_name(&inner.identity);
        let current = match current {
            Some(current) => Some(current),
            None => inner.leases.get_opt(&name).await?,
        };
        let now = Timestamp::now();
        match current {
            None => {
                let new = self.as_it_is(lease::of_replica(&inner.identity, &inner.address, now));
                inner.leases.create(&PostParams::default(), &new).await
            }
            Some(mut lease) => {
                if let Some(spec) = &mut lease.spec {
                    spec.renew_time = Some(MicroTime(now));
                }
                inner.leases.replace(&name, &PostParams::default(), &self.as_it_is(lease)).await
            }
        }
    }

    fn as_it_is(&self, lease: Lease) -> Lease {
        if self.0.leaving.is_cancelled() { lease::leaving(lease) } else { lease }
    }

    /// Before the others believe us dead.
    fn let_go_of_everything(&self) {
        let inner = &self.0;
        error!("our Lease was not renewed for {} s: everything is let go", FENCE.as_secs());
        let views = inner.freezer.views();
        let why = "its replica could not renew its Lease";
        inner.members.lose_all();
        let freezer = inner.freezer.clone();
        // Nobody waits for it: what is slow to let go must not keep us from saying that we live.
        tokio::spawn(async move {
            let ends = views.iter().filter_map(|view| {
                let database = &view.status.targets.first()?.database;
                Some(freezer.end(&view.freeze.namespace, database, Ending::Withdrawn { why }))
            });
            join_all(ends).await;
        });
    }

    async fn tidy(self, stored: CancellationToken, recovered: CancellationToken) {
        let inner = &self.0;
        inner.mirror.complete().await;
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = Instant::now() + SWEEP;
        loop {
            tick.tick().await;
            if inner.is_fenced() {
                continue;
            }
            inner.members.give_back(&inner.leases, |member| inner.holds(member), false).await;
            // What only one does is another's affair then.
            if inner.leaving.is_cancelled() {
                continue;
            }
            if !inner.members.has(&lease::leader())
                && matches!(inner.take(&lease::leader(), false).await, Ok(Taken::Ours))
            {
                info!("this replica leads");
            }
            let is_stored = stored.is_cancelled();
            self.take_over().await;
            if self.leads() {
                self.bury().await;
                if Instant::now() >= sweep {
                    sweep = Instant::now() + SWEEP;
                    self.sweep().await;
                }
            }
            if !recovered.is_cancelled() && is_stored {
                // What is alive was seen; what the dead left is taken over as their Leases grow old.
                recovered.cancel();
            }
        }
    }

    /// Leases of replicas that are long gone.
    async fn bury(&self) {
        let inner = &self.0;
        let gone = inner.alive().silent_for(BURY, Instant::now());
        for identity in gone {
            debug!(identity, "its Lease is removed");
            inner.leases.delete(&lease::replica_name(&identity), &DeleteParams::default()).await.ok();
            inner.alive().bury(&identity);
        }
    }

    /// Members' Leases that nobody who lives has, and whose Database is gone. One that somebody takes at that moment stays.
    async fn sweep(&self) {
        let inner = &self.0;
        let databases: BTreeSet<Member> =
            inner.records.databases(None).iter().filter_map(|one| database_name(one)).collect();
        let (mut asked, mut deleted): (HashMap<String, bool>, usize) = (HashMap::new(), 0);
        for lease in inner.mirror.all(None) {
            let gone = lease::member_of(&lease)
                .is_some_and(|member| member != lease::leader() && !databases.contains(&member));
            let (Some(name), true) = (&lease.metadata.name, gone) else { continue };
            if let Some(holder) = lease::holder(&lease)
                && self.may_live(holder, &mut asked).await
            {
                continue;
            }
            if deleted == MOST_SWEPT {
                return;
            }
            deleted += 1;
            let as_seen = Preconditions { resource_version: lease.metadata.resource_version.clone(), uid: None };
            let delete = DeleteParams { preconditions: Some(as_seen), ..DeleteParams::default() };
            if let Err(error) = inner.leases.delete(name, &delete).await {
                debug!(name, %error, "the Lease of a Database that is gone was not removed");
            }
        }
    }

    /// Whether a replica lives, as far as can be told; of each it is asked once.
    async fn may_live(&self, identity: &str, asked: &mut HashMap<String, bool>) -> bool {
        match asked.get(identity) {
            Some(lives) => *lives,
            None => *asked.entry(identity.to_owned()).or_insert(self.0.lives(identity).await.unwrap_or(true)),
        }
    }

    /// Claims the members of freezes whose freezer is dead, and undoes what these left.
    async fn take_over(&self) {
        let inner = &self.0;
        let mut dead: BTreeSet<Member> = BTreeSet::new();
        let mut asked: HashMap<String, bool> = HashMap::new();
        for freeze in inner.records.freezes() {
            let left = |by: &&str| *by != inner.identity && is_left(&freeze) && inner.is_due(&freeze);
            let Some(by) = freezer_of(&freeze).filter(left) else { continue };
            if !self.may_live(by, &mut asked).await {
                let namespace = freeze.metadata.namespace.clone().unwrap_or_default();
                dead.extend(freeze.spec.targets.iter().map(|target| (namespace.clone(), target.database.clone())));
            }
        }
        for member in dead {
            if !inner.members.has(&member) {
                match inner.take(&member, false).await {
                    Ok(Taken::Ours) => {}
                    Ok(Taken::Theirs(holder)) => {
                        debug!(?member, holder, "another takes care of it");
                        continue;
                    }
                    Err(error) => {
                        warn!(?member, message = %error.message, "could not be taken over; trying again");
                        continue;
                    }
                }
            }
            inner.lay_to_rest_at(&member);
        }
    }
}
