//! Where the cases are played: a namespace with Databases, and people who may this and that.

use anyhow::Result;
use fixtures::{Options, Server, ServerKind};
use serde_json::{Value, json};

use crate::{
    doors::{Ask, Way, Who},
    wire::Answer,
    world::{NAMESPACE, SERVICE, Space, World},
};

pub(super) struct Stage {
    pub(super) space: Space<'static>,
    /// Of the service accounts `backup`, who may what alice may, and `scraper`, who may see the metrics.
    pub(super) backup: String,
    pub(super) scraper: String,
    /// Behind Database `orders`.
    _postgresql: Server,
}

/// What somebody may do to `databases` and its subresources.
struct Right {
    kind: &'static str,
    name: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    /// Of which; none: of all.
    of: &'static [&'static str],
}

const READ: Right = Right { kind: "User", name: "alice", resources: &["databases"], verbs: &["get", "list"], of: &[] };
const VERBS: &[&str] = &["databases/quiesce", "databases/unquiesce", "databases/renew"];

const RIGHTS: &[Right] = &[
    READ,
    Right { resources: VERBS, verbs: &["create"], ..READ },
    Right { name: "peter", ..READ },
    Right { kind: "ServiceAccount", name: "backup", ..READ },
    // All that can be done to a Database, and no verb of ours.
    Right { name: "carol", verbs: &["get", "list", "create", "update", "patch", "delete"], ..READ },
    Right { name: "dave", of: &["orders"], ..READ },
    Right { kind: "Group", name: "shop:dba", verbs: &["get"], ..READ },
];

impl Stage {
    pub(super) async fn set() -> Result<Self> {
        let space = World::get().await.space("conformance").await?;
        let postgresql = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await?;
        for account in ["backup", "scraper"] {
            space.kubectl(&["create", "serviceaccount", account]).await?;
        }
        for (at, right) in RIGHTS.iter().enumerate() {
            grant(&space, at, right).await?;
        }
        let scraper = format!("{}-scraper", space.name);
        let role = ["create", "clusterrole", &scraper, "--verb=get", "--non-resource-url=/metrics"];
        space.world.cluster.kubectl(&role).await?.ok()?;
        let subject = format!("--serviceaccount={}:scraper", space.name);
        let bind = ["create", "clusterrolebinding", &scraper, &format!("--clusterrole={scraper}"), &subject];
        space.world.cluster.kubectl(&bind).await?.ok()?;
        space.register("orders", &postgresql).await?;
        for (name, colour) in [("paused", "red"), ("resting", "blue")] {
            space.apply(paused(name, json!({"colour": colour}))).await?;
        }
        let (backup, scraper) = (token(&space, "backup", &[]).await?, token(&space, "scraper", &[]).await?);
        Ok(Self { space, backup, scraper, _postgresql: postgresql })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.space.name
    }

    pub(super) fn world(&self) -> &'static World {
        self.space.world
    }

    /// Sends it; a case names an account by its name, and here it gets its token.
    pub(super) async fn send(&self, way: Way, ask: &Ask) -> Result<Answer> {
        let mut ask = ask.clone();
        if let Who::Token(account) = &mut ask.who {
            match account.as_str() {
                "backup" => self.backup.clone_into(account),
                "scraper" => self.scraper.clone_into(account),
                _ => {}
            }
        }
        self.world().send(way, self.namespace(), &ask).await
    }

    /// What our server asked kube-apiserver about somebody, each question's spec, as the audit log has it.
    pub(super) fn asked_about(&self, user: &str) -> Result<Vec<Value>> {
        let ours = format!("system:serviceaccount:{NAMESPACE}:{SERVICE}");
        let events = self.world().cluster.audit_events()?;
        let reviews = events.into_iter().filter(|event| {
            event["objectRef"]["resource"] == "subjectaccessreviews" && event["user"]["username"] == ours.as_str()
        });
        let specs = reviews.map(|mut event| event["requestObject"]["spec"].take());
        Ok(specs.filter(|spec| spec["user"] == user).collect())
    }
}

/// A Database that nobody freezes.
pub(super) fn paused(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name, "labels": labels},
        "spec": {"engine": "PostgreSQL", "endpoint": {"host": "192.0.2.1"}, "paused": true},
    })
}

/// A fresh token of a service account of the namespace.
pub(super) async fn token(space: &Space<'_>, account: &str, arguments: &[&str]) -> Result<String> {
    let all: Vec<&str> = ["create", "token", account].into_iter().chain(arguments.iter().copied()).collect();
    Ok(space.kubectl(&all).await?.trim().to_owned())
}

async fn grant(space: &Space<'_>, number: usize, right: &Right) -> Result<()> {
    let Right { kind, name, resources, verbs, of } = *right;
    let role = format!("right-{number}");
    let mut rule = json!({"apiGroups": [api::LIVE_GROUP], "resources": resources, "verbs": verbs});
    if !of.is_empty() {
        rule["resourceNames"] = json!(of);
    }
    let mut subject = json!({"kind": kind, "name": name});
    match kind {
        "ServiceAccount" => subject["namespace"] = json!(space.name),
        _ => subject["apiGroup"] = json!("rbac.authorization.k8s.io"),
    }
    let version = "rbac.authorization.k8s.io/v1";
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role});
    space.apply(json!({"apiVersion": version, "kind": "Role", "metadata": {"name": role}, "rules": [rule]})).await?;
    let binding = json!({
        "apiVersion": version, "kind": "RoleBinding", "metadata": {"name": role}, "roleRef": reference, "subjects": [subject],
    });
    space.apply(binding).await.map(drop)
}
