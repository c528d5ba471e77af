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
    /// Those who were held are not those whose volumes these are, or nobody can tell; for people.
    pub(super) other: Option<String>,
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
    Throughout {
        window: Window,
        calls: Calls,
        /// When it cut, by the driver's clock: `None` or 1970 from drivers that do not say.
        created: Option<Timestamp>,
        proved: bool,
    },
}

/// Within it they were held, by our clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// By then at the latest what `from` began was complete: a barrier ends after its instant.
    pub(super) complete: Timestamp,
}

/// How often the driver was called in that time, as far as can be told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Calls {
    /// Never before it was held.
    Within,
    /// A call before failed in a way that says nothing of what it did, and the driver may answer with what it cut then.
    Before,
    /// Nobody knows: we were just starting.
    Untold,
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
/// No clock in a cluster is so far off that anybody would leave it so.
const ASTRAY: Duration = Duration::from_secs(60);

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
    let (window, calls, created, proved) = match &seen.held {
        Held::Not { why } => return verdict(Consistency::Crash, "NotFrozen", why.clone()),
        Held::Ended { why } => return verdict(Consistency::Crash, "FreezeEnded", why.clone()),
        Held::Throughout { window, calls, created, proved } => (*window, *calls, *created, *proved),
    };
    if !proved {
        let message = "it was held as far as anybody saw, and the proof of it failed: see the Freeze";
        return verdict(Consistency::Crash, "NotProved", message.to_owned());
    }
    if let Some(doubted) = doubted(window, calls, created) {
        return doubted;
    }
    if let Some(other) = &seen.other {
        return verdict(Consistency::Unknown, "MemberUnknown", other.clone());
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

/// What speaks against a cut within the window.
fn doubted(window: Window, calls: Calls, created: Option<Timestamp>) -> Option<Verdict> {
    let created = created.filter(|created| *created > Timestamp::UNIX_EPOCH);
    let Window { from, to, complete } = window;
    let why = match calls {
        Calls::Within => {
            // Then its clock does not matter, unless what it answered is not what it was called for.
            let created = created.filter(|created| *created < from - ASTRAY || *created > to + ASTRAY)?;
            let message = format!(
                "the driver was called while it was held, from {from} to {to}, and says that it cut at {created}: its clock is wrong, or \
                 it answered with an older copy"
            );
            return Some(verdict(Consistency::Unknown, "CutUnknown", message));
        }
        Calls::Before => "the driver was called before it was held, too, and may have cut then",
        Calls::Untold => {
            "Stillpoint was just starting, and does not know whether the driver was called before it was held, too"
        }
    };
    let Some(created) = created else {
        let message = format!("{why}; the driver does not say when it cut");
        return Some(verdict(Consistency::Unknown, "CutUnknown", message));
    };
    let message = format!("{why}; it cut at {created} by its clock, and it was held from {from} to {to}");
    if created < from - SKEW || created > to + SKEW {
        return Some(verdict(Consistency::Crash, "CutOutside", message));
    }
    (created < complete + SKEW || created > to - SKEW).then(|| verdict(Consistency::Unknown, "CutUnknown", message))
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

    fn held(calls: Calls, created: Option<i64>, proved: bool) -> Held {
        let window = Window { from: at(0), to: at(60), complete: at(3) };
        Held::Throughout { window, calls, created: created.map(at), proved }
    }

    #[test]
    fn only_what_was_held_proved_whole_and_cut_at_one_instant_is_application() {
        use Calls::{Before, Untold, Within};
        use Consistency::{Application, Crash, Partial, Unknown};
        let seen = |atomic, cut: &[&str], held| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Seen { atomic, other: None, cut: names(cut), of: names(&["data", "wal"]), held }
        };
        let (all, one): (&[&str], &[&str]) = (&["data", "wal"], &["data"]);
        let not = || Held::Not { why: "nobody asked".to_owned() };
        let ended = || Held::Ended { why: "it expired".to_owned() };
        let epoch = Some(-1_800_000_000);
        let another = Seen { other: Some("another".to_owned()), ..seen(true, all, held(Within, None, true)) };
        for (seen, consistency, reason) in [
            (seen(true, all, held(Within, None, true)), Application, "Proved"),
            (another, Unknown, "MemberUnknown"),
            (seen(true, one, held(Within, None, true)), Partial, "VolumesMissing"),
            (seen(false, all, held(Within, None, true)), Unknown, "DriverUnknown"),
            (seen(true, all, held(Within, None, false)), Crash, "NotProved"),
            (seen(true, all, not()), Crash, "NotFrozen"),
            (seen(true, all, ended()), Crash, "FreezeEnded"),
            // A clock that is a little off is no news; an answer of yesterday is.
            (seen(true, all, held(Within, Some(-30), true)), Application, "Proved"),
            (seen(true, all, held(Within, epoch, true)), Application, "Proved"),
            (seen(true, all, held(Within, Some(-86_400), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(Before, Some(30), true)), Application, "Proved"),
            (seen(true, all, held(Untold, Some(30), true)), Application, "Proved"),
            // The barrier was not at its end, as far as anybody knows.
            (seen(true, all, held(Before, Some(4), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(Before, Some(-1), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(Before, Some(59), true)), Unknown, "CutUnknown"),
            (seen(true, all, held(Before, Some(63), true)), Crash, "CutOutside"),
            (seen(true, all, held(Before, Some(-300), true)), Crash, "CutOutside"),
            (seen(true, all, held(Before, None, true)), Unknown, "CutUnknown"),
            (seen(true, all, held(Untold, epoch, true)), Unknown, "CutUnknown"),
            (seen(true, one, held(Before, Some(30), true)), Partial, "VolumesMissing"),
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
            atomic: bool, sure: bool, proved: bool, kind in 0..3_u8, created in prop::option::of(-100_i64..200), calls in 0..3_u8,
            cut in prop::collection::btree_set("[a-d]", 0..4), of in prop::collection::btree_set("[a-d]", 0..4),
        ) {
            let within = calls == 0;
            let calls = [Calls::Within, Calls::Before, Calls::Untold][usize::from(calls)];
            let held = match kind {
                0 => Held::Not { why: String::new() },
                1 => Held::Ended { why: String::new() },
                _ => held(calls, created, proved),
            };
            let told = match created {
                None => within,
                Some(created) if within => (-60..=120).contains(&created),
                Some(created) => (5..=58).contains(&created),
            };
            let whole = of.is_subset(&cut);
            let other = (!sure).then(String::new);
            let consistency = judge(&Seen { atomic, other, cut, of, held }).consistency;
            prop_assert_eq!(consistency == Consistency::Application, atomic && sure && proved && kind == 2 && told && whole);
        }
    }

    #[test]
    fn more_volumes_than_the_database_has_are_no_fault() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let held = held(Calls::Within, None, true);
        let seen = Seen { atomic: true, other: None, cut: names(&["data", "uploads"]), of: names(&["data"]), held };
        assert_eq!(judge(&seen).consistency.word(), "application");
    }
}
