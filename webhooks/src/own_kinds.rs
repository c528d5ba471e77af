//! What is stored is told what is wrong with it when it is written, not when it is frozen or copied: by the same functions
//! as the standalone registry and the controllers.

use api::{
    DatabaseSpec, DumpToolSpec, FreezeSpec, RepositorySpec, RestoreSpec, SnapshotSpec, Unreadable,
    validate::{self, Cause, CauseKind},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    answer::Answer,
    decision::Decision,
    ours::{OUR_OWN, Ours},
    review::{Operation, Request},
};

pub(crate) fn decide(request: &Request, ours: &Ours) -> Decision {
    // By the same functions the apiserver has looked at what it writes.
    if request.user == ours.user {
        return Decision::Allow(OUR_OWN);
    }
    if request.group != api::GROUP || !request.sub_resource.is_empty() || request.operation == Operation::Other {
        return Decision::Allow("another resource");
    }
    // A finalizer must come off whatever the object looks like by now.
    if request.object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null()) {
        return Decision::Allow("being deleted");
    }
    let is_update = request.operation == Operation::Update;
    // What was right once may be kept: a label must go on an object that a later version would refuse.
    if is_update && request.object["spec"] == request.old_object["spec"] {
        return Decision::Allow("nothing that is ours changes");
    }
    match request.resource.as_str() {
        "databases" => judge::<DatabaseSpec>("Database", request, validate::database, validate::database_update),
        "dumptools" => judge::<DumpToolSpec>("DumpTool", request, validate::dump_tool, validate::dump_tool_update),
        "freezes" => judge::<FreezeSpec>("Freeze", request, validate::freeze, validate::freeze_update),
        "repositories" => {
            judge::<RepositorySpec>("Repository", request, validate::repository, validate::repository_update)
        }
        "restores" => judge::<RestoreSpec>("Restore", request, validate::restore, validate::restore_update),
        "snapshots" => judge::<SnapshotSpec>("Snapshot", request, validate::snapshot, validate::snapshot_update),
        _ => Decision::Allow("another resource"),
    }
}

fn judge<Spec: DeserializeOwned>(
    kind: &str,
    request: &Request,
    create: impl Fn(&Spec) -> Vec<Cause>,
    update: impl Fn(&Spec, &Spec) -> Vec<Cause>,
) -> Decision {
    let causes = match (read::<Spec>(&request.object), request.operation, read::<Spec>(&request.old_object)) {
        (Ok(spec), Operation::Update, Ok(old)) => update(&spec, &old),
        (Ok(spec), ..) => create(&spec),
        // A schema that leaves a field open has passed it; stored, nobody of ours could do anything about it but say so.
        (Err(wrong), ..) => vec![unreadable(wrong)],
    };
    if causes.is_empty() {
        return Decision::Allow("valid");
    }
    Decision::Answer(Answer::invalid(kind, request.text("/metadata/name").unwrap_or_default(), &causes))
}

fn read<Spec: DeserializeOwned>(object: &Value) -> Result<Spec, Unreadable> {
    api::read(object.get("spec").unwrap_or(&Value::Null))
}

fn unreadable(Unreadable { field, why }: Unreadable) -> Cause {
    let field = if field.is_empty() { "spec".to_owned() } else { format!("spec.{field}") };
    Cause { field, kind: CauseKind::Invalid, message: why }
}
