//! Who wants a freeze held, and until when. Pure: time is an argument, and nothing here talks to anyone.

use std::time::Duration;

use api::{Claim, ClaimKind, Copy, Level};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{driver::Moment, lease};

/// One party, before it is granted anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub kind: ClaimKind,
    pub name: String,
    /// What the claim is known by.
    pub uid: String,
    /// Whether its owner chose the uid: then it stands for one freeze, and is finished for good with it. Otherwise it
    /// stands for whoever asks, again and again.
    pub chosen: bool,
    pub user: String,
}

/// What a claim asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) level: Level,
    pub(crate) copy: Copy,
    pub(crate) ttl: Duration,
}

/// Why a claim cannot join what is held already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotJoin {
    #[error("it is held at {held}, and {wanted} was asked for")]
    Level { held: Level, wanted: Level },
    #[error("it is held for copy: {held}, and copy: {wanted} was asked for")]
    Copy { held: Copy, wanted: Copy },
    /// A file copy has one data phase, and its owner ends it.
    #[error("a Files copy is under way, and its data phase belongs to one claim")]
    FilesUnderWay,
    #[error("{} s were asked for, and only {} s are left of the longest it may last", wanted.as_secs(), left.as_secs())]
    Time { wanted: Duration, left: Duration },
    /// Of several members one is held at a time.
    #[error("its member {held} is held, and {wanted} was asked for")]
    Member { held: String, wanted: String },
    /// The held group does not cover all that was asked for.
    #[error("{database} is held by another freeze, or by none")]
    Cover { database: String },
}

/// The claims of one freeze, ended ones included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    claimant: Claimant,
    ttl: Duration,
    /// When it was made.
    since: Moment,
    /// Set once it holds.
    granted: Option<Grant>,
    /// Somebody was told so.
    heard: bool,
    ended_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    frozen_at: Timestamp,
    until: Instant,
}

/// Whether `wish` may join what is held, with `left` until the hard end.
pub(crate) fn may_join(held: (Level, Copy), wish: Wish, left: Duration) -> Result<(), CannotJoin> {
    let (level, copy) = held;
    if copy != wish.copy {
        return Err(CannotJoin::Copy { held: copy, wanted: wish.copy });
    }
    if copy == Copy::Files {
        return Err(CannotJoin::FilesUnderWay);
    }
    if wish.level > level {
        return Err(CannotJoin::Level { held: level, wanted: wish.level });
    }
    if wish.ttl > left {
        return Err(CannotJoin::Time { wanted: wish.ttl, left });
    }
    Ok(())
}

impl Claims {
    /// Adds a claim, or finds the one of the same uid that is still alive. `true` when it is new.
    pub(crate) fn add(&mut self, claimant: Claimant, ttl: Duration, now: Moment) -> bool {
        if self.alive().any(|entry| entry.claimant.uid == claimant.uid) {
            return false;
        }
        self.0.push(Entry { claimant, ttl, since: now, granted: None, heard: false, ended_at: None });
        true
    }

    /// Grants every waiting claim that was made no later than its still point.
    pub(crate) fn grant(&mut self, frozen_at: Moment, now: Instant, hard_end: Instant) {
        for entry in &mut self.0 {
            if entry.granted.is_none() && entry.since.instant <= frozen_at.instant {
                entry.granted = Some(Grant { frozen_at: frozen_at.at, until: lease::until(now, entry.ttl, hard_end) });
            }
        }
    }

    /// The longest that a live claim asked for.
    pub(crate) fn longest_ttl(&self) -> Option<Duration> {
        self.alive().map(|entry| entry.ttl).max()
    }

    /// Whether some live claim still waits for a still point of its own.
    pub(crate) fn any_waiting(&self) -> bool {
        self.alive().any(|entry| entry.granted.is_none())
    }

    /// Ends a claim. `false` when no live claim has this uid.
    pub(crate) fn end(&mut self, uid: &str, now: Timestamp) -> bool {
        let entry = self.0.iter_mut().find(|entry| entry.ended_at.is_none() && entry.claimant.uid == uid);
        entry.is_some_and(|entry| {
            entry.ended_at = Some(now);
            true
        })
    }

    /// Ends every claim that is alive: the freeze is over.
    pub(crate) fn end_all(&mut self, now: Timestamp) {
        for entry in self.0.iter_mut().filter(|entry| entry.ended_at.is_none()) {
            entry.ended_at = Some(now);
        }
    }

    /// Drops claims that have lapsed.
    pub(crate) fn lapse(&mut self, now: Instant, at: Timestamp) {
        for entry in &mut self.0 {
            if entry.ended_at.is_none() && entry.granted.is_some_and(|grant| grant.until <= now) {
                entry.ended_at = Some(at);
            }
        }
    }

    /// Moves the end of a claim. `None` when no live, granted claim has this uid.
    pub(crate) fn renew(
        &mut self,
        uid: &str,
        ttl: Option<Duration>,
        now: Instant,
        hard_end: Instant,
    ) -> Option<Instant> {
        let entry = self.0.iter_mut().find(|entry| entry.ended_at.is_none() && entry.claimant.uid == uid)?;
        let grant = entry.granted.as_mut()?;
        grant.until = grant.until.max(lease::until(now, ttl.unwrap_or(entry.ttl), hard_end));
        Some(grant.until)
    }

    /// When the last live claim lapses.
    pub(crate) fn end_of_lease(&self) -> Option<Instant> {
        self.alive().filter_map(|entry| entry.granted).map(|grant| grant.until).max()
    }

    /// When the next live claim lapses.
    pub(crate) fn next_lapse(&self) -> Option<Instant> {
        self.alive().filter_map(|entry| entry.granted).map(|grant| grant.until).min()
    }

    pub(crate) fn is_alive(&self, uid: &str) -> bool {
        self.alive().any(|entry| entry.claimant.uid == uid)
    }

    /// Whether a claim of this uid has been granted.
    pub(crate) fn is_granted(&self, uid: &str) -> bool {
        self.alive().any(|entry| entry.claimant.uid == uid && entry.granted.is_some())
    }

    /// Whether nobody but this one wants it held.
    pub(crate) fn is_only(&self, uid: &str) -> bool {
        !self.is_empty() && self.alive().all(|entry| entry.claimant.uid == uid)
    }

    /// Somebody was told that it holds: another who asked for the same, and is gone, does not end it.
    pub(crate) fn heard(&mut self, uid: &str) {
        let mut alive = self.0.iter_mut().filter(|entry| entry.ended_at.is_none());
        if let Some(entry) = alive.find(|entry| entry.claimant.uid == uid) {
            entry.heard = true;
        }
    }

    pub(crate) fn was_heard(&self, uid: &str) -> bool {
        self.alive().any(|entry| entry.claimant.uid == uid && entry.heard)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.alive().next().is_none()
    }

    /// All claims as the API shows them; `now` twice, for instants have no date.
    pub(crate) fn show(&self, now: Instant, at: Timestamp) -> Vec<Claim> {
        self.0.iter().map(|entry| entry.show(now, at)).collect()
    }

    fn alive(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(|entry| entry.ended_at.is_none())
    }
}

impl Entry {
    fn show(&self, now: Instant, at: Timestamp) -> Claim {
        let until = self.granted.map_or(at + self.ttl, |grant| date(grant.until, now, at));
        Claim {
            kind: self.claimant.kind,
            name: self.claimant.name.clone(),
            uid: self.claimant.uid.clone(),
            user: self.claimant.user.clone(),
            since: api::micro_time(self.since.at),
            frozen_at: self.granted.map(|grant| api::micro_time(grant.frozen_at)),
            until: api::micro_time(until),
            ended_at: self.ended_at.map(api::micro_time),
        }
    }
}

/// The date of `instant`, given that `now` is `at`.
pub(crate) fn date(instant: Instant, now: Instant, at: Timestamp) -> Timestamp {
    match instant.checked_duration_since(now) {
        Some(ahead) => at + ahead,
        None => at - now.duration_since(instant),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(uid: &str) -> Claimant {
        Claimant {
            kind: ClaimKind::User,
            name: uid.to_owned(),
            uid: uid.to_owned(),
            chosen: true,
            user: "dba".to_owned(),
        }
    }

    fn wish(level: Level, copy: Copy, seconds: u64) -> Wish {
        Wish { level, copy, ttl: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_lower_level_joins_and_a_higher_one_does_not() {
        let held = (Level::Durable, Copy::Atomic);
        let left = Duration::from_secs(30);
        assert_eq!(may_join(held, wish(Level::Recoverable, Copy::Atomic, 10), left), Ok(()));
        assert!(matches!(
            may_join(held, wish(Level::WriteBlocked, Copy::Atomic, 10), left),
            Err(CannotJoin::Level { .. })
        ));
        assert!(matches!(may_join(held, wish(Level::Durable, Copy::Files, 10), left), Err(CannotJoin::Copy { .. })));
        assert!(matches!(may_join(held, wish(Level::Durable, Copy::Atomic, 31), left), Err(CannotJoin::Time { .. })));
    }

    #[tokio::test]
    async fn a_late_claim_is_granted_only_by_a_still_point_of_its_own() {
        let (now, hard_end) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        // The wall's clock is set back meanwhile, which changes nothing.
        let second = |n: u32| Moment {
            at: Timestamp::from_second(10 - i64::from(n)).unwrap(),
            instant: now + Duration::from_secs(n.into()),
        };
        let mut claims = Claims::default();
        claims.add(claimant("early"), Duration::from_secs(10), second(1));
        claims.add(claimant("late"), Duration::from_secs(10), second(3));
        claims.grant(second(2), now, hard_end);
        assert!(claims.is_granted("early") && !claims.is_granted("late") && claims.any_waiting());
        claims.grant(second(4), now, hard_end);
        let shown = claims.show(now, second(4).at);
        assert_eq!(shown[0].frozen_at, Some(api::micro_time(second(2).at)));
        assert_eq!(shown[1].frozen_at, Some(api::micro_time(second(4).at)));
    }

    #[tokio::test]
    async fn the_same_uid_is_one_claim_until_it_ends() {
        let mut claims = Claims::default();
        let made = Moment::now();
        let at = made.at;
        assert!(claims.add(claimant("a"), Duration::from_secs(1), made));
        assert!(!claims.add(claimant("a"), Duration::from_secs(1), made));
        assert!(claims.end("a", at) && !claims.end("a", at) && claims.is_empty());
    }

    #[tokio::test]
    async fn renewing_never_shortens_and_never_passes_the_hard_end() {
        let now = Instant::now();
        let hard_end = now + Duration::from_secs(15);
        let mut claims = Claims::default();
        claims.add(claimant("a"), Duration::from_secs(10), Moment::now());
        claims.grant(Moment::now(), now, hard_end);
        assert_eq!(claims.renew("a", Some(Duration::from_secs(1)), now, hard_end), Some(now + Duration::from_secs(10)));
        assert_eq!(claims.renew("a", Some(Duration::from_secs(60)), now, hard_end), Some(hard_end));
        assert_eq!(claims.renew("b", None, now, hard_end), None);
    }
}
