//! `restore-plan`: how to restore a copy without us, as a script of restic and the server's own programs.

#[cfg(test)]
mod hostile;
mod places;
#[cfg(test)]
mod runs;
mod script;
mod server;
#[cfg(test)]
mod tests;

use api::{Database, DatabaseCopy, KnownBy, LiveSnapshot, Repository};

use crate::{
    client::{Api, Connection},
    failure::Failure,
    print::{self, Output},
};
use script::Plan;

/// Print how to restore a copy by plain means: restic, and pg_restore and psql or mariadb. A script for sh that asks for what it
/// needs by environment variables; no value of a Secret is in it. Keep it where it is found when nothing of Stillpoint is there any more.
/// What is there already is left alone: the script refuses before it touches anything, unless REPLACE=yes says that it goes.
///
/// Examples:
///
///   kubectl still restore-plan before-upgrade > restore.sh
///
///   kubectl still restore-plan before-upgrade --into fresh > restore.sh
///
///   FROM=offsite RESTIC_PASSWORD=… PGUSER=postgres sh restore.sh
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// A Snapshot, or an entry of the catalogue.
    snapshot: String,
    /// The Database whose server the script restores into; the one that was copied when absent.
    #[arg(long, value_name = "DATABASE")]
    into: Option<String>,
    /// Which of the copy's Databases, where there are several.
    #[arg(long, value_name = "DATABASE")]
    from: Option<String>,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let copy = api.copy(&self.snapshot).await?;
        let of = which(&copy, self.from.as_deref())?;
        let repository = copy.spec.repository.clone().unwrap_or_default();
        let repository = api.objects::<Repository>().get(&repository).await?;
        let target = self.target(&api, of).await?;
        let plan =
            Plan { copy: &copy, of, repository: &repository.spec, namespace: &api.namespace, target: target.as_ref() };
        let script = plan.script()?;
        match output {
            Output::Json => print::json(&serde_json::json!({"script": script}))?,
            Output::Text => print!("{script}"),
        }
        Ok(0)
    }

    /// One that was named must be there; the one that was copied may be gone.
    async fn target(&self, api: &Api, of: &DatabaseCopy) -> Result<Option<Database>, Failure> {
        let databases = api.objects::<Database>();
        match &self.into {
            Some(name) => Ok(Some(databases.get(name).await?)),
            None => Ok(databases.get_opt(&of.database).await?),
        }
    }
}

/// Of which Database a plan is: one is for one server. Pure.
fn which<'c>(copy: &'c LiveSnapshot, from: Option<&str>) -> Result<&'c DatabaseCopy, Failure> {
    let (name, status) = (copy.metadata.name.as_deref().unwrap_or_default(), &copy.status);
    match status.known {
        KnownBy::Foreign => {
            return Err(Failure::new(format!(
                "{name} was written by another program: restic restore gives back its files"
            )));
        }
        KnownBy::Newer => {
            return Err(Failure::new(format!("{name} was written by a newer Stillpoint: ask that for the plan")));
        }
        KnownBy::Snapshot | KnownBy::Repository => {}
    }
    if status.id.is_none() || status.contents.is_empty() {
        return Err(Failure::new(format!("nothing is stored of {name}: it is {}", status.phase)));
    }
    let names = status.contents.iter().map(|of| of.database.as_str()).collect::<Vec<_>>().join(", ");
    let of = match (from, status.contents.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => {
            Err(Failure::new(format!("{name} is of several Databases, and a plan is for one: say --from ({names})")))
        }
        (Some(from), all) => all
            .iter()
            .find(|of| of.database == from)
            .ok_or_else(|| Failure::new(format!("{name} has no Database {from}; it has {names}"))),
    }?;
    match &of.dump_tool {
        None => Ok(of),
        Some(tool) => Err(Failure::new(format!(
            "{name} was made by DumpTool {}, and only that knows how it is restored: restic restore, or kubectl still snapshot \
             download, gives back its files",
            tool.name
        ))),
    }
}
