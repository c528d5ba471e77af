//! `repository scan`: reads again what is in repositories, and lists all of it, whoever put it there.

use api::{KnownBy, LiveSnapshot};
use jiff::Timestamp;

use crate::{
    client::Api,
    failure::Failure,
    print::{self, Output},
    times,
};

/// Read what is in repositories now: copies of this server, of others, and what other programs wrote there. Exits with 1 when one
/// could not be read.
///
/// Examples:
///
///   kubectl still repository scan
///
///   kubectl still repository scan nightly
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// The Repository; all of the namespace when absent.
    name: Option<String>,
}

/// How copies are known, and how many are counted as what.
const KNOWN: [(KnownBy, &str); 4] = [
    (KnownBy::Snapshot, "with a Snapshot here"),
    (KnownBy::Repository, "without one: another server took them, or their Snapshots are gone"),
    (KnownBy::Newer, "of a newer Stillpoint"),
    (KnownBy::Foreign, "of other programs"),
];

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        if let Some(name) = &self.name {
            api.objects::<api::Repository>().get(name).await?;
        }
        let mut found = api.catalogue(None, self.name.as_deref()).await?;
        // What was not stored yet, or never was, is in no repository.
        found.copies.retain(|copy| copy.status.id.is_some());
        eprint!("{}", print::warnings(&found.warnings));
        match output {
            Output::Json => print::json(&found.copies)?,
            Output::Text => {
                if !found.copies.is_empty() {
                    print!("{}", columns(&found.copies, Timestamp::now()));
                }
                println!("{}", summary(&found.copies));
            }
        }
        Ok(u8::from(!found.warnings.is_empty()))
    }
}

/// Pure.
fn columns(copies: &[LiveSnapshot], now: Timestamp) -> String {
    let row = |copy: &LiveSnapshot| {
        let status = &copy.status;
        let what = if copy.spec.databases.is_empty() { &status.paths } else { &copy.spec.databases };
        let by = status.program.as_ref().or(status.taken_as.as_ref());
        vec![
            copy.metadata.name.clone().unwrap_or_default(),
            what.join(","),
            status.taken_at.as_ref().map(|taken| times::age(taken.0, now)).unwrap_or_default(),
            status.size.map(print::bytes).unwrap_or_default(),
            copy.spec.repository.clone().unwrap_or_default(),
            if status.locations.is_empty() { "none".to_owned() } else { status.locations.join(",") },
            format!("{:?}", status.known),
            by.cloned().unwrap_or_default(),
        ]
    };
    let head = ["NAME", "WHAT", "TAKEN", "SIZE", "REPOSITORY", "LOCATIONS", "KNOWN-BY", "TAKEN-AS"];
    print::table(&head, &copies.iter().map(row).collect::<Vec<_>>())
}

fn summary(copies: &[LiveSnapshot]) -> String {
    let count = |known: KnownBy| copies.iter().filter(|copy| copy.status.known == known).count();
    let counted = KNOWN.iter().map(|(known, what)| (count(*known), what)).filter(|(count, _)| *count > 0);
    let parts: Vec<String> = counted.map(|(count, what)| format!("{count} {what}")).collect();
    match parts.as_slice() {
        [] => "there are no copies".to_owned(),
        parts => parts.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_wrote_is_among_it_and_counted() {
        let copy = |known: &str, program: &str| {
            serde_json::from_value::<LiveSnapshot>(json!({
                "apiVersion": "", "kind": "", "metadata": {"name": "x"}, "spec": {"databases": [], "repository": "nightly"},
                "status": {"known": known, "phase": "Ready", "paths": ["/etc"], "program": program, "locations": ["disk"]},
            }))
            .unwrap()
        };
        let copies = [copy("Foreign", "restic 0.16.4"), copy("Snapshot", "")];
        assert_eq!(summary(&copies), "1 with a Snapshot here; 1 of other programs");
        assert!(columns(&copies, Timestamp::now()).contains("Foreign    restic 0.16.4"));
        assert_eq!(summary(&[]), "there are no copies");
    }
}
