//! `--tool` and `--set`: a DumpTool, and how it is set.

use api::ToolUse;

#[derive(Debug, Default, clap::Args)]
pub struct Tool {
    /// By this DumpTool, in place of the server's own program (a copy is restored by the one that made it, unless it is said).
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// With --tool: a setting of it; repeat it. Absent: as the DumpTool has it.
    #[arg(long = "set", value_name = "SETTING=VALUE", value_parser = setting, requires = "tool")]
    settings: Vec<(String, String)>,
}

impl Tool {
    pub fn used(self) -> Option<ToolUse> {
        let Self { tool, settings } = self;
        tool.map(|name| ToolUse { name, settings: settings.into_iter().collect() })
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as SETTING=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        tool: Tool,
    }

    #[test]
    fn settings_are_of_a_tool_and_have_values() {
        let of = |line: &[&str]| Line::try_parse_from([&["still"], line].concat()).map(|line| line.tool.used());
        let used = of(&["--tool", "mydumper", "--set", "threads=4", "--set", "where=a=b"]).unwrap().unwrap();
        assert_eq!(used.settings, [("threads".into(), "4".into()), ("where".into(), "a=b".into())].into());
        assert_eq!(of(&[]).unwrap(), None);
        assert!(of(&["--set", "threads=4"]).is_err() && of(&["--tool", "t", "--set", "threads"]).is_err());
    }
}
