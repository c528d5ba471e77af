//! What tests of the gates do in a namespace: databases in Pods, snapshots of them and what those say, and whether anybody can write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster::{Cluster, image, until, workload};
use fixtures::{Engine, Login, Session};
use serde_json::{Value, json};
use tests::cuts::instant;
use tokio::{net::TcpStream, time::timeout};

use crate::installed::{NAMESPACE, SOON, grant_credentials};

/// A commit that takes longer is held up.
const MOMENT: Duration = Duration::from_secs(1);

/// One namespace of a cluster with Stillpoint.
pub(crate) struct World<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) namespace: &'c str,
}

impl<'c> World<'c> {
    /// With both databases' images, classes that say that their driver cuts at one instant, and gates that are asked.
    pub(crate) async fn prepare(cluster: &'c Cluster) -> Result<Self> {
        for kind in [&["postgresql", "18"], &["mariadb", "11.4"]] {
            cluster.import_image(&image(kind).await?).await?;
        }
        for class in ["volumesnapshotclass", "volumegroupsnapshotclass"] {
            cluster.kubectl(&["label", class, "test", "stillpoint.dev/atomic=true"]).await?.ok()?;
        }
        until("kube-apiserver knows of the webhooks", SOON, || async {
            let configuration = ["get", "validatingwebhookconfiguration", api::install::webhooks::NAME];
            cluster.kubectl(&configuration).await?.ok().map(drop)
        })
        .await?;
        Self::of(cluster, "default").await
    }

    /// The namespace is there; Stillpoint may read its Secrets from now on.
    pub(crate) async fn of(cluster: &'c Cluster, namespace: &'c str) -> Result<Self> {
        grant_credentials(cluster, namespace).await?;
        Ok(Self { cluster, namespace })
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", self.namespace], arguments].concat()).await?.ok()
    }

    pub(crate) async fn apply(&self, object: &Value) -> Result<()> {
        let mut object = object.clone();
        object["metadata"]["namespace"] = self.namespace.into();
        let what = || format!("{} {}", object["kind"], object["metadata"]["name"]);
        self.cluster.apply(&object.to_string()).await.map(drop).with_context(what)
    }

    pub(crate) async fn object(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"]).await?)?)
    }

    pub(crate) async fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let mut list: Value = serde_json::from_str(&self.kubectl(&["get", kind, "-o", "json"]).await?)?;
        Ok(serde_json::from_value(list["items"].take())?)
    }

    /// A database in a Pod, on an empty claim, and a Database that is ready; all have this name.
    pub(crate) async fn database(&self, engine: Engine, name: &str, freeze: Value) -> Result<Login> {
        self.apply(&workload::claim(name, None)).await?;
        self.run(name, pod(engine, name)).await?;
        self.register(name, name, engine, freeze).await
    }

    /// Waits until the Pod answers.
    pub(crate) async fn run(&self, pod: &str, objects: [Value; 2]) -> Result<()> {
        for object in objects {
            self.apply(&object).await?;
        }
        let wait = ["wait", "--for=condition=Ready", "--timeout=120s", "pod", pod];
        if let Err(error) = self.kubectl(&wait).await {
            let described = self.kubectl(&["describe", "pod", pod]).await?;
            let log = self.kubectl(&["logs", pod]).await?;
            return Err(error.context(format!("{described}{log}")));
        }
        Ok(())
    }

    /// A Database of what a Service leads to; waits until it is ready.
    pub(crate) async fn register(&self, name: &str, service: &str, engine: Engine, freeze: Value) -> Result<Login> {
        let login = self.login(engine, service).await?;
        let (kind, secret) = match engine {
            Engine::PostgreSQL => ("PostgreSQL", "postgresql-account"),
            Engine::MariaDB => ("MariaDB", "mariadb-account"),
        };
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret},
            "stringData": {"username": login.user, "password": login.password},
        }))
        .await?;
        self.apply(&json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name},
            "spec": {
                "engine": kind, "endpoint": {"host": login.host, "port": login.port},
                "credentials": {"secretRef": {"name": secret}},
                // The images have no certificates, and the network is one machine's.
                "tls": {"mode": "Disable"}, "freeze": freeze,
            },
        }))
        .await?;
        let wait = ["wait", "--for=condition=Ready", "--timeout=60s", "databases.stillpoint.dev", name];
        if let Err(error) = self.kubectl(&wait).await {
            let object = self.kubectl(&["get", "databases.stillpoint.dev", name, "-o", "yaml"]).await?;
            return Err(error.context(object));
        }
        Ok(login)
    }

    /// By a Service's ClusterIP, as its superuser.
    pub(crate) async fn login(&self, engine: Engine, service: &str) -> Result<Login> {
        let host = self.address(service).await?;
        let (user, port) = match engine {
            Engine::PostgreSQL => ("postgres", 5432),
            Engine::MariaDB => ("root", 3306),
        };
        // What is sent before kube-proxy knows of the Service goes nowhere, however often it is sent again.
        until(&format!("Service {service} leads to its Pod"), SOON, || async {
            timeout(MOMENT, TcpStream::connect((host.as_str(), port))).await??;
            Ok(())
        })
        .await?;
        Ok(Login { engine, host, port, user: user.to_owned(), password: workload::PASSWORD.to_owned() })
    }

    pub(crate) async fn address(&self, service: &str) -> Result<String> {
        let service = self.object("service", service).await?;
        Ok(service["spec"]["clusterIP"].as_str().context("no ClusterIP")?.to_owned())
    }

    /// Asks for one; nobody waits.
    pub(crate) async fn snapshot(&self, name: &str, claim: &str) -> Result<()> {
        self.apply(&workload::snapshot(name, claim)).await
    }

    /// What a VolumeSnapshot says that it is worth, which is this: its metadata.
    pub(crate) async fn worth(&self, snapshot: &str, consistency: &str) -> Result<Value> {
        self.worth_of("volumesnapshot", snapshot, consistency).await
    }

    /// The same of any kind.
    pub(crate) async fn worth_of(&self, kind: &str, name: &str, consistency: &str) -> Result<Value> {
        let said = match self.judged(kind, name).await {
            Ok(said) if said["labels"][api::gate::CONSISTENCY] == consistency => return Ok(said),
            Ok(said) => said.to_string(),
            Err(error) => format!("{error:#}"),
        };
        bail!("{kind} {name} is not {consistency}: {said}\n{}", self.logs().await?)
    }

    /// Whatever it says that it is worth: its metadata.
    pub(crate) async fn judged(&self, kind: &str, name: &str) -> Result<Value> {
        until(&format!("{kind} {name} is judged"), SOON, || async {
            let mut object = self.object(kind, name).await?;
            ensure!(object["metadata"]["labels"][api::gate::CONSISTENCY].is_string(), "{object}");
            Ok(object["metadata"].take())
        })
        .await
    }

    pub(crate) async fn until_ready(&self, kind: &str, name: &str) -> Result<()> {
        until(&format!("{kind} {name} is ready"), SOON, || async {
            let object = self.object(kind, name).await?;
            ensure!(object["status"]["readyToUse"] == true, "{object}");
            Ok(())
        })
        .await
    }

    /// The content of a snapshot, which is there.
    pub(crate) async fn content(&self, snapshot: &str) -> Result<Value> {
        let uid = self.object("volumesnapshot", snapshot).await?["metadata"]["uid"].clone();
        let content = format!("snapcontent-{}", uid.as_str().unwrap_or_default());
        self.object("volumesnapshotcontent", &content).await
    }

    /// Waits for it.
    pub(crate) async fn until_content(&self, snapshot: &str) -> Result<Value> {
        until(&format!("{snapshot} has a content"), SOON, || self.content(snapshot)).await
    }

    /// The content that a snapshot has, whoever made it.
    pub(crate) async fn bound(&self, snapshot: &str) -> Result<Value> {
        let snapshot = self.object("volumesnapshot", snapshot).await?;
        let content = snapshot["status"]["boundVolumeSnapshotContentName"].as_str().context("it has no content")?;
        self.object("volumesnapshotcontent", content).await
    }

    /// The name of the VolumeSnapshot of a claim that was cut with a group: it is made after the cut.
    pub(crate) async fn member(&self, group: &str, claim: &str) -> Result<String> {
        until(&format!("{group} has a member of {claim}"), SOON, || async {
            let snapshots = self.list("volumesnapshots").await?;
            let owner = |snapshot: &Value| snapshot["metadata"]["ownerReferences"][0]["name"] == group;
            let of = |snapshot: &Value| snapshot["spec"]["source"]["persistentVolumeClaimName"] == claim;
            let found = snapshots.into_iter().find(|snapshot| owner(snapshot) && of(snapshot));
            Ok(found.context("there is none")?["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// Whoever would say something of what is there has, when this returns: the leader looks at contents every second, and at each for
    /// two more, and these two go the same way, one after the other. Nothing is held for them.
    pub(crate) async fn until_the_leader_has_looked(&self, of: &str, claim: &str) -> Result<()> {
        for after in ["after", "later"] {
            let name = format!("{after}-{of}");
            self.apply(&unheld(&name, claim)).await?;
            let said = self.worth(&name, "crash").await?;
            ensure!(said["annotations"][api::gate::REASON] == "Skipped", "{said}");
            // And in these words it would be seen.
            ensure!(self.is_told(&name).await?, "{name}: it has no Event of ours");
        }
        Ok(())
    }

    /// Whether we have told people something of a snapshot.
    pub(crate) async fn is_told(&self, snapshot: &str) -> Result<bool> {
        let described = self.kubectl(&["describe", "volumesnapshot", snapshot]).await?;
        let events = described.rsplit_once("Events:").with_context(|| described.clone())?.1;
        Ok(events.contains(api::install::ACCOUNT))
    }

    pub(crate) async fn freezes(&self) -> Result<Vec<Value>> {
        self.list("freezes.stillpoint.dev").await
    }

    /// The newest Freeze that has a claim of this content's.
    pub(crate) async fn freeze_of(&self, content: &str) -> Result<Value> {
        self.freezes_of(content).await?.pop().with_context(|| format!("no Freeze is of content {content}"))
    }

    /// All of them, the newest last.
    pub(crate) async fn freezes_of(&self, content: &str) -> Result<Vec<Value>> {
        let mut freezes = self.freezes().await?;
        freezes.retain(|freeze| claims(freeze).any(|claim| is_of(claim, content)));
        freezes.sort_by_key(|freeze| freeze["status"]["requestedAt"].to_string());
        Ok(freezes)
    }

    /// Waits until databases are held for a snapshot that is being taken; answers the uid of its content.
    pub(crate) async fn until_held(&self, snapshot: &str) -> Result<String> {
        until(&format!("databases are held for {snapshot}"), SOON, || async {
            let content = self.content(snapshot).await?["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let freeze = self.freeze_of(&content).await?;
            let live = claims(&freeze).any(|claim| is_of(claim, &content) && claim["endedAt"].is_null());
            ensure!(live && freeze["status"]["phase"] == "Frozen", "{freeze}");
            Ok(content)
        })
        .await
    }

    /// Waits until the newest freeze for a content is over, and answers it. It was never held longer than it said before.
    pub(crate) async fn until_let_go(&self, content: &str) -> Result<Value> {
        let freeze = until(&format!("the freeze for {content} is over"), SOON, || async {
            let freeze = self.freeze_of(content).await?;
            ensure!(!freeze["status"]["thawedAt"].is_null() || is_over(&freeze), "{freeze}");
            Ok(freeze)
        })
        .await?;
        let (thawed, expires) = (&freeze["status"]["thawedAt"], &freeze["status"]["expiresAt"]);
        if let (Some(thawed), Some(expires)) = (thawed.as_str(), expires.as_str()) {
            let late = instant(&thawed.into())?.saturating_duration_since(instant(&expires.into())?);
            ensure!(late <= Duration::from_secs(1), "held {late:?} beyond its lease: {freeze}");
        }
        Ok(freeze)
    }

    /// Since when what is in this snapshot was held.
    pub(crate) async fn frozen_at(&self, said: &Value) -> Result<Instant> {
        let freeze = said["annotations"][api::gate::FREEZE].as_str().context("it names no Freeze")?;
        let freeze = self.object("freezes.stillpoint.dev", freeze).await?;
        instant(&freeze["status"]["frozenAt"])
    }

    /// A database on what a snapshot has, of this name.
    pub(crate) async fn restored(&self, snapshot: &str, engine: Engine, name: &str) -> Result<Login> {
        self.apply(&workload::claim(name, Some(snapshot))).await?;
        self.run(name, pod(engine, name)).await?;
        self.login(engine, name).await
    }

    /// Its Pod, its Service and its claim, so that many can be looked at.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let delete = ["delete", "--now", "pod,service,persistentvolumeclaim", name];
        self.kubectl(&delete).await.map(drop)
    }

    /// What all of Stillpoint said, for messages.
    pub(crate) async fn logs(&self) -> Result<String> {
        let logs = ["logs", "-l", "app.kubernetes.io/name=stillpoint", "--prefix", "--tail=100", "-n", NAMESPACE];
        self.cluster.kubectl(&logs).await?.ok()
    }
}

/// A snapshot that does not want to be waited for: nothing is held for it.
pub(crate) fn unheld(name: &str, claim: &str) -> Value {
    let mut snapshot = workload::snapshot(name, claim);
    snapshot["metadata"]["annotations"] = json!({api::gate::QUIESCE: api::gate::SKIP});
    snapshot
}

fn pod(engine: Engine, name: &str) -> [Value; 2] {
    match engine {
        Engine::PostgreSQL => workload::postgresql(name),
        Engine::MariaDB => workload::mariadb(name),
    }
}

fn claims(freeze: &Value) -> impl Iterator<Item = &Value> {
    freeze["status"]["claims"].as_array().into_iter().flatten()
}

fn is_of(claim: &Value, content: &str) -> bool {
    claim["uid"].as_str().is_some_and(|uid| uid.contains(content))
}

fn is_over(freeze: &Value) -> bool {
    ["Thawed", "Failed", "Expired", "Lost"].iter().any(|phase| freeze["status"]["phase"] == *phase)
}

/// A table to write to, for [`is_held`].
pub(crate) async fn probed(login: &Login) -> Result<()> {
    let database = if login.engine == Engine::PostgreSQL { "postgres" } else { "mysql" };
    Session::at(login, database).await?.run("CREATE TABLE probe (at timestamp)").await
}

/// Whether a commit is held up.
pub(crate) async fn is_held(login: &Login) -> Result<bool> {
    let database = if login.engine == Engine::PostgreSQL { "postgres" } else { "mysql" };
    let mut session = Session::at(login, database).await?;
    match timeout(MOMENT, session.run("INSERT INTO probe VALUES (now())")).await {
        Ok(written) => written.map(|()| false),
        Err(_) => Ok(true),
    }
}

pub(crate) async fn until_writable(login: &Login) -> Result<()> {
    until("it can be written to", SOON, || async {
        ensure!(!is_held(login).await?, "commits are held up");
        Ok(())
    })
    .await
}
