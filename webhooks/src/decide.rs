//! What a review needs: nothing, an answer that can be given here, or the apiserver's word. Pure.

use api::{
    gate::{Gate, GateRequest},
    inject::Asked,
    install::injection,
};

use crate::{
    decision::Decision,
    gates::{content, cut, preflight},
    inject,
    ours::Ours,
    own_kinds,
    review::Request,
};

/// Where a review was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    Gate {
        gate: Gate,
        /// Of a namespace that wants no copy that is not consistent.
        required: bool,
    },
    OwnKinds,
    /// A Pod that is to be made, and whose word it is shown by.
    Pods(Asked),
}

impl Door {
    pub const ALL: [(&str, Self); 9] = [
        ("/gates/snapshot", Self::Gate { gate: Gate::Preflight, required: false }),
        ("/gates/content", Self::Gate { gate: Gate::Cut, required: false }),
        ("/gates/content-create", Self::Gate { gate: Gate::Content, required: false }),
        ("/required/snapshot", Self::Gate { gate: Gate::Preflight, required: true }),
        ("/required/content", Self::Gate { gate: Gate::Cut, required: true }),
        ("/required/content-create", Self::Gate { gate: Gate::Content, required: true }),
        ("/validate", Self::OwnKinds),
        (injection::OF_LABEL, Self::Pods(Asked::Label)),
        (injection::OF_NAMESPACE, Self::Pods(Asked::Namespace)),
    ];

    /// How often what a review holds is in memory while it is decided on: a Pod as it is, and as it is to be.
    pub(crate) fn copies(self) -> usize {
        if matches!(self, Self::Pods(_)) { 2 } else { 1 }
    }

    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == path).map(|(_, door)| *door)
    }
}

/// `authority`: who signs the apiserver's certificates, PEM, as far as that is known.
///
/// Everything that a webhook configuration's rules and conditions would have kept away is looked at again here: one that
/// is wrong costs time, and freezes nothing that it should not.
pub fn decide(door: Door, request: &Request, ours: &Ours, authority: Option<&str>) -> Decision {
    let asked = match door {
        Door::OwnKinds => return own_kinds::decide(request, ours),
        Door::Pods(asked) => return inject::decide(request, asked, ours, authority),
        Door::Gate { gate: Gate::Preflight, .. } => preflight::request(request, ours),
        Door::Gate { gate: Gate::Cut, .. } => cut::request(request, ours),
        Door::Gate { gate: Gate::Content, .. } => content::request(request, ours),
    };
    match asked {
        Err(why) => Decision::Allow(why),
        Ok(asked) => {
            let required = matches!(door, Door::Gate { required: true, .. });
            let asked = GateRequest { required, ..asked };
            match asked.check() {
                Ok(()) => Decision::Ask(Box::new(asked)),
                Err(wrong) => Decision::Unaskable(wrong),
            }
        }
    }
}
