//! Gives locations what they lack of a snapshot.

use api::runner::ReplicateTask;
use repository::Run;

use crate::{dump::open, failure::Failure, secrets::Secrets};

/// Each location, and why it does not have it still.
pub(crate) async fn replicate(
    task: ReplicateTask,
    secrets: &Secrets,
) -> Result<Vec<(String, Option<String>)>, Failure> {
    let opened = open(&task.repository, secrets).await?;
    let run = Run { name: task.run.name.clone(), over: task.run.over.clone() };
    let work = move || {
        let one = |to: String| {
            let unusable = opened.unusable.iter().find(|error| error.location == to).map(ToString::to_string);
            let why = unusable
                .or_else(|| opened.repository.replicate(&run, &task.id, &to).err().map(|error| error.to_string()));
            (to, why)
        };
        task.to.into_iter().map(one).collect()
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::bug(format!("replicating broke: {error}")))
}
