//! From a `Database` object and its Secrets to what the freezer works with. Pure: objects in, [`Target`] out.
//!
//! Promises that a password never leaves this path but inside [`freeze::Account`], which does not print itself.

use std::{sync::Arc, time::Duration};

use api::{AgentPolicy, Check, ConnectionAddress, Copy, Database, Level, Role, Via, conditions::reasons};
use freeze::{
    Driver, Drivers, Member, NoMember, Plan, SecretValue, Target, Tls,
    remote::{Remote, Term},
};
use k8s_openapi::api::core::v1::Secret;
use thiserror::Error;

use crate::agents::Agent;

/// The objects that one target is made of.
#[derive(Clone, Debug)]
pub struct Ingredients {
    pub database: Database,
    /// The Secrets that its spec names, those that exist; none where an agent knows whom to be.
    pub secrets: Vec<Secret>,
    /// Who stands beside its server.
    pub(crate) beside: Beside,
}

/// Who stands beside a Database's server.
#[derive(Clone, Debug)]
pub(crate) enum Beside {
    Nobody,
    /// An agent, and the epoch of whoever may freeze that server now.
    Agent {
        agent: Agent,
        epoch: i64,
    },
    /// Of several members none can be chosen; what they said.
    Undecided(String),
}

/// How a server is reached.
#[derive(Clone, Debug)]
pub struct Way {
    pub driver: Arc<dyn Driver>,
    pub member: Member,
    /// The member's name.
    pub name: String,
    pub via: Via,
}

/// Why a Database cannot be frozen, before anybody was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unresolved {
    #[error("Database {database} is paused")]
    Paused { database: String },
    #[error("Database {database} needs key {key:?} of Secret {secret:?}, which {why}")]
    Credentials { database: String, secret: String, key: String, why: &'static str },
    #[error("Database {database} names no usable endpoint")]
    Endpoint { database: String },
    #[error("this server has no driver for {engine}")]
    Engine { engine: api::Engine },
    #[error("Database {database} is frozen by the agent in its Pod only, and none is connected")]
    Agent { database: String },
    #[error("Database {database} has no one member that is a {wanted}: {said}")]
    Undecided { database: String, wanted: Role, said: String },
    #[error("Database {database} would be held at {member:?}, and {wanted:?} was asked for")]
    Member { database: String, member: String, wanted: String },
}

impl Unresolved {
    /// As a check that did not pass, with what to do.
    pub fn check(&self) -> Check {
        let (reason, fix) = match self {
            Self::Paused { .. } => (reasons::PAUSED, "set spec.paused: false"),
            Self::Credentials { .. } => (reasons::CREDENTIALS_MISSING, "create the Secret, or name the right key"),
            Self::Endpoint { .. } => (reasons::UNREACHABLE, "give spec.endpoint.host, or spec.endpoint.socket"),
            Self::Engine { .. } => (reasons::UNSUPPORTED, "use a server that has a driver for it"),
            Self::Agent { .. } => (
                reasons::AGENT_MISSING,
                "label its Pods stillpoint.dev/inject: \"true\" and make them anew, or set spec.agent: Preferred",
            ),
            Self::Undecided { .. } => (
                reasons::WRONG_ROLE,
                "see that exactly one of them has the role that spec.freeze.target.role says, and that its agent is connected",
            ),
            Self::Member { .. } => {
                (reasons::UNSUPPORTED, "leave spec.member out, or see that the agent of that member is connected")
            }
        };
        Check::fail("resolved", reason, self.to_string(), fix)
    }
}

/// How one freeze wants its targets.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub level: Level,
    pub copy: Copy,
    pub freeze_uid: &'a str,
    pub member: Option<&'a str>,
}

/// The names of the Secrets that a Database refers to.
pub fn secret_names(database: &Database) -> Vec<&str> {
    let spec = &database.spec;
    let tls = spec.tls.as_ref();
    let references = [
        spec.credentials.as_ref().map(|credentials| &credentials.secret_ref),
        tls.and_then(|tls| tls.ca_secret_ref.as_ref()),
        tls.and_then(|tls| tls.cert_secret_ref.as_ref()),
    ];
    let mut names: Vec<&str> = references.into_iter().flatten().map(|reference| reference.name.as_str()).collect();
    names.dedup();
    names
}

/// The Secrets that a Database refers to, each with the keys that may be read of it.
pub fn secrets(database: &Database) -> Vec<(&str, Vec<&str>)> {
    let spec = &database.spec;
    let credentials = spec.credentials.iter().map(|credentials| {
        (credentials.secret_ref.name.as_str(), vec![credentials.username_key.as_str(), &credentials.password_key])
    });
    let tls = spec.tls.as_ref();
    let ca = tls.and_then(|tls| tls.ca_secret_ref.as_ref()).map(|secret| (secret.name.as_str(), vec!["ca.crt"]));
    let own = tls.and_then(|tls| tls.cert_secret_ref.as_ref());
    let own = own.map(|secret| (secret.name.as_str(), vec!["tls.crt", "tls.key"]));
    credentials.chain(ca).chain(own).collect()
}

/// The target of a freeze, or why there is none.
pub fn target(drivers: &Drivers, from: &Ingredients, wanted: Wanted<'_>) -> Result<Target, Unresolved> {
    let spec = &from.database.spec;
    let name = name_of(&from.database);
    if spec.paused {
        return Err(Unresolved::Paused { database: name });
    }
    let Way { driver, member, name: found, via } = way(drivers, from)?;
    if let Some(wanted) = wanted.member.filter(|wanted| *wanted != found) {
        return Err(Unresolved::Member { database: name, member: found, wanted: wanted.to_owned() });
    }
    Ok(Target {
        database: name,
        name: found,
        via,
        driver,
        member,
        plan: plan(&from.database, wanted),
        prepare_timeout: spec.freeze.prepare_timeout(),
        max_stalled_sessions: spec.freeze.max_stalled_sessions,
    })
}

/// How to reach the Database's server; also without any intent to freeze it.
pub fn way(drivers: &Drivers, from: &Ingredients) -> Result<Way, Unresolved> {
    let spec = &from.database.spec;
    let driver = drivers.of(spec.engine).ok_or(Unresolved::Engine { engine: spec.engine })?;
    match &from.beside {
        Beside::Agent { agent, epoch } => {
            let term = Term { database: name_of(&from.database), epoch: *epoch };
            let remote = Remote::new(agent.link.clone(), Arc::clone(driver), term);
            Ok(Way {
                driver: Arc::new(remote),
                member: at_agent(from, agent),
                name: agent.pod.clone(),
                via: Via::Agent,
            })
        }
        Beside::Undecided(said) => {
            let (database, wanted, said) = (name_of(&from.database), spec.freeze.target.role, said.clone());
            Err(Unresolved::Undecided { database, wanted, said })
        }
        Beside::Nobody if spec.agent == AgentPolicy::Required => {
            Err(Unresolved::Agent { database: name_of(&from.database) })
        }
        Beside::Nobody => {
            let member = member(from)?;
            let name = member.address.to_string();
            Ok(Way { driver: Arc::clone(driver), member, name, via: Via::Network })
        }
    }
}

/// As an agent is told of it: where it is, and whom to be there, the agent knows.
fn at_agent(from: &Ingredients, agent: &Agent) -> Member {
    let spec = &from.database.spec;
    let port = spec.endpoint.port.unwrap_or(spec.engine.default_port());
    let address = ConnectionAddress::Tcp { host: agent.pod.clone(), port };
    let tls = Tls { mode: spec.tls_mode(&address), roots: None };
    Member { account: None, tls, databases: spec.databases.clone(), address }
}

/// The server itself, over the network.
fn member(from: &Ingredients) -> Result<Member, Unresolved> {
    let database = || name_of(&from.database);
    Member::of(&from.database.spec, &|secret, key| value(from, secret, key)).map_err(|error| match error {
        NoMember::Endpoint => Unresolved::Endpoint { database: database() },
        NoMember::Secret { secret, key, why } => Unresolved::Credentials { database: database(), secret, key, why },
    })
}

/// What is to be made true there.
pub fn plan(database: &Database, wanted: Wanted<'_>) -> Plan {
    let policy = &database.spec.freeze;
    Plan {
        freeze_uid: wanted.freeze_uid.to_owned(),
        level: wanted.level,
        copy: wanted.copy,
        role: policy.target.role,
        acquire_timeout: policy.acquire_timeout(),
        blockers: policy.blockers.policy,
        blockers_older_than: Duration::from_secs(u64::from(policy.blockers.older_than_seconds)),
        // Until the first heartbeat the session must outlive preparing and taking hold.
        server_ttl: FIRST_SERVER_TTL,
    }
}

/// The level a request gets that names none: the Database's own; a group is held at WriteBlocked.
pub fn level(databases: &[Database], wanted: Option<Level>) -> Level {
    match (wanted, databases) {
        (Some(level), _) => level,
        (None, [one]) => one.spec.freeze.level,
        (None, _) => Level::WriteBlocked,
    }
}

/// How long its claims last and how long it may last at all: the shortest that every Database allows.
pub fn durations(databases: &[Database], level: Level, copy: Copy, wanted: Option<u32>) -> (Duration, Duration) {
    let policies = || databases.iter().map(|database| &database.spec.freeze);
    let max = policies().map(|policy| policy.max_frozen(level, copy)).min().unwrap_or(copy.longest(level));
    let ttl = policies().map(|policy| policy.ttl(level, copy, wanted)).min().unwrap_or(level.default_ttl());
    (ttl.min(max), max)
}

/// See [`plan`]: the longest idle time that a server grants us.
const FIRST_SERVER_TTL: Duration = Duration::from_secs(5);

/// A value of a Secret, as far as it was read.
fn value(from: &Ingredients, secret: &str, key: &str) -> SecretValue {
    let found = from.secrets.iter().find(|candidate| candidate.metadata.name.as_deref() == Some(secret));
    let Some(found) = found else { return SecretValue::NoSecret };
    let bytes = found.data.as_ref().and_then(|data| data.get(key));
    bytes.map_or(SecretValue::NoKey, |bytes| SecretValue::Is(bytes.0.clone()))
}

fn name_of(database: &Database) -> String {
    database.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn database(spec: serde_json::Value) -> Database {
        let mut database = Database::new("orders", serde_json::from_value(spec).unwrap());
        database.metadata.namespace = Some("shop".to_owned());
        database
    }

    fn secret(data: serde_json::Value) -> Secret {
        serde_json::from_value(json!({"metadata": {"name": "orders-freezer"}, "data": data})).unwrap()
    }

    fn with_credentials() -> Database {
        database(json!({
            "engine": "PostgreSQL",
            "endpoint": {"host": "db.example"},
            "credentials": {"secretRef": {"name": "orders-freezer"}},
        }))
    }

    #[test]
    fn a_missing_secret_or_user_name_is_named_and_a_missing_password_is_not_wanted() {
        let member_of =
            |secrets| member(&Ingredients { database: with_credentials(), secrets, beside: Beside::Nobody });
        assert!(matches!(member_of(vec![]), Err(Unresolved::Credentials { why: "does not exist", .. })));
        let no_user = secret(json!({"password": "cHc="}));
        assert!(matches!(member_of(vec![no_user]), Err(Unresolved::Credentials { key, .. }) if key == "username"));
        let no_password = secret(json!({"username": "ZGJh"}));
        let account = member_of(vec![no_password]).unwrap().account.unwrap();
        assert_eq!((account.user.as_str(), account.password), ("dba", None));
    }

    #[test]
    fn nothing_of_a_target_prints_its_password() {
        let secret = secret(json!({"username": "ZGJh", "password": "c2VzYW1l"}));
        let member =
            member(&Ingredients { database: with_credentials(), secrets: vec![secret], beside: Beside::Nobody })
                .unwrap();
        assert_eq!(member.account.as_ref().unwrap().password.as_deref(), Some("sesame"));
        assert!(!format!("{member:?}").contains("sesame"));
    }

    #[test]
    fn a_group_lasts_as_long_as_its_shortest_member_allows() {
        let long = database(json!({"engine": "PostgreSQL", "endpoint": {"host": "a"}}));
        let short =
            database(json!({"engine": "MariaDB", "endpoint": {"host": "b"}, "freeze": {"maxFrozenSeconds": 4}}));
        let both = [long, short];
        assert_eq!(level(&both, None), Level::WriteBlocked);
        let (ttl, max) = durations(&both, Level::WriteBlocked, Copy::Atomic, None);
        assert_eq!((ttl, max), (Duration::from_secs(4), Duration::from_secs(4)));
    }

    #[test]
    fn encryption_is_wanted_unless_the_bytes_stay_on_the_machine() {
        use api::TlsMode;
        let mode = |host: &str| {
            let database = database(json!({"engine": "MariaDB", "endpoint": {"host": host}}));
            member(&Ingredients { database, secrets: vec![], beside: Beside::Nobody }).unwrap().tls.mode
        };
        assert_eq!(mode("127.0.0.1"), TlsMode::Disable);
        assert_eq!(mode("db.example"), TlsMode::Require);
    }
}
