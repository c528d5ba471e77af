//! Locations as a person writes them: `[NAME=]PLACE[?OPTION=VALUE&…]`. Pure.
//!
//! ```text
//! /PATH                               a directory of the server's machine
//! s3://BUCKET[/PREFIX]                Amazon's S3
//! s3:https://HOST[:PORT]/BUCKET[/PREFIX]   another server that speaks S3
//! gs://BUCKET[/PREFIX]                Google Cloud Storage
//! azure://ACCOUNT/CONTAINER[/PREFIX]  Azure Blob Storage
//! ```
//! Options name Secrets (`secret`, and of S3 `ca-secret`), and for S3 `region` and `path-style`.

use api::{
    AzureLocation, DirectoryLocation, GcsLocation, RepositoryLocation, S3CredentialsReference, S3Location,
    SecretReference,
};
use serde_json::json;

/// What is after the `?`, until it was taken.
struct Given<'t>(Vec<(&'t str, &'t str)>);

/// One kind of place: how it begins, what it is called when nobody says, how the rest is read.
struct Scheme {
    prefix: &'static str,
    name: &'static str,
    read: fn(&str, &mut Given<'_>) -> Result<RepositoryLocation, String>,
}

/// The first that fits.
const SCHEMES: [Scheme; 6] = [
    Scheme { prefix: "s3://", name: "s3", read: |rest, given| s3(None, rest, given) },
    Scheme { prefix: "s3:https://", name: "s3", read: |rest, given| s3(Some("https://"), rest, given) },
    Scheme { prefix: "s3:http://", name: "s3", read: |rest, given| s3(Some("http://"), rest, given) },
    Scheme { prefix: "gs://", name: "gcs", read: gcs },
    Scheme { prefix: "azure://", name: "azure", read: azure },
    Scheme { prefix: "/", name: "disk", read: |_, _| Err("a directory has no options".to_owned()) },
];

const WANTED: &str = "want [NAME=]PLACE, PLACE being /PATH, s3://BUCKET/PREFIX, s3:https://HOST/BUCKET/PREFIX, gs://BUCKET/PREFIX or azure://ACCOUNT/CONTAINER/PREFIX";

/// One location.
pub fn location(text: &str) -> Result<RepositoryLocation, String> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let (name, place) = match text.split_once('=') {
        Some((name, place)) if is_name(name) => (Some(name), place),
        _ => (None, text),
    };
    let scheme = SCHEMES.iter().find(|scheme| place.starts_with(scheme.prefix)).ok_or(WANTED)?;
    let location = if scheme.prefix == "/" {
        // A path may have any character.
        RepositoryLocation {
            directory: Some(DirectoryLocation { path: place.to_owned() }),
            ..RepositoryLocation::default()
        }
    } else {
        let (rest, given) =
            place[scheme.prefix.len()..].split_once('?').map_or((&place[scheme.prefix.len()..], ""), |it| it);
        let mut given = Given::read(given)?;
        let location = (scheme.read)(rest, &mut given)?;
        given.none_left()?;
        location
    };
    Ok(RepositoryLocation { name: name.unwrap_or(scheme.name).to_owned(), ..location })
}

impl<'t> Given<'t> {
    fn read(text: &'t str) -> Result<Self, String> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &'t str| pair.split_once('=').ok_or_else(|| format!("{pair:?} is no OPTION=VALUE"));
        pairs.map(pair).collect::<Result<_, _>>().map(Self)
    }

    fn take(&mut self, option: &str) -> Option<&'t str> {
        let at = self.0.iter().position(|(name, _)| *name == option)?;
        Some(self.0.remove(at).1)
    }

    fn secret(&mut self, option: &str) -> Option<SecretReference> {
        self.take(option).map(|name| SecretReference { name: name.to_owned() })
    }

    fn none_left(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("{name} is no option of this place, or is said twice")),
        }
    }
}

/// What comes before the first `/`, and what comes after, if anything does.
fn head(text: &str) -> Result<(String, Option<String>), String> {
    let (head, rest) = text.split_once('/').unwrap_or((text, ""));
    let rest = rest.trim_matches('/');
    if head.is_empty() {
        Err(WANTED.to_owned())
    } else {
        Ok((head.to_owned(), (!rest.is_empty()).then(|| rest.to_owned())))
    }
}

fn s3(scheme: Option<&str>, rest: &str, given: &mut Given<'_>) -> Result<RepositoryLocation, String> {
    let (endpoint, rest) = match scheme {
        None => (None, rest.to_owned()),
        Some(scheme) => {
            let (host, rest) = head(rest)?;
            (Some(format!("{scheme}{host}")), rest.ok_or(WANTED)?)
        }
    };
    let (bucket, prefix) = head(&rest)?;
    let path_style =
        given.take("path-style").map(|text| text.parse().map_err(|_| "path-style is true or false".to_owned()));
    let location = S3Location {
        bucket,
        prefix,
        endpoint,
        region: given.take("region").map(str::to_owned),
        path_style: path_style.transpose()?,
        credentials: given.secret("secret").map(account).transpose()?,
        ca_secret_ref: given.secret("ca-secret"),
    };
    Ok(RepositoryLocation { s3: Some(location), ..RepositoryLocation::default() })
}

/// Under the keys that are usual.
fn account(secret: SecretReference) -> Result<S3CredentialsReference, String> {
    serde_json::from_value(json!({"secretRef": secret})).map_err(|error| error.to_string())
}

fn gcs(rest: &str, given: &mut Given<'_>) -> Result<RepositoryLocation, String> {
    let (bucket, prefix) = head(rest)?;
    let location = GcsLocation { bucket, prefix, service_account_secret_ref: given.secret("secret") };
    Ok(RepositoryLocation { gcs: Some(location), ..RepositoryLocation::default() })
}

fn azure(rest: &str, given: &mut Given<'_>) -> Result<RepositoryLocation, String> {
    let (account, rest) = head(rest)?;
    let (container, prefix) = head(&rest.ok_or(WANTED)?)?;
    let location = AzureLocation { account, container, prefix, secret_ref: given.secret("secret") };
    Ok(RepositoryLocation { azure: Some(location), ..RepositoryLocation::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_place_is_read_as_it_is_written() {
        let keys = |name: &str| json!({"secretRef": {"name": name}, "accessKeyIdKey": "access-key-id", "secretAccessKeyKey": "secret-access-key", "sessionTokenKey": "session-token"});
        for (text, wanted) in [
            ("/var/backups", json!({"name": "disk", "directory": {"path": "/var/backups"}})),
            ("near=/a=b?c", json!({"name": "near", "directory": {"path": "/a=b?c"}})),
            ("s3://backups/of/shop", json!({"name": "s3", "s3": {"bucket": "backups", "prefix": "of/shop"}})),
            (
                "offsite=s3:https://s3.example.org:9000/backups/shop?secret=offsite-account&region=eu-1&path-style=false&ca-secret=ca",
                json!({"name": "offsite", "s3": {
                    "bucket": "backups", "prefix": "shop", "endpoint": "https://s3.example.org:9000", "region": "eu-1", "pathStyle": false,
                    "credentials": keys("offsite-account"), "caSecretRef": {"name": "ca"},
                }}),
            ),
            (
                "gs://backups?secret=a",
                json!({"name": "gcs", "gcs": {"bucket": "backups", "serviceAccountSecretRef": {"name": "a"}}}),
            ),
            (
                "azure://me/box/shop/",
                json!({"name": "azure", "azure": {"account": "me", "container": "box", "prefix": "shop"}}),
            ),
        ] {
            let read: Value = serde_json::to_value(location(text).unwrap()).unwrap();
            assert_eq!(read, wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_place_says_what_is() {
        for wrong in
            ["", "backups", "ftp://x", "s3://", "s3:https://host", "s3:https://host/", "azure://me", "gs://", "../x"]
        {
            assert!(location(wrong).unwrap_err().contains("want [NAME=]PLACE"), "{wrong}");
        }
        for wrong in ["gs://b?region=eu", "s3://b?secret=a&secret=b", "s3://b?path-style=maybe", "s3://b?secret"] {
            assert!(location(wrong).is_err(), "{wrong}");
        }
    }
}
