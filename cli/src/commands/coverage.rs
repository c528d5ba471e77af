//! `coverage`: the claims of a cluster that look like a database's, and whether a snapshot of each would be held for. It reads, and
//! changes nothing.

mod state;
#[cfg(test)]
mod tests;
mod waits;

use std::collections::BTreeSet;

use serde_json::json;

use self::{
    state::{Claim, State},
    waits::Waits,
};
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
    /// Also those of which nothing has to be done: protected ones, standbys', operators', and what no driver is there for.
    #[arg(long)]
    all: bool,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let namespace = (!self.all_namespaces).then_some(api.namespace.as_str());
        let seen = Seen::read(&api.client, namespace).await.map_err(|error| unreadable(error, namespace))?;
        let waits = Waits::read(&api.client).await;
        let claims = state::claims(&seen, &waits);
        if !seen.volumes {
            eprintln!(
                "note: you may not list PersistentVolumes: whether there can be snapshots of these claims is not known"
            );
        }
        if seen.classes.is_none() {
            eprintln!(
                "note: you may not list VolumeSnapshotClasses: whether drivers that are not known cut at one instant is not known"
            );
        }
        if waits.is_in_the_dark() {
            eprintln!("note: what is installed could not be read: whether snapshots are waited for is not known");
        }
        match output {
            Output::Json => print::json(&report(&claims))?,
            Output::Text => {
                let shown: Vec<&Claim> =
                    claims.iter().filter(|claim| self.all || claim.said.state.is_shown()).collect();
                if !shown.is_empty() {
                    print!("{}", table(&shown));
                }
                println!("{}", summary(&claims, namespace));
            }
        }
        Ok(u8::from(claims.iter().any(|claim| claim.said.state.is_bad())))
    }
}

impl State {
    /// Somebody can do something about it.
    fn is_bad(self) -> bool {
        matches!(self, Self::NotReady | Self::Unprotected)
    }

    fn is_shown(self) -> bool {
        self.is_bad() || self == Self::Partial
    }
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
        (kube::Error::Api(status), Some(_)) if status.code == 403 => Failure::new(format!(
            "{}; whoever runs this has to list databases.stillpoint.dev, pods, services and endpointslices: the ClusterRole view has these",
            status.message
        )),
        _ => error.into(),
    }
}

fn count(claims: &[Claim], state: State) -> usize {
    claims.iter().filter(|claim| claim.said.state == state).count()
}

const STATES: [(State, &str); 7] = [
    (State::Protected, "protected"),
    (State::Unprotected, "unprotected"),
    (State::NotReady, "not ready"),
    (State::Partial, "protected in a group alone"),
    (State::Standby, "of standbys"),
    (State::Operator, "left to operators"),
    (State::NoDriver, "of systems that no driver is there for"),
];

fn report(claims: &[Claim]) -> serde_json::Value {
    let counts: serde_json::Map<_, _> =
        STATES.iter().map(|(state, _)| (format!("{state:?}"), count(claims, *state).into())).collect();
    json!({"claims": claims, "counts": counts})
}

fn table(claims: &[&Claim]) -> String {
    let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let rows: Vec<Vec<String>> = claims
        .iter()
        .map(|claim| {
            let fix = claim.said.fix.as_ref().map(|fix| format!("\n    → {fix}")).unwrap_or_default();
            vec![
                claim.namespace.clone(),
                claim.claim.clone(),
                list(&claim.pods),
                list(&claim.systems),
                format!("{:?}", claim.said.state),
                format!("{}{fix}", claim.said.message),
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
    for (state, what) in STATES.into_iter().skip(1) {
        let number = count(claims, state);
        if number > 0 {
            summary.push_str(&format!("; {number} {what}"));
        }
    }
    summary
}
