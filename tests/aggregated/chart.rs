//! What the chart makes of its values, by a real Helm, without a cluster.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use cluster::tool;
use serde_json::Value;
use tokio::process::Command;

use crate::{installation::repository, world::NAMESPACE};

/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

async fn rendered(values: &str) -> Result<Objects> {
    let helm = tool("helm", &[]).await?;
    let mut command = Command::new(helm);
    command.args(["template", "stillpoint", "deploy/chart", "--namespace", NAMESPACE, "--kube-version", "1.35.0"]);
    command.args(["--set", values]).current_dir(repository());
    let output = command.output().await?;
    ensure!(output.status.success(), "{values}: {}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8(output.stdout)?)
}

fn objects(text: &str) -> Result<Objects> {
    let mut objects = Objects::new();
    for document in text.split("---\n").filter(|document| document.contains("kind:")) {
        let object: Value = serde_saphyr::from_str(document).context(document.to_owned())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        objects.insert((text(&object["kind"]), text(&object["metadata"]["name"])), object);
    }
    Ok(objects)
}

fn container(objects: &Objects, deployment: &str) -> Value {
    let of = &objects[&("Deployment".to_owned(), deployment.to_owned())];
    of["spec"]["template"]["spec"]["containers"][0].clone()
}

fn argument(container: &Value, flag: &str) -> Option<String> {
    let arguments = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    arguments.filter_map(|argument| argument.strip_prefix(flag)).map(str::to_owned).next()
}

#[tokio::test]
async fn by_default_it_is_the_plain_yaml() {
    let mut chart = rendered("log.filter=info").await.unwrap();
    let plain: &Path = &repository().join("deploy/stillpoint.yaml");
    let mut plain = objects(&std::fs::read_to_string(plain).unwrap()).unwrap();
    plain.remove(&("Namespace".to_owned(), NAMESPACE.to_owned())).unwrap();
    for ((kind, _), object) in &mut chart {
        if kind == "CustomResourceDefinition" {
            object["metadata"]["annotations"].as_object_mut().unwrap().remove("helm.sh/resource-policy").unwrap();
        }
    }
    assert_eq!(chart, plain);
    assert_ne!(rendered("log.filter=debug").await.unwrap(), plain, "a difference is noticed");
}

#[tokio::test]
async fn without_webhooks_nothing_of_them_is_left_and_nobody_is_asked_at_gates() {
    let without = rendered("webhooks.enabled=false").await.unwrap();
    for (name, object) in &without {
        let text = object.to_string();
        assert!(!text.contains("gates-listen") && !text.contains(r#""gates""#), "{name:?}: {object}");
        assert!(!text.contains(r#""app.kubernetes.io/component":"webhooks""#), "{name:?}: {object}");
    }
    let with = rendered("webhooks.enabled=true").await.unwrap();
    assert_eq!(with.len(), without.len() + 7, "account, Service, Deployment, budget, network policy, configurations");
    let alone = rendered("agents.enabled=false").await.unwrap();
    assert_eq!(with.len(), alone.len() + 1, "the agents' Service");
    // What is stored may still say whether there is to be one.
    let mut others = alone.iter().filter(|(_, object)| object["kind"] != "CustomResourceDefinition");
    assert!(others.all(|(_, object)| !object.to_string().contains("agent")), "{alone:?}");
    assert_eq!(rendered("webhooks.replicas=1").await.unwrap().len(), with.len() - 1, "one needs no budget");
}

#[tokio::test]
async fn the_gates_make_room_for_the_servers_port_and_are_found_by_name() {
    for (values, server, gates) in
        [("port=6443", "0.0.0.0:6443", "0.0.0.0:8443"), ("port=8443", "0.0.0.0:8443", "0.0.0.0:6443")]
    {
        let objects = rendered(values).await.unwrap();
        let container = container(&objects, "stillpoint-apiserver");
        assert_eq!(argument(&container, "--listen=").as_deref(), Some(server));
        assert_eq!(argument(&container, "--gates-listen=").as_deref(), Some(gates));
        let ports = container["ports"].as_array().unwrap();
        let named = ports.iter().find(|port| port["name"] == "gates").unwrap();
        assert!(gates.ends_with(&format!(":{}", named["containerPort"])), "{named}");
    }
    let objects = rendered("listenAddress=[::],webhooks.port=10250").await.unwrap();
    let webhooks = container(&objects, api::install::webhooks::NAME);
    assert_eq!(argument(&webhooks, "--listen=").as_deref(), Some("[::]:10250"));
    let asked = argument(&webhooks, "--apiserver=").unwrap();
    let service = &objects[&("Service".to_owned(), "stillpoint-apiserver".to_owned())];
    let port = service["spec"]["ports"].as_array().unwrap().iter().find(|port| port["name"] == "gates").unwrap();
    assert_eq!(asked, format!("https://stillpoint-apiserver.{NAMESPACE}.svc:{}", port["port"]));
}
