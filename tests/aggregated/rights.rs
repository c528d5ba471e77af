//! Who may what, as the cluster's RBAC says, and what the audit log says of it.

use anyhow::{Context, ensure};
use cluster::Identity;
use fixtures::{Options, Server, ServerKind};
use serde_json::json;

use crate::world::{SOON, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_freezes_the_one_database_that_it_may_and_no_other() {
    let space = World::get().await.space("rights").await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    for name in ["orders", "billing"] {
        space.register(name, &server).await.unwrap();
    }
    space.kubectl(&["create", "serviceaccount", "backup"]).await.unwrap();
    space
        .apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "backup"},
            "rules": [{
                "apiGroups": [api::LIVE_GROUP], "resources": ["databases/quiesce", "databases/unquiesce"],
                "resourceNames": ["orders"], "verbs": ["create"],
            }],
        }))
        .await
        .unwrap();
    let subject = format!("--serviceaccount={}:backup", space.name);
    space.kubectl(&["create", "rolebinding", "backup", "--role=backup", &subject]).await.unwrap();
    let backup = Identity::ServiceAccount { namespace: space.name.clone(), name: "backup".to_owned() };

    let orders = space.verb("orders", "quiesce");
    let held = space.kubectl_as(&backup, &["create", "--raw", &orders, "-f", "/dev/null"]).await.unwrap().ok().unwrap();
    assert!(held.contains("\"phase\":\"Frozen\""), "{held}");
    let user = format!("system:serviceaccount:{}:backup", space.name);
    let freezes = space.kubectl(&["get", "freezes", "-o", "jsonpath={.items[*].status.claims[*].user}"]).await.unwrap();
    assert_eq!(freezes, user);

    let billing = space.verb("billing", "quiesce");
    let with = space.file("with", &json!({"spec": {"with": ["billing"]}})).unwrap();
    let plain = "/dev/null".to_owned();
    for (path, body) in [(&billing, &plain), (&orders, &with)] {
        let refused = space.kubectl_as(&backup, &["create", "--raw", path, "-f", body]).await.unwrap();
        let error = refused.ok().unwrap_err().to_string();
        assert!(error.contains("forbidden") && error.contains("billing"), "{error}");
    }
    let freeze = space
        .file(
            "freeze",
            &json!({
                "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": "f", "namespace": space.name},
                "spec": {"targets": [{"database": "billing"}]},
            }),
        )
        .unwrap();
    let refused = space.kubectl_as(&backup, &["create", "-f", &freeze]).await.unwrap();
    let error = refused.ok().unwrap_err().to_string();
    assert!(error.contains("cannot create resource \"freezes\""), "{error}");
    // Who may create Freezes may freeze with that no Database that it may not quiesce: a policy sees to that.
    space.kubectl(&["create", "role", "freezes", "--verb=create", "--resource=freezes.stillpoint.dev"]).await.unwrap();
    space.kubectl(&["create", "rolebinding", "freezes", "--role=freezes", &subject]).await.unwrap();
    cluster::until("the right is there, and the policy refuses", SOON, || async {
        let refused = space.kubectl_as(&backup, &["create", "-f", &freeze]).await?;
        let error = refused.ok().err().context("it was created")?.to_string();
        let policy = "ValidatingAdmissionPolicy 'quiesce.stillpoint.dev'";
        ensure!(error.contains(policy) && error.contains("billing"), "{error}");
        Ok(())
    })
    .await
    .unwrap();

    let thaw = space.verb("orders", "unquiesce");
    space.kubectl_as(&backup, &["create", "--raw", &thaw, "-f", "/dev/null"]).await.unwrap().ok().unwrap();
    let events = space.world.cluster.audit_events().unwrap();
    let of_ours =
        events.iter().filter(|event| event["requestURI"] == orders.as_str() && event["stage"] == "ResponseComplete");
    let said: Vec<_> = of_ours
        .map(|event| (event["user"]["username"].as_str(), event["verb"].as_str(), &event["objectRef"]["subresource"]))
        .collect();
    assert_eq!(said[0], (Some(user.as_str()), Some("create"), &json!("quiesce")));
}
