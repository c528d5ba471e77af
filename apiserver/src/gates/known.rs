//! Contents of snapshots on their way to their cut, and for a while after it. Pure; fed by what a watch says.

use std::collections::HashMap;

use api::gate::Group;
use kube::{api::DynamicObject, runtime::watcher::Event};
use tokio::time::{Duration, Instant};

use super::contents::{Content, Fate, Member};

/// What this replica has seen of contents.
#[derive(Debug, Default)]
pub(super) struct Known {
    contents: HashMap<String, Seen>,
    /// Of groups, those that do not say yet what they are worth.
    members: HashMap<String, Member>,
}

#[derive(Debug)]
struct Seen {
    content: Content,
    mark: Mark,
    /// A call has ended without saying what it did.
    failed: bool,
    cut_at: Option<Instant>,
}

/// Whether the snapshotter says when it is about to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Every change since the content was made was seen, and none of them was its mark.
    Never,
    Seen,
    /// Not every change was seen.
    Unsure,
}

/// What is new.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) content: Option<Content>,
    /// A driver that was called without a mark before: nobody can be asked in time.
    pub(super) unmarked_driver: Option<String>,
}

/// So long after its cut a content is of interest to nobody who holds.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// Its members may be made late.
const GROUP_KEPT: Duration = Duration::from_secs(24 * 3600);

impl Known {
    pub(super) fn take(&mut self, group: Group, event: Event<DynamicObject>, now: Instant) -> News {
        let (object, whole) = match event {
            Event::Init | Event::InitDone => return News::default(),
            Event::InitApply(object) => (object, false),
            Event::Apply(object) => (object, true),
            Event::Delete(object) => {
                let uid = object.metadata.uid.unwrap_or_default();
                self.members.remove(&uid);
                let gone = self.contents.remove(&uid).map(|seen| seen.content);
                return News { content: gone, unmarked_driver: None };
            }
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

    /// `whole`: nothing that came between this and what is known was missed.
    fn put(&mut self, content: Content, whole: bool, now: Instant) -> News {
        let before = self.contents.remove(&content.uid);
        let was_cut = before.as_ref().is_some_and(|before| before.cut_at.is_some());
        let is_cut = matches!(content.fate, Fate::Cut { .. });
        let mark = match (&content.fate, before.as_ref().map(|before| before.mark)) {
            (Fate::Calling { .. }, _) => Mark::Seen,
            (_, Some(mark)) if whole || mark == Mark::Seen => mark,
            (Fate::Before, None) if whole => Mark::Never,
            _ => Mark::Unsure,
        };
        let failed =
            matches!(content.fate, Fate::Calling { failed: true }) || before.as_ref().is_some_and(|b| b.failed);
        let cut_at = before.and_then(|before| before.cut_at).or(is_cut.then_some(now));
        let unmarked_driver = (is_cut && !was_cut && mark == Mark::Never).then(|| content.driver.clone());
        let seen = Seen { content: content.clone(), mark, failed, cut_at };
        self.contents.insert(content.uid.clone(), seen);
        News { content: Some(content), unmarked_driver }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Content> {
        self.contents.get(uid).map(|seen| &seen.content)
    }

    /// Whether a call of this content's driver has ended without saying what it did.
    pub(super) fn has_failed(&self, uid: &str) -> bool {
        self.contents.get(uid).is_some_and(|seen| seen.failed)
    }

    /// Those that were cut, and do not say what they are worth.
    pub(super) fn unjudged(&self) -> impl Iterator<Item = &Content> {
        let contents = self.contents.values().map(|seen| &seen.content);
        contents.filter(|content| matches!(content.fate, Fate::Cut { .. }) && !content.is_judged)
    }

    /// Members that say nothing yet, each with its group that does.
    pub(super) fn members_of_judged(&self) -> Vec<(Member, Content)> {
        let groups = self.contents.values().map(|seen| &seen.content).filter(|content| content.is_judged);
        let groups: HashMap<&str, &Content> =
            groups.filter_map(|content| Some((content.cut_group.as_ref()?.handle.as_str(), content))).collect();
        let of = |member: &Member| Some((member.clone(), (*groups.get(member.handle.as_str())?).clone()));
        self.members.values().filter_map(of).collect()
    }

    /// Forgets those of a long time ago.
    pub(super) fn forget(&mut self, now: Instant) {
        self.contents.retain(|_, seen| {
            let kept = if seen.content.group == Group::Group { GROUP_KEPT } else { KEPT };
            seen.cut_at.is_none_or(|cut| now.duration_since(cut) <= kept)
        });
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
                "volumeSnapshotRef": {"namespace": "shop", "name": "noon"},
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_driver_is_known_as_unmarked_only_if_all_was_seen_and_no_mark_was() {
        let (plain, marked) =
            (|| content(json!({}), json!(null)), || content(json!({BEING_CREATED: "yes"}), json!(null)));
        let cut = || content(json!({}), json!({"snapshotHandle": "s"}));
        for (events, unmarked) in [
            (vec![Event::Apply(plain()), Event::Apply(cut())], true),
            (vec![Event::Apply(plain()), Event::Apply(marked()), Event::Apply(cut())], false),
            (vec![Event::Apply(plain()), Event::Apply(marked()), Event::InitApply(cut())], false),
            (vec![Event::InitApply(plain()), Event::Apply(cut())], false),
            (vec![Event::Apply(plain()), Event::InitApply(cut())], false),
            (vec![Event::Apply(cut())], false),
        ] {
            let mut known = Known::default();
            let now = Instant::now();
            let told: Vec<_> = events.into_iter().map(|event| known.take(Group::Single, event, now)).collect();
            let said = told.iter().any(|news| news.unmarked_driver.as_deref() == Some("d"));
            assert_eq!(said, unmarked, "{told:?}");
        }
    }

    #[test]
    fn a_call_that_failed_is_remembered_until_the_content_is_gone() {
        let mut known = Known::default();
        let now = Instant::now();
        let error = json!({"error": {"message": "no"}});
        known.take(Group::Single, Event::Apply(content(json!({BEING_CREATED: "yes"}), error)), now);
        known.take(Group::Single, Event::Apply(content(json!({}), json!({"snapshotHandle": "s"}))), now);
        assert!(known.has_failed("u"));
        known.take(Group::Single, Event::Delete(content(json!({}), json!(null))), now);
        assert!(!known.has_failed("u") && known.get("u").is_none());
    }

    #[test]
    fn what_was_cut_long_ago_is_forgotten_and_what_waits_is_not() {
        let mut known = Known::default();
        let now = Instant::now();
        known.take(Group::Single, Event::Apply(content(json!({}), json!(null))), now);
        known.forget(now + KEPT * 2);
        assert!(known.get("u").is_some());
        known.take(Group::Single, Event::Apply(content(json!({}), json!({"snapshotHandle": "s"}))), now);
        known.forget(now + KEPT);
        assert_eq!(known.unjudged().count(), 1);
        known.forget(now + KEPT * 2);
        assert!(known.get("u").is_none());
    }

    #[test]
    fn a_member_waits_for_what_its_group_says() {
        let mut known = Known::default();
        let now = Instant::now();
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
        known.take(Group::Single, Event::Apply(content(json!({GROUP_MEMBER: "s"}), json!(null))), now);
        known.take(Group::Group, Event::Apply(group(json!({}))), now);
        assert_eq!(known.members_of_judged(), []);
        known.take(Group::Group, Event::Apply(group(json!({CONSISTENCY: "application"}))), now);
        let told = known.members_of_judged();
        assert_eq!((told.len(), told[0].0.uid.as_str(), told[0].1.uid.as_str()), (1, "u", "g"));
        assert_eq!(known.unjudged().count(), 0);
    }
}
