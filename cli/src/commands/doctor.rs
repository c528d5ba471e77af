//! `doctor`: what stands of an installation, what is missing, and what to do about it. It reads, and changes nothing.

mod agents;
mod copies;
mod databases;
mod installed;
mod policies;
mod rights;
mod webhooks;

pub(super) use installed::home;
pub(super) use webhooks::{Configurations, ready};

use api::CheckResult;
use freeze::chain;
use serde::Serialize;
use serde_json::json;

use crate::{
    client::{Api, Connection},
    failure::Failure,
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What is looked at: `cluster`, or a namespace, or NAMESPACE/NAME of a Database.
    subject: String,
    check: &'static str,
    result: CheckResult,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn pass(check: &'static str, message: impl Into<String>) -> Self {
        Self { subject: "cluster".to_owned(), check, result: CheckResult::Pass, message: message.into(), fix: None }
    }

    fn warn(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: CheckResult::Warn, fix: Some(fix.into()), ..Self::pass(check, message) }
    }

    fn fail(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: CheckResult::Fail, fix: Some(fix.into()), ..Self::pass(check, message) }
    }

    /// What could not be looked at: not being allowed to says nothing about it.
    fn unseen(check: &'static str, what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::warn(
                check,
                format!("you may not read {what}"),
                "have somebody run this who may; nothing is known of it here",
            ),
            kube::Error::Api(status) => {
                Self::fail(check, format!("{what}: {} ({})", status.message, status.code), "look at what answers there")
            }
            other => Self::fail(check, format!("{what}: {}", chain(other)), "look at what answers there"),
        }
    }

    fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let named = connection.namespace().map(str::to_owned);
        let api = connection.connect_for_one_try().await?;
        let findings = look(&api, named.as_deref()).await;
        let count = |result| findings.iter().filter(|finding| finding.result == result).count();
        let (failed, warned) = (count(CheckResult::Fail), count(CheckResult::Warn));
        match output {
            Output::Json => print::json(&json!({"checks": findings, "failed": failed, "warned": warned}))?,
            Output::Text => {
                print!("{}", table(&findings));
                println!("{}", summary(findings.len(), failed, warned));
            }
        }
        Ok(u8::from(failed > 0))
    }
}

/// In the order in which one would repair it: each stands on those before.
async fn look(api: &Api, namespace: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let server = installed::server(&api.client).await;
    let answers = server.result != CheckResult::Fail;
    findings.push(server);
    if !answers {
        return findings;
    }
    let home = if installed::is_cluster(&api.client).await {
        let (more, home) = installed::look(&api.client).await;
        findings.extend(more);
        findings.extend(policies::look(&api.client).await);
        findings.extend(rights::look(&api.client, &home).await);
        findings.extend(webhooks::look(&api.client, &home).await);
        Some(home)
    } else {
        findings.push(Finding::pass("standalone", "a server without a cluster: nothing has to be installed"));
        None
    };
    findings.extend(databases::look(api, namespace, home.as_deref()).await);
    if let Some(home) = &home {
        findings.extend(copies::look(api, namespace, home).await);
        findings.extend(agents::look(api, namespace).await);
    }
    findings
}

fn table(findings: &[Finding]) -> String {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let fix = finding.fix.as_ref().map(|fix| format!("\n    → {fix}")).unwrap_or_default();
            let message = format!("{}{fix}", finding.message);
            vec![finding.subject.clone(), finding.check.to_owned(), format!("{:?}", finding.result), message]
        })
        .collect();
    print::table(&["WHAT", "CHECK", "RESULT", "MESSAGE"], &rows)
}

fn summary(all: usize, failed: usize, warned: usize) -> String {
    match (failed, warned) {
        (0, 0) => format!("all {all} checks passed"),
        (0, warned) => format!("nothing failed; {warned} of {all} checks warn"),
        (failed, _) => format!("{failed} of {all} checks failed; begin with the first"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_read_is_not_said_to_be_broken() {
        let error = |code| {
            let status = kube::core::Status { code, message: "no".to_owned(), ..kube::core::Status::default() };
            Finding::unseen("policies", "policies", &kube::Error::Api(Box::new(status)))
        };
        assert_eq!(error(403).result, CheckResult::Warn);
        assert_eq!(error(500).result, CheckResult::Fail);
        assert_eq!(summary(3, 0, 1), "nothing failed; 1 of 3 checks warn");
    }
}
