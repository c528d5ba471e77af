//! Restores to new claims: which are made, as the command line says it, and what became of them.

use api::{RestoreStatus, WantedClaim};

use crate::print;

/// To new claims, in place of a Database.
#[derive(Debug, clap::Args)]
pub struct NewClaims {
    /// In a cluster: make new claims of a Snapshot of volumes, and restore into no Database.
    #[arg(long, conflicts_with_all = ELSEWHERE)]
    pub to_claims: bool,
    /// With --to-claims: a claim that is made, of which claim's copy (may be left out where there is one), and how large (as large as that
    /// was, or larger); repeat it. Absent: one of each that was copied, RESTORE-CLAIM.
    #[arg(long = "claim", value_name = "NAME[=CLAIM][:SIZE]", value_parser = wanted, conflicts_with = "target")]
    claims: Vec<WantedClaim>,
    /// The StorageClass of each --claim; that of the claim that was copied when absent.
    #[arg(long, value_name = "NAME", requires = "claims")]
    storage_class: Option<String>,
}

/// What is said of a Database that is restored into. clap requires nothing that conflicts with what was said: so these exclude.
const ELSEWHERE: [&str; 9] =
    ["target", "latest", "as_of", "repository", "from", "databases", "existing", "no_globals", "yes"];

impl NewClaims {
    pub fn volumes(self) -> Vec<WantedClaim> {
        let Self { claims, storage_class, .. } = self;
        claims.into_iter().map(|claim| WantedClaim { storage_class_name: storage_class.clone(), ..claim }).collect()
    }
}

/// `copy`, `copy=data`, `copy:20Gi`, `copy=data:20Gi`: neither sign is in a name.
fn wanted(text: &str) -> Result<WantedClaim, String> {
    let (names, size) = text.split_once(':').map_or((text, None), |(names, size)| (names, Some(size)));
    let (name, claim) = names.split_once('=').map_or((names, None), |(name, claim)| (name, Some(claim)));
    if [Some(name), claim, size].into_iter().flatten().any(|part| part.is_empty() || part.contains([':', '='])) {
        return Err("want NAME, NAME=CLAIM, NAME:SIZE or NAME=CLAIM:SIZE, as copy=data:20Gi".to_owned());
    }
    let owned = |part: Option<&str>| part.map(str::to_owned);
    Ok(WantedClaim { name: name.to_owned(), claim: owned(claim), storage_class_name: None, size: owned(size) })
}

/// Pure.
pub fn told(name: &str, status: &RestoreStatus) -> String {
    let claims = status.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
    let of = status.chosen.as_ref().map(|chosen| format!(" of Snapshot {}", chosen.snapshot)).unwrap_or_default();
    format!("restore {name} is {}: claims {claims}{of}\n{}", status.phase, print::warnings(&status.warnings))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_says_its_name_and_perhaps_of_which_and_how_large() {
        let of = |text: &str| wanted(text).map(|claim| (claim.name, claim.claim, claim.size));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("copy"), Ok(("copy".to_owned(), None, None)));
        assert_eq!(of("copy=data"), Ok(("copy".to_owned(), some("data"), None)));
        assert_eq!(of("copy:20Gi"), Ok(("copy".to_owned(), None, some("20Gi"))));
        assert_eq!(of("copy=data:20Gi"), Ok(("copy".to_owned(), some("data"), some("20Gi"))));
        for wrong in ["", "=data", "copy=", "copy:", "copy=data:", "copy:20Gi=data", "a=b=c", "a:b:c"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_made_is_named() {
        let volumes = json!([{"claim": "data", "name": "copy", "volumeSnapshot": "noon", "bound": false}]);
        let status = json!({
            "phase": "Complete", "chosen": {"snapshot": "noon"}, "volumes": volumes, "warnings": ["the first Pod gives it its volume"],
        });
        assert_eq!(
            told("back", &serde_json::from_value(status).unwrap()),
            "restore back is Complete: claims copy of Snapshot noon\nwarning: the first Pod gives it its volume\n"
        );
    }
}
