//! An installation as an operator makes it: by the lines of `deploy/README.md`, with real kubectl and Helm. There is no kubelet:
//! replicas are processes of this host, with the arguments that the Deployment gives its pods.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Identity, Options, tool, until};
use fixtures::{PASSWORD, Server, USER};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use crate::{
    replica::Replica,
    world::{NAMESPACE, SERVICE, SOON},
};

/// Where a test's Databases are.
pub(crate) const SHOP: &str = "shop";
const LIMIT: Duration = Duration::from_secs(180);

pub(crate) struct Installation {
    pub(crate) cluster: Cluster,
    pub(crate) replicas: Vec<Replica>,
    /// kubectl, helm and kubectl-still.
    path: PathBuf,
    account: Option<PathBuf>,
    started: usize,
}

/// What a line of a shell came to.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Installation {
    /// An empty cluster, and the tools.
    pub(crate) async fn begin() -> Result<Self> {
        let cluster = Cluster::start(Options { fsync: false, ..Options::default() }).await?;
        let path = cluster.root().join("bin");
        fs::create_dir(&path)?;
        let tools = [
            ("kubectl", tool("kubectl", &["1.35"]).await?),
            ("helm", tool("helm", &[]).await?),
            ("kubectl-still", tests::binary("kubectl-still")?),
        ];
        for (name, tool) in tools {
            symlink(tool, path.join(name))?;
        }
        cluster.kubectl(&["create", "namespace", SHOP]).await?.ok()?;
        Ok(Self { cluster, replicas: Vec::new(), path, account: None, started: 0 })
    }

    /// A line of shell at the top of the repository.
    pub(crate) async fn shell(&self, line: &str) -> Result<Said> {
        let home = self.cluster.root().join("home");
        let path = format!("{}:{}", self.path.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.args(["-ec", line]).current_dir(repository()).kill_on_drop(true).stdin(Stdio::null());
        command.env("PATH", path).env("KUBECONFIG", self.cluster.kubeconfig()).env("HOME", home);
        let output = timeout(LIMIT, command.output()).await.with_context(|| format!("{line}: too slow"))??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Ok(Said { code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    pub(crate) async fn run(&self, line: &str) -> Result<String> {
        let Said { code, stdout, stderr } = self.shell(line).await?;
        ensure!(code == 0, "{line} ({code}): {stdout}{stderr}");
        Ok(stdout)
    }

    /// The lines of a block of `deploy/README.md`, one after the other.
    pub(crate) async fn documented(&self, block: &str) -> Result<()> {
        for line in block_of_readme(block)? {
            self.run(&line).await?;
        }
        Ok(())
    }

    pub(crate) async fn object(&self, arguments: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&format!("kubectl {arguments} -o json")).await?)?)
    }

    /// What a kubelet would do: one more pod of the Deployment as it is now, and the Service leads to it.
    pub(crate) async fn start_pod(&mut self) -> Result<()> {
        self.start_pod_with(|arguments| arguments).await
    }

    pub(crate) async fn start_pod_with(&mut self, change: impl Fn(Vec<String>) -> Vec<String>) -> Result<()> {
        let deployment = self.object(&format!("get deployment {SERVICE} -n {NAMESPACE}")).await?;
        self.started += 1;
        let name = format!("{SERVICE}-{}", self.started);
        let arguments = change(arguments(&deployment, &name)?);
        if self.account.is_none() {
            let account = Identity::service_account(NAMESPACE, SERVICE);
            self.account = Some(self.cluster.kubeconfig_of(&account).await?);
        }
        let account = self.account.clone().context("no account")?;
        let replica = Replica::start_with(&self.cluster, &account, &name, &arguments).await?;
        let ready = format!("curl -skf https://127.0.0.1:{}/readyz", replica.port());
        until("readyz", SOON, || self.run(&ready)).await?;
        self.replicas.push(replica);
        self.route().await
    }

    /// Begins to end a pod as a kubelet does: nothing new is led to it, then SIGTERM. It goes on until it has drained.
    pub(crate) async fn end_pod(&mut self, at: usize) -> Result<Replica> {
        let replica = self.replicas.remove(at);
        self.route().await?;
        self.terminate(replica.pid()).await?;
        Ok(replica)
    }

    pub(crate) async fn terminate(&self, pid: u32) -> Result<()> {
        self.run(&format!("kill -TERM {pid}")).await.map(drop)
    }

    pub(crate) async fn route(&self) -> Result<()> {
        let ports: Vec<u16> = self.replicas.iter().map(Replica::port).collect();
        self.lead(SERVICE, &ports).await
    }

    /// A Service leads to these ports and no others, by EndpointSlices beside those of the cluster's controller, which knows of pods
    /// only.
    pub(crate) async fn lead(&self, of: &str, ports: &[u16]) -> Result<()> {
        let service = self.object(&format!("get service {of} -n {NAMESPACE}")).await?;
        let wanted: Vec<(String, u16)> = ports.iter().map(|port| (format!("test-{port}"), *port)).collect();
        for (name, port) in &wanted {
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "name": name, "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": of, "endpointslice.kubernetes.io/managed-by": "tests"},
                    "ownerReferences": [{
                        "apiVersion": "v1", "kind": "Service", "name": of, "uid": service["metadata"]["uid"],
                    }],
                },
                "endpoints": [{"addresses": [self.cluster.address()], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": port}],
            });
            self.cluster.apply(&slice.to_string()).await?;
        }
        let ours =
            format!("endpointslices -l endpointslice.kubernetes.io/managed-by=tests,kubernetes.io/service-name={of}");
        let found = self.object(&format!("get {ours} -n {NAMESPACE}")).await?;
        for slice in found["items"].as_array().into_iter().flatten() {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            if !wanted.iter().any(|(wanted, _)| wanted == name) {
                self.run(&format!("kubectl delete endpointslice {name} -n {NAMESPACE}")).await?;
            }
        }
        Ok(())
    }

    /// Available says that somebody answers, not that he is trusted (kube-aggregator's check does not verify); an answer does.
    pub(crate) async fn until_available(&self) -> Result<()> {
        let name = api::install::api_service();
        self.run(&format!("kubectl wait --for=condition=Available --timeout=60s apiservice {name}")).await?;
        let answers = format!("kubectl get --raw /apis/{}/databases", api::LIVE_API_VERSION);
        until("an answer through kube-apiserver", SOON, || self.run(&answers)).await.map(drop)
    }

    /// A Database in the test's namespace, and waits until it is ready.
    pub(crate) async fn register(&self, name: &str, server: &Server) -> Result<()> {
        let port = server.port;
        self.run(&format!(
            "STILLPOINT_PASSWORD={PASSWORD} kubectl still database create {name} -n {SHOP} --engine postgresql \
             --host 127.0.0.1 --port {port} --user {USER}"
        ))
        .await?;
        let wait =
            format!("kubectl wait -n {SHOP} --for=condition=Ready --timeout=60s databases.stillpoint.dev {name}");
        self.run(&wait).await?;
        Ok(())
    }

    /// A verb as the administrator; the status of the answer.
    pub(crate) async fn verb(&self, database: &str, verb: &str) -> Result<Value> {
        let group = api::LIVE_API_VERSION;
        let path = format!("/apis/{group}/namespaces/{SHOP}/databases/{database}/{verb}");
        let answer = self.run(&format!("kubectl create --raw {path} -f /dev/null")).await?;
        Ok(serde_json::from_str::<Value>(&answer)?["status"].take())
    }

    pub(crate) async fn phase(&self, freeze: &str) -> Result<String> {
        self.run(&format!("kubectl get freezes.stillpoint.dev {freeze} -n {SHOP} -o jsonpath={{.status.phase}}")).await
    }

    /// Every object of the cluster that is ours by its name, its kind or its label: `kind namespace/name`.
    pub(crate) async fn ours(&self) -> Result<BTreeSet<String>> {
        let kinds = self.run("kubectl api-resources --verbs=list -o name").await?;
        let mut found = BTreeSet::new();
        for kind in kinds.lines() {
            // Events are the history of things, not things.
            if kind.starts_with("events") {
                continue;
            }
            let list = self.object(&format!("get {kind} --all-namespaces")).await?;
            for object in list["items"].as_array().into_iter().flatten() {
                let metadata = &object["metadata"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let said = format!("{kind} {}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
                if said.contains("stillpoint") || metadata["labels"].to_string().contains("stillpoint") {
                    found.insert(said);
                }
            }
        }
        Ok(found)
    }
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands of a fenced block that has this name.
pub(crate) fn block_of_readme(name: &str) -> Result<Vec<String>> {
    let readme = fs::read_to_string(repository().join("deploy/README.md"))?;
    let (_, block) = readme.split_once(&format!("```sh {name}\n")).with_context(|| format!("no block {name}"))?;
    let (block, _) = block.split_once("```").context("a block without an end")?;
    Ok(block.lines().map(str::to_owned).collect())
}

/// The Deployment's, for a pod of this name; all pods have this host's addresses here, so that each listens elsewhere, and
/// wherever there is room for its gates and agents: nobody asks there here.
fn arguments(deployment: &Value, name: &str) -> Result<Vec<String>> {
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let all = container["args"].as_array().context("no args")?;
    let values = [("$(POD_NAME)", name), ("$(POD_IP)", "127.0.0.1")];
    let told = all.iter().filter_map(Value::as_str).filter(|argument| !argument.starts_with("--listen="));
    let anywhere = |argument: &str| {
        let (flag, _) =
            argument.split_once('=').filter(|(flag, _)| ["--gates-listen", "--agents-listen"].contains(flag))?;
        Some(format!("{flag}=127.0.0.1:0"))
    };
    let told = told.map(|argument| anywhere(argument).unwrap_or_else(|| argument.to_owned()));
    Ok(told.map(|argument| values.iter().fold(argument, |told, (of, is)| told.replace(of, is))).collect())
}
