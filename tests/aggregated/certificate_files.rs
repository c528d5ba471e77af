//! A serving certificate of somebody else's authority, as cert-manager keeps it: in files, with the authority in the APIService.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certs::{Authority, Names};
use cluster::until;
use fixtures::{Options, Server, ServerKind};
use jiff::Timestamp;

use crate::{
    installation::{Installation, SHOP},
    world::{NAMESPACE, SERVICE, SOON},
};

/// A certificate for our Service by a new authority, written to the files. The authority's own, PEM.
fn issue(directory: &Path) -> Result<String> {
    let (authority, pem) = Authority::create("somebody", Timestamp::now())?;
    let names = Names { dns: vec![format!("{SERVICE}.{NAMESPACE}.svc")], addresses: Vec::new() };
    let pair = authority.serve(&names, Timestamp::now(), Duration::from_secs(24 * 3600))?;
    fs::write(directory.join("tls.crt"), pair.certificate)?;
    fs::write(directory.join("tls.key"), pair.key)?;
    Ok(pem.certificate)
}

/// What cert-manager's cainjector does.
async fn inject(here: &Installation, authority: &str) -> Result<()> {
    let bundle = STANDARD.encode(authority);
    let name = api::install::api_service();
    here.run(&format!("kubectl patch apiservice {name} --type=merge -p '{{\"spec\":{{\"caBundle\":\"{bundle}\"}}}}'"))
        .await
        .map(drop)
}

/// Through kube-apiserver, for as many requests that either replica was asked.
async fn either_answers(here: &Installation) -> Result<()> {
    let held = here.verb("orders", "quiesce").await?;
    ensure!(held["phase"] == "Frozen", "{held}");
    for _ in 0..8 {
        // Not by kubectl's discovery, which remembers for a while that the group did not answer.
        let path = format!("/apis/{}/namespaces/{SHOP}/databases/orders", api::LIVE_API_VERSION);
        let live: serde_json::Value = serde_json::from_str(&here.run(&format!("kubectl get --raw {path}")).await?)?;
        ensure!(live["status"]["freeze"] == held["freeze"] && live["status"]["state"] == "Frozen", "{live}");
        // One freezes, and the other has to ask it.
        let renewed = here.verb("orders", "renew").await?;
        ensure!(renewed["freeze"] == held["freeze"], "{renewed}");
    }
    let ended = here.verb("orders", "unquiesce").await?;
    ensure!(ended["phase"] == "Thawed" && ended["proof"]["held"] == true, "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_from_files_serves_is_read_again_and_replicas_still_ask_each_other() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    let files = here.cluster.root().join("tls");
    fs::create_dir(&files).unwrap();
    let first = issue(&files).unwrap();
    inject(&here, &first).await.unwrap();
    for _ in 0..2 {
        here.start_pod_with(|all| {
            let file = |flag: &str, name: &str| format!("--{flag}={}", files.join(name).display());
            let given = [file("tls-cert-file", "tls.crt"), file("tls-private-key-file", "tls.key")];
            all.into_iter().chain(given).collect()
        })
        .await
        .unwrap();
    }
    here.until_available().await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    here.documented("enable").await.unwrap();
    here.register("orders", &server).await.unwrap();
    either_answers(&here).await.unwrap();

    // Renewed by another authority: both replicas show it, without a restart.
    let second = issue(&files).unwrap();
    inject(&here, &second).await.unwrap();
    let authority = here.cluster.root().join("second.crt");
    fs::write(&authority, &second).unwrap();
    for replica in &here.replicas {
        let name = format!("{SERVICE}.{NAMESPACE}.svc");
        let port = replica.port();
        let ask = format!(
            "curl -sf --cacert {} --resolve {name}:{port}:127.0.0.1 https://{name}:{port}/readyz",
            authority.display()
        );
        until("the new certificate is shown", SOON, || here.run(&ask)).await.unwrap();
    }
    here.until_available().await.unwrap();
    either_answers(&here).await.unwrap();
    let told = here.object(&format!("get apiservice {}", api::install::api_service())).await.unwrap();
    assert_eq!(told["spec"]["caBundle"], STANDARD.encode(&second), "the bundle is somebody else's to keep");

    // The control: by an authority that signed nothing, kube-apiserver trusts nobody.
    let (_, stranger) = Authority::create("nobody", Timestamp::now()).unwrap();
    inject(&here, &stranger.certificate).await.unwrap();
    let answers = format!("kubectl get --raw /apis/{}/databases", api::LIVE_API_VERSION);
    until("nobody is trusted", SOON, || async {
        let said = here.shell(&answers).await?;
        ensure!(said.code != 0, "{}", said.stdout);
        Ok(())
    })
    .await
    .unwrap();
}
