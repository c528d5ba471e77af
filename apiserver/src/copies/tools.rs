//! DumpTools: which one a run is done by, as it is declared when it begins, and whether it may be. Whoever runs it is told all of it.

use api::{
    DumpTool, Engine, ExistingPolicy, RestoreSpec, ToolUse,
    conditions::reasons,
    dump_tool::{
        REPLACES,
        command::{Variable, uses},
    },
    runner::{FailedRun, RunnerTemplate, TaskTool},
};
use kube::{Api, Client};

use super::Copies;
use crate::{error::ApiError, records::cluster::told, registry::Registry, resources::DUMP_TOOLS};

/// Where they are declared.
#[derive(Clone)]
pub(crate) enum Tools {
    Own(Registry),
    /// Asked each time: runs are few.
    InCluster(Client),
}

impl Tools {
    async fn get(&self, name: &str) -> Result<DumpTool, ApiError> {
        match self {
            Self::Own(registry) => registry.typed(&DUMP_TOOLS, None, name),
            Self::InCluster(client) => {
                let found = Api::<DumpTool>::all(client.clone()).get(name).await;
                found.map_err(|error| told(&error, DUMP_TOOLS.about(name)))
            }
        }
    }

    /// That of a Snapshot, if it names one.
    pub(super) async fn dumping(
        &self,
        wanted: Option<&ToolUse>,
        engines: impl Iterator<Item = Engine>,
    ) -> Result<Option<TaskTool>, FailedRun> {
        let Some(wanted) = wanted else { return Ok(None) };
        let tool = self.get(&wanted.name).await.map_err(|error| missing(&wanted.name, "", error))?;
        dumping(&tool, wanted, engines).map(Some)
    }

    /// That of a Restore, if the copy was made by one.
    pub(super) async fn restoring(
        &self,
        spec: &RestoreSpec,
        made_by: Option<&ToolUse>,
        engine: Engine,
    ) -> Result<Option<TaskTool>, FailedRun> {
        let Some(made_by) = made_by else {
            return match &spec.tool {
                Some(_) => Err(refused("the copy was made by the server's own program: leave spec.tool out")),
                None => Ok(None),
            };
        };
        let name = spec.tool.as_ref().map_or(&made_by.name, |tool| &tool.name);
        let also = "; the copy was made by it: declare it again, or say another one that reads such copies (spec.tool)";
        let also = if *name == made_by.name { also } else { "" };
        let tool = self.get(name).await.map_err(|error| missing(name, also, error))?;
        restoring(&tool, made_by, spec, engine).map(Some)
    }
}

impl Copies {
    /// Whether a Pod of it has room for the files that it writes: what is for temporary files is memory there.
    pub(super) fn has_room(&self, template: &RunnerTemplate, tool: &TaskTool, restores: bool) -> Result<(), FailedRun> {
        if self.storage.is_none() || template.scratch.is_some() || !tool.spec.writes_files(restores) {
            return Ok(());
        }
        Err(refused(format!(
            "DumpTool {} writes files before they are read: say how much room there is to be (spec.runner.scratch.size)",
            tool.name
        )))
    }
}

/// Pure.
fn dumping(
    tool: &DumpTool,
    wanted: &ToolUse,
    mut engines: impl Iterator<Item = Engine>,
) -> Result<TaskTool, FailedRun> {
    if let Some(engine) = engines.find(|engine| !tool.spec.dumps(*engine)) {
        return Err(refused(format!("DumpTool {} is not made for {engine}", wanted.name)));
    }
    set(tool, wanted)
}

/// Pure. What the copy was made with holds, but for what the Restore says.
fn restoring(tool: &DumpTool, made_by: &ToolUse, spec: &RestoreSpec, engine: Engine) -> Result<TaskTool, FailedRun> {
    let mut wanted = spec.tool.clone().unwrap_or_else(|| made_by.clone());
    let name = wanted.name.clone();
    let Some(restore) = &tool.spec.restore else {
        return Err(refused(format!(
            "DumpTool {name} has no spec.restore: download the copy (kubectl still snapshot download), and restore it by hand"
        )));
    };
    if !tool.spec.dumps(engine) {
        return Err(refused(format!("DumpTool {name} is not made for {engine}")));
    }
    if spec.existing != ExistingPolicy::Replace {
        return Err(FailedRun { reason: reasons::EXISTS.to_owned(), ..refused(format!("DumpTool {name} {REPLACES}")) });
    }
    if !spec.databases.is_empty() && !uses(&restore.command, Variable::Databases) {
        return Err(refused(format!("DumpTool {name} restores all of a copy: leave spec.databases out")));
    }
    if name == made_by.name {
        // What it does not know any more is nothing to it.
        let known = |name: &String| tool.spec.settings.iter().any(|setting| setting.name == *name);
        for (name, value) in made_by.settings.iter().filter(|(name, _)| known(name)) {
            wanted.settings.entry(name.clone()).or_insert_with(|| value.clone());
        }
        if spec.tool.is_none() {
            wanted.settings.retain(|name, _| known(name));
        }
    }
    set(tool, &wanted)
}

fn set(tool: &DumpTool, wanted: &ToolUse) -> Result<TaskTool, FailedRun> {
    let name = wanted.name.clone();
    let settings = tool.spec.set(&wanted.settings).map_err(|unset| refused(format!("DumpTool {name}: {unset}")))?;
    Ok(TaskTool { name, spec: tool.spec.clone(), settings })
}

fn refused(message: impl Into<String>) -> FailedRun {
    FailedRun { reason: reasons::UNSUPPORTED.to_owned(), message: message.into(), again: false, target: None }
}

fn missing(name: &str, also: &str, error: ApiError) -> FailedRun {
    let is_gone = error.code == 404;
    let message = if is_gone { format!("there is no DumpTool {name}{also}") } else { error.message };
    FailedRun { reason: reasons::NOT_FOUND.to_owned(), message, again: !is_gone, target: None }
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tools").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tool(more: Value) -> DumpTool {
        let mut spec = json!({
            "engines": ["PostgreSQL"], "dump": {"command": ["pg_dumpall"]}, "restore": {"command": ["psql"]},
            "settings": [{"name": "threads", "default": "4"}, {"name": "rate", "default": "9"}],
        });
        json_patch::merge(&mut spec, &more);
        DumpTool::new("all", serde_json::from_value(spec).unwrap())
    }

    fn used(settings: Value) -> ToolUse {
        serde_json::from_value(json!({"name": "all", "settings": settings})).unwrap()
    }

    fn restore(more: Value) -> RestoreSpec {
        let mut spec = json!({"source": {"snapshot": "s"}, "database": "orders", "existing": "Replace"});
        json_patch::merge(&mut spec, &more);
        serde_json::from_value(spec).unwrap()
    }

    fn why<T: std::fmt::Debug>(result: Result<T, FailedRun>) -> (String, String) {
        let failed = result.unwrap_err();
        assert!(!failed.again);
        (failed.reason, failed.message)
    }

    #[test]
    fn a_dump_is_of_the_tools_engines_and_settings() {
        let made = dumping(&tool(json!({})), &used(json!({"threads": "8"})), [Engine::PostgreSQL].into_iter()).unwrap();
        assert_eq!(made.settings, [("rate".into(), "9".into()), ("threads".into(), "8".into())].into());
        let of = |engine, settings| why(dumping(&tool(json!({})), &used(settings), [engine].into_iter())).1;
        assert_eq!(of(Engine::MariaDB, json!({})), "DumpTool all is not made for MariaDB");
        assert!(of(Engine::PostgreSQL, json!({"no": "1"})).contains("there are threads, rate"));
    }

    #[test]
    fn a_restore_goes_by_what_the_copy_was_made_with_but_for_what_it_says_itself() {
        let made_by = used(json!({"threads": "8", "rate": "7", "gone": "1"}));
        let of =
            |more: Value| restoring(&tool(json!({})), &made_by, &restore(more), Engine::PostgreSQL).unwrap().settings;
        assert_eq!(of(json!({})), [("rate".into(), "7".into()), ("threads".into(), "8".into())].into());
        let more = json!({"tool": {"name": "all", "settings": {"threads": "2"}}});
        assert_eq!(of(more), [("rate".into(), "7".into()), ("threads".into(), "2".into())].into());
        let another = json!({"tool": {"name": "another"}});
        assert_eq!(of(another), [("rate".into(), "9".into()), ("threads".into(), "4".into())].into());
    }

    #[test]
    fn nothing_is_restored_by_a_tool_that_cannot_or_into_what_may_not_be_replaced() {
        let of = |of_tool: Value, more: Value, engine| {
            why(restoring(&tool(of_tool), &used(json!({})), &restore(more), engine))
        };
        let (reason, message) = of(json!({}), json!({"existing": "Never"}), Engine::PostgreSQL);
        assert!(reason == reasons::EXISTS && message.contains("spec.existing: Replace"), "{reason}: {message}");
        assert_eq!(of(json!({}), json!({"existing": "IfEmpty"}), Engine::PostgreSQL).0, reasons::EXISTS);
        assert!(of(json!({"restore": null}), json!({}), Engine::PostgreSQL).1.contains("no spec.restore"));
        assert!(of(json!({}), json!({}), Engine::MariaDB).1.contains("not made for MariaDB"));
        assert!(
            of(json!({}), json!({"databases": ["shop"]}), Engine::PostgreSQL).1.contains("leave spec.databases out")
        );
        let of_some = tool(json!({"restore": {"command": ["psql", "$(DATABASES)"]}}));
        let some = restore(json!({"databases": ["shop"]}));
        assert!(restoring(&of_some, &used(json!({})), &some, Engine::PostgreSQL).is_ok());
    }
}
