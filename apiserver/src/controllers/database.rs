//! What a Database says of itself: `Reachable`, `Privileged`, `Ready`, its member, and the levels that it reaches.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use api::{
    Check, CheckResult, Copy, Database, DatabaseStatus, Level, LevelReach, MemberStatus, Via,
    conditions::{self, reasons, types},
};
use freeze::{Ending, Preflight, ServerInfo};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::turns::Turns;
use crate::{
    records::{Seen, database_name},
    targets::{self, Ingredients, Wanted},
    verbs::Verbs,
};

/// A Database, in its namespace.
type Name = (String, String);

/// How often a Database is looked at when nothing changes.
const EVERY: Duration = Duration::from_secs(60);
/// How much of the time of all one look may take: of many Databases each is looked at less often, so that no number of them is a load.
const SHARE: Duration = Duration::from_millis(50);
/// How often it is looked who leads, and what is due: often, so that many looks are spread, and no freeze stands behind a crowd of
/// them.
const LEADING: Duration = Duration::from_millis(250);
/// Servers that are asked at once; those that do not answer take a while.
const AT_ONCE: usize = 64;
/// How long one look may last.
const LOOK: Duration = Duration::from_secs(10);
/// How long it is waited until kube-apiserver asks about a namespace: that it does not is no fault of the Database, and `doctor` says it.
const SHOWN: Duration = Duration::from_secs(10);

/// What one look found.
#[derive(Debug)]
struct Look {
    /// Who answered; first the one that would be frozen.
    members: Vec<MemberStatus>,
    checks: Vec<Check>,
    levels: Vec<LevelReach>,
}

/// Follows all Databases, and looks at each when its spec changes and once in a while.
pub async fn run(verbs: Verbs) {
    let looks = Turns::new(&verbs.tasks, AT_ONCE, {
        let verbs = verbs.clone();
        move |(namespace, name)| look_at(verbs.clone(), namespace, name)
    });
    let mut looked: HashMap<String, i64> = HashMap::new();
    let mut databases = verbs.records.follow_databases();
    let mut tick = interval(LEADING);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first look at each comes with its first event, where we lead from the beginning.
    let (mut led, mut round) = (verbs.replicas.get().is_none(), Round::default());
    loop {
        tokio::select! {
            next = databases.next() => {
                let Some(seen) = next else { return };
                changed(&verbs, &looks, &mut looked, seen);
            }
            _ = tick.tick() => {
                let leads = verbs.leads();
                if leads && !led {
                    // What changed while nobody led.
                    let all = verbs.records.databases(None);
                    all.iter().filter(|one| is_unseen(one)).filter_map(|one| database_name(one)).for_each(|name| looks.take(name));
                }
                led = leads;
                if leads {
                    round.due(|| verbs.records.databases(None)).for_each(|name| looks.take(name));
                }
            }
        }
    }
}

/// All Databases by turns, each once in [`EVERY`], or seldomer if there are many; a few at a time.
#[derive(Debug, Default)]
struct Round {
    left: VecDeque<Name>,
    /// How often it is asked until it is over.
    ticks: usize,
}

impl Round {
    /// What is to be looked at now; called each [`LEADING`].
    fn due(&mut self, all: impl FnOnce() -> Vec<Arc<Database>>) -> impl Iterator<Item = Name> {
        if self.ticks == 0 {
            self.left = all().iter().filter_map(|one| database_name(one)).collect();
            let count = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
            let ticks = EVERY.max(SHARE.saturating_mul(count)).as_millis() / LEADING.as_millis();
            self.ticks = usize::try_from(ticks).unwrap_or(usize::MAX).max(1);
        }
        let now = self.left.len().div_ceil(self.ticks);
        self.ticks -= 1;
        self.left.drain(..now)
    }
}

/// What it says of itself is of an older spec, or of none.
fn is_unseen(database: &Database) -> bool {
    database.status.as_ref().and_then(|status| status.observed_generation) != database.metadata.generation
}

fn changed(verbs: &Verbs, looks: &Turns<Name>, looked: &mut HashMap<String, i64>, seen: Seen<Arc<Database>>) {
    let (database, gone) = match &seen {
        Seen::There(database) => (database, false),
        Seen::Gone(database) => (database, true),
    };
    let uid = database.metadata.uid.clone().unwrap_or_default();
    if gone {
        looked.remove(&uid);
        end(verbs, database, "its Database was deleted");
        return;
    }
    if database.spec.paused {
        end(verbs, database, "its Database is paused");
    }
    let generation = database.metadata.generation.unwrap_or_default();
    // Whoever leads later looks at all of them.
    if !verbs.leads() {
        return;
    }
    if looked.insert(uid, generation) != Some(generation)
        && let Some(name) = database_name(database)
    {
        looks.take(name);
    }
}

/// As a task: others do not wait until its server has let go.
fn end(verbs: &Verbs, database: &Database, why: &'static str) {
    let Some((namespace, name)) = database_name(database) else { return };
    if verbs.freezer.view(&namespace, &name).is_some() {
        let freezer = verbs.freezer.clone();
        verbs.tasks.spawn(async move { freezer.end(&namespace, &name, Ending::Withdrawn { why }).await });
    }
}

async fn look_at(verbs: Verbs, namespace: String, name: String) {
    // Whoever leads by now looks at all of them; while it is held, the freeze itself is the better witness.
    if !verbs.leads() || verbs.freezer.view(&namespace, &name).is_some() {
        return;
    }
    let (database, look) = match verbs.directory.ingredients(&namespace, &name, None).await {
        Ok(ingredients) => {
            let look = look(&verbs, &ingredients).await;
            (ingredients.database, look)
        }
        Err(error) => {
            let Ok(database) = verbs.records.database(&namespace, &name).await else { return };
            (Arc::unwrap_or_clone(database), without_secrets(&error.message))
        }
    };
    let old = database.status.clone().unwrap_or_default();
    let was_ready = is_ready(&old);
    let status = judge(&database, old, &look, Timestamp::now());
    if !was_ready && is_ready(&status) {
        // Who waits for that, and takes a snapshot then, means it to be held for.
        verbs.shown.wait_for(&namespace, SHOWN).await;
        let now = verbs.records.database(&namespace, &name).await;
        let same = now.is_ok_and(|now| {
            now.metadata.uid == database.metadata.uid && now.metadata.generation == database.metadata.generation
        });
        // Another one is looked at for itself.
        if !verbs.leads() || !same {
            return;
        }
    }
    if database.status.as_ref() != Some(&status) {
        // A freeze that ended meanwhile has written how: that part is not ours.
        let change = |now: DatabaseStatus| Some(DatabaseStatus { last_freeze: now.last_freeze, ..status.clone() });
        if let Err(error) = verbs.records.change_database(&namespace, &name, &change).await {
            tracing::debug!(%namespace, %name, message = %error.message, "a look at a Database was not written");
        }
    }
}

/// Its Secrets cannot be read: then nobody knows more of it, and that is what it says.
fn without_secrets(why: &str) -> Look {
    let check = Check::fail("resolved", reasons::CREDENTIALS_MISSING, why, "it is looked at again by itself");
    Look { members: Vec::new(), checks: vec![check], levels: Vec::new() }
}

async fn look(verbs: &Verbs, ingredients: &Ingredients) -> Look {
    let database = &ingredients.database;
    let wanted =
        Wanted { level: database.spec.freeze.level, copy: Copy::Atomic, freeze_uid: "preflight", member: None };
    let target = match targets::target(&verbs.directory.drivers, ingredients, wanted) {
        Ok(target) => target,
        Err(error) => {
            let mut members = Vec::new();
            others(verbs, database, &mut members).await;
            return Look { members, checks: vec![error.check()], levels: Vec::new() };
        }
    };
    let deadline = Instant::now() + LOOK;
    let Preflight { checks, server } = target.driver.preflight(&target.member, &target.plan, deadline).await;
    let mut levels = Vec::new();
    for level in Level::ALL {
        for copy in [Copy::Atomic, Copy::Files] {
            if let Err(error) = target.driver.supports(*level, copy) {
                levels.push(unreachable(*level, copy, &error.to_string()));
            } else if *level == target.plan.level && copy == Copy::Atomic {
                let failed = checks.iter().find(|check| check.result == CheckResult::Fail);
                levels.push(match failed {
                    None => LevelReach { level: *level, copy, reachable: true, message: None },
                    Some(check) => unreachable(*level, copy, &said(check)),
                });
            }
        }
    }
    let mut members: Vec<MemberStatus> = server.iter().map(|server| member(server, &target.name, target.via)).collect();
    others(verbs, database, &mut members).await;
    Look { members, checks, levels }
}

/// Adds the members that would not be frozen, where agents say what they are, and what volumes each has.
async fn others(verbs: &Verbs, database: &Database, members: &mut Vec<MemberStatus>) {
    let Some((namespace, _)) = database_name(database) else { return };
    let directory = &verbs.directory;
    for asked in directory.members(&namespace, database).await {
        let pod = &asked.agent.pod;
        if let Ok(server) = &asked.server
            && !members.iter().any(|member| member.name == *pod)
        {
            members.push(member(server, pod, Via::Agent));
        }
    }
    for member in members.iter_mut().filter(|member| member.via == Via::Agent) {
        member.volumes = directory.volumes(&namespace, &member.name);
    }
}

/// The status that follows from a look; pure.
fn judge(database: &Database, old: DatabaseStatus, look: &Look, now: Timestamp) -> DatabaseStatus {
    let failed: Vec<&Check> = look.checks.iter().filter(|check| check.result == CheckResult::Fail).collect();
    let unreachable = failed.iter().find(|check| matches!(check.name.as_str(), "reachable" | "resolved" | "pooler"));
    let unprivileged = failed.iter().find(|check| check.name.starts_with("privilege"));
    let mut status = DatabaseStatus {
        observed_generation: database.metadata.generation,
        levels: look.levels.clone(),
        members: look.members.clone(),
        ..old
    };
    let generation = database.metadata.generation;
    let mut set = |type_: &str, failed: Option<&&Check>, good: &str| {
        let (reason, message) = match failed {
            None => (reasons::OK.to_owned(), good.to_owned()),
            Some(check) => (check.reason.clone().unwrap_or_else(|| reasons::SERVER_ERROR.to_owned()), said(check)),
        };
        conditions::set_condition(&mut status.conditions, type_, failed.is_none(), &reason, &message, generation, now);
    };
    set(types::REACHABLE, unreachable, "the server answers and lets the account in");
    set(types::PRIVILEGED, unreachable.or(unprivileged), "the account may do what the level needs");
    set(types::READY, failed.first(), "a freeze at its level would be tried");
    status
}

fn is_ready(status: &DatabaseStatus) -> bool {
    conditions::is_true(&status.conditions, types::READY)
}

fn member(server: &ServerInfo, name: &str, via: Via) -> MemberStatus {
    MemberStatus {
        name: name.to_owned(),
        via,
        role: server.role,
        version: server.version.clone(),
        id: server.incarnation.server.clone(),
        started_at: server.started_at.map(Time),
        volumes: Vec::new(),
    }
}

fn unreachable(level: Level, copy: Copy, why: &str) -> LevelReach {
    LevelReach { level, copy, reachable: false, message: Some(why.to_owned()) }
}

fn said(check: &Check) -> String {
    match &check.fix {
        Some(fix) => format!("{}; {fix}", check.message),
        None => check.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_round_sees_each_once_in_a_minute_and_of_very_many_no_more_than_twenty_a_second() {
        for (count, ticks) in [(0_usize, 240), (1, 240), (300, 240), (10_000, 2_000)] {
            let database = |at| -> Database {
                serde_json::from_value(json!({
                    "apiVersion": api::API_VERSION, "kind": "Database",
                    "metadata": {"name": format!("d{at}"), "namespace": "shop"},
                    "spec": {"engine": "PostgreSQL", "endpoint": {"host": "db"}},
                }))
                .unwrap()
            };
            let all: Vec<_> = (0..count).map(|at| Arc::new(database(at))).collect();
            let mut round = Round::default();
            for _ in 0..2 {
                let seen: Vec<Vec<Name>> = (0..ticks).map(|_| round.due(|| all.clone()).collect()).collect();
                assert!(seen.iter().all(|tick| tick.len() <= count.div_ceil(ticks)), "evenly");
                let once: HashSet<Name> = seen.concat().into_iter().collect();
                assert_eq!((once.len(), seen.concat().len()), (count, count), "each once");
            }
        }
    }
}
