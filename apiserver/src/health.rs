//! `/healthz`, `/livez`, `/readyz`, in upstream's words (apiserver `pkg/server/healthz`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::StatusCode;
use tracing::{error, info};

use crate::{answer::Answer, error::ApiError, query::Query, target::Health};

/// Something without which a server is not ready; why it is not met goes into the log.
#[derive(Debug)]
pub(crate) struct Condition {
    name: &'static str,
    unmet: Mutex<Option<String>>,
}

impl Condition {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, unmet: Mutex::new(Some("it was not looked at yet".to_owned())) }
    }

    pub(crate) fn is_met(&self) {
        if self.unmet().take().is_some() {
            info!("{}: as it should be", self.name);
        }
    }

    pub(crate) fn is_not_met(&self, why: String) {
        let mut unmet = self.unmet();
        if unmet.as_ref() != Some(&why) {
            error!("not ready: {why}");
        }
        *unmet = Some(why);
    }

    pub(crate) fn check(&self) -> Check {
        (self.name, self.unmet().is_none())
    }

    fn unmet(&self) -> MutexGuard<'_, Option<String>> {
        self.unmet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A check by its name; why it fails is for the log.
pub(crate) type Check = (&'static str, bool);

/// Whether anything answers at all: that it does is the answer.
pub(crate) const PING: Check = ("ping", true);

/// One word when all is well and nobody asked for more; each check on a line otherwise.
pub(crate) fn answer(health: &Health, checks: &[Check], query: &Query) -> Result<Answer, ApiError> {
    let wanted = |name: &str| health.check.as_deref().is_none_or(|wanted| wanted == name);
    let checks: Vec<&Check> = checks.iter().filter(|(name, _)| wanted(name)).collect();
    if checks.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let excluded = |name: &str| query.get("exclude") == Some(name);
    let well = checks.iter().all(|(name, well)| *well || excluded(name));
    if well && !query.has("verbose") {
        return Ok(text(StatusCode::OK, "ok".to_owned()));
    }
    let lines = checks.iter().map(|(name, well)| match well {
        _ if excluded(name) => format!("[+]{name} excluded: ok\n"),
        true => format!("[+]{name} ok\n"),
        false => format!("[-]{name} failed: reason withheld\n"),
    });
    let (code, end) = if well { (StatusCode::OK, "passed") } else { (StatusCode::INTERNAL_SERVER_ERROR, "failed") };
    Ok(text(code, format!("{}{} check {end}\n", lines.collect::<String>(), health.probe)))
}

fn text(code: StatusCode, text: String) -> Answer {
    Answer::Other { code, content_type: "text/plain; charset=utf-8", bytes: Bytes::from(text), headers: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(checks: &[Check], check: Option<&str>, query: &str) -> Option<(u16, String)> {
        let health = Health { probe: "readyz", check: check.map(str::to_owned) };
        match answer(&health, checks, &Query::parse(Some(query))) {
            Ok(Answer::Other { code, bytes, .. }) => Some((code.as_u16(), String::from_utf8(bytes.to_vec()).unwrap())),
            _ => None,
        }
    }

    #[test]
    fn a_probe_is_answered_as_upstream_answers_it() {
        let (good, bad) = ([PING, ("storage", true)], [PING, ("storage", false)]);
        let said = |code, text: &str| Some((code, text.to_owned()));
        assert_eq!(told(&good, None, ""), said(200, "ok"));
        assert_eq!(told(&good, None, "verbose"), said(200, "[+]ping ok\n[+]storage ok\nreadyz check passed\n"));
        let failed = said(500, "[+]ping ok\n[-]storage failed: reason withheld\nreadyz check failed\n");
        assert_eq!(told(&bad, None, ""), failed);
        assert_eq!(told(&bad, None, "exclude=storage"), said(200, "ok"));
        assert_eq!(told(&bad, Some("ping"), ""), said(200, "ok"));
        assert_eq!(told(&bad, Some("nonsense"), ""), None);
    }
}
