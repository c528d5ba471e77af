//! Where a repository is, as restic wants to be told: its URL, and what has to be in the environment. Pure.

use api::{LocationKind, RepositoryLocation, repository};

/// A location, for restic.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub url: String,
    /// What is in no Secret.
    pub set: Vec<(&'static str, String)>,
    pub needed: Vec<Needed>,
    /// Arguments before the command; `$NAME` of the environment is expanded.
    pub options: Vec<String>,
}

/// A variable whose value is a Secret's, or is made of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Needed {
    pub variable: &'static str,
    /// For a person.
    pub what: &'static str,
    pub secret: String,
    pub key: String,
    /// Variables one of which does as well.
    pub or: &'static [&'static str],
}

/// As restic has it where nobody names another (restic manual, "Preparing a new repository").
const AMAZON: &str = "https://s3.amazonaws.com";

impl Needed {
    pub fn new(variable: &'static str, what: &'static str, secret: &str, key: &str) -> Self {
        Self { variable, what, secret: secret.to_owned(), key: key.to_owned(), or: &[] }
    }
}

/// None: it says none, or more than one.
pub fn place(location: &RepositoryLocation) -> Option<Place> {
    Some(match location.kind()? {
        LocationKind::Directory(directory) => Place { url: directory.path.clone(), ..Place::default() },
        LocationKind::S3(s3) => of_s3(s3),
        LocationKind::Gcs(gcs) => Place {
            url: format!("gs:{}:/{}", gcs.bucket, gcs.prefix.as_deref().unwrap_or_default()),
            needed: gcs
                .service_account_secret_ref
                .iter()
                .map(|secret| {
                    let (variable, key) = ("GOOGLE_APPLICATION_CREDENTIALS", repository::SERVICE_ACCOUNT_KEY);
                    Needed::new(variable, "a file that holds", &secret.name, key)
                })
                .collect(),
            ..Place::default()
        },
        LocationKind::Azure(azure) => Place {
            url: format!("azure:{}:/{}", azure.container, azure.prefix.as_deref().unwrap_or_default()),
            set: vec![("AZURE_ACCOUNT_NAME", azure.account.clone())],
            needed: azure
                .secret_ref
                .iter()
                .map(|secret| Needed {
                    or: &["AZURE_ACCOUNT_SAS"],
                    ..Needed::new(
                        "AZURE_ACCOUNT_KEY",
                        "(or in AZURE_ACCOUNT_SAS its key sas-token)",
                        &secret.name,
                        repository::ACCOUNT_KEY,
                    )
                })
                .collect(),
            ..Place::default()
        },
    })
}

fn of_s3(s3: &api::S3Location) -> Place {
    let below = s3.prefix.as_deref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
    let endpoint = s3.endpoint.as_deref().unwrap_or(AMAZON).trim_end_matches('/');
    let mut place = Place { url: format!("s3:{endpoint}/{}{below}", s3.bucket), ..Place::default() };
    place.set.extend(s3.region.clone().map(|region| ("AWS_DEFAULT_REGION", region)));
    if let Some(credentials) = &s3.credentials {
        let secret = &credentials.secret_ref.name;
        place.needed = vec![
            Needed::new("AWS_ACCESS_KEY_ID", "", secret, &credentials.access_key_id_key),
            Needed::new("AWS_SECRET_ACCESS_KEY", "", secret, &credentials.secret_access_key_key),
        ];
    }
    if let Some(ca) = &s3.ca_secret_ref {
        place.needed.push(Needed::new("CA_FILE", "a file that holds", &ca.name, repository::CA_KEY));
        place.options.extend(["--cacert".to_owned(), "$CA_FILE".to_owned()]);
    }
    if let Some(path_style) = s3.path_style {
        let lookup = if path_style { "path" } else { "dns" };
        place.options.extend(["-o".to_owned(), format!("s3.bucket-lookup={lookup}")]);
    }
    place
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(location: serde_json::Value) -> Place {
        place(&serde_json::from_value(location).unwrap()).unwrap()
    }

    #[test]
    fn urls_are_those_of_restic() {
        for (location, url) in [
            (json!({"name": "a", "directory": {"path": "/var/it's here"}}), "/var/it's here"),
            (json!({"name": "a", "s3": {"bucket": "b"}}), "s3:https://s3.amazonaws.com/b"),
            (
                json!({"name": "a", "s3": {"bucket": "b", "prefix": "of/shop", "endpoint": "https://s3.example.org:9000"}}),
                "s3:https://s3.example.org:9000/b/of/shop",
            ),
            (json!({"name": "a", "gcs": {"bucket": "b", "prefix": "shop"}}), "gs:b:/shop"),
            (json!({"name": "a", "gcs": {"bucket": "b"}}), "gs:b:/"),
            (json!({"name": "a", "azure": {"account": "me", "container": "c", "prefix": "shop"}}), "azure:c:/shop"),
        ] {
            assert_eq!(of(location.clone()).url, url, "{location}");
        }
        assert_eq!(place(&RepositoryLocation::default()), None);
    }

    #[test]
    fn what_is_in_secrets_is_named_and_what_is_not_is_set() {
        let s3 = of(json!({"name": "a", "s3": {
            "bucket": "b", "region": "eu-1", "pathStyle": false, "caSecretRef": {"name": "ca"},
            "credentials": {"secretRef": {"name": "account"}, "accessKeyIdKey": "id"},
        }}));
        assert_eq!(s3.set, [("AWS_DEFAULT_REGION", "eu-1".to_owned())]);
        let needed: Vec<_> =
            s3.needed.iter().map(|one| (one.variable, one.secret.as_str(), one.key.as_str())).collect();
        assert_eq!(
            needed,
            [
                ("AWS_ACCESS_KEY_ID", "account", "id"),
                ("AWS_SECRET_ACCESS_KEY", "account", "secret-access-key"),
                ("CA_FILE", "ca", "ca.crt"),
            ]
        );
        assert_eq!(s3.options, ["--cacert", "$CA_FILE", "-o", "s3.bucket-lookup=dns"]);
        let azure = of(json!({"name": "a", "azure": {"account": "me", "container": "c", "secretRef": {"name": "s"}}}));
        assert_eq!(azure.set, [("AZURE_ACCOUNT_NAME", "me".to_owned())]);
        assert_eq!((azure.needed[0].variable, azure.needed[0].or), ("AZURE_ACCOUNT_KEY", &["AZURE_ACCOUNT_SAS"][..]));
    }
}
