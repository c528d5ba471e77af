//! Where a Repository lies: names that become part of a URL to which credentials are sent, so that none may lead elsewhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Cause, invalid, required};
use crate::{AzureLocation, GcsLocation, LocationKind, RepositoryLocation, S3Location};

/// A prefix within a bucket.
const LONGEST_PREFIX: usize = 512;
/// A bucket of a server that only speaks as Amazon's do.
const LONGEST_BUCKET: usize = 255;

/// What is wrong with one location.
pub fn location(location: &RepositoryLocation) -> Vec<Cause> {
    let mut causes = Vec::new();
    at("", location, &mut causes);
    causes
}

/// The same, as a field of a Repository.
pub(super) fn one_location(field: &str, location: &RepositoryLocation, causes: &mut Vec<Cause>) {
    let name = &location.name;
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(is_word) {
        causes.push(invalid(&format!("{field}.name"), "must be 1 to 63 lower-case letters, digits and hyphens"));
    }
    at(&format!("{field}."), location, causes);
}

fn at(parent: &str, location: &RepositoryLocation, causes: &mut Vec<Cause>) {
    match location.kind() {
        None => {
            let field = if parent.is_empty() { "location" } else { parent.trim_end_matches('.') };
            causes.push(invalid(field, "must say exactly one of directory, s3, gcs, azure"));
        }
        Some(LocationKind::Directory(directory)) => {
            let path = &directory.path;
            if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
                causes.push(invalid(&format!("{parent}directory.path"), "must be an absolute path without .."));
            }
        }
        Some(LocationKind::S3(s3)) => of_s3(&format!("{parent}s3"), s3, causes),
        Some(LocationKind::Gcs(gcs)) => of_gcs(&format!("{parent}gcs"), gcs, causes),
        Some(LocationKind::Azure(azure)) => of_azure(&format!("{parent}azure"), azure, causes),
    }
}

fn of_s3(field: &str, s3: &S3Location, causes: &mut Vec<Cause>) {
    // Others than Amazon have rules of their own (Ceph, MinIO, Garage); what is no part of a host or a path is nowhere right.
    let is_bucket: (fn(&str) -> bool, _) = match &s3.endpoint {
        None => (is_amazons, "must be 3 to 63 lower-case letters, digits, hyphens and dots, as Amazon names buckets"),
        Some(_) => (is_plain, "must be letters, digits, hyphens, underscores and dots"),
    };
    named(&format!("{field}.bucket"), &s3.bucket, is_bucket, causes);
    if s3.endpoint.as_ref().is_some_and(|endpoint| !is_endpoint(endpoint)) {
        causes.push(invalid(&format!("{field}.endpoint"), "must be https://HOST[:PORT], without credentials"));
    }
    // A part of Amazon's host names.
    let is_region = |region: &String| within(region, 1, 63) && region.chars().all(|c| is_word(c) || c == '_');
    if s3.region.as_ref().is_some_and(|region| !is_region(region)) {
        causes.push(invalid(&format!("{field}.region"), "must be letters, digits, hyphens and underscores"));
    }
    prefix(field, s3.prefix.as_deref(), causes);
}

fn of_gcs(field: &str, gcs: &GcsLocation, causes: &mut Vec<Cause>) {
    let must = "must be 3 to 222 lower-case letters, digits, hyphens, underscores and dots, as Google names buckets";
    named(&format!("{field}.bucket"), &gcs.bucket, (is_googles, must), causes);
    prefix(field, gcs.prefix.as_deref(), causes);
}

fn of_azure(field: &str, azure: &AzureLocation, causes: &mut Vec<Cause>) {
    let account = (is_account as fn(&str) -> bool, "must be 3 to 24 lower-case letters and digits");
    named(&format!("{field}.account"), &azure.account, account, causes);
    let must = "must be 3 to 63 lower-case letters and digits, with single hyphens between them";
    named(&format!("{field}.container"), &azure.container, (is_container, must), causes);
    prefix(field, azure.prefix.as_deref(), causes);
}

fn named(field: &str, name: &str, (is_right, must): (fn(&str) -> bool, &str), causes: &mut Vec<Cause>) {
    if name.is_empty() {
        required(field, name, causes);
    } else if !is_right(name) {
        causes.push(invalid(field, must));
    }
}

fn prefix(field: &str, prefix: Option<&str>, causes: &mut Vec<Cause>) {
    let prefix = prefix.unwrap_or_default();
    let leads_out = prefix.split('/').any(|part| matches!(part, "." | ".."));
    if leads_out || prefix.len() > LONGEST_PREFIX || prefix.chars().any(char::is_control) {
        let must = format!("must be folders without . and .., {LONGEST_PREFIX} bytes at most");
        causes.push(invalid(&format!("{field}.prefix"), must));
    }
}

/// `http(s)://HOST[:PORT][/PATH]`: what comes before the host or after the path would be read otherwise than it is written.
fn is_endpoint(url: &str) -> bool {
    let Some(rest) = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme)) else { return false };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_part = |part: &str| part != ".." && part.chars().all(|c| is_word(c) || "._~".contains(c));
    is_authority(authority) && path.split('/').all(is_part)
}

fn is_authority(authority: &str) -> bool {
    let (is_host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (is_plain(host), port)
        }
    };
    let is_port = |port: &str| port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|it| it > 0);
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// A name that is one part of a host's name or of a path, or several with dots between them.
fn is_plain(text: &str) -> bool {
    within(text, 1, LONGEST_BUCKET)
        && text.chars().all(|c| is_word(c) || "._".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !text.contains("..")
}

/// Amazon S3, "General purpose bucket naming rules".
fn is_amazons(text: &str) -> bool {
    is_lower(text, "-.") && within(text, 3, 63) && !text.contains("..") && text.parse::<Ipv4Addr>().is_err()
}

/// Cloud Storage, "Bucket names".
fn is_googles(text: &str) -> bool {
    is_lower(text, "-_.") && within(text, 3, 222) && text.split('.').all(|part| within(part, 1, 63))
}

/// Azure Storage, "Storage account name".
fn is_account(text: &str) -> bool {
    is_lower(text, "") && within(text, 3, 24)
}

/// Azure Storage, "Container names".
fn is_container(text: &str) -> bool {
    is_lower(text, "-") && within(text, 3, 63) && !text.contains("--")
}

/// Lower-case letters and digits, and between these `inner`.
fn is_lower(text: &str, inner: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(is_alphanumeric)
        && text.ends_with(is_alphanumeric)
        && text.chars().all(|c| is_alphanumeric(c) || inner.contains(c))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

fn within(text: &str, least: usize, most: usize) -> bool {
    (least..=most).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wrong(kind: &str, spec: Value) -> Vec<String> {
        let mut of = json!({"name": "a"});
        of[kind] = spec;
        location(&serde_json::from_value(of).unwrap()).into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_name_that_would_lead_elsewhere_is_refused_and_what_stores_allow_is_not() {
        for account in ["evil.example/x", "evil.example#", "me@evil.example", "Backups", "ab", &"a".repeat(25)] {
            assert_eq!(wrong("azure", json!({"account": account, "container": "box"})), ["azure.account"], "{account}");
        }
        for container in ["../other", "a--b", "-ab", "Box", "$root", "a/b"] {
            let found = wrong("azure", json!({"account": "backups1", "container": container}));
            assert_eq!(found, ["azure.container"], "{container}");
        }
        for bucket in ["evil.example/x", "Backups", "192.0.2.1", "a..b", "ab", "-abc", "abc.", "a b c", "abc?x"] {
            assert_eq!(wrong("s3", json!({"bucket": bucket})), ["s3.bucket"], "{bucket}");
        }
        for bucket in ["evil.example/x", "..", "a..b", "a@b", "a?b", "a#b", "a b", "a%2fb"] {
            let found = wrong("s3", json!({"bucket": bucket, "endpoint": "https://s3.example.org"}));
            assert_eq!(found, ["s3.bucket"], "{bucket}");
        }
        for bucket in ["evil.example/x", "Backups", "a..b", "ab", &"a".repeat(64)] {
            assert_eq!(wrong("gcs", json!({"bucket": bucket})), ["gcs.bucket"], "{bucket}");
        }
        assert_eq!(wrong("s3", json!({"bucket": "backups", "region": "x.evil.example/"})), ["s3.region"]);
        for (kind, spec) in [
            ("azure", json!({"account": "backups1", "container": "dumps-of-2026"})),
            ("s3", json!({"bucket": "backups.example.org", "region": "eu-central-1", "prefix": "shop/orders"})),
            ("s3", json!({"bucket": "Old_Backups.1", "endpoint": "http://[::1]:9000", "region": "auto"})),
            ("gcs", json!({"bucket": "my_backups.example.org", "prefix": "/shop/"})),
            ("directory", json!({"path": "/backups"})),
        ] {
            assert_eq!(wrong(kind, spec.clone()), [""; 0], "{spec}");
        }
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_prefix_stays_below_its_bucket() {
        let of = |endpoint: &str| wrong("s3", json!({"bucket": "b", "endpoint": endpoint}));
        for right in
            ["https://s3.example.org", "http://minio:9000", "https://192.0.2.1:9000/base/", "https://[fd00::1]"]
        {
            assert_eq!(of(right), [""; 0], "{right}");
        }
        for bad in [
            "https://",
            "https:///x",
            "s3.example.org",
            "ftp://s3.example.org",
            "https://me:pw@host",
            "https://host?x=",
            "https://host#x",
            "https://host:0",
            "https://host:+80",
            "https://host:x",
            "https://host/../x",
            "https://ho st",
            "https://[::1",
        ] {
            assert_eq!(of(bad), ["s3.endpoint"], "{bad}");
        }
        for bad in ["..", "a/../b", "./a", "a\n"] {
            assert_eq!(wrong("gcs", json!({"bucket": "backups", "prefix": bad})), ["gcs.prefix"], "{bad:?}");
        }
    }
}
