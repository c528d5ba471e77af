//! `repository create | check | scan`: where copies are kept.

mod check;
mod create;
mod place;
mod scan;

use crate::{client::Connection, failure::Failure, print::Output};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Create(create::Command),
    Check(check::Command),
    Scan(scan::Command),
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        match self {
            // What is sent twice may be refused for having been done.
            Self::Create(command) => command.run(&connection.connect_for_one_try().await?, output).await,
            // It answers when it is over.
            Self::Check(command) => command.run(&connection.connect_for(check::LONGEST).await?, output).await,
            Self::Scan(command) => command.run(&connection.connect().await?, output).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{FakeApi, refusal};

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    async fn fails(api: &FakeApi, line: &[&str]) -> String {
        let command = Line::parse_from([&["repository"], line].concat()).command;
        format!("{:?}", command.run(api.connection(), Output::Text).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_check_is_asked_for_once() {
        let api = FakeApi::start(|_| Some(refusal(503)));
        fails(&api, &["check", "nightly"]).await;
        assert_eq!(api.asked("POST", "/repositories/nightly/check").len(), 1);
    }

    fn is_there() -> (u16, Value) {
        let spec = json!({"locations": [], "encryption": {"passwordSecretRef": {"name": "nightly-key"}}});
        (
            200,
            json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Repository", "metadata": {"name": "nightly"}, "spec": spec}),
        )
    }

    #[tokio::test]
    async fn the_only_password_of_what_may_be_there_is_never_thrown_away() {
        type Answer = fn() -> Option<(u16, Value)>;
        let cases: [(Answer, Answer, bool); 8] = [
            (|| Some(refusal(422)), || Some(refusal(404)), true),
            (|| Some(refusal(403)), || Some(refusal(404)), true),
            (|| Some(refusal(422)), || Some(is_there()), false),
            (|| Some(refusal(403)), || Some(refusal(403)), false),
            (|| Some(refusal(400)), || None, false),
            // It was made, and the answer was lost.
            (|| Some(refusal(409)), || Some(is_there()), false),
            (|| Some(refusal(504)), || Some(refusal(404)), false),
            (|| None, || Some(refusal(404)), false),
        ];
        for (number, (made, looked_at, is_deleted)) in cases.into_iter().enumerate() {
            let api = FakeApi::start(move |asked| match (asked.method.as_str(), asked.path.contains("/secrets")) {
                ("POST", true) => {
                    let mut secret = asked.body.clone();
                    secret["metadata"]["uid"] = "1234".into();
                    Some((201, secret))
                }
                ("POST", false) => made(),
                ("GET", false) => looked_at(),
                _ => Some((200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))),
            });
            let said = fails(&api, &["create", "nightly", "--location", "/backups", "--generate-password"]).await;
            assert_eq!(api.asked("POST", "/repositories").len(), 1, "{number}: {said}");
            let deleted = api.asked("DELETE", "/secrets/nightly-key");
            assert_eq!(deleted.len(), usize::from(is_deleted), "{number}: {said}");
            assert_eq!(said.contains("is not known"), !is_deleted, "{number}: {said}");
            assert!(deleted.iter().all(|asked| asked.body["preconditions"]["uid"] == "1234"), "{deleted:?}");
        }
    }
}
