//! What makes an object valid, as pure functions. The registry, the webhooks and the controllers call the same ones.

pub(crate) mod copies;
mod locations;
pub(crate) mod tools;

use kube::core::Selector;

pub use copies::{repository, repository_update, restore, restore_update, snapshot, snapshot_update};
pub use locations::location;
pub use tools::{dump_tool, dump_tool_update};

use crate::{AgentPolicy, Copy, DatabaseSpec, FreezeSpec, Level, QuiesceSpec, TlsMode};

/// One thing that is wrong, and where (`spec.endpoint.host`), in the form of a `metav1.StatusCause`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub field: String,
    pub kind: CauseKind,
    /// What is wrong and what would be right; never a secret.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseKind {
    Required,
    Invalid,
    Forbidden,
    Duplicate,
}

impl Cause {
    /// As the API machinery says it: `Forbidden: is final` (apimachinery `util/validation/field/errors.go`).
    pub fn said(&self) -> String {
        format!("{}: {}", self.kind.word(), self.message)
    }
}

impl CauseKind {
    fn word(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::Forbidden => "Forbidden",
            Self::Duplicate => "Duplicate value",
        }
    }

    /// As `metav1.CauseType`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
        }
    }
}

/// The most members that one freeze may hold.
pub const MOST_TARGETS: usize = 16;
/// The longest a claim may ask for: a Files copy of a large server.
pub const LONGEST_TTL_SECONDS: u32 = 6 * 3600;

/// `Database.spec`.
pub fn database(spec: &DatabaseSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    endpoint(spec, &mut causes);
    for (at, name) in spec.databases.iter().enumerate() {
        let field = format!("spec.databases[{at}]");
        if name.is_empty() || name.len() > 64 || name.contains('\0') {
            causes.push(invalid(&field, "must be the name of a database, 1 to 64 bytes"));
        } else if spec.databases[..at].contains(name) {
            causes.push(cause(&field, CauseKind::Duplicate, format!("{name:?} is listed twice")));
        }
    }
    if let Some(credentials) = &spec.credentials {
        required("spec.credentials.secretRef.name", &credentials.secret_ref.name, &mut causes);
        required("spec.credentials.usernameKey", &credentials.username_key, &mut causes);
        required("spec.credentials.passwordKey", &credentials.password_key, &mut causes);
    }
    if let Some(tls) = &spec.tls {
        let verified = matches!(tls.mode, Some(TlsMode::VerifyCA | TlsMode::VerifyFull));
        if verified && tls.ca_secret_ref.is_none() {
            causes.push(cause(
                "spec.tls.caSecretRef",
                CauseKind::Required,
                "name a Secret whose key ca.crt holds the CA that the server's certificate is checked against".into(),
            ));
        }
        for (field, secret) in
            [("spec.tls.caSecretRef.name", &tls.ca_secret_ref), ("spec.tls.certSecretRef.name", &tls.cert_secret_ref)]
        {
            if let Some(secret) = secret {
                required(field, &secret.name, &mut causes);
            }
        }
    }
    let policy = &spec.freeze;
    within("spec.freeze.acquireTimeoutSeconds", Some(policy.acquire_timeout_seconds), 1, 15, &mut causes);
    within("spec.freeze.prepareTimeoutSeconds", Some(policy.prepare_timeout_seconds), 1, 600, &mut causes);
    within("spec.freeze.ttlSeconds", policy.ttl_seconds, 1, LONGEST_TTL_SECONDS, &mut causes);
    within("spec.freeze.maxFrozenSeconds", policy.max_frozen_seconds, 1, LONGEST_TTL_SECONDS, &mut causes);
    causes
}

/// A change of `Database.spec`: another engine is another Database.
pub fn database_update(new: &DatabaseSpec, old: &DatabaseSpec) -> Vec<Cause> {
    let mut causes = database(new);
    if new.engine != old.engine {
        causes.push(cause(
            "spec.engine",
            CauseKind::Forbidden,
            format!("is {} for good; make another Database for {}", old.engine, new.engine),
        ));
    }
    causes
}

/// `Freeze.spec`.
pub fn freeze(spec: &FreezeSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    if spec.targets.is_empty() {
        causes.push(cause("spec.targets", CauseKind::Required, "name at least one Database".into()));
    }
    if spec.targets.len() > MOST_TARGETS {
        causes.push(invalid("spec.targets", format!("holds {}; at most {MOST_TARGETS}", spec.targets.len())));
    }
    for (at, target) in spec.targets.iter().enumerate() {
        let field = format!("spec.targets[{at}].database");
        required(&field, &target.database, &mut causes);
        if spec.targets[..at].iter().any(|earlier| earlier.database == target.database) {
            causes.push(cause(&field, CauseKind::Duplicate, format!("{:?} is named twice", target.database)));
        }
    }
    level_and_copy(spec.level, spec.copy, spec.targets.len(), &mut causes);
    within("spec.ttlSeconds", spec.ttl_seconds, 1, LONGEST_TTL_SECONDS, &mut causes);
    reason(spec.reason.as_deref(), &mut causes);
    causes
}

/// A change of `Freeze.spec`: only `desired` may change, and only to `Thawed`.
pub fn freeze_update(new: &FreezeSpec, old: &FreezeSpec) -> Vec<Cause> {
    let mut causes = freeze(new);
    if (FreezeSpec { desired: old.desired, ..new.clone() }) != *old {
        causes.push(cause(
            "spec",
            CauseKind::Forbidden,
            "only spec.desired may change; make another Freeze for anything else".into(),
        ));
    }
    if old.desired == crate::Desired::Thawed && new.desired == crate::Desired::Frozen {
        causes.push(cause(
            "spec.desired",
            CauseKind::Forbidden,
            "a freeze that was thawed is never taken again; make another Freeze".into(),
        ));
    }
    causes
}

/// `Quiesce.spec`, for the Database `name`.
pub fn quiesce(name: &str, spec: &QuiesceSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(uid) = &spec.uid
        && (uid.is_empty() || uid.len() > 128 || uid.chars().any(|c| c.is_control() || c.is_whitespace()))
    {
        causes.push(invalid("spec.uid", "must be 1 to 128 bytes without spaces"));
    }
    if spec.with.len() >= MOST_TARGETS {
        causes.push(invalid("spec.with", format!("names {}; at most {}", spec.with.len(), MOST_TARGETS - 1)));
    }
    for (at, other) in spec.with.iter().enumerate() {
        let field = format!("spec.with[{at}]");
        required(&field, other, &mut causes);
        if other == name || spec.with[..at].contains(other) {
            causes.push(cause(&field, CauseKind::Duplicate, format!("{other:?} is named twice")));
        }
    }
    level_and_copy(spec.level, spec.copy.unwrap_or_default(), 1 + spec.with.len(), &mut causes);
    within("spec.ttlSeconds", spec.ttl_seconds, 1, LONGEST_TTL_SECONDS, &mut causes);
    reason(spec.reason.as_deref(), &mut causes);
    causes
}

fn endpoint(spec: &DatabaseSpec, causes: &mut Vec<Cause>) {
    let endpoint = &spec.endpoint;
    if let Some(selector) = &spec.pod_selector {
        match Selector::try_from(selector.clone()) {
            Ok(selector) if selector.selects_all() => {
                causes.push(invalid(
                    "spec.podSelector",
                    "must say something: as it is, it selects every Pod of the namespace",
                ));
            }
            Ok(_) => {}
            Err(error) => causes.push(invalid("spec.podSelector", error.to_string())),
        }
        if endpoint.is_empty() && spec.agent != AgentPolicy::Required {
            causes.push(invalid("spec.agent", "must be Required: without an endpoint only agents reach it"));
        }
    }
    match (&endpoint.host, &endpoint.socket) {
        (None, None) if endpoint.is_empty() && spec.pod_selector.is_some() => {}
        (None, None) => {
            causes.push(cause("spec.endpoint.host", CauseKind::Required, "give a host, or a socket".into()));
        }
        (Some(_), Some(_)) => {
            causes.push(cause(
                "spec.endpoint.socket",
                CauseKind::Forbidden,
                "give a host or a socket, not both".into(),
            ));
        }
        (Some(host), None) => {
            if host.is_empty() || host.len() > 253 || host.contains(|c: char| c.is_whitespace() || "/@?#".contains(c)) {
                causes.push(invalid("spec.endpoint.host", "must be a host name or an address, without scheme or port"));
            }
        }
        (None, Some(socket)) => {
            if !socket.starts_with('/') || socket.contains('\0') {
                causes.push(invalid("spec.endpoint.socket", "must be an absolute path"));
            }
        }
    }
    if endpoint.port == Some(0) {
        causes.push(invalid("spec.endpoint.port", "must be 1 to 65535"));
    }
}

/// What levels, copy methods and groups can go together, whatever the engine.
fn level_and_copy(level: Option<Level>, copy: Copy, members: usize, causes: &mut Vec<Cause>) {
    if copy == Copy::Files && level == Some(Level::WriteBlocked) {
        causes.push(invalid(
            "spec.level",
            "copy: Files takes its consistency from the backup label and WAL; WriteBlocked is for copy: Atomic",
        ));
    }
    if members > 1 && copy == Copy::Files {
        causes.push(invalid("spec.copy", "a group is cut at one instant: copy: Atomic"));
    }
    if members > 1 && level.is_some_and(|level| level != Level::WriteBlocked) {
        causes.push(invalid(
            "spec.level",
            "a group is held at WriteBlocked, or one Database could acknowledge what another's copy does not know",
        ));
    }
}

fn reason(reason: Option<&str>, causes: &mut Vec<Cause>) {
    if reason.is_some_and(|reason| reason.len() > 256) {
        causes.push(invalid("spec.reason", "must be at most 256 bytes"));
    }
}

fn within(field: &str, value: Option<u32>, least: u32, most: u32, causes: &mut Vec<Cause>) {
    if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
        causes.push(invalid(field, format!("is {value}; must be {least} to {most}")));
    }
}

fn required(field: &str, value: &str, causes: &mut Vec<Cause>) {
    if value.is_empty() {
        causes.push(cause(field, CauseKind::Required, "must not be empty".into()));
    }
}

fn invalid(field: &str, message: impl Into<String>) -> Cause {
    cause(field, CauseKind::Invalid, message.into())
}

fn cause(field: &str, kind: CauseKind, message: String) -> Cause {
    Cause { field: field.to_owned(), kind, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> DatabaseSpec {
        serde_json::from_value(value).unwrap()
    }

    fn fields(causes: &[Cause]) -> Vec<&str> {
        causes.iter().map(|cause| cause.field.as_str()).collect()
    }

    #[test]
    fn a_host_and_an_engine_are_enough() {
        assert_eq!(database(&spec(json!({"engine": "PostgreSQL", "endpoint": {"host": "db.example"}}))), []);
    }

    #[test]
    fn every_wrong_field_of_a_database_is_named() {
        let cases = [
            (json!({"engine": "MariaDB", "endpoint": {}}), "spec.endpoint.host"),
            (json!({"engine": "MariaDB", "podSelector": {"matchLabels": {"app": "a"}}}), "spec.agent"),
            (json!({"engine": "MariaDB", "podSelector": {}, "agent": "Required"}), "spec.podSelector"),
            (json!({"engine": "MariaDB", "endpoint": {"host": "h", "socket": "/s"}}), "spec.endpoint.socket"),
            (json!({"engine": "MariaDB", "endpoint": {"host": "mysql://h"}}), "spec.endpoint.host"),
            (json!({"engine": "MariaDB", "endpoint": {"socket": "relative"}}), "spec.endpoint.socket"),
            (json!({"engine": "MariaDB", "endpoint": {"host": "h", "port": 0}}), "spec.endpoint.port"),
            (json!({"engine": "MariaDB", "endpoint": {"host": "h"}, "databases": ["a", "a"]}), "spec.databases[1]"),
            (
                json!({"engine": "MariaDB", "endpoint": {"host": "h"}, "tls": {"mode": "VerifyFull"}}),
                "spec.tls.caSecretRef",
            ),
            (
                json!({"engine": "MariaDB", "endpoint": {"host": "h"}, "credentials": {"secretRef": {"name": ""}}}),
                "spec.credentials.secretRef.name",
            ),
            (
                json!({"engine": "MariaDB", "endpoint": {"host": "h"}, "freeze": {"acquireTimeoutSeconds": 60}}),
                "spec.freeze.acquireTimeoutSeconds",
            ),
        ];
        for (value, field) in cases {
            assert_eq!(fields(&database(&spec(value.clone()))), [field], "{value}");
        }
    }

    #[test]
    fn a_group_is_held_at_write_blocked_and_cut_at_one_instant() {
        let quiesce_of = |value| quiesce("orders", &serde_json::from_value(value).unwrap());
        assert_eq!(quiesce_of(json!({"with": ["billing"]})), []);
        assert_eq!(fields(&quiesce_of(json!({"with": ["billing"], "level": "Durable"}))), ["spec.level"]);
        assert_eq!(fields(&quiesce_of(json!({"with": ["billing"], "copy": "Files"}))), ["spec.copy"]);
        assert_eq!(fields(&quiesce_of(json!({"with": ["orders"]}))), ["spec.with[0]"]);
    }

    #[test]
    fn only_desired_may_change_in_a_freeze() {
        let old: FreezeSpec = serde_json::from_value(json!({"targets": [{"database": "orders"}]})).unwrap();
        let thawed = FreezeSpec { desired: crate::Desired::Thawed, ..old.clone() };
        assert_eq!(freeze_update(&thawed, &old), []);
        assert_eq!(fields(&freeze_update(&old, &thawed)), ["spec.desired"]);
        assert_eq!(fields(&freeze_update(&FreezeSpec { ttl_seconds: Some(3), ..old.clone() }, &old)), ["spec"]);
    }
}
