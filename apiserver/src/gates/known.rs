//! Contents of snapshots on their way to their cut, and for a while after it. Pure; fed by what a watch says.

use std::collections::{HashMap, HashSet};

use api::gate::Group;
use jiff::Timestamp;
use kube::{api::DynamicObject, runtime::watcher::Event};
use tokio::time::{Duration, Instant};

use super::contents::{Content, Fate, Member};

/// What this replica has seen of contents.
#[derive(Debug, Default)]
pub(super) struct Known {
    contents: HashMap<String, Seen>,
    /// Of groups, those that do not say yet what they are worth.
    members: HashMap<String, Member>,
    /// What a list that is being read has shown so far.
    listed: HashMap<Group, HashSet<String>>,
    /// Snapshots whose driver was called for a content that is gone: by its name for CSI it may answer with what it cut then.
    called: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Seen {
    content: Content,
    first_at: Timestamp,
    called: Called,
    /// The snapshotter has said that it is about to cut.
    marked: bool,
    cut_at: Option<Instant>,
    /// Nobody has anything to say of it.
    settled: bool,
}

/// Since when the driver may have been called for a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// Every change since the content was made was seen, and it was not called before this.
    NotBefore(Timestamp),
    /// Not every change was seen.
    Unsure,
}

/// What is new.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) content: Option<Content>,
    /// It is gone.
    pub(super) gone: bool,
    /// Whether its driver says when it is about to cut, if that follows: nobody can be asked in time by one that does not.
    pub(super) marks: Option<bool>,
}

/// So long after its cut a content is of interest to nobody who holds.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// Its members may be made late.
const GROUP_KEPT: Duration = Duration::from_secs(24 * 3600);

impl Seen {
    /// The snapshot that its driver may have been called for.
    fn was_called(&self) -> Option<&String> {
        let cut = matches!(self.content.fate, Fate::Cut { .. });
        self.content.snapshot.uid.as_ref().filter(|_| self.marked || cut || self.called == Called::Unsure)
    }
}

impl Known {
    pub(super) fn take(&mut self, group: Group, event: Event<DynamicObject>, now: Timestamp) -> News {
        let (object, whole) = match event {
            Event::Init => {
                self.listed.insert(group, HashSet::new());
                return News::default();
            }
            Event::InitDone => {
                let listed = self.listed.remove(&group).unwrap_or_default();
                let gone = |content: &Content| content.group == group && !listed.contains(&content.uid);
                for (_, seen) in self.contents.extract_if(|_, seen| gone(&seen.content)) {
                    self.called.extend(seen.was_called().map(|snapshot| (snapshot.clone(), Instant::now())));
                }
                if group == Group::Single {
                    self.members.retain(|uid, _| listed.contains(uid));
                }
                return News::default();
            }
            Event::InitApply(object) => {
                let uid = object.metadata.uid.clone().unwrap_or_default();
                self.listed.entry(group).or_default().insert(uid);
                (object, false)
            }
            Event::Apply(object) => (object, true),
            Event::Delete(object) => return self.remove(&object.metadata.uid.unwrap_or_default()),
        };
        if let Some(member) = Member::read(&object) {
            if member.is_judged {
                self.members.remove(&member.uid);
            } else {
                self.members.insert(member.uid.clone(), member);
            }
            return News::default();
        }
        let Some(content) = Content::read(&object, group) else { return News::default() };
        self.put(content, whole, now)
    }

    fn remove(&mut self, uid: &str) -> News {
        self.members.remove(uid);
        let gone = self.contents.remove(uid);
        let called = gone.as_ref().and_then(Seen::was_called);
        self.called.extend(called.map(|snapshot| (snapshot.clone(), Instant::now())));
        News { content: gone.map(|seen| seen.content), gone: true, marks: None }
    }

    /// `whole`: nothing that came between this and what is known was missed.
    fn put(&mut self, mut content: Content, whole: bool, now: Timestamp) -> News {
        let before = self.contents.remove(&content.uid);
        // The mark goes with the driver's answer, before or after its handle is there; and comes again while it uploads.
        let said = before.as_ref().and_then(|before| before.content.claim.clone());
        let is_known = matches!(content.fate, Fate::Cut { .. }) && said.is_some();
        content.claim = if is_known { said } else { content.claim.or(said) };
        let is_cut = matches!(content.fate, Fate::Cut { .. });
        let is_marked = content.fate == Fate::Calling;
        let was = before.as_ref().map(|before| (before.called, before.marked));
        let elsewhere = content.snapshot.uid.as_ref().is_some_and(|uid| self.called.contains_key(uid));
        let called = match was {
            // What was called when is known, whatever was missed since.
            Some((called, true)) => called,
            Some((Called::NotBefore(_), false)) if whole && !is_cut => Called::NotBefore(now),
            Some((called, false)) if whole => called,
            None if whole && content.fate == Fate::Before && !elsewhere => Called::NotBefore(now),
            _ => Called::Unsure,
        };
        let marked = is_marked || was.is_some_and(|(_, marked)| marked);
        let was_cut = before.as_ref().is_some_and(|before| before.cut_at.is_some());
        let unmarked = is_cut && !was_cut && !marked && called != Called::Unsure;
        let marks = if is_marked { Some(true) } else { unmarked.then_some(false) };
        let cut_at = before.as_ref().and_then(|before| before.cut_at).or(is_cut.then(Instant::now));
        let settled = before.as_ref().is_some_and(|before| before.settled);
        let first_at = before.map_or(now, |before| before.first_at);
        let seen = Seen { content: content.clone(), first_at, called, marked, cut_at, settled };
        self.contents.insert(content.uid.clone(), seen);
        News { content: Some(content), gone: false, marks }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Content> {
        self.contents.get(uid).map(|seen| &seen.content)
    }

    pub(super) fn called(&self, uid: &str) -> Called {
        match self.contents.get(uid) {
            // Nothing tells when such a driver is called.
            Some(Seen { called: Called::NotBefore(_), marked: false, first_at, .. }) => Called::NotBefore(*first_at),
            Some(seen) => seen.called,
            None => Called::Unsure,
        }
    }

    /// Whether its snapshotter has said that it is about to cut.
    pub(super) fn is_marked(&self, uid: &str) -> bool {
        self.contents.get(uid).is_some_and(|seen| seen.marked)
    }

    /// Nobody has anything to say of it.
    pub(super) fn settle(&mut self, uid: &str) {
        if let Some(seen) = self.contents.get_mut(uid) {
            seen.settled = true;
        }
    }

    /// Those that were cut, and do not say what they are worth.
    pub(super) fn unjudged(&self) -> impl Iterator<Item = &Content> {
        let contents = self.contents.values().filter(|seen| !seen.settled).map(|seen| &seen.content);
        contents.filter(|content| matches!(content.fate, Fate::Cut { .. }) && !content.is_judged)
    }

    /// Members that say nothing yet, each with its group that does.
    pub(super) fn members_of_judged(&self) -> Vec<(Member, Content)> {
        if self.members.is_empty() {
            return Vec::new();
        }
        let groups = self.contents.values().map(|seen| &seen.content).filter(|content| content.is_judged);
        let key = |content: &Content| Some((content.driver.clone(), content.cut_group.as_ref()?.handle.clone()));
        let groups: HashMap<_, _> = groups.filter_map(|content| Some((key(content)?, content))).collect();
        let of = |member: &Member| {
            let group = groups.get(&(member.driver.clone(), member.handle.clone()))?;
            Some((member.clone(), (*group).clone()))
        };
        self.members.values().filter_map(of).collect()
    }

    /// Forgets those of a long time ago.
    pub(super) fn forget(&mut self, now: Instant) {
        self.contents.retain(|_, seen| {
            let kept = if seen.content.group == Group::Group { GROUP_KEPT } else { KEPT };
            seen.cut_at.is_none_or(|cut| now.duration_since(cut) <= kept)
        });
        self.called.retain(|_, at| now.duration_since(*at) <= GROUP_KEPT);
    }
}

#[cfg(test)]
mod tests {
    use api::gate::{BEING_CREATED, CONSISTENCY, GROUP_MEMBER};
    use serde_json::{Value, json};

    use super::*;

    fn content(annotations: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "c", "uid": "u", "annotations": annotations},
            "spec": {
                "driver": "d", "source": {"volumeHandle": "h"},
                "volumeSnapshotRef": {"namespace": "shop", "name": "noon", "uid": "of"},
            },
            "status": status,
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn plain() -> DynamicObject {
        content(json!({}), json!(null))
    }

    fn marked() -> DynamicObject {
        content(json!({BEING_CREATED: "yes"}), json!(null))
    }

    fn cut() -> DynamicObject {
        content(json!({}), json!({"snapshotHandle": "s"}))
    }

    #[test]
    fn a_driver_is_known_as_unmarked_only_if_all_was_seen_and_no_mark_was() {
        for (events, marks) in [
            (vec![Event::Apply(plain()), Event::Apply(cut())], Some(false)),
            (vec![Event::Apply(plain()), Event::Apply(marked()), Event::Apply(cut())], Some(true)),
            (vec![Event::Apply(plain()), Event::Apply(marked()), Event::InitApply(cut())], Some(true)),
            (vec![Event::InitApply(plain()), Event::Apply(cut())], None),
            (vec![Event::Apply(plain()), Event::InitApply(cut())], None),
            (vec![Event::Apply(cut())], None),
        ] {
            let mut known = Known::default();
            let told: Vec<_> = events.into_iter().map(|event| known.take(Group::Single, event, at(0))).collect();
            assert_eq!(told.iter().find_map(|news| news.marks), marks, "{told:?}");
        }
    }

    #[test]
    fn what_a_mark_has_said_is_known_when_it_is_gone_and_another_says_something_else() {
        let marked = |says: &str| content(json!({BEING_CREATED: says}), json!(null));
        for (events, claim) in [
            (vec![plain(), cut()], None),
            (vec![plain(), marked("a"), cut()], Some("a")),
            (vec![plain(), marked("a"), plain(), marked("b"), plain(), cut()], Some("b")),
            // Nobody has answered to the second.
            (vec![plain(), marked("a"), plain(), marked("yes"), cut()], Some("yes")),
            // It uploads, and is asked how far it is.
            (
                vec![plain(), marked("a"), content(json!({BEING_CREATED: "yes"}), json!({"snapshotHandle": "s"}))],
                Some("a"),
            ),
        ] {
            let mut known = Known::default();
            for event in events.clone() {
                known.take(Group::Single, Event::Apply(event), at(0));
            }
            assert_eq!(known.get("u").unwrap().claim.as_deref(), claim, "{events:?}");
        }
    }

    #[test]
    fn since_when_a_driver_may_have_been_called_is_known_only_to_who_saw_all_of_it() {
        let [apply, init]: [fn(_) -> _; 2] = [Event::Apply, Event::InitApply];
        for (events, called) in [
            (vec![apply(plain()), apply(marked()), apply(cut())], Called::NotBefore(at(1))),
            // It failed for good and is called again: the first call counts.
            (
                vec![apply(plain()), apply(marked()), apply(plain()), apply(marked()), apply(cut())],
                Called::NotBefore(at(1)),
            ),
            // It waited for long.
            (
                vec![apply(plain()), apply(plain()), apply(plain()), apply(marked()), apply(cut())],
                Called::NotBefore(at(3)),
            ),
            // A snapshotter without marks calls at any time after the content is made.
            (vec![apply(plain()), apply(plain()), apply(cut())], Called::NotBefore(at(0))),
            (vec![init(plain()), apply(marked()), apply(cut())], Called::Unsure),
            (vec![apply(plain()), init(plain()), apply(marked())], Called::Unsure),
            (vec![apply(plain()), apply(marked()), init(cut())], Called::NotBefore(at(1))),
            (vec![apply(marked()), apply(cut())], Called::Unsure),
            // Made again for the same snapshot.
            (
                vec![apply(plain()), apply(marked()), Event::Delete(marked()), apply(plain()), apply(marked())],
                Called::Unsure,
            ),
            (vec![apply(plain()), Event::Delete(plain()), apply(plain()), apply(marked())], Called::NotBefore(at(3))),
            // That it was gone only a new list has shown.
            (
                vec![apply(plain()), apply(marked()), Event::Init, Event::InitDone, apply(plain()), apply(marked())],
                Called::Unsure,
            ),
            (
                vec![apply(plain()), Event::Init, Event::InitDone, apply(plain()), apply(marked())],
                Called::NotBefore(at(4)),
            ),
        ] {
            let mut known = Known::default();
            for (second, event) in (0..).zip(events.clone()) {
                known.take(Group::Single, event, at(second));
            }
            assert_eq!(known.called("u"), called, "{events:?}");
        }
        assert_eq!(Known::default().called("u"), Called::Unsure);
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone() {
        let mut known = Known::default();
        known.take(Group::Single, Event::Apply(marked()), at(0));
        for event in [Event::Init, Event::InitApply(marked()), Event::InitDone] {
            known.take(Group::Single, event, at(0));
        }
        assert!(known.get("u").is_some());
        known.take(Group::Group, Event::Init, at(0));
        known.take(Group::Group, Event::InitDone, at(0));
        assert!(known.get("u").is_some(), "it is of another kind");
        known.take(Group::Single, Event::Init, at(0));
        known.take(Group::Single, Event::InitDone, at(0));
        assert!(known.get("u").is_none());
    }

    #[test]
    fn what_nobody_has_anything_to_say_of_is_not_looked_at_again() {
        let mut known = Known::default();
        known.take(Group::Single, Event::Apply(cut()), at(0));
        assert_eq!(known.unjudged().count(), 1);
        known.settle("u");
        known.take(Group::Single, Event::Apply(cut()), at(0));
        assert_eq!(known.unjudged().count(), 0);
    }

    #[test]
    fn what_was_cut_long_ago_is_forgotten_and_what_waits_is_not() {
        let mut known = Known::default();
        let now = Instant::now();
        known.take(Group::Single, Event::Apply(content(json!({}), json!(null))), at(0));
        known.forget(now + KEPT * 2);
        assert!(known.get("u").is_some());
        known.take(Group::Single, Event::Apply(content(json!({}), json!({"snapshotHandle": "s"}))), at(0));
        known.forget(now + KEPT);
        assert_eq!(known.unjudged().count(), 1);
        known.forget(now + KEPT * 2);
        assert!(known.get("u").is_none());
    }

    #[test]
    fn a_member_waits_for_what_its_group_says() {
        let mut known = Known::default();
        let group = |labels: Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotContent",
                "metadata": {"name": "g", "uid": "g", "labels": labels},
                "spec": {
                    "driver": "d", "source": {"volumeHandles": ["h"]},
                    "volumeGroupSnapshotRef": {"namespace": "shop", "name": "noon"},
                },
                "status": {"volumeGroupSnapshotHandle": "s"},
            }))
            .unwrap()
        };
        known.take(Group::Single, Event::Apply(content(json!({GROUP_MEMBER: "s"}), json!(null))), at(0));
        known.take(Group::Group, Event::Apply(group(json!({}))), at(0));
        assert_eq!(known.members_of_judged(), []);
        known.take(Group::Group, Event::Apply(group(json!({CONSISTENCY: "application"}))), at(0));
        let told = known.members_of_judged();
        assert_eq!((told.len(), told[0].0.uid.as_str(), told[0].1.uid.as_str()), (1, "u", "g"));
        assert_eq!(known.unjudged().count(), 0);
    }
}
