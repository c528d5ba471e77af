//! The programs that dump in place of the servers' own: of the whole cluster, and nobody's to write but who administers it.

use schemars::json_schema;

use super::{
    Column, EVERY_VERB, Resource, Storage, Strategy,
    cells::{AGE, NAME, text},
    copies::list,
    decode,
    stillpoint::typed,
};

pub static DUMP_TOOLS: Resource = Resource {
    group: api::GROUP,
    version: api::VERSION,
    plural: "dumptools",
    singular: "dumptool",
    kind: "DumpTool",
    short_names: &["sptool"],
    categories: &["stillpoint"],
    namespaced: false,
    storage: Storage::Kept(Strategy {
        key: "dumptools.stillpoint.dev",
        decode: decode::<api::DumpTool>,
        validate: |new, old| typed(new, old, api::validate::dump_tool, api::validate::dump_tool_update),
        strategic_as_merge: false,
    }),
    verbs: EVERY_VERB,
    subresources: &[],
    columns: &[
        NAME,
        Column {
            name: "Engines",
            kind: "string",
            description: "Whose Databases it dumps; none: any.",
            priority: 0,
            cell: |object, _| {
                let engines = list(&object["spec"]["engines"]);
                engines.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(",").into()
            },
        },
        Column {
            name: "Program",
            kind: "string",
            description: "What dumps.",
            priority: 0,
            cell: |object, _| object["spec"]["dump"]["command"][0].clone(),
        },
        Column {
            name: "Output",
            kind: "string",
            description: "Where it writes.",
            priority: 0,
            cell: |object, _| text(object, &["spec", "dump", "output"]),
        },
        Column {
            name: "Restores-By",
            kind: "string",
            description: "What restores; none: its copies are restored by hand.",
            priority: 0,
            cell: |object, _| object["spec"]["restore"]["command"][0].as_str().unwrap_or_default().into(),
        },
        AGE,
    ],
    fields: &[],
    schema: |generator| {
        let metadata = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
        let spec = generator.subschema_for::<api::DumpToolSpec>();
        json_schema!({
            "type": "object",
            "description": "A program that dumps databases, and perhaps restores them, in place of the servers' own.",
            "required": ["spec"],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of this form of the object."},
                "kind": {"type": "string", "description": "What the object is."},
                "metadata": metadata,
                "spec": spec,
            },
        })
    },
};
