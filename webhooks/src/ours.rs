//! Who we are, and what we give to others of ours.

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

/// Why our own account is not kept waiting.
pub(crate) const OUR_OWN: &str = "our own request";

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
