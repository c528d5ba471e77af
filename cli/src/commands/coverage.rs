//! `coverage`: the claims of a cluster that look like a database's, and whether a snapshot of each would be held for. It reads, and
//! changes nothing.

mod state;
#[cfg(test)]
mod tests;

use api::install::{
    self,
    webhooks::{self, left_alone},
};
use k8s_openapi::{
    api::admissionregistration::v1::MutatingWebhookConfiguration,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{Api, Client};
use serde_json::json;

use self::state::{Claim, Installed, State};
use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
    seen::Seen,
};

#[derive(Debug, clap::Args)]
pub struct Command {
    /// Of all namespaces, instead of the one in force.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Those that are protected, too, and what no driver is there for.
    #[arg(long)]
    all: bool,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let namespace = (!self.all_namespaces).then_some(api.namespace.as_str());
        let seen = Seen::read(&api.client, namespace).await.map_err(|error| unreadable(error, namespace))?;
        let (gates, home) = (gates(&api.client).await, home(&api.client).await);
        let left_alone = left_alone(&home);
        let claims = state::claims(&seen, Installed { gates, left_alone: &left_alone });
        if !seen.volumes {
            eprintln!(
                "note: you may not list PersistentVolumes: whether there can be snapshots of these claims is not known"
            );
        }
        match output {
            Output::Json => print::json(&report(&claims))?,
            Output::Text => {
                let shown: Vec<&Claim> = claims.iter().filter(|claim| self.all || claim.state.is_bad()).collect();
                if !shown.is_empty() {
                    print!("{}", table(&shown));
                }
                println!("{}", summary(&claims, namespace));
            }
        }
        Ok(u8::from(claims.iter().any(|claim| claim.state.is_bad())))
    }
}

impl State {
    /// Somebody can do something about it.
    fn is_bad(self) -> bool {
        matches!(self, Self::NotReady | Self::Unprotected)
    }
}

/// Whether snapshots are waited for; who may not know that is told what his claims say.
async fn gates(client: &Client) -> bool {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    !matches!(configurations.get_opt(webhooks::NAME).await, Ok(None))
}

/// The namespace that it is installed in; its usual one where that may not be read.
async fn home(client: &Client) -> String {
    let services: Api<APIService> = Api::all(client.clone());
    let service = services.get_opt(&install::api_service()).await.ok().flatten();
    let home = service.and_then(|service| service.spec?.service?.namespace);
    home.unwrap_or_else(|| install::NAMESPACE.to_owned())
}

fn unreadable(error: kube::Error, namespace: Option<&str>) -> Failure {
    match (&error, namespace) {
        (kube::Error::Api(status), None) if status.code == 403 => Failure::new(format!(
            "{}; without --all-namespaces only the namespace in force is looked at",
            status.message
        )),
        (kube::Error::Api(status), _) if status.code == 404 => Failure::new(format!(
            "{}; there are claims in a cluster only, and Databases where Stillpoint is installed",
            status.message
        )),
        _ => error.into(),
    }
}

fn count(claims: &[Claim], state: State) -> usize {
    claims.iter().filter(|claim| claim.state == state).count()
}

const STATES: [State; 5] = [State::Protected, State::Operator, State::NoDriver, State::NotReady, State::Unprotected];

fn report(claims: &[Claim]) -> serde_json::Value {
    let counts: serde_json::Map<_, _> =
        STATES.iter().map(|state| (format!("{state:?}"), count(claims, *state).into())).collect();
    json!({"claims": claims, "counts": counts})
}

fn table(claims: &[&Claim]) -> String {
    let list =
        |names: &std::collections::BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let rows: Vec<Vec<String>> = claims
        .iter()
        .map(|claim| {
            let fix = claim.fix.as_ref().map(|fix| format!("\n    → {fix}")).unwrap_or_default();
            vec![
                claim.namespace.clone(),
                claim.claim.clone(),
                list(&claim.pods),
                list(&claim.systems),
                format!("{:?}", claim.state),
                format!("{}{fix}", claim.message),
            ]
        })
        .collect();
    print::table(&["NAMESPACE", "CLAIM", "POD", "KEEPS", "STATE", "MESSAGE"], &rows)
}

fn summary(claims: &[Claim], namespace: Option<&str>) -> String {
    let within = namespace.map_or("in any namespace".to_owned(), |namespace| format!("in namespace {namespace}"));
    if claims.is_empty() {
        return format!("no claim {within} looks like a database's");
    }
    let protected = count(claims, State::Protected);
    let mut summary = format!("{protected} of {} claims that keep a database's data are protected", claims.len());
    for (state, what) in [
        (State::Unprotected, "unprotected"),
        (State::NotReady, "not ready"),
        (State::Operator, "left to operators"),
        (State::NoDriver, "of systems that no driver is there for"),
    ] {
        let number = count(claims, state);
        if number > 0 {
            summary.push_str(&format!("; {number} {what}"));
        }
    }
    summary
}
