//! What a Repository may use of the place where this process happens to be: its directories, and the identity that clouds know it by.
//! Standalone both are the administrator's, who alone makes Repositories there. In a cluster they are neither the author's nor the
//! namespace's: whoever may write a Repository would read and write as we may.

use api::{RepositorySpec, conditions::reasons};

use super::depot::Closed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ambient {
    /// Standalone.
    All,
    /// In a cluster whose operator has said so.
    Identity,
    Nothing,
}

impl Ambient {
    /// Why a repository is not to be opened from here.
    pub(crate) fn refusal(self, spec: &RepositorySpec) -> Option<Closed> {
        let unsupported = |message: String| Closed { reason: reasons::UNSUPPORTED, message };
        spec.locations.iter().find_map(|location| match (self, location.lacks_credentials()) {
            (Self::All, _) => None,
            _ if location.directory.is_some() => Some(unsupported(format!(
                "location {} is a directory, which is of a standalone server's machine: in a cluster name a bucket (s3, gcs, azure)",
                location.name
            ))),
            (Self::Nothing, Some(field)) => Some(unsupported(format!(
                "location {} names no account, and the server's own is lent to nobody: name a Secret in its {field}, or have the operator \
                 lend it to all Repositories (--ambient-credentials; of the chart runners.ambientCredentials)",
                location.name
            ))),
            (Self::Nothing | Self::Identity, _) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn in_a_cluster_an_account_is_named_unless_ours_is_lent_and_a_directory_is_nowhere() {
        let of = |ambient: Ambient, location: Value| {
            let spec = json!({"locations": [location], "encryption": {"passwordSecretRef": {"name": "key"}}});
            ambient.refusal(&serde_json::from_value(spec).unwrap()).map(|closed| closed.message)
        };
        let (secret, reference) = (json!({"name": "account"}), json!({"secretRef": {"name": "account"}}));
        for (kind, without, with, field) in [
            (
                "s3",
                json!({"bucket": "backups"}),
                json!({"bucket": "backups", "credentials": reference}),
                "s3.credentials",
            ),
            (
                "gcs",
                json!({"bucket": "backups"}),
                json!({"bucket": "backups", "serviceAccountSecretRef": secret}),
                "gcs.serviceAccountSecretRef",
            ),
            (
                "azure",
                json!({"account": "backups", "container": "box"}),
                json!({"account": "backups", "container": "box", "secretRef": secret}),
                "azure.secretRef",
            ),
        ] {
            let refused = of(Ambient::Nothing, json!({"name": "a", kind: without})).unwrap();
            assert!(refused.contains(field) && refused.contains("--ambient-credentials"), "{refused}");
            assert_eq!(of(Ambient::Nothing, json!({"name": "a", kind: with})), None);
            for lent in [Ambient::Identity, Ambient::All] {
                assert_eq!(of(lent, json!({"name": "a", kind: without})), None);
            }
        }
        let directory = json!({"name": "a", "directory": {"path": "/copies"}});
        for nowhere in [Ambient::Nothing, Ambient::Identity] {
            assert!(of(nowhere, directory.clone()).unwrap().contains("name a bucket"));
        }
        assert_eq!(of(Ambient::All, directory), None);
    }
}
