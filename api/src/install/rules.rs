//! What the entries of webhook configurations are made of: rules, selectors of namespaces, and lists in CEL within their bound. Pure.

use serde_json::{Value, json};

use crate::gate;

/// Nothing in these is ever waited for: what a cluster cannot live without, and what is installed in `home` itself.
pub fn left_alone(home: &str) -> [&str; 2] {
    ["kube-system", home]
}

pub(super) fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What a list of CEL may have of characters: an expression of more than 100,000 is refused, and all that is applied with it (cel-go
/// `parser/parser.go`, expressionSizeCodePointLimit).
const LONGEST_LIST: usize = 90_000;

/// Those of these names that there is room for in an expression, the first by the alphabet, and those that there is not.
pub fn fitting(texts: &[String]) -> (Vec<String>, Vec<String>) {
    let mut fit = names(texts);
    let mut length = 0;
    let end = fit.iter().position(|name| {
        length += name.len() + "'', ".len();
        length > LONGEST_LIST
    });
    let left_out = fit.split_off(end.unwrap_or(fit.len()));
    (fit, left_out)
}

/// A list as CEL has it: sorted, each once.
pub fn cel_list(texts: &[String]) -> String {
    let quoted: Vec<String> = names(texts).iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", quoted.join(", "))
}

/// Those that can be the name of a namespace or of a driver; nothing else gets into an expression.
fn names(texts: &[String]) -> Vec<String> {
    let is_name = |text: &&String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        !text.is_empty() && text.len() <= gate::LONGEST_NAME && text.chars().all(plain)
    };
    let mut names: Vec<String> = texts.iter().filter(is_name).cloned().collect();
    names.sort();
    names.dedup();
    names
}

/// Resources and operations are lists with commas.
pub(super) fn rule(group: &str, resources: &str, operations: &str, scope: &str) -> Value {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    json!({
        "apiGroups": [group], "apiVersions": ["*"], "resources": list(resources), "operations": list(operations),
        "scope": scope,
    })
}

pub(super) fn is_in(namespaces: &[String]) -> Value {
    selector("In", namespaces)
}

pub(super) fn not_in(namespaces: &[String]) -> Value {
    selector("NotIn", namespaces)
}

fn selector(operator: &str, namespaces: &[String]) -> Value {
    let expression = json!({"key": "kubernetes.io/metadata.name", "operator": operator, "values": names(namespaces)});
    json!({"matchExpressions": [expression]})
}
