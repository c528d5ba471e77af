//! From a location as it is declared, and the Secrets that it names, to a [`Place`]. Pure.

use api::{LocationKind, RepositoryLocation};

use crate::{
    error::{Error, Result},
    stores::{Azure, Place, S3, S3Credentials},
};

/// A value of a Secret, by the Secret's name and the key. `None`: it is not there.
pub trait Secrets {
    fn value(&self, secret: &str, key: &str) -> Option<String>;
}

impl<F: Fn(&str, &str) -> Option<String>> Secrets for F {
    fn value(&self, secret: &str, key: &str) -> Option<String> {
        self(secret, key)
    }
}

/// Where a location is. One whose names could lead elsewhere is none, whoever has let it be stored: what follows sends credentials there.
pub fn place(location: &RepositoryLocation, secrets: &dyn Secrets) -> Result<Place> {
    let wrong = |why: String| Error::Misdescribed { location: location.name.clone(), why };
    let needed = |secret: &str, key: &str| {
        secrets.value(secret, key).ok_or_else(|| wrong(format!("Secret {secret} is not there, or has no key {key}")))
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    if let Some(cause) = api::validate::location(location).first() {
        return Err(wrong(format!("{} {}", cause.field, cause.message)));
    }
    Ok(match location.kind().ok_or_else(|| wrong("it must say exactly one of directory, s3, gcs, azure".into()))? {
        LocationKind::Directory(directory) => Place::Directory { path: directory.path.clone().into() },
        LocationKind::S3(s3) => Place::S3(S3 {
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            bucket: s3.bucket.clone(),
            prefix: text(&s3.prefix),
            path_style: s3.path_style.unwrap_or(s3.endpoint.is_some()),
            credentials: match &s3.credentials {
                None => None,
                Some(reference) => Some(S3Credentials {
                    access_key_id: needed(&reference.secret_ref.name, &reference.access_key_id_key)?,
                    secret_access_key: needed(&reference.secret_ref.name, &reference.secret_access_key_key)?,
                    session_token: secrets.value(&reference.secret_ref.name, &reference.session_token_key),
                }),
            },
            ca: s3.ca_secret_ref.as_ref().map(|secret| needed(&secret.name, api::repository::CA_KEY)).transpose()?,
        }),
        LocationKind::Gcs(gcs) => Place::Gcs {
            bucket: gcs.bucket.clone(),
            prefix: text(&gcs.prefix),
            service_account: match &gcs.service_account_secret_ref {
                None => None,
                Some(secret) => Some(needed(&secret.name, api::repository::SERVICE_ACCOUNT_KEY)?),
            },
            endpoint: None,
        },
        LocationKind::Azure(azure) => {
            let of = |key| azure.secret_ref.as_ref().and_then(|secret| secrets.value(&secret.name, key));
            let (access_key, sas_token) = (of(api::repository::ACCOUNT_KEY), of(api::repository::SAS_TOKEN_KEY));
            if let Some(secret) = azure.secret_ref.as_ref().filter(|_| access_key.is_none() && sas_token.is_none()) {
                let keys = (api::repository::ACCOUNT_KEY, api::repository::SAS_TOKEN_KEY);
                return Err(wrong(format!(
                    "Secret {} is not there, or has no key {} or {}",
                    secret.name, keys.0, keys.1
                )));
            }
            Place::Azure(Azure {
                account: azure.account.clone(),
                container: azure.container.clone(),
                prefix: text(&azure.prefix),
                access_key,
                sas_token,
                endpoint: None,
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_could_lead_elsewhere_is_no_place_and_what_is_right_is_one() {
        let of = |account: &str| {
            let azure = json!({"account": account, "container": "box", "secretRef": {"name": "s"}});
            let location = serde_json::from_value(json!({"name": "a", "azure": azure})).unwrap();
            place(&location, &|_: &str, _: &str| Some("token".to_owned())).map(drop).map_err(|error| error.to_string())
        };
        assert!(
            of("evil.example/x").unwrap_err().contains("azure.account must be 3 to 24 lower-case letters and digits")
        );
        assert_eq!(of("backups1"), Ok(()));
    }
}
