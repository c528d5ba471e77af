//! The admission policies in a real kube-apiserver. Each refusal has its negative control: without the policy, in this
//! namespace alone, the same is done. All by `--dry-run=server`, which is admitted like the real thing and leaves nothing.

use api::install::{self, policies};
use cluster::{Identity, until};
use serde_json::{Value, json};

use crate::world::{SOON, Setup, Space, World};

/// What somebody tries, in words of kubectl.
struct Attempt<'a> {
    space: &'a Space<'a>,
    who: Identity,
    arguments: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_is_declared_only_by_who_may_quiesce_each_of_its_databases() {
    let space = World::get().await.space("quiesce").await.unwrap();
    let dev = user(&space, "dev", &[&writes("freezes"), &verbs("quiesce", &["orders"])]).await;
    create(&space, &dev, &freeze("one", &["orders"])).is_done().await;
    let both = create(&space, &dev, &freeze("two", &["orders", "billing"]));
    both.is_refused(policies::QUIESCE, "Database billing may not be quiesced by you").await;
    both.is_done_without(policies::QUIESCE).await;
    // As many as there may be, each by its name: what the policy asks is within what it may spend.
    let (many, all) = (numbered(), user(&space, "all", &[&writes("freezes"), &verbs("quiesce", &numbered())]).await);
    create(&space, &all, &freeze("many", &many)).is_done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_is_ended_only_by_who_may_quiesce_or_thaw_each_of_its_databases() {
    let space = World::get().await.space("thaw").await.unwrap();
    let many = numbered();
    for (name, databases) in [("one", &["orders"][..]), ("many", &many)] {
        space.apply(freeze(name, databases)).await.unwrap();
    }
    let dev = user(&space, "dev", &[&writes("freezes"), &verbs("quiesce", &many[..9])]).await;
    let thaws = user(&space, "thaws", &[&writes("freezes"), &verbs("thaw", &many)]).await;
    let ended = r#"{"spec":{"desired":"Thawed"}}"#;
    let (one, ninth) = (patch(&space, &dev, "one", ended), patch(&space, &dev, "many", ended));
    one.is_refused(policies::THAW, "Database orders may be neither quiesced nor thawed by you").await;
    ninth.is_refused(policies::THAW_MORE, "Database db-10 may be neither").await;
    patch(&space, &thaws, "many", ended).is_done().await;
    // Our own account holds Databases for snapshots, by the right that anybody needs, and so may end that.
    let us = Identity::service_account(install::NAMESPACE, install::ACCOUNT);
    patch(&space, &us, "one", ended).is_done().await;
    patch(&space, &dev, "one", r#"{"metadata":{"labels":{"team":"shop"}}}"#).is_done().await;
    one.is_done_without(policies::THAW).await;
    ninth.is_done_without(policies::THAW_MORE).await;
}

/// Without a replica, which would finish Freezes of Databases that are not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_that_is_not_finished_is_deleted_only_by_who_may_end_it_and_by_those_who_delete_for_others() {
    let world = World::of(Setup { replicas: Vec::new(), ..Setup::default() }).await.unwrap();
    let space = world.space("delete").await.unwrap();
    let many = numbered();
    for (name, databases) in [("one", &["orders"][..]), ("many", &many), ("over", &many)] {
        space.apply(freeze(name, databases)).await.unwrap();
    }
    let over = ["patch", "freeze", "over", "--subresource=status", "--type=merge", "-p"];
    space.kubectl(&[&over[..], &[r#"{"status":{"phase":"Lost"}}"#]].concat()).await.unwrap();
    let deleted = |who: &Identity, name| attempt(&space, who, &["delete", "--dry-run=server", "freeze", name]);
    let reads = user(&space, "reads", &[&writes("freezes")]).await;
    let dev = user(&space, "dev", &[&writes("freezes"), &verbs("quiesce", &many[..9])]).await;
    let thaws = user(&space, "thaws", &[&writes("freezes"), &verbs("thaw", &many)]).await;
    let (one, ninth) = (deleted(&reads, "one"), deleted(&dev, "many"));
    one.is_refused(policies::THAW, "Database orders may be neither quiesced nor thawed by you").await;
    ninth.is_refused(policies::THAW_MORE, "Database db-10 may be neither").await;
    deleted(&thaws, "many").is_done().await;
    deleted(&reads, "over").is_done().await;
    // They may get and delete everything in any cluster.
    for controller in ["namespace-controller", "generic-garbage-collector"] {
        let who = Identity::user(&format!("system:serviceaccount:kube-system:{controller}"), &[]);
        deleted(&who, "one").is_done().await;
    }
    deleted(&Identity::service_account(install::NAMESPACE, install::ACCOUNT), "one").is_done().await;
    one.is_done_without(policies::THAW).await;
    ninth.is_done_without(policies::THAW_MORE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_writes_the_journal_whatever_rbac_grants() {
    let space = World::get().await.space("journal").await.unwrap();
    let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
    // An administrator of the namespace, as many have it.
    let admin = user(&space, "admin", &[&all]).await;
    let mut held = freeze("held", &["orders"]);
    held["metadata"]["finalizers"] = json!([api::FINALIZER_THAW]);
    space.apply(held.clone()).await.unwrap();
    space.apply(database("orders", &json!({}))).await.unwrap();

    let proved = r#"{"status":{"phase":"Thawed","proved":true}}"#;
    let forged = patch(&space, &admin, "held", proved).and("--subresource=status");
    let ready =
        patch_database(&space, &admin, "orders", r#"{"status":{"lastFreeze":null}}"#).and("--subresource=status");
    let released = patch(&space, &admin, "held", r#"{"metadata":{"finalizers":null}}"#);
    held["metadata"]["name"] = "another".into();
    let claimed = create(&space, &admin, &held);
    space.apply(snapshot("noon", &["orders"])).await.unwrap();
    let worth = r#"{"status":{"consistency":{"verdict":"application","reason":"so"}}}"#;
    let noon = ["patch", "--dry-run=server", "snapshots.stillpoint.dev", "noon", "--type=merge", "-p", worth];
    let worthy = attempt(&space, &admin, &noon).and("--subresource=status");
    let attempts = [forged, ready, released, claimed, worthy];
    for attempt in &attempts {
        attempt.is_refused(policies::JOURNAL, "to end a freeze: kubectl still thaw").await;
    }
    let others = json!({"metadata": {"finalizers": [api::FINALIZER_THAW, "example.org/archive"]}}).to_string();
    patch(&space, &admin, "held", &others).is_done().await;
    for attempt in &attempts {
        attempt.is_done_without(policies::JOURNAL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_given_only_secrets_that_its_author_may_read() {
    let space = World::get().await.space("secrets").await.unwrap();
    let reads = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["get"]});
    let dev = user(&space, "dev", &[&writes("databases"), &reads]).await;
    let credentials = |secret: &str| json!({"credentials": {"secretRef": {"name": secret}}});
    space.apply(database("orders", &credentials("theirs"))).await.unwrap();

    create(&space, &dev, &database("a", &json!({}))).is_done().await;
    create(&space, &dev, &database("b", &credentials("mine"))).is_done().await;
    let tls = |field: &str| json!({"tls": {field: {"name": "theirs"}}});
    let attempts = [
        (create(&space, &dev, &database("c", &credentials("theirs"))), "credentials.secretRef"),
        (create(&space, &dev, &database("d", &tls("caSecretRef"))), "tls.caSecretRef"),
        (create(&space, &dev, &database("e", &tls("certSecretRef"))), "tls.certSecretRef"),
        // The Secret is named already: where it is sent, and how, is as much.
        (
            patch_database(&space, &dev, "orders", r#"{"spec":{"endpoint":{"host":"evil.example"}}}"#),
            "credentials.secretRef",
        ),
        (patch_database(&space, &dev, "orders", r#"{"spec":{"tls":{"mode":"Disable"}}}"#), "credentials.secretRef"),
    ];
    for (attempt, path) in &attempts {
        attempt.is_refused(policies::SECRETS, &format!("Secret theirs (spec.{path}) may not be read by you")).await;
    }
    patch_database(&space, &dev, "orders", r#"{"spec":{"paused":true}}"#).is_done().await;
    for (attempt, _) in &attempts {
        attempt.is_done_without(policies::SECRETS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_declared_only_by_who_may_quiesce_each_of_its_databases() {
    let space = World::get().await.space("copy").await.unwrap();
    let dev = user(&space, "dev", &[&writes("snapshots"), &verbs("quiesce", &["orders"])]).await;
    create(&space, &dev, &snapshot("one", &["orders"])).is_done().await;
    let both = create(&space, &dev, &snapshot("two", &["orders", "billing"]));
    both.is_refused(policies::COPY, "Database billing may not be quiesced by you").await;
    both.is_done_without(policies::COPY).await;
    let (many, all) = (numbered(), user(&space, "all", &[&writes("snapshots"), &verbs("quiesce", &numbered())]).await);
    create(&space, &all, &snapshot("many", &many)).is_done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_declared_only_by_who_may_restore_that_copy_and_quiesce_what_it_goes_to() {
    let space = World::get().await.space("restore").await.unwrap();
    let restores = |names: &[&str]| {
        let rule = json!({"apiGroups": [api::LIVE_GROUP], "resources": ["snapshots/restore"], "verbs": ["create"]});
        let named = |mut rule: Value| {
            rule["resourceNames"] = json!(names);
            rule
        };
        if names.is_empty() { rule } else { named(rule) }
    };
    let of = |name: &str, spec: Value| json!({"apiVersion": api::API_VERSION, "kind": "Restore", "metadata": {"name": name}, "spec": spec});
    let noon = |more: Value| {
        let mut spec = json!({"source": {"snapshot": "noon"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        of("noon", spec)
    };
    let writes = writes("restores");
    let dev = user(&space, "dev", &[&writes, &restores(&["noon"]), &verbs("quiesce", &["orders"])]).await;
    let any = user(&space, "any", &[&writes, &restores(&[]), &verbs("quiesce", &["orders"])]).await;
    let newest = of("newest", json!({"source": {"latest": true, "repository": "r"}, "database": "orders"}));
    create(&space, &dev, &noon(json!({}))).is_done().await;
    create(&space, &dev, &noon(json!({"database": "orders"}))).is_done().await;
    create(&space, &any, &newest).is_done().await;
    let attempts = [
        (create(&space, &dev, &of("other", json!({"source": {"snapshot": "midnight"}}))), "Snapshot midnight may not"),
        // Whatever is the newest then.
        (create(&space, &dev, &newest), "Snapshot (any) may not be restored by you"),
        (create(&space, &dev, &noon(json!({"database": "billing"}))), "Database billing may not be quiesced by you"),
    ];
    for (attempt, says) in &attempts {
        attempt.is_refused(policies::RESTORE, says).await;
    }
    for (attempt, _) in &attempts {
        attempt.is_done_without(policies::RESTORE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_pods_of_runs_are_made_is_said_only_by_who_may_make_jobs() {
    let space = World::get().await.space("runner").await.unwrap();
    let restore = json!({"apiGroups": [api::LIVE_GROUP], "resources": ["snapshots/restore"], "verbs": ["create"]});
    let jobs = json!({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]});
    let (snapshots, restores, orders) = (writes("snapshots"), writes("restores"), verbs("quiesce", &["orders"]));
    let rules = [&snapshots, &restores, &restore, &orders];
    let dev = user(&space, "dev", &rules).await;
    let maker = user(&space, "maker", &[&rules[..], &[&jobs]].concat()).await;
    let said = |mut object: Value, volume: Value| {
        object["spec"]["runner"] = json!({"image": "mine", "volumes": [volume]});
        object
    };
    let back = json!({
        "apiVersion": api::API_VERSION, "kind": "Restore", "metadata": {"name": "back"},
        "spec": {"source": {"snapshot": "noon"}},
    });
    let room = json!({"name": "more", "emptyDir": {}});
    let mut attempts = Vec::new();
    for (plain, resource) in [(snapshot("noon", &["orders"]), "snapshots"), (back, "restores")] {
        create(&space, &dev, &plain).is_done().await;
        let with_runner = said(plain, room.clone());
        create(&space, &maker, &with_runner).is_done().await;
        attempts.push(create(&space, &dev, &with_runner));
        // Of one that is there the CRD refuses a change; but for one that kube-apiserver takes for none.
        let mut stored = with_runner;
        stored["metadata"]["name"] = "stored".into();
        space.apply(stored).await.unwrap();
        let (name, resource) = ("stored", format!("{resource}.{}", api::GROUP));
        let changed = |volume: Value| json!({"spec": {"runner": {"volumes": [volume]}}}).to_string();
        let patched = |who, patch: &str| {
            attempt(&space, who, &["patch", "--dry-run=server", &resource, name, "--type=merge", "-p", patch])
        };
        let more = changed(json!({"name": "more", "emptyDir": {}, "secret": {"secretName": "theirs"}}));
        let refused = space.kubectl(&["patch", &resource, name, "--type=merge", "-p", &more]).await.unwrap_err();
        assert!(refused.to_string().contains("make another"), "{refused}");
        let other = changed(json!({"name": "more", "secret": {"secretName": "theirs"}}));
        attempts.push(patched(&dev, &other));
        // Whoever changes something else is not asked.
        patched(&dev, r#"{"metadata":{"labels":{"team":"shop"}}}"#).is_done().await;
    }
    for attempt in &attempts {
        attempt.is_refused(policies::RUNNER, "you may make no Jobs here").await;
    }
    for attempt in &attempts {
        attempt.is_done_without(policies::RUNNER).await;
    }
}

/// kube-apiserver checks the types of the expressions against the CRDs, and only warns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_apiserver_has_nothing_to_say_about_the_expressions() {
    let space = World::get().await.space("types").await.unwrap();
    for policy in policies::ALL {
        let get = ["get", "validatingadmissionpolicy", policy, "-o", "json"];
        let checked = space.until_json(policy, &get, |policy| policy["status"]["observedGeneration"].is_number());
        let checked = checked.await.unwrap();
        assert_eq!(checked["status"]["typeChecking"]["expressionWarnings"], Value::Null, "{policy}");
    }
}

impl Attempt<'_> {
    fn and(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    async fn answer(&self) -> anyhow::Result<String> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.space.kubectl_as(&self.who, &arguments).await?.ok()
    }

    /// Roles and policies are in force some moments after they are written.
    async fn is_done(&self) {
        until(&self.arguments.join(" "), SOON, || self.answer()).await.unwrap();
    }

    async fn is_refused(&self, policy: &str, says: &str) {
        let what = self.arguments.join(" ");
        let refused = until(&what, SOON, || async {
            match self.answer().await {
                Ok(done) => anyhow::bail!("it is done: {done}"),
                // What comes before the policies.
                Err(error) if !error.to_string().contains("ValidatingAdmissionPolicy") => Err(error),
                Err(error) => Ok(error.to_string()),
            }
        });
        let error = refused.await.unwrap();
        assert!(error.contains(&format!("'{policy}'")) && error.contains(says), "{policy}, {says}: {error}");
    }

    /// The negative control. The other namespaces keep the policy, for the tests that run there.
    async fn is_done_without(&self, policy: &str) {
        let elsewhere =
            json!([{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [self.space.name]}]);
        let patch = json!({"spec": {"matchResources": {"namespaceSelector": {"matchExpressions": elsewhere}}}});
        let patch = ["patch", "validatingadmissionpolicybinding", policy, "--type=merge", "-p", &patch.to_string()];
        self.space.kubectl(&patch).await.unwrap();
        self.is_done().await;
    }
}

fn create<'a>(space: &'a Space<'a>, who: &Identity, object: &Value) -> Attempt<'a> {
    let mut object = object.clone();
    object["metadata"]["namespace"] = space.name.as_str().into();
    let name = format!("{}-{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
    let file = space.file(&name, &object).unwrap();
    attempt(space, who, &["create", "--dry-run=server", "-f", &file])
}

fn patch<'a>(space: &'a Space<'a>, who: &Identity, freeze: &str, patch: &str) -> Attempt<'a> {
    attempt(space, who, &["patch", "--dry-run=server", "freeze", freeze, "--type=merge", "-p", patch])
}

fn patch_database<'a>(space: &'a Space<'a>, who: &Identity, name: &str, patch: &str) -> Attempt<'a> {
    let resource = format!("databases.{}", api::GROUP);
    attempt(space, who, &["patch", "--dry-run=server", &resource, name, "--type=merge", "-p", patch])
}

fn attempt<'a>(space: &'a Space<'a>, who: &Identity, arguments: &[&str]) -> Attempt<'a> {
    Attempt { space, who: who.clone(), arguments: arguments.iter().map(|&argument| argument.to_owned()).collect() }
}

/// Somebody who may in the namespace what these rules of a Role say.
async fn user(space: &Space<'_>, name: &str, rules: &[&Value]) -> Identity {
    let user = format!("{name}@{}", space.name);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules,
    });
    space.apply(role).await.unwrap();
    let (role, subject) = (format!("--role={name}"), format!("--user={user}"));
    space.kubectl(&["create", "rolebinding", name, &role, &subject]).await.unwrap();
    Identity::user(&user, &[])
}

fn writes(resource: &str) -> Value {
    json!({"apiGroups": [api::GROUP], "resources": [resource], "verbs": ["create", "delete", "get", "patch", "update"]})
}

fn verbs(verb: &str, databases: &[&str]) -> Value {
    let resource = format!("databases/{verb}");
    json!({"apiGroups": [api::LIVE_GROUP], "resources": [resource], "resourceNames": databases, "verbs": ["create"]})
}

fn freeze(name: &str, databases: &[&str]) -> Value {
    let targets: Vec<Value> = databases.iter().map(|database| json!({"database": database})).collect();
    json!({"apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": name}, "spec": {"targets": targets}})
}

fn snapshot(name: &str, databases: &[&str]) -> Value {
    json!({
        "apiVersion": api::API_VERSION, "kind": "Snapshot", "metadata": {"name": name},
        "spec": {"databases": databases, "method": "VolumeSnapshot"},
    })
}

fn database(name: &str, more: &Value) -> Value {
    let mut spec = json!({"engine": "PostgreSQL", "endpoint": {"host": "127.0.0.1"}, "paused": true});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name}, "spec": spec})
}

/// As many as a Freeze may have.
fn numbered() -> [&'static str; 16] {
    [
        "db-1", "db-2", "db-3", "db-4", "db-5", "db-6", "db-7", "db-8", "db-9", "db-10", "db-11", "db-12", "db-13",
        "db-14", "db-15", "db-16",
    ]
}
