//! `repository create`: a Repository, and if wanted a password that nobody has made up.

use std::time::Duration;

use api::{Encryption, Repository, RepositoryLocation, RepositorySpec, SecretReference, conditions::types::READY};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
};
use rand::Rng;

use super::place::location;
use crate::{
    client::Api,
    failure::{Failure, LOST},
    follow::{Followed, follow},
    print::{self, Output},
    progress::Shown,
    times,
};

/// Make a Repository: one or several locations that hold the same, encrypted. Waits until it can be used.
///
/// A location is [NAME=]PLACE[?OPTION=VALUE&…]:
///
///   /PATH                                     a directory of the server's machine
///   s3://BUCKET[/PREFIX]                      Amazon's S3
///   s3:https://HOST[:PORT]/BUCKET[/PREFIX]    another server that speaks S3
///   gs://BUCKET[/PREFIX]                      Google Cloud Storage
///   azure://ACCOUNT/CONTAINER[/PREFIX]        Azure Blob Storage
///
/// Options: secret=NAME, the Secret with the account's keys (S3: access-key-id, secret-access-key, session-token; Google:
/// service-account.json; Azure: account-key or sas-token); of S3 also region=NAME, path-style=true|false, and ca-secret=NAME, a Secret
/// whose key ca.crt is trusted.
///
/// Examples:
///
///   kubectl still repository create nightly --location /var/backups/stillpoint --generate-password
///
///   kubectl still repository create nightly --password-secret nightly-key --location /var/backups/stillpoint \
///       --location 'offsite=s3:https://s3.example.org/backups/orders?secret=offsite-account'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// What it is called.
    name: String,
    /// Where it lies; repeat it for more places that hold the same.
    #[arg(long = "location", required = true, value_name = "LOCATION", value_parser = location)]
    locations: Vec<RepositoryLocation>,
    #[command(flatten)]
    password: Password,
    /// Do not wait until it can be used.
    #[arg(long)]
    no_wait: bool,
    /// Wait no longer than this (30s, 5m); the exit code is 124.
    #[arg(long, value_name = "DURATION", value_parser = times::duration, default_value = "2m")]
    timeout: Duration,
}

/// What opens it.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Password {
    /// The Secret that has the password, and its key: `password` unless it is said.
    #[arg(long, value_name = "SECRET[/KEY]")]
    password_secret: Option<String>,
    /// Make a password up, keep it in the Secret NAME-key, and print it this once.
    #[arg(long)]
    generate_password: bool,
}

const KEY: &str = "password";
/// Letters and digits that are not taken for each other: five bits each.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// 160 bits, in groups that can be read out.
const GROUPS: usize = 8;
const GROUP: usize = 4;

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let password = self.password.generate_password.then(generated);
        let (secret, key) = match &self.password.password_secret {
            Some(named) => named.split_once('/').unwrap_or((named, KEY)),
            None => (&*format!("{}-key", self.name), KEY),
        };
        let mut kept = None;
        if let Some(password) = &password {
            let made = api.objects::<Secret>().create(&PostParams::default(), &secret_of(secret, password)).await;
            kept = Some(made.map_err(|error| taken(error, secret))?);
        }
        let encryption = Encryption {
            password_secret_ref: SecretReference { name: secret.to_owned() },
            password_key: key.to_owned(),
        };
        let wanted =
            Repository::new(&self.name, RepositorySpec { locations: self.locations.clone(), encryption, runner: None });
        let made = match api.objects::<Repository>().create(&PostParams::default(), &wanted).await {
            Ok(made) => made,
            Err(error) => {
                return Err(match kept.zip(password) {
                    Some((kept, password)) => self.not_made(api, error, &kept, &password).await,
                    None => error.into(),
                });
            }
        };
        // Before anything can go wrong: it is said this once.
        if let Some(password) = &password {
            say(&self.name, secret, password);
        }
        let ready = if self.no_wait { made } else { self.wait(api, made).await? };
        match output {
            Output::Json => print::json(&ready)?,
            Output::Text => print!("{}", told(&ready)),
        }
        Ok(0)
    }

    /// A Secret that nobody refers to must not stay behind with a password in it. But the only password of a Repository that is there
    /// all the same, for its answer was lost, or may be, is never thrown away.
    async fn not_made(&self, api: &Api, error: kube::Error, kept: &Secret, password: &str) -> Failure {
        let (secrets, secret) = (api.objects::<Secret>(), kept.name_any());
        if is_refusal(&error) && matches!(api.objects::<Repository>().get_opt(&self.name).await, Ok(None)) {
            let it = Preconditions { uid: kept.uid(), resource_version: None };
            let deleted =
                secrets.delete(&secret, &DeleteParams { preconditions: Some(it), ..DeleteParams::default() }).await;
            return match deleted {
                Ok(_) => error.into(),
                Err(_) => {
                    Failure::from(error).detail(format!("Secret {secret} is left, of no use to anybody: delete it"))
                }
            };
        }
        say(&self.name, &secret, password);
        Failure::from(error)
            .detail(format!(
                "whether Repository {} was made with that password is not known: kubectl get repositories.stillpoint.dev {}",
                self.name, self.name
            ))
            .detail(format!(
                "if it is not there, or names another Secret: kubectl delete secret {secret}, and ask again; if it does name it, all is well"
            ))
    }

    async fn wait(&self, api: &Api, made: Repository) -> Result<Repository, Failure> {
        let name = made.name_any();
        let (mut shown, mut why) = (Shown::new(), None);
        let followed = follow(api.objects::<Repository>(), &made, Some(self.timeout), |now| match ready(now) {
            Some(condition) if condition.status == "True" => true,
            Some(condition) => {
                shown.say(&format!("not ready yet: {}", condition.message));
                why = Some(condition.message.clone());
                false
            }
            None => {
                shown.show(&format!("making {name}"), None);
                false
            }
        });
        let followed = followed.await?;
        drop(shown);
        if let (Followed::Late, Some(why)) = (&followed, why) {
            return Err(Failure::new(format!("Repository {name} is not ready within --timeout: {why}"))
                .code(LOST)
                .detail("it is there, and is tried again every ten seconds: correct what is wrong, or delete it"));
        }
        followed.reached(&format!("Repository {name}"), "look at it with kubectl describe repositories.stillpoint.dev")
    }
}

/// Of what it is now, not of what it was.
fn ready(repository: &Repository) -> Option<&Condition> {
    let status = repository.status.as_ref()?;
    let is_current = status.observed_generation == repository.metadata.generation;
    status.conditions.iter().find(|condition| condition.type_ == READY).filter(|_| is_current)
}

fn told(repository: &Repository) -> String {
    let name = repository.name_any();
    let state = if ready(repository).is_some_and(|ready| ready.status == "True") { "is ready" } else { "was made" };
    let places = repository.spec.locations.iter().map(|location| format!("{} ({})", location.place(), location.name));
    let there = match repository.status.as_ref().and_then(|status| status.snapshots) {
        Some(copies) if copies > 0 => {
            format!("; {copies} copies are in it already: kubectl still repository scan {name}")
        }
        _ => String::new(),
    };
    format!(
        "repository {name} {state} in {}{there}\nnext:  kubectl still snapshot create DATABASE --repository {name}\n",
        places.collect::<Vec<_>>().join(", ")
    )
}

/// It was read, and will not be done. A conflict may be with what was made by the same words.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
}

fn say(name: &str, secret: &str, password: &str) {
    eprintln!("password of Repository {name}, in Secret {secret}:\n\n    {password}\n");
    eprintln!(
        "Keep it somewhere else, too: without it nothing in the Repository can ever be read again, by us or by anybody."
    );
}

/// A password that is there already may be the only way to a repository: it is never replaced.
fn taken(error: kube::Error, secret: &str) -> Failure {
    let is_there = matches!(&error, kube::Error::Api(status) if status.code == 409);
    let failure = Failure::from(error);
    if is_there {
        return failure.detail(format!("to use the password in it: --password-secret {secret}"));
    }
    failure.detail(format!("no Repository was made; if there is a Secret {secret} now, delete it, and ask again"))
}

fn generated() -> String {
    let mut random = rand::rng();
    let group = |_| (0..GROUP).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect::<String>();
    (0..GROUPS).map(group).collect::<Vec<_>>().join("-")
}

fn secret_of(name: &str, password: &str) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([(KEY.to_owned(), ByteString(password.as_bytes().to_vec()))].into()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_and_never_the_same() {
        let (one, other) = (generated(), generated());
        assert_ne!(one, other);
        assert_eq!(one.len(), GROUPS * GROUP + GROUPS - 1);
        assert!(one.split('-').all(|group| group.len() == GROUP && group.bytes().all(|byte| LETTERS.contains(&byte))));
    }
}
