//! Agents as they come to be: a Pod that asks for one gets it, its database is held through it, and a snapshot of it says so.

use anyhow::{Result, ensure};
use cluster::{image, until, workload};
use fixtures::Engine;
use serde_json::{Value, json};

use crate::{
    gates::world::{World, is_held, probed, until_writable},
    installed::{SOON, psql, start, verb},
};

/// A Pod that asks for an agent, with whom to be there in a Secret of its own.
pub(crate) fn labelled([mut pod, service]: [Value; 2], secret: &str) -> [Value; 2] {
    pod["metadata"]["labels"][api::inject::LABEL] = "true".into();
    pod["metadata"]["annotations"] = json!({"stillpoint.dev/credentials-secret": secret});
    [pod, service]
}

/// The same Pods as a StatefulSet of one, which asks for their agents; each has a claim of its own, `data-NAME-N`.
pub(crate) fn stateful_set([pod, service]: [Value; 2], secret: &str) -> [Value; 2] {
    let [pod, mut service] = labelled([pod, service], secret);
    let name = pod["metadata"]["name"].clone();
    service["spec"]["clusterIP"] = "None".into();
    let mut template = json!({"metadata": pod["metadata"], "spec": pod["spec"]});
    template["spec"]["volumes"] = json!([]);
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.remove("name");
    }
    let mut claim = workload::claim("data", None);
    claim["spec"].as_object_mut().into_iter().for_each(|spec| drop(spec.remove("dataSource")));
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "serviceName": name, "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": template, "volumeClaimTemplates": [{"metadata": claim["metadata"], "spec": claim["spec"]}],
        },
    });
    [set, service]
}

/// A Secret with the superuser's account.
pub(crate) fn account(name: &str, engine: Engine) -> Value {
    let user = match engine {
        Engine::PostgreSQL => "postgres",
        Engine::MariaDB => "root",
    };
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "stringData": {"username": user, "password": workload::PASSWORD},
    })
}

/// Waits until Pods that ask for an agent get one.
pub(crate) async fn injects(world: &World<'_>) -> Result<()> {
    let configuration = ["get", "mutatingwebhookconfiguration", api::install::webhooks::NAME, "-o", "json"];
    until("kube-apiserver shows Pods to the webhooks", SOON, || async {
        let configuration: Value = serde_json::from_str(&world.kubectl(&configuration).await?)?;
        let entries = configuration["webhooks"].as_array().into_iter().flatten();
        let shown = entries.filter(|entry| entry["name"].as_str().is_some_and(|name| name.contains(".inject.")));
        ensure!(shown.count() == 2, "{configuration}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pod_that_asks_gets_an_agent_and_is_held_through_it_whoever_takes_a_snapshot() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    cluster.import_image(&image(&["postgresql", "18"]).await.unwrap()).await.unwrap();
    // Of these Pods Stillpoint reads no Secret: the agent's kubelet does.
    world.kubectl(&["delete", "rolebinding", "credentials"]).await.unwrap();
    injects(&world).await.unwrap();

    let pods = [
        ("shop", Engine::PostgreSQL, workload::postgresql("shop")),
        ("stock", Engine::MariaDB, workload::mariadb("stock")),
    ];
    for (name, engine, objects) in pods {
        let kind = match engine {
            Engine::PostgreSQL => "PostgreSQL",
            Engine::MariaDB => "MariaDB",
        };
        world.apply(&account(&format!("{name}-account"), engine)).await.unwrap();
        world.apply(&workload::claim(name, None)).await.unwrap();
        world.run(name, labelled(objects, &format!("{name}-account"))).await.unwrap();
        let pod = world.object("pod", name).await.unwrap();
        assert_eq!(pod["metadata"]["annotations"][api::inject::STATUS], api::inject::INJECTED, "{pod}");
        let host = world.address(name).await.unwrap();
        world
            .apply(&json!({
                "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name},
                "spec": {"engine": kind, "endpoint": {"host": host}, "agent": "Required"},
            }))
            .await
            .unwrap();
        until("its agent has come", SOON, || async {
            let held = verb(&cluster, name, "quiesce").await?;
            ensure!(held["phase"] == "Frozen", "{held}");
            Ok(())
        })
        .await
        .unwrap();
        let ended = verb(&cluster, name, "unquiesce").await.unwrap();
        assert_eq!((&ended["proof"]["held"], &ended["targets"][0]["via"]), (&json!(true), &json!("Agent")), "{ended}");

        let login = world.login(engine, name).await.unwrap();
        probed(&login).await.unwrap();
        let exec = ["exec", name, "-c", api::inject::CONTAINER, "--", api::inject::AGENT_BINARY];
        let hook = |arguments: &'static [&'static str]| [&exec[..], arguments].concat();
        let said = world.kubectl(&hook(&["freeze", "--for", "10s", "--level", "WriteBlocked"])).await.unwrap();
        assert!(said.contains("frozen at WriteBlocked") && is_held(&login).await.unwrap(), "{said}");
        let said = world.kubectl(&hook(&["thaw"])).await.unwrap();
        assert!(said.contains("it was held all the time"), "{said}");
        until_writable(&login).await.unwrap();
        // A hook whose end never comes.
        world.kubectl(&hook(&["freeze", "--for", "2s", "--level", "WriteBlocked"])).await.unwrap();
        until_writable(&login).await.unwrap();
    }

    psql(&cluster, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    world.snapshot("noon", "shop").await.unwrap();
    let said = world.worth("noon", "application").await.unwrap();
    let freeze = said["annotations"]["stillpoint.dev/freeze"].as_str().unwrap();
    let freeze = world.object("freezes.stillpoint.dev", freeze).await.unwrap();
    let target = &freeze["status"]["targets"][0];
    assert_eq!((&target["via"], &target["member"]), (&json!("Agent"), &json!("shop")), "{freeze}");
    world.until_ready("volumesnapshot", "noon").await.unwrap();
    world.restored("noon", Engine::PostgreSQL, "copy").await.unwrap();
    assert_eq!(psql(&cluster, "copy", "SELECT count(*), max(n) FROM orders").await.unwrap(), "1000|1000");
}
