//! `DumpTool`, and how one is used: what makes them valid.

use super::{Cause, CauseKind, cause, invalid, required};
use crate::{
    DumpToolSpec, ToolInput, ToolOutput, ToolSetting, ToolUse,
    dump_tool::{
        MOST_VALUE,
        command::{NoVariable, Piece, Variable, environment_of, is_script, pieces, uses},
    },
    inject::is_image,
};

/// What is said of a DumpTool by a CRD, too.
pub(crate) const ONE_FILE: &str = "is for output: Stdout; files of a directory have names of their own";
pub(crate) const NOT_ON_STDIN: &str = "what was written as a directory is restored from one";
const MOST_ARGUMENTS: usize = 64;
const MOST_ARGUMENT: usize = 16 << 10;
const MOST_SETTINGS: usize = 32;
const MOST_TEXT: usize = 1024;

/// `DumpTool.spec`.
pub fn dump_tool(spec: &DumpToolSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (at, engine) in spec.engines.iter().enumerate() {
        if spec.engines[..at].contains(engine) {
            let message = format!("{engine} is named twice");
            causes.push(cause(&format!("spec.engines[{at}]"), CauseKind::Duplicate, message));
        }
    }
    if spec.image.as_ref().is_some_and(|image| !is_image(image)) {
        causes.push(invalid("spec.image", "must be the name of an image"));
    }
    command("spec.dump.command", &spec.dump.command, spec, &mut causes);
    match (spec.dump.output, &spec.dump.file) {
        (ToolOutput::Stdout, Some(file)) if !is_file_name(file) => {
            causes.push(invalid("spec.dump.file", "must be 1 to 128 letters, digits and ._-, with no point first"));
        }
        (ToolOutput::Directory, Some(_)) => {
            causes.push(cause("spec.dump.file", CauseKind::Forbidden, ONE_FILE.into()));
        }
        _ => {}
    }
    if spec.dump.output == ToolOutput::Directory {
        scratch("spec.dump.command", &spec.dump.command, &mut causes);
    }
    if let Some(restore) = &spec.restore {
        command("spec.restore.command", &restore.command, spec, &mut causes);
        if spec.dump.output == ToolOutput::Directory && restore.input == Some(ToolInput::Stdin) {
            causes.push(cause("spec.restore.input", CauseKind::Invalid, NOT_ON_STDIN.into()));
        }
        if spec.input(restore) == ToolInput::Directory {
            scratch("spec.restore.command", &restore.command, &mut causes);
        }
    }
    settings(&spec.settings, &mut causes);
    causes
}

/// A change of `DumpTool.spec`: runs that have begun go on as they were told.
pub fn dump_tool_update(new: &DumpToolSpec, _old: &DumpToolSpec) -> Vec<Cause> {
    dump_tool(new)
}

/// `spec.tool` of whatever uses one. Which settings it has, and what they may be, is looked at when it is used.
pub(super) fn tool_use(tool: Option<&ToolUse>, causes: &mut Vec<Cause>) {
    let Some(tool) = tool else { return };
    required("spec.tool.name", &tool.name, causes);
    if tool.settings.len() > MOST_SETTINGS {
        causes.push(invalid("spec.tool.settings", format!("has {}; at most {MOST_SETTINGS}", tool.settings.len())));
    }
    for (name, value) in &tool.settings {
        if value.len() > MOST_VALUE || value.contains(char::is_control) {
            let message = format!("must be at most {MOST_VALUE} bytes, all of one line");
            causes.push(invalid(&format!("spec.tool.settings[{name}]"), message));
        }
    }
}

fn command(field: &str, command: &[String], spec: &DumpToolSpec, causes: &mut Vec<Cause>) {
    match command.first() {
        None => causes.push(cause(field, CauseKind::Required, "say the program, and its arguments".into())),
        Some(program) if program.is_empty() || program.contains("$(") => {
            causes.push(invalid(&format!("{field}[0]"), "must be a program, of which nothing is filled in"));
            return;
        }
        Some(_) => {}
    }
    if command.len() > MOST_ARGUMENTS {
        causes.push(invalid(field, format!("has {}; at most {MOST_ARGUMENTS}", command.len())));
    }
    for (at, argument) in command.iter().enumerate() {
        let field = format!("{field}[{at}]");
        if argument.len() > MOST_ARGUMENT || argument.contains('\0') {
            causes.push(invalid(&field, format!("must be at most {MOST_ARGUMENT} bytes, none of them 0")));
            continue;
        }
        match pieces(argument) {
            Err(NoVariable(name)) => causes.push(invalid(&field, unknown(name, &spec.settings))),
            Ok(pieces) => {
                let wrong = pieces.iter().find_map(|piece| wrong(piece, is_script(command, at), spec));
                causes.extend(wrong.map(|message| invalid(&field, message)));
            }
        }
    }
}

/// Why a part of an argument may not be there.
fn wrong(piece: &Piece<'_>, in_script: bool, spec: &DumpToolSpec) -> Option<String> {
    let environment = match piece {
        Piece::Text(_) => return None,
        Piece::Setting(name) if !spec.settings.iter().any(|setting| setting.name == **name) => {
            return Some(unknown(&format!("settings.{name}"), &spec.settings));
        }
        Piece::Setting(name) => environment_of(name),
        Piece::Variable(variable) => variable.environment(),
    };
    // A value would be read as commands there.
    in_script.then(|| format!("nothing is filled in in a script: write \"${environment}\" there"))
}

fn unknown(name: &str, settings: &[ToolSetting]) -> String {
    let variables = Variable::ALL.iter().map(|variable| format!("$({})", variable.word()));
    let settings = settings.iter().map(|setting| format!("$(settings.{})", setting.name));
    let known: Vec<String> = variables.chain(settings).collect();
    format!("$({name}) is nothing that can be filled in: there are {}; for a shell's own write $$(", known.join(", "))
}

fn scratch(field: &str, command: &[String], causes: &mut Vec<Cause>) {
    if !command.is_empty() && !uses(command, Variable::Scratch) {
        causes.push(invalid(field, "must name $(SCRATCH), the directory with the files of the copy"));
    }
}

fn settings(settings: &[ToolSetting], causes: &mut Vec<Cause>) {
    if settings.len() > MOST_SETTINGS {
        causes.push(invalid("spec.settings", format!("has {}; at most {MOST_SETTINGS}", settings.len())));
    }
    for (at, setting) in settings.iter().enumerate() {
        let field = |name: &str| format!("spec.settings[{at}].{name}");
        if !is_setting_name(&setting.name) {
            let message = "must be 1 to 63 lower-case letters, digits and hyphens, a letter first";
            causes.push(invalid(&field("name"), message));
        }
        if settings[..at].iter().any(|earlier| earlier.name == setting.name) {
            let message = format!("{:?} is there twice", setting.name);
            causes.push(cause(&field("name"), CauseKind::Duplicate, message));
        }
        if setting.description.as_ref().is_some_and(|text| text.len() > MOST_TEXT) {
            causes.push(invalid(&field("description"), format!("must be at most {MOST_TEXT} bytes")));
        }
        match (setting.pattern(), &setting.default) {
            (Err(error), _) => causes.push(invalid(&field("pattern"), error.to_string())),
            (Ok(_), Some(default)) => {
                causes.extend(setting.check(default).err().map(|why| invalid(&field("default"), why)));
            }
            (Ok(_), None) => {}
        }
    }
}

fn is_setting_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_part)
}

fn is_file_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> Vec<Cause> {
        dump_tool(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn every_wrong_field_is_named() {
        let dump = |command: Value| json!({"dump": {"command": command}});
        let directory = |more: Value| {
            let mut spec = json!({"dump": {"command": ["t", "$(SCRATCH)"], "output": "Directory"}});
            json_patch::merge(&mut spec, &more);
            spec
        };
        let set = |setting: Value| json!({"dump": {"command": ["t"]}, "settings": [setting]});
        assert_eq!(of(dump(json!(["pg_dumpall", "--host=$(HOST)"]))), []);
        assert_eq!(of(directory(json!({"restore": {"command": ["t", "--in=$(SCRATCH)"]}}))), []);
        for (spec, field) in [
            (dump(json!([])), "spec.dump.command"),
            (dump(json!([""])), "spec.dump.command[0]"),
            (dump(json!(["$(HOST)"])), "spec.dump.command[0]"),
            (dump(json!(["t", "$(PASSWORD)"])), "spec.dump.command[1]"),
            (dump(json!(["t", "$(settings.threads)"])), "spec.dump.command[1]"),
            (dump(json!(["sh", "-c", "t $(HOST)"])), "spec.dump.command[2]"),
            (dump(json!(["sh", "-c", "t $(date)"])), "spec.dump.command[2]"),
            (json!({"dump": {"command": ["t"], "output": "Directory"}}), "spec.dump.command"),
            (json!({"dump": {"command": ["t"], "file": "../x"}}), "spec.dump.file"),
            (directory(json!({"dump": {"file": "x"}})), "spec.dump.file"),
            (directory(json!({"restore": {"command": ["t"]}})), "spec.restore.command"),
            (directory(json!({"restore": {"command": ["t"], "input": "Stdin"}})), "spec.restore.input"),
            (json!({"image": "a b", "dump": {"command": ["t"]}}), "spec.image"),
            (json!({"engines": ["MariaDB", "MariaDB"], "dump": {"command": ["t"]}}), "spec.engines[1]"),
            (set(json!({"name": "Threads"})), "spec.settings[0].name"),
            (set(json!({"name": "threads", "pattern": "["})), "spec.settings[0].pattern"),
            (set(json!({"name": "threads", "pattern": "[0-9]+", "default": "x"})), "spec.settings[0].default"),
        ] {
            let causes = of(spec.clone());
            assert_eq!(causes.iter().map(|cause| cause.field.as_str()).collect::<Vec<_>>(), [field], "{spec}");
        }
    }

    #[test]
    fn what_may_be_filled_in_is_said_where_something_else_was() {
        let causes = of(json!({"dump": {"command": ["t", "$(PASSWORD)"]}, "settings": [{"name": "threads"}]}));
        for known in ["$(PASSWORD_FILE)", "$(settings.threads)", "$$("] {
            assert!(causes[0].message.contains(known), "{}", causes[0].message);
        }
        let causes = of(json!({"dump": {"command": ["sh", "-c", "t $(settings.a-b)"]}, "settings": [{"name": "a-b"}]}));
        assert!(causes[0].message.contains("\"$STILLPOINT_SETTING_A_B\""), "{}", causes[0].message);
    }
}
