//! The control plane that all tests of the aggregated API stand on, by what they need of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use certs::{Authority, Bound, Leaf, Limits, Names};
use cluster::{Cluster, Component, Identity, Options, ServicePort, group_members, until};
use http::{HeaderMap, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Long enough for two control planes that start on a busy machine at the same time.
const LIMIT: Duration = Duration::from_secs(60);
const NO_FSYNC: Options = Options { aggregator_routing: true, fsync: false, node: None };

#[test]
fn a_control_plane_that_ends_with_its_owner() {
    // Started by a thread that is gone when the cluster is used, as one that tests share.
    let started = thread::spawn(|| runtime().block_on(Cluster::start(NO_FSYNC)));
    let cluster = started.join().unwrap().unwrap();
    let (root, groups) = (cluster.root().to_owned(), cluster.process_groups().unwrap());
    assert_eq!(groups.keys().copied().collect::<Vec<_>>(), Component::CONTROL_PLANE);
    assert!(groups.values().all(|group| group_members(*group) == [*group]));

    runtime().block_on(async {
        let version = cluster.kubectl(&["version"]).await.unwrap().ok().unwrap();
        assert!(version.contains("Server Version: v1.35.") && version.contains("Client Version: v1.35."), "{version}");
        controllers_and_scheduler_work(&cluster).await;
        identities_are_whom_they_name(&cluster).await;
        an_aggregated_api_is_reached(&cluster).await;
        components_come_and_go(&cluster).await;
    });

    let groups: Vec<u32> = groups.into_values().chain(cluster.process_groups().unwrap().into_values()).collect();
    drop(cluster);
    assert_eq!(groups.into_iter().flat_map(group_members).collect::<Vec<_>>(), Vec::<u32>::new());
    assert!(!root.exists());
}

async fn controllers_and_scheduler_work(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "short"]).await.unwrap().ok().unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle", "namespace": "short"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "idle", "image": "none"}]},
    });
    until("the namespace's service account", LIMIT, || async { cluster.apply(&pod.to_string()).await }).await.unwrap();
    let wait = ["wait", "pod/idle", "-n", "short", "--for=jsonpath={.status.conditions[0].reason}=Unschedulable"];
    cluster.kubectl(&wait).await.unwrap().ok().expect("the scheduler looks for a node");
    cluster.kubectl(&["delete", "namespace", "short", "--timeout=60s"]).await.unwrap().ok().unwrap();
    assert!(cluster.kubectl(&["get", "namespace", "short"]).await.unwrap().stderr.contains("NotFound"));
}

async fn identities_are_whom_they_name(cluster: &Cluster) {
    let whoami = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"];
    let user = Identity::user("alice", &["dba"]);
    let name = cluster.kubectl_as(&user, &whoami).await.unwrap().ok().unwrap();
    assert!(name.starts_with("alice ") && name.contains("dba") && name.contains("system:authenticated"), "{name}");
    let refused = cluster.kubectl_as(&user, &["get", "secrets"]).await.unwrap();
    assert!(refused.code == 1 && refused.stderr.contains("Forbidden"), "{refused:?}");
    let account = Identity::service_account("default", "default");
    let name = cluster.kubectl_as(&account, &whoami).await.unwrap().ok().unwrap();
    assert!(name.starts_with("system:serviceaccount:default:default "), "{name}");
    let nobody = Identity::Token("nonsense".to_owned());
    assert!(cluster.kubectl_as(&nobody, &whoami).await.unwrap().stderr.contains("Unauthorized"));
}

async fn an_aggregated_api_is_reached(cluster: &Cluster) {
    let tiny = Tiny::start((cluster.address(), 0).into()).await.unwrap();
    cluster.apply(&tiny.api_service(443).to_string()).await.unwrap();
    let reason = ["get", "apiservice", "v1.tiny.example", "-o", "jsonpath={.status.conditions[0].reason}"];
    until("the API server looks for it", LIMIT, || async {
        let reason = cluster.kubectl(&reason).await?.ok()?;
        ensure!(reason == "ServiceNotFound", "{reason}");
        Ok(())
    })
    .await
    .unwrap();

    cluster.register_service("tiny", "server", &[ServicePort::https(&[tiny.port])]).await.unwrap();
    cluster.kubectl(&AVAILABLE).await.unwrap().ok().unwrap();
    let user = Identity::user("system:admin-of-tiny", &["system:masters"]);
    let answer = cluster.kubectl_as(&user, &["get", "--raw", "/apis/tiny.example/v1"]).await.unwrap().ok().unwrap();
    assert!(answer.contains("APIResourceList"), "{answer}");

    let seen = tiny.seen.lock().unwrap().clone();
    let by_user = seen
        .iter()
        .find(|headers| headers.get("x-remote-user").is_some_and(|user| user == "system:admin-of-tiny"))
        .expect("the user is named");
    assert!(by_user.get_all("x-remote-group").iter().any(|group| group == "system:masters"));
    let id = by_user["audit-id"].to_str().unwrap();
    until("the request is in the audit log, under the id that the server was told", LIMIT, || async {
        let events = cluster.audit_events()?;
        let event = events.iter().find(|event| event["auditID"] == id);
        ensure!(event.is_some_and(|event| event["requestURI"] == "/apis/tiny.example/v1"), "{event:?}");
        Ok(())
    })
    .await
    .unwrap();

    // Its replica is gone: another slice with another port takes its place, and nothing is left of the first.
    cluster.register_service("tiny", "server", &[ServicePort::https(&[])]).await.unwrap();
    let slices = ["get", "endpointslices", "-n", "tiny", "-o", "name"];
    assert_eq!(cluster.kubectl(&slices).await.unwrap().ok().unwrap(), "");
    let request = http::Request::get("/apis/tiny.example/v1").body(Vec::new()).unwrap();
    let answer = timeout(LIMIT, cluster.client().await.unwrap().request_text(request)).await;
    let refused = answer.expect("the first answer is the last").unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 503), "{refused}");
    cluster.kubectl(&["delete", "apiservice", "v1.tiny.example"]).await.unwrap().ok().unwrap();
}

/// As kubeadm has it: no aggregator routing. And with fsync.
#[tokio::test]
async fn an_aggregated_api_is_reached_at_its_cluster_ip() {
    let cluster = Cluster::start(Options { aggregator_routing: false, fsync: true, node: None }).await.unwrap();
    let port = fixtures::Port::reserve().unwrap();
    let ports = ServicePort { name: "https".to_owned(), port: port.number, targets: vec![port.number] };
    let address = cluster.register_service("tiny", "server", &[ports]).await.unwrap();
    let tiny = Tiny::start((address, port.number).into()).await.unwrap();
    cluster.apply(&tiny.api_service(port.number).to_string()).await.unwrap();
    cluster.kubectl(&AVAILABLE).await.unwrap().ok().unwrap();
}

const AVAILABLE: [&str; 4] = ["wait", "apiservice/v1.tiny.example", "--for=condition=Available", "--timeout=60s"];

async fn components_come_and_go(cluster: &Cluster) {
    cluster.kubectl(&["create", "configmap", "kept"]).await.unwrap().ok().unwrap();
    cluster.stop(Component::Etcd).unwrap();
    assert!(cluster.stop(Component::Etcd).is_err());
    cluster.start_again(Component::Etcd).await.unwrap();
    cluster.stop(Component::Apiserver).unwrap();
    assert_ne!(cluster.kubectl(&["get", "configmap", "kept"]).await.unwrap().code, 0);
    cluster.start_again(Component::Apiserver).await.unwrap();
    cluster.kubectl(&["get", "configmap", "kept"]).await.unwrap().ok().unwrap();
    assert!(cluster.start_again(Component::Apiserver).await.is_err(), "it runs");

    cluster.pause(Component::Apiserver).unwrap();
    let hasty = ["get", "configmap", "kept", "--request-timeout=1s"];
    assert_ne!(cluster.kubectl(&hasty).await.unwrap().code, 0);
    cluster.resume(Component::Apiserver).unwrap();
    cluster.kubectl(&["get", "configmap", "kept"]).await.unwrap().ok().unwrap();
    // It ends paused: dropping it must not wait for it.
    cluster.pause(Component::Scheduler).unwrap();
}

#[test]
fn one_that_stays_until_it_is_told_to_go() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("it is mine");
    let up = run("up", &place);
    let line = String::from_utf8(up.stdout).unwrap();
    assert_eq!(line, format!("export KUBECONFIG='{}/admin.kubeconfig'\n", place.display()));
    let groups = recorded(&place);
    assert_eq!(groups.len(), Component::CONTROL_PLANE.len());
    assert_eq!(run("up", &place).stdout, line.as_bytes());
    assert_eq!(recorded(&place), groups, "the same one");

    let test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "somebody_elses_cluster", "--ignored", "--nocapture"])
        .env("KUBECONFIG_UNDER_TEST", place.join("admin.kubeconfig"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&test.stdout);
    assert!(test.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&test.stderr));

    let down = String::from_utf8(run("down", &place).stderr).unwrap();
    assert_eq!(down, "ended: etcd, kube-apiserver, kube-controller-manager, kube-scheduler\n");
    assert!(groups.into_values().flat_map(group_members).next().is_none());
    assert!(!place.exists());
    assert_eq!(String::from_utf8(run("down", &place).stderr).unwrap(), "no cluster runs\n");
}

#[tokio::test]
#[ignore = "one_that_stays_until_it_is_told_to_go runs it, with KUBECONFIG_UNDER_TEST"]
async fn somebody_elses_cluster() {
    let cluster = Cluster::start(Options::default()).await.unwrap();
    assert_eq!(cluster.kubeconfig().as_os_str(), std::env::var_os("KUBECONFIG_UNDER_TEST").unwrap());
    let nodes = cluster.kubectl(&["get", "namespaces"]).await.unwrap().ok().unwrap();
    assert!(nodes.contains("kube-system"), "{nodes}");
    identities_are_whom_they_name(&cluster).await;
    cluster.register_service("tiny", "server", &[ServicePort::https(&[1])]).await.unwrap();
    let error = cluster.stop(Component::Etcd).unwrap_err().to_string();
    assert!(error.contains("KUBECONFIG_UNDER_TEST"), "{error}");
    assert!(cluster.audit_log().is_err() && cluster.front_proxy_client().is_err());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn run(verb: &str, place: &Path) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_cluster")).args([verb, "--dir"]).arg(place).output().unwrap();
    assert!(output.status.success(), "cluster {verb}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn recorded(place: &Path) -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(place.join("processes")).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[0].to_owned(), words[1].parse().unwrap())
    };
    text.lines().map(line).collect()
}

/// A server of one group version, and the headers of all it was asked.
struct Tiny {
    port: u16,
    authority: String,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
    shutdown: CancellationToken,
}

impl Tiny {
    async fn start(address: SocketAddr) -> Result<Self> {
        let now = Timestamp::now();
        let (authority, pem) = Authority::create("tiny", now)?;
        let names = Names { dns: vec!["server.tiny.svc".to_owned()], addresses: Vec::new() };
        let leaf = authority.serve(&names, now, Duration::from_secs(3600))?;
        let bound = Bound::bind(address).await?;
        let (port, seen, shutdown) = (bound.address()?.port(), Arc::default(), CancellationToken::new());
        let all: Arc<Mutex<Vec<HeaderMap>>> = Arc::clone(&seen);
        let service = move |request: http::Request<_>, _| {
            all.lock().unwrap().push(request.headers().clone());
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "tiny.example/v1", "resources": []});
            let found = request.uri().path() == "/apis/tiny.example/v1";
            let response = Response::builder().status(if found { 200 } else { 404 });
            let response = response.header("content-type", "application/json").body(list.to_string()).unwrap();
            async move { response }
        };
        let tls = certs::server_config(Leaf::new(&leaf)?)?;
        tokio::spawn(bound.serve(tls, service, Limits::default(), shutdown.clone()));
        Ok(Self { port, authority: pem.certificate, seen, shutdown })
    }

    fn api_service(&self, port: u16) -> Value {
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.tiny.example"},
            "spec": {
                "group": "tiny.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 1,
                "service": {"namespace": "tiny", "name": "server", "port": port},
                "caBundle": STANDARD.encode(&self.authority),
            },
        })
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
