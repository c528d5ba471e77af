//! `generate`: what a cluster is given for a Snapshot or a Restore, printed.

use std::path::PathBuf;

use serde_json::Value;

use crate::{
    client::{Api, Connection},
    failure::Failure,
    manifests::{self, objects, read},
    print::Output,
};

/// In a cluster: print what is made for a Snapshot or a Restore, as YAML or with -o json: the Job of a dump, VolumeSnapshots, claims. It
/// is built as what is made is; nothing is made, and no value of a Secret is in it.
///
/// Of one that is not there yet nothing is stored; its uid, by which a Job is named, is not known, and is
/// 00000000-0000-0000-0000-000000000000.
///
/// Exit code: 0; 1 where it cannot be made, and why is said.
///
/// Examples:
///
///   kubectl still generate snapshot before-upgrade
///
///   kubectl still generate restore after-all -o json
///
///   kubectl still generate -f snapshot.yaml
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    of: Option<Of>,
    /// YAML or JSON of Snapshots and Restores that are not there yet. `-` is the standard input.
    #[arg(long = "filename", short, value_name = "FILE", required = true)]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Of {
    /// Of a Snapshot that is there: its run that goes on, or was the last; the next one while it waits for one.
    Snapshot {
        /// The Snapshot.
        name: String,
    },
    /// Of a Restore that is there.
    Restore {
        /// The Restore.
        name: String,
    },
}

const SNAPSHOTS: &str = "snapshots";
const RESTORES: &str = "restores";

/// One that is sent.
#[derive(Debug, PartialEq, Eq)]
struct Sent<'o> {
    plural: &'static str,
    name: &'o str,
    namespace: Option<&'o str>,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        // The namespace that was named; else each object's own.
        let named = connection.namespace().map(str::to_owned);
        let (objects, file) = match (&self.of, &self.file) {
            (None, Some(file)) => (objects(&read(file)?), file.display().to_string()),
            _ => (Ok(Vec::new()), String::new()),
        };
        let objects = objects.map_err(|why| Failure::new(format!("{file}: {why}")))?;
        let all: Result<Vec<Sent<'_>>, _> = objects.iter().map(sent).collect();
        let all = all.map_err(|why| Failure::new(format!("{file}: {why}")))?;
        // A server that cannot make it now says why: that is the answer.
        let api = connection.connect_for_one_try().await?;
        let mut made = match &self.of {
            Some(Of::Snapshot { name }) => generated(&api, SNAPSHOTS, name, None).await?,
            Some(Of::Restore { name }) => generated(&api, RESTORES, name, None).await?,
            None => Vec::new(),
        };
        for (object, Sent { plural, name, namespace }) in objects.iter().zip(all) {
            let own = namespace.filter(|_| named.is_none()).unwrap_or(&api.namespace).to_owned();
            let api = Api { namespace: own, ..api.clone() };
            made.extend(generated(&api, plural, name, Some(object)).await?);
        }
        manifests::print(made, output)?;
        Ok(0)
    }
}

async fn generated(api: &Api, plural: &str, name: &str, sent: Option<&Value>) -> Result<Vec<Value>, Failure> {
    let (made, warnings) = api.generated(plural, name, sent).await.map_err(|error| {
        let is_there = matches!(&error, kube::Error::Api(status) if status.reason == "AlreadyExists");
        let failure = Failure::from(error);
        if is_there {
            let one = plural.trim_end_matches('s');
            failure.detail(format!("what is made for that: kubectl still generate {one} {name} -n {}", api.namespace))
        } else {
            failure
        }
    })?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(made)
}

/// Pure.
fn sent(object: &Value) -> Result<Sent<'_>, String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = text("/kind").unwrap_or("an object without kind");
    let plural = match (text("/apiVersion"), kind) {
        (Some(api::API_VERSION), "Snapshot") => SNAPSHOTS,
        (Some(api::API_VERSION), "Restore") => RESTORES,
        (version, _) => {
            let of = version.map(|version| format!(" of {version}")).unwrap_or_default();
            return Err(format!("{kind}{of} is neither a Snapshot nor a Restore of {}", api::API_VERSION));
        }
    };
    let name = text("/metadata/name");
    let name = name.ok_or_else(|| format!("say metadata.name of the {kind}: what is made is named after it"))?;
    Ok(Sent { plural, name, namespace: text("/metadata/namespace") })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, refusal};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        command: Command,
    }

    fn parsed(line: &[&str]) -> Option<Command> {
        Line::try_parse_from([&["generate"], line].concat()).ok().map(|line| line.command)
    }

    fn snapshot(metadata: Value) -> Value {
        json!({"apiVersion": api::API_VERSION, "kind": "Snapshot", "metadata": metadata, "spec": {"databases": ["orders"]}})
    }

    #[test]
    fn one_that_is_there_is_named_and_others_are_sent() {
        for right in [&["snapshot", "noon"][..], &["restore", "back"], &["-f", "x.yaml"], &["--filename", "-"]] {
            assert!(parsed(right).is_some(), "{right:?}");
        }
        for wrong in [&[][..], &["snapshot"], &["noon"], &["snapshot", "noon", "-f", "x.yaml"]] {
            assert!(parsed(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn only_for_snapshots_and_restores_with_a_name_something_is_made() {
        let noon = snapshot(json!({"name": "noon", "namespace": "shop"}));
        assert_eq!(sent(&noon), Ok(Sent { plural: SNAPSHOTS, name: "noon", namespace: Some("shop") }));
        for (wrong, says) in [
            (snapshot(json!({"generateName": "noon-"})), "say metadata.name"),
            (json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "noon"}}), "Secret of v1 is neither"),
            (json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "Snapshot"}), "is neither"),
            (json!("noon"), "an object without kind"),
        ] {
            let why = sent(&wrong).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[tokio::test]
    async fn each_of_a_file_is_sent_to_its_namespace_and_one_that_is_there_is_told_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let both = [snapshot(json!({"name": "noon"})), snapshot(json!({"name": "night", "namespace": "other"}))];
        std::fs::write(file.path(), format!("{}\n---\n{}\n", both[0], both[1])).unwrap();
        let api = FakeApi::start(|asked| {
            let exists =
                json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "AlreadyExists", "code": 409});
            Some(if asked.path.contains("/night/") {
                (409, exists)
            } else {
                (200, json!({"kind": "List", "items": []}))
            })
        });
        let command = parsed(&["-f", &file.path().display().to_string()]).unwrap();
        let said = format!("{:?}", command.run(api.connection(), Output::Text).await.unwrap_err());
        assert!(said.contains("kubectl still generate snapshot night -n other"), "{said}");
        let asked = api.asked("POST", "/generate");
        assert!(asked[0].path.ends_with("/namespaces/shop/snapshots/noon/generate") && asked[0].body == both[0]);
        assert!(asked[1].path.ends_with("/namespaces/other/snapshots/night/generate"), "{asked:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_made_now_is_not_asked_for_again() {
        let api = FakeApi::start(|_| Some(refusal(503)));
        let command = parsed(&["restore", "back"]).unwrap();
        command.run(api.connection(), Output::Text).await.unwrap_err();
        assert_eq!(api.asked("GET", "/restores/back/generate").len(), 1);
    }
}
