//! What a snapshot is worth, from what was seen of its cut. Pure; in doubt for the lesser.

use std::{collections::BTreeSet, time::Duration};

use api::gate;
use jiff::Timestamp;

/// The value of the label `stillpoint.dev/consistency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Consistency {
    /// Nobody can tell.
    Unknown,
    /// As after a power cut.
    Crash,
    /// A part of a Database, as of an instant; its other volumes are not in it.
    Partial,
    /// What the level of the freeze promises, proved.
    Application,
}

/// What was seen of one cut.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Whether the driver cuts at one instant what it cuts together.
    pub(super) atomic: bool,
    /// It is known that those who were held are those whose volumes these are.
    pub(super) sure: bool,
    /// Claims that were cut together.
    pub(super) cut: BTreeSet<String>,
    /// All claims of those Databases that have data on them.
    pub(super) of: BTreeSet<String>,
    pub(super) held: Held,
}

/// Whether the Databases were held at the cut.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// No gate was asked for it, or nothing could be held then; `why` is for people.
    Not { why: String },
    /// The freeze was over before the cut was seen.
    Ended { why: String },
    /// From before the driver was called until its answer was seen. `proved`: what the freeze said of itself at its end.
    Throughout { window: Window, calls: Calls, proved: bool },
}

/// Within it they were held, by our clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

/// How often the driver was called in that time, as far as can be told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Calls {
    Once,
    /// A call before failed in a way that says nothing of what it did, and the driver may answer with what it cut then. When that was,
    /// by its clock: `None` or 1970 from drivers that do not say.
    Again {
        created: Option<Timestamp>,
    },
}

/// What is said of it: one word as a reason, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) consistency: Consistency,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// By how much a driver's clock may differ from ours, and be rounded: many tell whole seconds.
const SKEW: Duration = Duration::from_secs(2);

impl Consistency {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Partial => "partial",
            Self::Crash => "crash",
            Self::Unknown => "unknown",
        }
    }
}

/// The verdict on one cut.
pub(super) fn judge(seen: &Seen) -> Verdict {
    let (window, calls, proved) = match &seen.held {
        Held::Not { why } => return verdict(Consistency::Crash, "NotFrozen", why.clone()),
        Held::Ended { why } => return verdict(Consistency::Crash, "FreezeEnded", why.clone()),
        Held::Throughout { window, calls, proved } => (*window, *calls, *proved),
    };
    if !proved {
        let message = "it was held as far as anybody saw, and the proof of it failed: see the Freeze";
        return verdict(Consistency::Crash, "NotProved", message.to_owned());
    }
    if let Calls::Again { created } = calls {
        match created.filter(|created| *created > Timestamp::UNIX_EPOCH) {
            None => {
                let message = "the driver was called again after an error, and does not say when it cut";
                return verdict(Consistency::Unknown, "CutUnknown", message.to_owned());
            }
            Some(created) => {
                let Window { from, to } = window;
                let message = format!(
                    "the driver was called again after an error and cut at {created} by its clock; it was held from {from} to {to}"
                );
                if created < from - SKEW || created > to + SKEW {
                    return verdict(Consistency::Crash, "CutOutside", message);
                }
                if created < from + SKEW || created > to - SKEW {
                    return verdict(Consistency::Unknown, "CutUnknown", message);
                }
            }
        }
    }
    if !seen.sure {
        let message = "its endpoint leads to several Pods, and nobody can tell which of them was held: give each a Database of its \
                       own, by an address that leads to it alone";
        return verdict(Consistency::Unknown, "MemberUnknown", message.to_owned());
    }
    if !seen.atomic {
        let message = "it was held, but the driver is not known to cut at one instant; if it does, say so on the class: \
                       stillpoint.dev/atomic: \"true\"";
        return verdict(Consistency::Unknown, "DriverUnknown", message.to_owned());
    }
    let missing: Vec<&str> = seen.of.difference(&seen.cut).map(String::as_str).collect();
    if !missing.is_empty() {
        let message = format!(
            "cut without {}, which its database writes to, too: take a VolumeGroupSnapshot of them together, or, if no data \
             of it is there, say so on the Database: {}",
            missing.join(", "),
            gate::UNRELATED_CLAIMS
        );
        return verdict(Consistency::Partial, "VolumesMissing", message);
    }
    verdict(Consistency::Application, "Proved", "held from before the cut until after it, and proved".to_owned())
}

/// Of a cut that did not want to be waited for.
pub(super) fn skipped() -> Verdict {
    let message = format!("it says {}: {}, so nothing was held for it", gate::QUIESCE, gate::SKIP);
    verdict(Consistency::Crash, "Skipped", message)
}

/// Of a cut of which not even that is known which volumes it should have.
pub(super) fn unknown(reason: &'static str, message: &str) -> Verdict {
    verdict(Consistency::Unknown, reason, message.to_owned())
}

fn verdict(consistency: Consistency, reason: &'static str, message: String) -> Verdict {
    Verdict { consistency, reason, message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn held(calls: Calls, proved: bool) -> Held {
        Held::Throughout { window: Window { from: at(0), to: at(60) }, calls, proved }
    }

    fn again(created: Option<Timestamp>) -> Calls {
        Calls::Again { created }
    }

    #[test]
    fn only_what_was_held_proved_whole_and_cut_at_one_instant_is_application() {
        use Consistency::{Application, Crash, Partial, Unknown};
        let seen = |atomic, cut: &[&str], held| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Seen { atomic, sure: true, cut: names(cut), of: names(&["data", "wal"]), held }
        };
        let (all, one): (&[&str], &[&str]) = (&["data", "wal"], &["data"]);
        let not = || Held::Not { why: "nobody asked".to_owned() };
        let ended = || Held::Ended { why: "it expired".to_owned() };
        for (seen, consistency, reason) in [
            (seen(true, all, held(Calls::Once, true)), Application, "Proved"),
            (seen(true, one, held(Calls::Once, true)), Partial, "VolumesMissing"),
            (seen(false, all, held(Calls::Once, true)), Unknown, "DriverUnknown"),
            (seen(true, all, held(Calls::Once, false)), Crash, "NotProved"),
            (seen(true, all, not()), Crash, "NotFrozen"),
            (seen(true, all, ended()), Crash, "FreezeEnded"),
            (seen(true, all, held(again(Some(at(30))), true)), Application, "Proved"),
            (seen(true, all, held(again(Some(at(1))), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(again(Some(at(-1))), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(again(Some(at(59))), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(again(Some(at(63))), true)), Crash, "CutOutside"),
            (seen(true, all, held(again(Some(at(-300))), true)), Crash, "CutOutside"),
            (seen(true, all, held(again(None), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(again(Some(Timestamp::UNIX_EPOCH)), true)), Unknown, "CutUnknown"),
            (seen(true, one, held(again(Some(at(30))), true)), Partial, "VolumesMissing"),
        ] {
            let verdict = judge(&seen);
            assert_eq!((verdict.consistency, verdict.reason), (consistency, reason), "{seen:?}");
            assert!(!verdict.message.is_empty());
        }
    }

    proptest! {
        /// In doubt for the lesser, whatever was seen.
        #[test]
        fn nothing_is_application_that_was_not_held_whole_at_one_instant_and_proved(
            atomic: bool, sure: bool, proved: bool, kind in 0..3_u8, created in prop::option::of(-100_i64..200), again: bool,
            cut in prop::collection::btree_set("[a-d]", 0..4), of in prop::collection::btree_set("[a-d]", 0..4),
        ) {
            let created = created.map(at);
            let calls = if again { Calls::Again { created } } else { Calls::Once };
            let held = match kind {
                0 => Held::Not { why: String::new() },
                1 => Held::Ended { why: String::new() },
                _ => held(calls, proved),
            };
            let within = !again || created.is_some_and(|created| created >= at(2) && created <= at(58));
            let whole = of.is_subset(&cut);
            let consistency = judge(&Seen { atomic, sure, cut, of, held }).consistency;
            prop_assert_eq!(consistency == Consistency::Application, atomic && sure && proved && kind == 2 && within && whole);
        }
    }

    #[test]
    fn more_volumes_than_the_database_has_are_no_fault() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let held = held(Calls::Once, true);
        let seen = Seen { atomic: true, sure: true, cut: names(&["data", "uploads"]), of: names(&["data"]), held };
        assert_eq!(judge(&seen).consistency.word(), "application");
    }
}
