//! What a Repository says of itself: `Ready`, its locations, how many copies are in it. One that is not there yet is made; one that was
//! and is not is never made anew: a disk that is not mounted looks like an empty directory.

use std::time::Duration;

use api::{
    LocationStatus, RepositoryStatus,
    conditions::{self, reasons, types},
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use repository::Opened;
use tokio::time::{MissedTickBehavior, interval};

use super::{Copies, depot::Closed, kept::who};
use crate::{controllers::Turns, records::Seen};

const EVERY: Duration = Duration::from_secs(5 * 60);
/// One that is not ready is looked at again sooner: Secrets and stores come later than those that name them.
const SOONER: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 4;

/// What one look found.
struct Look {
    id: String,
    unusable: Vec<(String, String)>,
    snapshots: u64,
}

pub(super) async fn run(copies: Copies) {
    let looks = Turns::new(&copies.tasks, AT_ONCE, {
        let copies = copies.clone();
        move |(namespace, name): (String, String)| look_at(copies.clone(), namespace, name)
    });
    let mut following = copies.repositories.follow();
    let (mut all, mut sooner) = (interval(EVERY), interval(SOONER));
    all.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sooner.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = following.next() => match next {
                None => return,
                Some(Seen::Gone(repository)) => {
                    let (namespace, name, _) = who(&*repository);
                    copies.depot.forget(&namespace, &name);
                }
                Some(Seen::There(repository)) => {
                    let seen = repository.status.as_ref().and_then(|status| status.observed_generation);
                    if seen != repository.metadata.generation && copies.lead.is_ours() {
                        let (namespace, name, _) = who(&*repository);
                        looks.take((namespace, name));
                    }
                }
            },
            _ = all.tick() => if copies.lead.is_ours() {
                copies.repositories.all(None).iter().for_each(|one| take(&looks, one));
            },
            _ = sooner.tick() => {
                let ready = |one: &api::Repository| {
                    one.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, types::READY))
                };
                if copies.lead.is_ours() {
                    copies.repositories.all(None).iter().filter(|one| !ready(one)).for_each(|one| take(&looks, one));
                }
            }
        }
    }
}

fn take(looks: &Turns<(String, String)>, repository: &api::Repository) {
    let (namespace, name, _) = who(repository);
    looks.take((namespace, name));
}

async fn look_at(copies: Copies, namespace: String, name: String) {
    let Ok(repository) = copies.repositories.get(&namespace, &name).await else { return };
    let spec = &repository.spec;
    let before = repository.status.as_ref().and_then(|status| status.id.clone());
    let found = match copies.depot.open(&namespace, &name, spec, before.is_none()).await {
        Err(closed) => Err(gone(closed, before.as_deref())),
        Ok((Opened { repository, unusable }, _)) => {
            let entries = copies.depot.look(&namespace, &name, spec).await.entries;
            let unusable = unusable.iter().map(|error| (error.location.clone(), error.to_string())).collect();
            Ok(Look { id: repository.id().to_owned(), unusable, snapshots: entries.len() as u64 })
        }
    };
    let (now, generation) = (Timestamp::now(), repository.metadata.generation);
    let names: Vec<String> = spec.locations.iter().map(|location| location.name.clone()).collect();
    let change = |status: RepositoryStatus| {
        let next = said(status.clone(), &names, &found, generation, now);
        // That it was looked at again is nothing to write.
        let mut as_before = next.clone();
        for (location, before) in as_before.locations.iter_mut().zip(&status.locations) {
            location.checked_at.clone_from(&before.checked_at);
        }
        (as_before != status).then_some(next)
    };
    if let Err(error) = copies.repositories.change(&namespace, &name, &change).await {
        tracing::debug!(namespace, name, message = %error.message, "a Repository's status was not written");
    }
}

/// What is missing was there.
fn gone(closed: Closed, before: Option<&str>) -> Closed {
    match before {
        Some(id) if closed.reason == reasons::NOT_FOUND => Closed {
            reason: reasons::REPOSITORY_UNAVAILABLE,
            message: format!(
                "repository {} was here, and is not: is the disk mounted, and the bucket the right one? To begin another one, delete \
                 this Repository and make it again",
                id.get(..8).unwrap_or(id)
            ),
        },
        _ => closed,
    }
}

/// Pure.
fn said(
    mut status: RepositoryStatus,
    names: &[String],
    found: &Result<Look, Closed>,
    generation: Option<i64>,
    now: Timestamp,
) -> RepositoryStatus {
    status.observed_generation = generation;
    let why = |name: &String| match found {
        Err(closed) => Some(closed.message.clone()),
        Ok(look) => look.unusable.iter().find(|(location, _)| location == name).map(|(_, why)| why.clone()),
    };
    let location = |name: &String| {
        let message = why(name);
        LocationStatus { name: name.clone(), ready: message.is_none(), message, checked_at: Some(Time(now)) }
    };
    status.locations = names.iter().map(location).collect();
    let (ready, reason, message) = match found {
        Err(closed) => (false, closed.reason, closed.message.clone()),
        Ok(look) if look.unusable.is_empty() => (true, reasons::OK, String::new()),
        Ok(look) => {
            let all = look.unusable.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("; ");
            let left = names.len() - look.unusable.len();
            (false, reasons::REPOSITORY_UNAVAILABLE, format!("{left} of {} locations can be used: {all}", names.len()))
        }
    };
    if let Ok(look) = found {
        status.id = Some(look.id.clone());
        status.snapshots = Some(look.snapshots);
    }
    conditions::set_condition(&mut status.conditions, types::READY, ready, reason, &message, generation, now);
    status
}
