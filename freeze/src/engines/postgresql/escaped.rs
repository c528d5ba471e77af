//! Commits that a write block did not stop: told by transaction ids that the snapshot of the still point could not see.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    connect::{Link, literal, text},
    markers::Present,
};
use crate::error::Error;

/// What the search came to.
pub(super) enum Escaped {
    Counted(u64),
    CannotSay,
}

/// More transaction ids than this used up under a write block: the proof would cost more than it is worth.
const MOST_IDS: u32 = 100_000;
/// How long a marker of another hold of ours may be waited for.
const SETTLING: Duration = Duration::from_secs(1);

impl Escaped {
    /// Looks on the session that holds. Markers of our holds are no escaped commits.
    pub(super) async fn since(
        snapshot: &str,
        markers: &Present,
        link: &mut Link,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let first = first_unseen(snapshot);
        let settled_by = deadline.min(Instant::now() + SETTLING);
        loop {
            let known = markers.known(first);
            let rows = link.run(deadline, "looking for commits that escaped", &sql(snapshot, &known)).await?;
            match rows.first().and_then(|row| text(row, 0)).and_then(|count| count.parse().ok()) {
                None => return Ok(Self::CannotSay),
                Some(0) => return Ok(Self::Counted(0)),
                Some(count) => {
                    // Perhaps it was a marker whose writer had not heard of its commit yet.
                    markers.settled(settled_by).await;
                    if markers.known(first) == known {
                        return Ok(Self::Counted(count));
                    }
                }
            }
        }
    }

    pub(super) fn told(&self) -> Option<String> {
        match self {
            Self::Counted(0) => None,
            Self::Counted(count) => Some(format!(
                "CommitEscaped: {count} transactions committed while writes were blocked. Table locks do not cover \
                 tables made since, large objects and DDL; row locks, sequences and temporary tables use \
                 transaction ids too and cannot be told apart from them"
            )),
            Self::CannotSay => {
                Some(format!("more than {MOST_IDS} transaction ids were used up; commits cannot be ruled out"))
            }
        }
    }
}

/// Of `xmin:xmax:xip_list`: everything before xmin is visible (manual, 9.27.8).
fn first_unseen(snapshot: &str) -> u64 {
    snapshot.split(':').next().and_then(|xmin| xmin.parse().ok()).unwrap_or(0)
}

/// Counts the transactions that committed and that the snapshot could not see; NULL: too many ids were used up to say.
fn sql(snapshot: &str, markers: &[u64]) -> String {
    let markers = markers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!(
        "WITH frozen AS (SELECT {snapshot}::pg_snapshot AS s), span AS (SELECT s, pg_snapshot_xmax(s)::text::bigint AS \
         first, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next FROM frozen) \
         SELECT CASE WHEN next - first > {MOST_IDS} THEN NULL ELSE (SELECT count(*) FROM \
         (SELECT x FROM pg_snapshot_xip(s) x UNION ALL SELECT g::text::xid8 FROM generate_series(first, next - 1) g) ids \
         WHERE x <> ALL ('{{{markers}}}'::xid8[]) AND pg_xact_status(x) = 'committed') END FROM span",
        snapshot = literal(snapshot),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_unseen_id_is_read_as_the_server_writes_it() {
        assert_eq!(first_unseen("795:799:795,797"), 795);
        assert_eq!(first_unseen("4294967299:4294967299:"), 4_294_967_299);
    }

    proptest! {
        #[test]
        fn any_snapshot_is_read_without_a_panic(snapshot in ".*") {
            first_unseen(&snapshot);
        }
    }
}
