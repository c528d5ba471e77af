//! What a review needs: nothing, an answer that can be given here, or the apiserver's word. Pure.

use api::{
    gate::{Gate, GateRequest},
    inject::Asked,
    install::injection,
};

use crate::{
    answer::Answer,
    gates::{content, cut, preflight},
    inject, own_kinds,
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

/// Who we are, and so whom we do not stand in the way of.
#[derive(Clone, Debug)]
pub struct Ours {
    /// Where we are installed.
    pub namespace: String,
    /// What the apiserver's account is known by.
    pub user: String,
    pub agent: Agent,
}

/// What agents are given. Without it none is injected.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    /// Their image.
    pub image: Option<String>,
    /// `HOST:PORT` of all replicas of the apiserver.
    pub apiserver: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// No business of ours, and why.
    Allow(&'static str),
    /// A Pod that gets no agent and nobody misses one of, and why.
    Spare(String),
    /// A Pod that gets one.
    Injected(Answer),
    /// A Pod that asks for one and cannot have it.
    Skipped(Answer),
    Answer(Answer),
    Ask(Box<GateRequest>),
    /// It should be asked, and cannot be.
    Unaskable(String),
}

/// Why our own account is not kept waiting.
pub(crate) const OUR_OWN: &str = "our own request";

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

impl Ours {
    pub fn in_namespace(namespace: &str) -> Self {
        let user = api::install::account_user(namespace);
        Self { namespace: namespace.to_owned(), user, agent: Agent::default() }
    }

    /// With agents of this kind.
    #[must_use]
    pub fn with_agent(self, agent: Agent) -> Self {
        Self { agent, ..self }
    }
}

/// `authority`: who signs the apiserver's certificates, PEM, as far as that is known.
///
/// Everything that a ValidatingWebhookConfiguration's rules and conditions would have kept away is looked at again here: one that
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
