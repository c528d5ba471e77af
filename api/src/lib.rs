//! What Stillpoint says: its kinds, its words, its names, and what makes an object valid.
//!
//! No I/O, no clocks (time is an argument), and nothing of ours below it. One [`validate`] serves the standalone
//! registry, the webhooks and the controllers.
//!
//! ```text
//! stillpoint.dev/v1alpha1        Database, Freeze, Snapshot, …  stored; custom resources in a cluster
//! live.stillpoint.dev/v1alpha1   databases (LiveDatabase)       never stored; state as the freezer knows it now
//!                                databases/{quiesce,unquiesce,renew}   verbs: POST a typed body, get it back answered
//!                                repositories/check                    the same
//! ```

pub mod agent;
pub mod cases;
pub mod conditions;
pub mod crds;
mod database;
pub mod dump_tool;
mod freeze;
pub mod gate;
pub mod inject;
pub mod install;
mod live;
mod live_snapshot;
mod position;
mod reading;
pub mod repository;
mod repository_check;
mod restore;
pub mod runner;
mod snapshot;
pub mod validate;
mod words;

pub use database::{
    AgentPolicy, BlockerPolicy, Blockers, ConnectionAddress, Credentials, Database, DatabaseSpec, DatabaseStatus,
    Endpoint, FreezePolicy, LastFreeze, LevelReach, MemberStatus, SecretReference, TargetPolicy, Tls, TlsMode,
};
pub use dump_tool::{DumpTool, DumpToolSpec, ToolDump, ToolInput, ToolOutput, ToolRestore, ToolSetting, ToolUse};
pub use freeze::{
    Artifact, ArtifactKind, Claim, ClaimKind, Freeze, FreezeSpec, FreezeStatus, FreezeTarget, Incarnation, Proof,
    ProofKind, TargetStatus, Undo, Via,
};
pub use live::{
    Check, CheckResult, LiveDatabase, LiveDatabaseStatus, Quiesce, QuiesceSpec, QuiesceStatus, Renew, RenewSpec,
    RenewStatus, Stage, Unquiesce, UnquiesceSpec, UnquiesceStatus,
};
pub use live_snapshot::{KnownBy, LiveSnapshot, LiveSnapshotSpec, LiveSnapshotStatus};
pub use position::{MariadbPosition, Position, PostgresqlPosition};
pub use reading::{Unreadable, read};
pub use repository::{
    AzureLocation, DirectoryLocation, Encryption, GcsLocation, LocationKind, LocationStatus, Repository,
    RepositoryLocation, RepositorySpec, RepositoryStatus, S3CredentialsReference, S3Location,
};
pub use repository_check::{RepositoryCheck, RepositoryCheckSpec, RepositoryCheckStatus, RepositoryFinding};
pub use restore::{
    ChosenCopy, ExistingPolicy, Restore, RestorePhase, RestoreSource, RestoreSpec, RestoreStatus, RestoredVolume,
    WantedClaim, choose,
};
pub use snapshot::{
    Consistency, CopyAt, CutBetween, DatabaseCopy, DeletionPolicy, DumpFile, DumpFormat, FINALIZER_SNAPSHOT, OnMissed,
    Progress, Snapshot, SnapshotGroup, SnapshotMethod, SnapshotPhase, SnapshotSpec, SnapshotStatus, SnapshotVolume,
    Verdict,
};
pub use words::{Copy, Desired, Engine, Level, Phase, Role};

/// The group of everything that is stored.
pub const GROUP: &str = "stillpoint.dev";
/// The group of what is never stored: live views and verbs.
pub const LIVE_GROUP: &str = "live.stillpoint.dev";
/// The one version of both groups.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of stored kinds.
pub const API_VERSION: &str = "stillpoint.dev/v1alpha1";
/// `apiVersion` of live kinds.
pub const LIVE_API_VERSION: &str = "live.stillpoint.dev/v1alpha1";

/// Keeps a [`Freeze`] that holds something until it has been thawed.
pub const FINALIZER_THAW: &str = "stillpoint.dev/thaw";
/// Label on a [`Freeze`] made by a verb: the Database it was asked of.
pub const LABEL_DATABASE: &str = "stillpoint.dev/database";
/// Label on a VolumeSnapshot that was made for a [`Snapshot`]: that one's uid.
pub const LABEL_SNAPSHOT: &str = "stillpoint.dev/snapshot-uid";
/// Label on a claim that was made for a [`Restore`]: that one's uid.
pub const LABEL_RESTORE: &str = "stillpoint.dev/restore-uid";

/// Now, in whole microseconds: what `MicroTime` can carry.
pub fn micro_time(at: jiff::Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at)
}
