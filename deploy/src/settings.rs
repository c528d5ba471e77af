//! What an operator may decide. Where it matters, an object carries a mark: the default, and the template that asks the chart's
//! values. Plain YAML has the default there, the chart the template.

use anyhow::Context;
use serde_json::{Map, Value, json};

const OPEN: char = '⟦';
const BETWEEN: char = '¦';
const CLOSE: char = '⟧';

/// The namespace of the installation; [`api::install::NAMESPACE`] in plain YAML.
pub(crate) const NAMESPACE: &str = "⟦\"stillpoint\"¦$.Release.Namespace⟧";

/// One value of the chart: its path, its default as JSON, and what is said about it in `values.yaml`.
struct Setting(&'static str, &'static str, &'static str);

const SETTINGS: [Setting; 37] = [
    Setting(
        "image.repository",
        r#""stillpoint""#,
        "Built by deploy/Containerfile, and pushed where your nodes pull from",
    ),
    Setting("image.tag", r#""""#, "The chart's appVersion when empty"),
    Setting("image.digest", r#""""#, "sha256:…; goes before the tag"),
    Setting("image.pullPolicy", r#""IfNotPresent""#, ""),
    Setting("image.pullSecrets", "[]", "As in a pod: [{name: …}]"),
    Setting("replicas", "2", "One freezes, another takes over when it dies; with 1 there is no PodDisruptionBudget"),
    Setting(
        "namespaces",
        "[]",
        "Whose Secrets may be read, beside those of `kubectl still enable NAMESPACE`; they must be there",
    ),
    Setting(
        "port",
        "6443",
        "Where the server listens. Private clusters often let the control plane reach 10250 or 443 only",
    ),
    Setting("listenAddress", r#""0.0.0.0""#, "\"[::]\" where pods have IPv6 addresses only"),
    Setting(
        "drainSeconds",
        "60",
        "How long freezes that hold may go on when a pod ends; its grace period is 30 s more",
    ),
    Setting("log.filter", r#""info""#, "RUST_LOG syntax"),
    Setting("log.format", r#""json""#, "json or text"),
    Setting(
        "priorityClassName",
        r#""system-cluster-critical""#,
        "When nobody answers for the API, kubectl and the deletion of namespaces suffer",
    ),
    Setting("resources", r#"{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"memory":"512Mi"}}"#, ""),
    Setting(
        "tls.secretName",
        r#""""#,
        "Of a serving certificate for stillpoint-apiserver.NAMESPACE.svc (tls.crt, tls.key). Empty: the server makes and keeps its own",
    ),
    Setting(
        "apiService.annotations",
        "{}",
        "With such a certificate of cert-manager's: cert-manager.io/inject-ca-from",
    ),
    Setting(
        "apiService.caBundle",
        r#""""#,
        "Or the authority itself, PEM in base64. Empty: the server, or cert-manager, fills it in",
    ),
    Setting(
        "webhooks.enabled",
        "true",
        "Holds databases while CSI snapshots of their volumes are cut, whoever takes them; false: nobody is asked before one is",
    ),
    Setting("webhooks.replicas", "2", "With 1 there is no PodDisruptionBudget"),
    Setting("webhooks.port", "9443", "Where they listen. The control plane must reach it, as it must `port`"),
    Setting(
        "webhooks.resources",
        r#"{"requests":{"cpu":"10m","memory":"16Mi"},"limits":{"memory":"128Mi"}}"#,
        "The limit leaves room for a thousand reviews at once",
    ),
    Setting(
        "agents.enabled",
        "true",
        "Pods that ask for it get an agent beside their database; false: every database is dialled",
    ),
    Setting("agents.image", r#""""#, "Their image; the server's own when empty, which has the agent in it"),
    Setting("runners.enabled", "true", "Dumps are taken and restored by Jobs; false: no Repository can be made"),
    Setting("runners.image", r#""""#, "With the runner in it; the server's own when empty"),
    Setting(
        "runners.ambientCredentials",
        "false",
        "true: a Repository that names no account is reached by the server's own cloud identity, whoever wrote it",
    ),
    Setting("nodeSelector", "{}", ""),
    Setting("tolerations", "[]", ""),
    Setting("podAnnotations", "{}", ""),
    Setting(
        "crds.enabled",
        "true",
        "Whether CRDs are part of the release. They, and what is stored, outlive it in any case",
    ),
    Setting("networkPolicy.enabled", "true", "Lets in what goes to the ports of ours, and nothing else"),
    Setting(
        "flowSchema.enabled",
        "true",
        "Leases are written at the priority of leader elections, Freezes at that of the cluster's own controllers",
    ),
    Setting("serviceMonitor.enabled", "false", "Needs the Prometheus operator, like alerts"),
    Setting("serviceMonitor.labels", "{}", "By which your Prometheus selects it"),
    Setting(
        "serviceMonitor.caConfigMap",
        r#""""#,
        "With a copy of ca.crt, so that Prometheus need not read Secrets, which have keys beside it (deploy/README.md)",
    ),
    Setting(
        "alerts.enabled",
        "false",
        "Needs serviceMonitor.enabled: without metrics, StillpointDown would fire for ever",
    ),
    Setting("alerts.labels", "{}", "By which your Prometheus selects them"),
];

/// What the schema says of a value beside its type.
fn limits(path: &str) -> Value {
    match path {
        // An APIService that nobody answers for is in the way of the whole cluster.
        "replicas" | "webhooks.replicas" => json!({"minimum": 1}),
        "port" | "webhooks.port" => json!({"minimum": 1, "maximum": 65535}),
        // A claim that nobody renews ends by itself in that time, at its default.
        "drainSeconds" => json!({"minimum": 60}),
        "log.format" => json!({"enum": ["json", "text"]}),
        _ => json!({}),
    }
}

/// The mark of one setting.
pub(crate) fn set(path: &str) -> String {
    let default = SETTINGS.iter().find(|setting| setting.0 == path).map_or("null", |setting| setting.1);
    computed(default, &format!("$.Values.{path}"))
}

/// A mark for what follows from settings: what it is by default, as JSON, and how the chart tells.
pub(crate) fn computed(default: &str, template: &str) -> String {
    format!("{OPEN}{default}{BETWEEN}{template}{CLOSE}")
}

/// A mark for what is only there if something is set; never in plain YAML. It is the value of a field, or an item.
pub(crate) fn optional(setting: &str, text: &str) -> String {
    computed("null", &format!("$.Values.{setting}{THEN}{text}"))
}

/// A mark for what is there unless something is turned off: how it is in plain YAML, as JSON, and its text in the chart.
pub(crate) fn unless_off(setting: &str, default: &str, text: &str) -> String {
    computed(default, &format!("$.Values.{setting}{THEN}{text}"))
}

const THEN: &str = " then ";

/// A mark, and what is around it.
struct Marked<'a> {
    before: &'a str,
    default: &'a str,
    template: &'a str,
    after: &'a str,
}

impl<'a> Marked<'a> {
    /// The first mark in a text.
    fn find(text: &'a str) -> Option<Self> {
        let (before, rest) = text.split_once(OPEN)?;
        let (mark, after) = rest.split_once(CLOSE)?;
        let (default, template) = mark.split_once(BETWEEN)?;
        Some(Self { before, default, template, after })
    }
}

/// An object with the defaults in the places of the marks.
pub(crate) fn plain(value: &Value) -> anyhow::Result<Value> {
    Ok(match value {
        Value::String(text) => {
            let mut told = String::new();
            let mut rest = text.as_str();
            while let Some(Marked { before, default, after, .. }) = Marked::find(rest) {
                let default: Value = serde_json::from_str(default).with_context(|| text.clone())?;
                if (before, after) == ("", "") && told.is_empty() {
                    return Ok(default);
                }
                told = told + before + &default.as_str().map_or_else(|| default.to_string(), str::to_owned);
                rest = after;
            }
            (told + rest).into()
        }
        Value::Array(items) => {
            items.iter().filter(|item| !is_optional(item)).map(plain).collect::<anyhow::Result<_>>()?
        }
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !is_optional(value));
            let fields = fields.map(|(name, value)| Ok((name.clone(), plain(value)?)));
            Value::Object(fields.collect::<anyhow::Result<Map<_, _>>>()?)
        }
        other => other.clone(),
    })
}

fn is_optional(value: &Value) -> bool {
    let mark = value.as_str().and_then(Marked::find);
    mark.is_some_and(|mark| mark.default == "null" && mark.template.contains(THEN))
}

/// The YAML of objects, as a template: marks that are a whole value become JSON, which is YAML; those in a text become text.
pub(crate) fn template(object: &Value) -> anyhow::Result<String> {
    // Words in the places of marks, which YAML neither quotes nor breaks.
    let mut words = Vec::new();
    let object = with_words(object, &mut words);
    // What looks like a template and is none.
    let mut text = serde_saphyr::to_string(&object)?.replace("{{", "{{ `{{` }}");
    for (at, template) in words.iter().enumerate() {
        text = match template.split_once(THEN) {
            None => text.replace(&word(at), template),
            Some((when, told)) => text.lines().map(|line| if_line(line, &word(at), when, told) + "\n").collect(),
        };
    }
    Ok(text)
}

/// The line that the word is in, if it is to be there.
fn if_line(line: &str, word: &str, when: &str, told: &str) -> String {
    if !line.contains(word) {
        return line.to_owned();
    }
    format!("{{{{- if {when} }}}}\n{}\n{{{{- end }}}}", line.replace(word, told))
}

fn word(at: usize) -> String {
    format!("Mark{at:03}Mark")
}

fn with_words(value: &Value, words: &mut Vec<String>) -> Value {
    match value {
        Value::String(text) => {
            let mut told = String::new();
            let mut rest = text.as_str();
            while let Some(Marked { before, default, template, after }) = Marked::find(rest) {
                let whole = (before, after) == ("", "") && told.is_empty();
                words.push(match whole {
                    true if template.contains(THEN) => template.to_owned(),
                    true if default.starts_with('"') => format!("{{{{ {template} | quote }}}}"),
                    true => format!("{{{{ {template} | toJson }}}}"),
                    false => format!("{{{{ {template} }}}}"),
                });
                told = told + before + &word(words.len() - 1);
                rest = after;
            }
            (told + rest).into()
        }
        Value::Array(items) => items.iter().map(|item| with_words(item, words)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), with_words(value, words))).collect(),
        other => other.clone(),
    }
}

/// The chart's `values.yaml`, with what is said about each.
pub(crate) fn values() -> String {
    let mut text = String::new();
    let mut group = "";
    for Setting(path, default, help) in &SETTINGS {
        let (of, name) = path.split_once('.').unwrap_or(("", path));
        if of != group && !of.is_empty() {
            text += &format!("{of}:\n");
        }
        group = of;
        let indent = if of.is_empty() { "" } else { "  " };
        if !help.is_empty() {
            text += &format!("{indent}# {help}.\n");
        }
        // JSON is YAML.
        text += &format!("{indent}{name}: {default}\n");
    }
    text
}

/// A schema of the values: a name that is misspelt is an error, not a default.
pub(crate) fn schema() -> anyhow::Result<String> {
    let mut root = Map::new();
    for Setting(path, default, _) in &SETTINGS {
        let default: Value = serde_json::from_str(default).with_context(|| (*path).to_owned())?;
        let kind = match default {
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            _ => "object",
        };
        let mut said = limits(path);
        said["type"] = kind.into();
        match path.split_once('.') {
            None => drop(root.insert((*path).to_owned(), said)),
            Some((of, name)) => {
                let group = root
                    .entry(of)
                    .or_insert_with(|| json!({"type": "object", "additionalProperties": false, "properties": {}}));
                group["properties"][name] = said;
            }
        }
    }
    // Helm puts `global` into every chart's values.
    root.insert("global".to_owned(), json!({"type": "object"}));
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object", "additionalProperties": false, "properties": root,
        "if": {"properties": {"alerts": {"properties": {"enabled": {"const": true}}}}},
        "then": {"properties": {"serviceMonitor": {"properties": {"enabled": {"const": true}}}}},
    });
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}

/// What the plain YAML runs.
pub(crate) const OWN_IMAGE: &str = concat!("stillpoint:", env!("CARGO_PKG_VERSION"));

/// In the chart: the image of this setting, or the server's own.
pub(crate) fn image(setting: &str) -> String {
    let own = r#"$.Values.image.digest | empty | ternary (printf "%s:%s" $.Values.image.repository ($.Values.image.tag | default $.Chart.AppVersion)) (printf "%s@%s" $.Values.image.repository $.Values.image.digest)"#;
    format!("{{{{ $.Values.{setting} | default ({own}) }}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_its_default_in_plain_yaml_and_a_template_in_the_chart() {
        let object = json!({
            "replicas": set("replicas"), "namespace": NAMESPACE, "none": set("tolerations"),
            "bundle": optional("apiService.caBundle", "x: {{ y }}"), "args": ["a", optional("tls.secretName", "--tls"), unless_off("webhooks.enabled", r#""--gates""#, "--gates={{ z }}")],
            "listen": format!("--listen={}:{}", set("listenAddress"), set("port")), "text": "a {{ b",
        });
        assert_eq!(
            plain(&object).unwrap(),
            json!({
                "replicas": 2, "namespace": api::install::NAMESPACE, "none": [], "args": ["a", "--gates"],
                "listen": "--listen=0.0.0.0:6443",
                "text": "a {{ b",
            })
        );
        let template = template(&object).unwrap();
        for line in [
            "replicas: {{ $.Values.replicas | toJson }}",
            "namespace: {{ $.Release.Namespace | quote }}",
            "none: {{ $.Values.tolerations | toJson }}",
            "listen: --listen={{ $.Values.listenAddress }}:{{ $.Values.port }}",
            "a {{ `{{` }} b",
            "{{- if $.Values.apiService.caBundle }}\nbundle: x: {{ y }}\n{{- end }}\n",
            "{{- if $.Values.tls.secretName }}\n- --tls\n{{- end }}\n",
            "{{- if $.Values.webhooks.enabled }}\n- --gates={{ z }}\n{{- end }}\n",
        ] {
            assert!(template.contains(line), "{line} in {template}");
        }
    }

    #[test]
    fn every_setting_is_in_the_values_and_has_a_type() {
        let values: Value = serde_saphyr::from_str(&values()).unwrap();
        let schema: Value = serde_json::from_str(&schema().unwrap()).unwrap();
        for Setting(path, default, _) in &SETTINGS {
            let pointer = format!("/{}", path.replace('.', "/"));
            assert_eq!(values.pointer(&pointer), Some(&serde_json::from_str(default).unwrap()), "{path}");
            let pointer = format!("/properties/{}/type", path.replace('.', "/properties/"));
            assert!(schema.pointer(&pointer).is_some(), "{path}");
        }
    }
}
