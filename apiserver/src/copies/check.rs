//! Whether a repository is whole, when somebody asks. One check at a time: each reads all of a repository's indexes and trees, and may
//! read every byte, beside whatever else this server does. Whoever asked may go; the check ends by itself, and until then no other begins.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{CheckResult, RepositoryCheckStatus, RepositoryFinding};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use repository::ReadData;

use super::{Copies, depot::Checked, download::refused};
use crate::error::ApiError;

/// How long an answer is waited for.
pub(crate) const LONGEST: Duration = Duration::from_secs(3600);
/// A repository that has lost a disk finds something wrong with every file.
const MOST_FINDINGS: usize = 200;

/// What is being checked, and since when. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Checking(Arc<Mutex<Option<(String, Timestamp)>>>);

/// As long as it lives, no other check begins.
struct Turn(Checking);

impl Copies {
    pub(crate) async fn check(
        &self,
        namespace: &str,
        name: &str,
        read_data: bool,
    ) -> Result<RepositoryCheckStatus, ApiError> {
        let repository = self.repositories.get(namespace, name).await?;
        let began = Timestamp::now();
        let turn = self.checking.begin(namespace, name, began).map_err(|(other, since)| {
            ApiError::conflict_message(format!(
                "Repository {other} is being checked since {since:.0}; ask again when that is over"
            ))
        })?;
        let read = if read_data { ReadData::All } else { ReadData::No };
        let checked = self.depot.check(namespace, name, &repository.spec, read, turn).await;
        Ok(said(checked.map_err(|closed| refused(&closed))?, began, Timestamp::now()))
    }
}

impl Checking {
    /// Else: what is being checked, and since when.
    fn begin(&self, namespace: &str, name: &str, now: Timestamp) -> Result<Turn, (String, Timestamp)> {
        let mut checking = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*checking {
            Some(other) => Err(other.clone()),
            None => {
                *checking = Some((format!("{namespace}/{name}"), now));
                Ok(Turn(self.clone()))
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Pure.
fn said(checked: Checked, began: Timestamp, now: Timestamp) -> RepositoryCheckStatus {
    let locations = checked.iter().map(|(location, _)| location.clone()).collect();
    let finding = |location: &str, is_error: bool, message: String| RepositoryFinding {
        location: location.to_owned(),
        result: if is_error { CheckResult::Fail } else { CheckResult::Warn },
        message,
    };
    let of = |(location, found): (String, repository::Result<Vec<repository::Finding>>)| match found {
        Ok(found) => found.into_iter().map(|one| finding(&location, one.is_error, one.message)).collect::<Vec<_>>(),
        Err(error) => vec![finding(&location, true, format!("it could not be looked at: {error}"))],
    };
    let mut findings: Vec<RepositoryFinding> = checked.into_iter().flat_map(of).collect();
    // What is worst is told, when not all can be.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.result));
    let omitted = findings.len().saturating_sub(MOST_FINDINGS);
    findings.truncate(MOST_FINDINGS);
    RepositoryCheckStatus {
        result: findings.iter().map(|finding| finding.result).max().unwrap_or(CheckResult::Pass),
        locations,
        findings,
        omitted: omitted as u64,
        checked_at: Time(began),
        milliseconds: u64::try_from(now.duration_since(began).as_millis()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use repository::Finding;

    use super::*;

    #[test]
    fn one_check_at_a_time_until_it_is_over() {
        let (checking, now) = (Checking::default(), Timestamp::now());
        let turn = checking.begin("shop", "nightly", now).ok().unwrap();
        let other = Some(("shop/nightly".to_owned(), now));
        assert_eq!(checking.begin("shop", "nightly", Timestamp::now()).err(), other);
        assert_eq!(checking.begin("shop", "weekly", Timestamp::now()).err(), other);
        drop(turn);
        assert!(checking.begin("shop", "nightly", now).is_ok());
    }

    #[test]
    fn what_is_worst_is_told_first_and_the_rest_is_counted() {
        let now = Timestamp::now();
        let odd = |number: usize| Finding { is_error: number == 300, message: number.to_string() };
        let lost = repository::Error::NoFile("x".into());
        let status =
            said(vec![("disk".into(), Ok((0..=300).map(odd).collect())), ("offsite".into(), Err(lost))], now, now);
        assert_eq!((status.result, status.findings.len(), status.omitted), (CheckResult::Fail, MOST_FINDINGS, 102));
        assert_eq!(status.findings[0].message, "300");
        assert!(status.findings[1].message.starts_with("it could not be looked at"));
        assert_eq!(status.locations, ["disk", "offsite"]);
        assert_eq!(said(vec![("disk".into(), Ok(Vec::new()))], now, now).result, CheckResult::Pass);
    }
}
