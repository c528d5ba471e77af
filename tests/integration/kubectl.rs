//! An unmodified kubectl, of every version that is supported.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use tests::Stillpoint;

pub(crate) struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(crate) fn of(version: &str, stillpoint: &Stillpoint) -> Self {
        let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/kubectl");
        let output = Command::new(tool).arg(version).output().unwrap();
        assert!(output.status.success(), "kubectl {version}: {}", String::from_utf8_lossy(&output.stderr));
        let binary = PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().last().unwrap());
        Self { binary, kubeconfig: stillpoint.kubeconfig.clone() }
    }

    /// Runs it; its exit code and what it printed.
    pub(crate) fn run(&self, arguments: &str, input: &str) -> (i32, String) {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments.split_whitespace())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.kubeconfig.parent().unwrap());
        command.env("KUBECTL_EXTERNAL_DIFF", "diff -u").env("KUBE_EDITOR", "sed -i s/gold/silver/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    /// Runs it; all that it printed, as it is.
    pub(crate) fn bytes(&self, arguments: &str) -> Vec<u8> {
        let mut command = Command::new(&self.binary);
        command.args(arguments.split_whitespace()).env("KUBECONFIG", &self.kubeconfig);
        let output = command.env("HOME", self.kubeconfig.parent().unwrap()).output().unwrap();
        assert!(output.status.success(), "kubectl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub(crate) fn ok(&self, arguments: &str, input: &str) -> String {
        let (code, text) = self.run(arguments, input);
        assert_eq!(code, 0, "kubectl {arguments}: {text}");
        text
    }

    pub(crate) fn fails(&self, arguments: &str, input: &str, with: &str) {
        let (code, text) = self.run(arguments, input);
        assert!(code != 0 && text.contains(with), "kubectl {arguments} ({code}): {text}");
    }
}

const DATABASE: &str = r#"{"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Database", "metadata": {"name": "orders", "labels": {"app": "shop"}},
"spec": {"engine": "PostgreSQL", "endpoint": {"host": "127.0.0.1", "port": 1}}}"#;

fn walk(kubectl: &Kubectl) {
    kubectl.ok("version", "");
    let resources = kubectl.ok("api-resources", "");
    for word in ["spdb", "spfz", "secrets", "live.stillpoint.dev/v1alpha1"] {
        assert!(resources.contains(word), "{resources}");
    }
    kubectl.ok("create namespace shop", "");
    kubectl.ok("create secret generic account --from-literal=username=dba --from-literal=password=x -n shop", "");
    assert!(kubectl.ok("get secret account -n shop -o jsonpath={.data.username}", "").contains("ZGJh"));
    assert!(kubectl.ok("create -f - -n shop --dry-run=server", DATABASE).contains("created (server dry run)"));
    kubectl.fails("get database orders -n shop", "", "NotFound");
    kubectl.ok("apply -f - -n shop", DATABASE);
    assert!(kubectl.ok("apply -f - -n shop", DATABASE).contains("unchanged"));
    let changed = DATABASE.replace("\"port\": 1", "\"port\": 2");
    let (code, diff) = kubectl.run("diff -f - -n shop", &changed);
    assert!(code == 1 && diff.contains("port"), "{code} {diff}");
    assert!(kubectl.ok("apply -f - -n shop", &changed).contains("configured"));
    assert!(kubectl.ok("get spdb -n shop -o wide", "").contains("ENDPOINT"));
    assert!(kubectl.ok("get databases.stillpoint.dev -A -l app=shop -o name", "").contains("orders"));
    assert!(!kubectl.ok("get spdb -n shop -l app!=shop", "").contains("PostgreSQL"));
    assert!(kubectl.ok("get spdb -n shop --field-selector metadata.name=orders -o yaml", "").contains("port: 2"));
    kubectl.fails("get spdb -n shop --field-selector spec.nonsense=1", "", "not a known field selector");
    kubectl.ok("label spdb orders -n shop tier=gold", "");
    assert!(kubectl.ok("edit spdb orders -n shop", "").contains("edited"));
    assert!(kubectl.ok("get spdb -n shop -l tier=silver --no-headers", "").contains("orders"));
    let watched = kubectl.run("get spdb -n shop -w --request-timeout=2s", "").1;
    assert!(watched.contains("orders"), "{watched}");
    kubectl.ok("annotate spdb orders -n shop note=x", "");
    kubectl.ok("patch spdb orders -n shop --type=merge -p {\"spec\":{\"paused\":true}}", "");
    kubectl.ok("patch spdb orders -n shop --type=json -p [{\"op\":\"remove\",\"path\":\"/spec/paused\"}]", "");
    kubectl.fails("patch spdb orders -n shop --type=merge -p {\"spec\":{\"engine\":\"MariaDB\"}}", "", "Forbidden");
    kubectl.fails("patch spdb orders -n shop -p {\"spec\":{}}", "", "application/merge-patch+json");
    kubectl.ok("wait spdb/orders -n shop --for=jsonpath={.spec.engine}=PostgreSQL --timeout=5s", "");
    kubectl.ok("wait spdb/orders -n shop --for=condition=Ready=false --timeout=20s", "");
    assert!(kubectl.ok("describe spdb orders -n shop", "").contains("Unreachable"));
    assert!(kubectl.ok("explain databases.stillpoint.dev.spec.endpoint", "").contains("FIELDS"));
    assert!(kubectl.ok("explain freezes.spec --recursive", "").contains("ttlSeconds"));
    kubectl.fails("create -f - -n shop", &DATABASE.replace("port", "prot"), "unknown field");
    kubectl.fails("create -f - -n shop", DATABASE, "already exists");
    kubectl.fails("create -f - -n nowhere", &DATABASE.replace("orders", "x"), "namespaces \"nowhere\" not found");
    kubectl.fails("apply --server-side -f - -n shop", DATABASE, "server-side apply is not served without a cluster");
    assert!(kubectl.ok("get databases.live.stillpoint.dev -n shop", "").contains("Idle"));
    kubectl.ok("delete spdb orders -n shop --timeout=10s", "");
    kubectl.ok("delete namespace shop --timeout=20s", "");
    kubectl.fails("get namespace shop", "", "NotFound");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_33_walks_through_everything() {
    let stillpoint = Stillpoint::start().await.unwrap();
    walk(&Kubectl::of("1.33", &stillpoint));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_35_walks_through_everything() {
    let stillpoint = Stillpoint::start().await.unwrap();
    walk(&Kubectl::of("1.35", &stillpoint));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_survives_a_kill() {
    let mut stillpoint = Stillpoint::start().await.unwrap();
    let kubectl = Kubectl::of("1.33", &stillpoint);
    kubectl.ok("create namespace shop", "");
    kubectl.ok("apply -f - -n shop", DATABASE);
    let before = kubectl.ok("get spdb orders -n shop -o jsonpath={.metadata.uid}", "");
    stillpoint.restart().await.unwrap();
    let kubectl = Kubectl::of("1.33", &stillpoint);
    assert_eq!(kubectl.ok("get spdb orders -n shop -o jsonpath={.metadata.uid}", ""), before);
    kubectl.fails("create namespace shop", "", "already exists");
}

/// kubectl asks by 500, and lets itself ask five times a second only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_table_holds_more_than_kubectl_asks_for_and_a_small_page_what_it_should() {
    let stillpoint = Stillpoint::start().await.unwrap();
    let events = "/api/v1/namespaces/default/events";
    for n in 0..520 {
        let event = serde_json::json!({"metadata": {"name": format!("e{n}")}, "involvedObject": {"name": "x"}, "reason": "Test"});
        stillpoint.post(events, &event).await.unwrap();
    }
    let page = async |limit: usize, accept: &str| {
        let request = http::Request::get(format!("{events}?limit={limit}")).header("accept", accept).body(Vec::new());
        let page: serde_json::Value = stillpoint.client.request(request.unwrap()).await.unwrap();
        let rows = page["rows"].as_array().or(page["items"].as_array()).unwrap().len();
        (rows, page["metadata"]["continue"].is_string())
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    assert_eq!(page(500, table).await, (520, false));
    assert_eq!(page(499, table).await, (499, true));
    assert_eq!(page(500, "application/json").await, (500, true));
}
