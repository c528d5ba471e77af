//! The product's few words as closed enums, with what each promises. Their order and defaults are part of the API.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Database engines that this version can hold still. A value is added only once something serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Engine {
    /// PostgreSQL 15 and later.
    PostgreSQL,
    /// MariaDB 10.4.1 and later.
    MariaDB,
}

/// What a freeze makes true of an *atomic* copy taken while it holds. Ordered: each level includes the ones before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Level {
    /// The copy starts and is consistent in itself.
    Recoverable,
    /// Every commit acknowledged before `frozenAt` is in the copy.
    #[default]
    Durable,
    /// And no commit is acknowledged while the freeze holds.
    WriteBlocked,
}

/// How the copy is made while the freeze holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Copy {
    /// One instant for everything: one volume, a group snapshot, ZFS, btrfs, LVM.
    #[default]
    Atomic,
    /// File by file: rsync, tar, restic. Needs the second stage (`stage: Stop`), and PostgreSQL.
    Files,
}

/// What a [`Freeze`](crate::Freeze) is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Desired {
    #[default]
    Frozen,
    Thawed,
}

/// Where a freeze stands. Finished phases never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Asked for; nothing touched yet.
    #[default]
    Pending,
    /// Connecting, checking, preparing: slow, and blocks nobody.
    Preparing,
    /// Taking hold: bounded by `acquireTimeoutSeconds`.
    Acquiring,
    /// Holds. Take the copy now.
    Frozen,
    /// Letting go.
    Thawing,
    /// Finished: held until its last claim ended.
    Thawed,
    /// Finished: never held; everything was undone.
    Failed,
    /// Finished: its lease ended before its claims did.
    Expired,
    /// Finished: the hold was lost while it should have held. Copies taken meanwhile are not proved.
    Lost,
}

/// The role of a member in its replication topology.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    #[default]
    Primary,
    Replica,
}

/// `value: what a person types and reads`, and the round trip through [`fmt::Display`] and [`FromStr`].
macro_rules! words {
    ($type:ident { $($word:ident),+ $(,)? }) => {
        impl $type {
            /// All values, in order.
            pub const ALL: &[Self] = &[$(Self::$word),+];
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$word => stringify!($word)),+ })
            }
        }
        impl FromStr for $type {
            type Err = String;
            /// Case does not matter: people type `--level writeblocked`.
            fn from_str(text: &str) -> Result<Self, String> {
                $(if text.eq_ignore_ascii_case(stringify!($word)) { return Ok(Self::$word); })+
                Err(format!("{text:?} is not one of {}", [$(stringify!($word)),+].join(", ")))
            }
        }
    };
}
words!(Engine { PostgreSQL, MariaDB });
words!(Level { Recoverable, Durable, WriteBlocked });
words!(Copy { Atomic, Files });
words!(Phase { Pending, Preparing, Acquiring, Frozen, Thawing, Thawed, Failed, Expired, Lost });
words!(Role { Primary, Replica });

impl Engine {
    /// The port its servers listen on unless told otherwise.
    pub fn default_port(self) -> u16 {
        match self {
            Self::PostgreSQL => 5432,
            Self::MariaDB => 3306,
        }
    }
}

impl Level {
    /// How long a freeze lasts that does not say (design section 3). `Files` copies are given longer: see [`Copy`].
    pub fn default_ttl(self) -> Duration {
        Duration::from_secs(if self == Self::WriteBlocked { 10 } else { 60 })
    }
}

impl Copy {
    /// The longest any freeze of this level and copy method may last, whatever the Database allows.
    ///
    /// Writers wait while WriteBlocked, so it is bounded by their patience; a file copy blocks nobody.
    pub fn longest(self, level: Level) -> Duration {
        Duration::from_secs(match (self, level) {
            (_, Level::WriteBlocked) => 15,
            (Self::Atomic, _) => 3600,
            (Self::Files, _) => 6 * 3600,
        })
    }
}

impl Phase {
    /// Whether it will never change again.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Thawed | Self::Failed | Self::Expired | Self::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_whatever_their_case() {
        for level in Level::ALL {
            assert_eq!(level.to_string().to_lowercase().parse::<Level>(), Ok(*level));
        }
        for engine in Engine::ALL {
            assert_eq!(engine.to_string().to_uppercase().parse::<Engine>(), Ok(*engine));
        }
        assert!("Frozenish".parse::<Phase>().is_err());
    }

    #[test]
    fn levels_are_ordered_by_what_they_promise() {
        assert!(Level::Recoverable < Level::Durable && Level::Durable < Level::WriteBlocked);
    }
}
