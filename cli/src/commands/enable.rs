//! `enable` and `disable`: whether Stillpoint may read the Secrets of a namespace, and make there what copies are made of. A RoleBinding,
//! made and removed.

use std::collections::BTreeMap;

use api::install::{self, ACCOUNT, CREDENTIALS, LABELS};
use k8s_openapi::{
    api::rbac::v1::{RoleBinding, RoleRef, Subject},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
};

use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {
    #[command(flatten)]
    what: What,
    /// The namespace that Stillpoint is installed in; the one that its APIService names when absent.
    #[arg(long, value_name = "NAMESPACE")]
    installed_in: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct DisableCommand {
    #[command(flatten)]
    what: What,
}

#[derive(Debug, clap::Args)]
struct What {
    /// The namespace whose Secrets may be read.
    #[arg(id = "of", value_name = "NAMESPACE")]
    namespace: String,
    /// Have the cluster say whether it could be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Where it is installed, as its APIService says; `None` when there is none.
pub async fn installed_in(client: &Client) -> Result<Option<String>, kube::Error> {
    let services: Api<APIService> = Api::all(client.clone());
    let service = services.get_opt(&install::api_service()).await?.and_then(|service| service.spec?.service);
    Ok(service.and_then(|service| service.namespace))
}

impl What {
    fn done(&self, what: &str) -> String {
        let dry = if self.dry_run { " (dry run: nothing was changed)" } else { "" };
        format!("namespace {}: {what}{dry}", self.namespace)
    }
}

const MAY: &str = "Stillpoint may read its Secrets, and make Jobs, VolumeSnapshots and claims in it";
const MAY_ALREADY: &str = "Stillpoint may read its Secrets, and make Jobs, VolumeSnapshots and claims in it, already";

impl Command {
    async fn home(&self, client: &Client) -> Result<String, Failure> {
        if let Some(named) = &self.installed_in {
            return Ok(named.clone());
        }
        match installed_in(client).await {
            Ok(Some(namespace)) => Ok(namespace),
            Ok(None) => Err(Failure::new(format!(
                "Stillpoint is not installed in this cluster: there is no APIService {}; install it, or say --installed-in",
                install::api_service()
            ))),
            Err(kube::Error::Api(status)) if status.code == 403 => Err(Failure::new(format!(
                "you may not read APIServices, which would say where Stillpoint is installed; say it: --installed-in {}",
                install::NAMESPACE
            ))),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let home = self.home(&api.client).await?;
        let bindings: Api<RoleBinding> = Api::namespaced(api.client, &self.what.namespace);
        let wanted = binding(&home);
        let params = PostParams { dry_run: self.what.dry_run, ..PostParams::default() };
        let (binding, what) = match bindings.get_opt(CREDENTIALS).await? {
            None => (bindings.create(&params, &wanted).await?, MAY),
            Some(found) if found.role_ref != wanted.role_ref => {
                let role = &found.role_ref.name;
                return Err(Failure::new(format!(
                    "the RoleBinding {CREDENTIALS} of namespace {} grants {role}; delete it, and try again",
                    self.what.namespace
                )));
            }
            Some(found) if grants(&found, &home) => (found, MAY_ALREADY),
            // For an installation that was elsewhere.
            Some(mut found) => {
                found.subjects = wanted.subjects;
                (bindings.replace(CREDENTIALS, &params, &found).await?, MAY)
            }
        };
        match output {
            Output::Json => print::json(&binding)?,
            Output::Text => println!("{} as {}", self.what.done(what), install::account_user(&home)),
        }
        Ok(0)
    }
}

impl DisableCommand {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let bindings: Api<RoleBinding> = Api::namespaced(connection.connect().await?.client, &self.what.namespace);
        let found = bindings.get_opt(CREDENTIALS).await?;
        if found.is_some() {
            let params = DeleteParams { dry_run: self.what.dry_run, ..DeleteParams::default() };
            bindings.delete(CREDENTIALS, &params).await?;
        }
        let what = match &found {
            Some(_) => "Stillpoint may not read its Secrets any more",
            None => "Stillpoint was not let to read its Secrets",
        };
        match output {
            Output::Json => print::json(&found)?,
            Output::Text => println!("{}", self.what.done(what)),
        }
        if found.is_some_and(|found| found.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "Helm"))
        {
            eprintln!("a Helm release made it, and will again: take the namespace out of its value `namespaces`");
        }
        Ok(0)
    }
}

fn binding(home: &str) -> RoleBinding {
    let labels: BTreeMap<String, String> =
        LABELS.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    RoleBinding {
        metadata: ObjectMeta { name: Some(CREDENTIALS.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: CREDENTIALS.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: ACCOUNT.to_owned(),
            namespace: Some(home.to_owned()),
            ..Subject::default()
        }]),
    }
}

/// Whether it lets the account of an installation there; pure.
fn grants(binding: &RoleBinding, home: &str) -> bool {
    binding.subjects.iter().flatten().any(|subject| {
        subject.kind == "ServiceAccount" && subject.name == ACCOUNT && subject.namespace.as_deref() == Some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_grants_to_the_installation_that_it_was_made_for_and_to_no_other() {
        let made = binding("stillpoint");
        assert!(grants(&made, "stillpoint") && !grants(&made, "elsewhere"));
        assert!(!grants(&RoleBinding { subjects: None, ..made }, "stillpoint"));
    }
}
