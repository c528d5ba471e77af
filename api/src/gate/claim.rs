//! The uids of claims by which Databases are held for a cut: `VolumeSnapshotContent/UID`, and `…/1`, `…/2` for those that came after one
//! that had ended.

use super::Group;

/// The uid of the claim by which a content holds its Databases, the `again`-th time: one that has ended stays ended.
pub fn uid(group: Group, content: &str, again: u32) -> String {
    let kind = match group {
        Group::Single => SINGLE,
        Group::Group => GROUP,
    };
    if again == 0 { format!("{kind}/{content}") } else { format!("{kind}/{content}/{again}") }
}

/// Which of the claims of this content a uid is.
pub fn number_of(claim: &str, group: Group, content: &str) -> Option<u32> {
    let number = claim.strip_prefix(&uid(group, content, 0))?;
    if number.is_empty() { Some(0) } else { number.strip_prefix('/')?.parse().ok() }
}

/// The content of such a uid.
pub fn content_of(claim: &str) -> Option<(Group, &str)> {
    let (kind, rest) = claim.split_once('/')?;
    let content = rest.split('/').next()?;
    match kind {
        SINGLE => Some((Group::Single, content)),
        GROUP => Some((Group::Group, content)),
        _ => None,
    }
}

const SINGLE: &str = "VolumeSnapshotContent";
const GROUP: &str = "VolumeGroupSnapshotContent";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claims_uid_names_its_content_however_often_it_is_tried() {
        for again in 0..3 {
            let claim = uid(Group::Single, "u-1", again);
            assert_eq!(content_of(&claim), Some((Group::Single, "u-1")), "{claim}");
            assert_eq!(number_of(&claim, Group::Single, "u-1"), Some(again), "{claim}");
            assert_eq!((number_of(&claim, Group::Group, "u-1"), number_of(&claim, Group::Single, "u")), (None, None));
        }
        assert_eq!(content_of("nightly"), None);
        assert_eq!(content_of("Pod/u-1"), None);
    }
}
