//! How a copy is restored by plain means.

use api::{Artifact, ArtifactKind, Copy, Position};

/// Steps in Markdown (manual, 26.3.4 and 26.3.3.6), with what this freeze knows filled in.
pub(super) fn recipe(copy: Copy, position: Option<&Position>, artifacts: &[Artifact]) -> String {
    let stood = position.map_or_else(|| "not recorded".to_owned(), Position::summary);
    let quiet = "Start it isolated first: `archive_mode=off`, `primary_conninfo=''`, \
                 `max_logical_replication_workers=0`, another port. Then check it: `pg_amcheck --all`.";
    match copy {
        Copy::Atomic => format!(
            "Position: {stood}\n\n\
             1. Mount the copy; remove `postmaster.pid` from the data directory.\n\
             2. Do **not** add a `backup_label`: an atomic copy recovers like a server after a power cut.\n\
             3. Start the same major version on it. {quiet}\n"
        ),
        Copy::Files => {
            let content = |kind| {
                artifacts.iter().find(|artifact| artifact.kind == kind).map(|artifact| artifact.content.as_str())
            };
            let range = content(ArtifactKind::WalRange).unwrap_or("from the start to the stop position");
            let map = if content(ArtifactKind::TablespaceMap).is_some() {
                "`backup_label` and `tablespace_map`"
            } else {
                "`backup_label`"
            };
            format!(
                "Position: {stood}\n\n\
                 1. Put the copied files into an empty data directory of mode 0700; remove `postmaster.pid` and the \
                 contents of `pg_replslot`.\n\
                 2. Write {map} (artifacts of this freeze, byte for byte) into it. Without the label the server starts \
                 and is silently wrong.\n\
                 3. Put the WAL segments {range} (first and last) into `pg_wal`.\n\
                 4. Start the same major version on it. {quiet}\n"
            )
        }
    }
}
