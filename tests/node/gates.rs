//! The gates: whoever takes a VolumeSnapshot, the database stands still exactly while the storage cuts, and the snapshot says what it
//! is worth.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certs::{Authority, KeyPairPem, Names};
use cluster::{Cluster, ServicePort, until, workload};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::installed::{DEPLOYMENT, NAMESPACE, SOON, database, psql, rolled_out, start};

const GATES: u16 = api::gate::PORT;
const WEBHOOKS: &str = api::install::webhooks::NAME;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Ended with the test.
struct Webhooks(std::process::Child);

impl Drop for Webhooks {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Has the API server answer at its gates, and starts the webhooks on this host, of a Service that leads there.
async fn gates(cluster: &Cluster) -> Result<Webhooks> {
    let argument = format!("--gates-listen=0.0.0.0:{GATES}");
    let patch = json!([{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": argument}]);
    let patched = ["patch", DEPLOYMENT, "-n", NAMESPACE, "--type=json", "--patch", &patch.to_string()];
    cluster.kubectl(&patched).await?.ok()?;
    let port =
        json!([{"op": "add", "path": "/spec/ports/-", "value": {"name": "gates", "port": GATES, "targetPort": GATES}}]);
    let service = "service/stillpoint-apiserver";
    let patched = ["patch", service, "-n", NAMESPACE, "--type=json", "--patch", &port.to_string()];
    cluster.kubectl(&patched).await?.ok()?;
    rolled_out(cluster).await?;

    let directory = cluster.root().join("webhooks");
    fs::create_dir_all(&directory)?;
    let authority = authority(cluster).await?;
    let name = format!("{WEBHOOKS}.{NAMESPACE}.svc");
    let names = Names { dns: vec![name], addresses: vec![] };
    let pair = authority.serve(&names, Timestamp::now(), DAY)?;
    let files = [("ca.crt", authority.certificate()), ("tls.crt", &pair.certificate), ("tls.key", &pair.key)];
    for (file, text) in files {
        fs::write(directory.join(file), text)?;
    }
    cluster.kubectl(&["create", "serviceaccount", WEBHOOKS, "-n", NAMESPACE]).await?.ok()?;
    let audience = format!("--audience={}", api::gate::AUDIENCE);
    let token = ["create", "token", WEBHOOKS, "-n", NAMESPACE, &audience, "--duration=1h"];
    fs::write(directory.join("token"), cluster.kubectl(&token).await?.ok()?.trim())?;
    let address = ["get", service, "-n", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}"];
    let address: IpAddr = cluster.kubectl(&address).await?.ok()?.trim().parse()?;

    let listener = std::net::TcpListener::bind((cluster.address(), 0))?;
    let listen = listener.local_addr()?;
    drop(listener);
    let file = |name: &str| directory.join(name).display().to_string();
    let log = fs::File::create(cluster.root().join("webhooks.log"))?;
    let child = Command::new(tests::binary(WEBHOOKS)?)
        .args(["--listen", &listen.to_string()])
        .args(["--tls-cert-file", &file("tls.crt"), "--tls-private-key-file", &file("tls.key")])
        .args(["--apiserver", &format!("https://{address}:{GATES}")])
        .args(["--apiserver-name", &format!("stillpoint-apiserver.{NAMESPACE}.svc")])
        .args(["--apiserver-ca-file", &file("ca.crt"), "--token-file", &file("token")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let webhooks = Webhooks(child);
    cluster.register_service(NAMESPACE, WEBHOOKS, &[ServicePort::https(&[listen.port()])]).await?;
    let ca_bundle = authority.certificate().to_owned();
    let configured = api::install::webhooks::Webhooks {
        namespace: NAMESPACE,
        ca_bundle: &ca_bundle,
        required: &[],
        content_drivers: &[],
    };
    cluster.apply(&configured.configuration().to_string()).await?;
    Ok(webhooks)
}

async fn authority(cluster: &Cluster) -> Result<Authority> {
    let secret = ["get", "secret", api::install::AUTHORITY, "-n", NAMESPACE, "-o", "json"];
    let secret: Value = serde_json::from_str(&cluster.kubectl(&secret).await?.ok()?)?;
    let text = |key: &str| -> Result<String> {
        let encoded = secret["data"][key].as_str().with_context(|| format!("no {key}"))?;
        Ok(String::from_utf8(STANDARD.decode(encoded)?)?)
    };
    Ok(Authority::from_pem(&KeyPairPem { certificate: text("ca.crt")?, key: text("ca.key")? })?)
}

async fn object(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&["get", kind, name, "-o", "json"]).await?.ok()?)?)
}

/// What a snapshot says that it is worth.
async fn worth(cluster: &Cluster, name: &str) -> Result<Value> {
    until(&format!("{name} is judged"), SOON, || async {
        let snapshot = object(cluster, "volumesnapshot", name).await?;
        ensure!(snapshot["metadata"]["labels"]["stillpoint.dev/consistency"].is_string(), "{snapshot}{}", log(cluster));
        Ok(snapshot["metadata"].clone())
    })
    .await
}

fn log(cluster: &Cluster) -> String {
    let path: &Path = &cluster.root().join("webhooks.log");
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn a_snapshot_that_anybody_takes_is_consistent_and_says_so() {
    let cluster = start().await.unwrap();
    let _webhooks = gates(&cluster).await.unwrap();
    database(&cluster, "shop").await.unwrap();
    psql(&cluster, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await.unwrap();

    // Nobody says that this driver cuts at one instant: then nobody can tell what the copy is.
    cluster.apply(&workload::snapshot("before", "shop").to_string()).await.unwrap();
    let said = worth(&cluster, "before").await.unwrap();
    assert_eq!(said["labels"]["stillpoint.dev/consistency"], "unknown", "{said}");
    assert_eq!(said["annotations"]["stillpoint.dev/reason"], "DriverUnknown", "{said}");

    let class = ["label", "volumesnapshotclass", "test", "stillpoint.dev/atomic=true"];
    cluster.kubectl(&class).await.unwrap().ok().unwrap();
    cluster.apply(&workload::snapshot("noon", "shop").to_string()).await.unwrap();
    let said = worth(&cluster, "noon").await.unwrap();
    assert_eq!(said["labels"]["stillpoint.dev/consistency"], "application", "{said}");
    let freeze = said["annotations"]["stillpoint.dev/freeze"].as_str().unwrap().to_owned();
    let freeze = object(&cluster, "freezes.stillpoint.dev", &freeze).await.unwrap();
    let phase = (&freeze["status"]["phase"], &freeze["status"]["proved"]);
    assert_eq!(phase, (&json!("Thawed"), &json!(true)), "{freeze}");
    let uid = said["uid"].as_str().unwrap();
    let content = object(&cluster, "volumesnapshotcontent", &format!("snapcontent-{uid}")).await.unwrap();
    assert_eq!(content["metadata"]["labels"]["stillpoint.dev/consistency"], "application", "{content}");
    psql(&cluster, "shop", "INSERT INTO orders VALUES (1001)").await.unwrap();
    let ready = ["wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", "volumesnapshot/noon"];
    cluster.kubectl(&ready).await.unwrap().ok().unwrap();
    let [pod, service] = workload::postgresql("copy");
    for object in [workload::claim("copy", Some("noon")), pod, service] {
        cluster.apply(&object.to_string()).await.unwrap();
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/copy"]).await.unwrap().ok().unwrap();
    assert_eq!(psql(&cluster, "copy", "SELECT count(*), max(n) FROM orders").await.unwrap(), "1000|1000");

    // Whoever only asks what would happen holds nothing still.
    let freezes = ["get", "freezes.stillpoint.dev", "-o", "name"];
    let before = cluster.kubectl(&freezes).await.unwrap().ok().unwrap();
    let dry = cluster.root().join("dry.json");
    fs::write(&dry, workload::snapshot("dry", "shop").to_string()).unwrap();
    let dry = dry.display().to_string();
    cluster.kubectl(&["create", "--dry-run=server", "-f", &dry]).await.unwrap().ok().unwrap();
    assert_eq!(cluster.kubectl(&freezes).await.unwrap().ok().unwrap(), before);
}
