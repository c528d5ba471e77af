//! The API, as the commands use it: verbs as typed calls, everything else by kube.

use std::{path::PathBuf, time::Duration};

use api::{LIVE_API_VERSION, LiveDatabase, Quiesce, QuiesceSpec, Renew, RenewSpec, Unquiesce, UnquiesceSpec};
use freeze::chain;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::failure::Failure;

/// Where the API is, as kubectl's own flags say it.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// Path to the kubeconfig file.
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE", help_heading = "Connection")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    context: Option<String>,
    /// The namespace to work in; the context's own when absent.
    #[arg(long, short, global = true, value_name = "NAME", help_heading = "Connection")]
    namespace: Option<String>,
}

/// How long an answer is waited for: taking hold may wait for the database; the server bounds it.
const USUAL: Duration = Duration::from_secs(120);

/// A connected API, and the namespace in force.
#[derive(Clone)]
pub struct Api {
    pub client: Client,
    pub namespace: String,
}

impl Connection {
    pub async fn connect(self) -> Result<Api, Failure> {
        self.connect_with(true, USUAL).await
    }

    /// For what is answered when it is over, and asked for once.
    pub async fn connect_for(self, longest: Duration) -> Result<Api, Failure> {
        self.connect_with(false, longest).await
    }

    /// A refusal for the moment (429, 503, 504) is an answer, and not tried again.
    pub async fn connect_for_one_try(self) -> Result<Api, Failure> {
        self.connect_with(false, USUAL).await
    }

    #[cfg(test)]
    pub fn of(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig: Some(kubeconfig), context: None, namespace: None }
    }

    /// The namespace, if one was named.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    async fn connect_with(self, tries_again: bool, longest: Duration) -> Result<Api, Failure> {
        let options = KubeConfigOptions { context: self.context, ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path)
                    .map_err(|error| Failure::new(format!("{}: {}", path.display(), chain(&error))))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = match config {
            Ok(config) => config,
            Err(error) => match Config::incluster() {
                Ok(config) => config,
                Err(_) => {
                    let why = chain(&error);
                    return Err(Failure::new(format!(
                        "no usable kubeconfig: {why}; set KUBECONFIG, or give --kubeconfig"
                    )));
                }
            },
        };
        config.default_retry = tries_again;
        config.read_timeout = Some(longest);
        let namespace = self.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        Ok(Api { client, namespace })
    }
}

impl Api {
    /// A namespaced kind of ours or of core.
    pub fn objects<K>(&self) -> kube::Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        kube::Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn quiesce(&self, database: &str, spec: QuiesceSpec, dry_run: bool) -> Result<Quiesce, kube::Error> {
        self.verb(database, "quiesce", "Quiesce", &spec, dry_run).await
    }

    pub async fn unquiesce(&self, database: &str, spec: UnquiesceSpec) -> Result<Unquiesce, kube::Error> {
        self.verb(database, "unquiesce", "Unquiesce", &spec, false).await
    }

    pub async fn renew(&self, database: &str, spec: RenewSpec) -> Result<Renew, kube::Error> {
        self.verb(database, "renew", "Renew", &spec, false).await
    }

    /// One live Database, or all of the namespace.
    pub async fn live(&self, database: Option<&str>) -> Result<Vec<LiveDatabase>, kube::Error> {
        #[derive(serde::Deserialize)]
        struct List {
            items: Vec<LiveDatabase>,
        }
        match database {
            Some(name) => Ok(vec![self.get(&self.path(name, "")).await?]),
            None => Ok(self.get::<List>(self.path("", "").trim_end_matches('/')).await?.items),
        }
    }

    async fn verb<S: Serialize, T: DeserializeOwned>(
        &self,
        database: &str,
        verb: &str,
        kind: &str,
        spec: &S,
        dry_run: bool,
    ) -> Result<T, kube::Error> {
        let body = json!({"apiVersion": LIVE_API_VERSION, "kind": kind, "spec": spec});
        let query = if dry_run { "?dryRun=All" } else { "" };
        let request = http::Request::post(format!("{}{query}", self.path(database, &format!("/{verb}"))))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, kube::Error> {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    fn path(&self, database: &str, rest: &str) -> String {
        format!("/apis/{LIVE_API_VERSION}/namespaces/{}/databases/{database}{rest}", self.namespace)
    }
}
