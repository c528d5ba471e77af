//! The webhook configurations: which requests kube-apiserver shows to `stillpoint-webhooks`, and what becomes of them when nobody is
//! there. The gate right before a cut is a mutating webhook, for it answers in the content's mark by which claim; all else only validates.
//!
//! Conditions only keep traffic away; whoever is asked looks at all of it again. `Ignore` is for who has a Database: an outage of ours costs
//! consistency, and no copy. Namespaces that want no copy that is not consistent are in entries of their own, with `Fail`, and out of
//! the others. Of namespaces without a Database nobody is asked at all, so that we are in nobody's way who has nothing of us.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

pub use super::{
    WEBHOOKS as NAME,
    rules::{cel_list, fitting, left_alone},
};
use super::{
    account_user, injection,
    rules::{is_in, not_in, owned, rule},
};
use crate::gate::{self, Gate};

/// On what is theirs; their pods are selected by them.
pub const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "stillpoint"), ("app.kubernetes.io/component", "webhooks")];
/// The Secret of their serving certificate: `tls.crt`, `tls.key`, and `ca.crt`, by which they know the apiserver. The leader keeps it.
pub const SERVING: &str = "stillpoint-webhooks-tls";
/// Where they listen in their Pods.
pub const PORT: u16 = 9443;
/// On the ValidatingWebhookConfiguration: CSI drivers whose snapshotter was seen to cut without its mark, with commas.
pub const CONTENT_DRIVERS: &str = "stillpoint.dev/content-drivers";
/// Where reviews are sent: below these, `snapshot`, `content` and `content-create`.
const GATES: &str = "/gates";
const REQUIRED_GATES: &str = "/required";
const OWN_KINDS: &str = "/validate";
/// The condition of an entry that says which namespaces it is about; these, or all others.
pub const IN_THESE: &str = "in-these-namespaces";
pub const IN_OTHERS: &str = "in-other-namespaces";
/// Before a cut as long as kube-apiserver waits for anybody; before that, and for our own kinds, nobody is kept.
const CUT_SECONDS: u32 = 30;
const PREFLIGHT_SECONDS: u32 = 10;
const OWN_KINDS_SECONDS: u32 = 5;

/// What an installation's configuration depends on.
#[derive(Clone, Copy, Debug)]
pub struct Webhooks<'a> {
    /// Where we are installed.
    pub namespace: &'a str,
    /// Who signs the webhooks' serving certificate, PEM.
    pub ca_bundle: &'a str,
    /// Namespaces that want no copy that is not consistent.
    pub required: &'a [String],
    /// Namespaces that have Databases: of all others nothing is shown to us. `None`: everything is.
    pub databases: Option<&'a [String]>,
    /// CSI drivers whose snapshotter does not mark contents before it cuts.
    pub content_drivers: &'a [String],
    /// Whether Pods that are to be made are shown, too.
    pub injects: bool,
}

/// The two kinds of configuration, each of which an installation has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Validating,
    Mutating,
}

/// An entry before it is written out.
struct Entry {
    name: &'static str,
    path: String,
    rules: Value,
    conditions: Vec<(&'static str, String)>,
    /// Of the namespaces of what is admitted; a content is in none.
    namespaces: Option<Value>,
    failure: &'static str,
    seconds: u32,
    side_effects: &'static str,
}

impl Kind {
    /// What an installation makes of it, so that it goes with the installation. It says nothing of `webhooks`: whoever applies it
    /// again takes nothing back of what the leader has filled in.
    pub fn stub(self) -> Value {
        let kind = match self {
            Self::Validating => "ValidatingWebhookConfiguration",
            Self::Mutating => "MutatingWebhookConfiguration",
        };
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": NAME, "labels": LABELS.into_iter().collect::<Value>()},
        })
    }
}

/// Whose snapshots an entry is about.
enum Of {
    These(Vec<String>),
    AllBut(Vec<String>),
}

impl Webhooks<'_> {
    /// The whole of one. The same arguments give the same bytes, whatever their order.
    pub fn configuration(&self, kind: Kind) -> Value {
        let mut webhooks: Vec<Value> = match kind {
            Kind::Validating => vec![self.written(kind, &self.own_kinds())],
            Kind::Mutating if self.injects => injection::entries(self.namespace, self.ca_bundle).into(),
            Kind::Mutating => Vec::new(),
        };
        webhooks.splice(0..0, self.gates(kind).iter().map(|entry| self.written(kind, entry)));
        let mut configuration = kind.stub();
        configuration["webhooks"] = webhooks.into();
        configuration
    }

    fn gates(&self, kind: Kind) -> Vec<Entry> {
        let required = self.required();
        let preferred = self.preferred(&required);
        let mut entries = Vec::new();
        for (of, gate, ignoring, strict) in [
            (Kind::Mutating, Gate::Cut, "cut.gates.stillpoint.dev", "cut.required.stillpoint.dev"),
            // One that is made has no uid yet when it may still be changed (apiserver `registry/rest/create.go`), and a claim needs one.
            (Kind::Validating, Gate::Content, "content.gates.stillpoint.dev", "content.required.stillpoint.dev"),
            (Kind::Validating, Gate::Preflight, "preflight.gates.stillpoint.dev", "preflight.required.stillpoint.dev"),
        ] {
            if of != kind || gate == Gate::Content && fitting(self.content_drivers).0.is_empty() {
                continue;
            }
            if !matches!(&preferred, Of::These(these) if these.is_empty()) {
                entries.push(self.gate(gate, ignoring, "Ignore", &preferred));
            }
            if !required.is_empty() {
                entries.push(self.gate(gate, strict, "Fail", &Of::These(required.clone())));
            }
        }
        entries
    }

    fn own_kinds(&self) -> Entry {
        Entry {
            name: "validate.stillpoint.dev",
            path: OWN_KINDS.to_owned(),
            rules: json!([
                rule(crate::GROUP, "databases,freezes,repositories,restores,snapshots", "CREATE,UPDATE", "Namespaced"),
                rule(crate::GROUP, "dumptools", "CREATE,UPDATE", "Cluster"),
            ]),
            // What a freeze writes down must not wait for webhooks that are not there: it gives itself as long as they would have.
            conditions: vec![self.not_ours()],
            namespaces: Some(not_in(&owned(&left_alone(self.namespace)))),
            failure: "Ignore",
            seconds: OWN_KINDS_SECONDS,
            side_effects: "None",
        }
    }

    /// Where we are not in the way when we are not there. Where there is no room for all who have Databases, everybody is asked about.
    fn preferred(&self, required: &[String]) -> Of {
        let others = [owned(&left_alone(self.namespace)), required.to_vec()].concat();
        let Some(databases) = self.databases else { return Of::AllBut(others) };
        let but: BTreeSet<&String> = others.iter().collect();
        let these: Vec<String> = databases.iter().filter(|name| !but.contains(name)).cloned().collect();
        match fitting(&these) {
            (these, left_out) if left_out.is_empty() => Of::These(these),
            _ => Of::AllBut(others),
        }
    }

    /// One gate, for these namespaces.
    fn gate(&self, gate: Gate, name: &'static str, failure: &'static str, of: &Of) -> Entry {
        let of_content = |conditions: &mut Vec<_>| {
            conditions.extend(content_conditions());
            conditions.push(match of {
                Of::These(these) => (IN_THESE, format!("{CONTENT_NAMESPACE} in {}", cel_list(these))),
                Of::AllBut(others) => (IN_OTHERS, format!("!({CONTENT_NAMESPACE} in {})", cel_list(others))),
            });
        };
        let mut conditions = self.common_conditions();
        let (resources, path, seconds) = match gate {
            Gate::Cut => {
                conditions.insert(0, ("cut-begins", cut_begins()));
                of_content(&mut conditions);
                (CONTENTS, "content", CUT_SECONDS)
            }
            Gate::Content => {
                conditions.insert(
                    0,
                    (
                        "of-these-drivers",
                        format!("object.spec.driver in {}", cel_list(&fitting(self.content_drivers).0)),
                    ),
                );
                of_content(&mut conditions);
                (CONTENTS, "content-create", CUT_SECONDS)
            }
            Gate::Preflight => {
                conditions.extend(snapshot_conditions());
                (SNAPSHOTS, "snapshot", PREFLIGHT_SECONDS)
            }
        };
        let operation = if gate == Gate::Cut { "UPDATE" } else { "CREATE" };
        let [single, group, scope] = resources;
        let rules = json!([
            rule(gate::SNAPSHOTS, single, operation, scope),
            rule(gate::GROUP_SNAPSHOTS, group, operation, scope),
        ]);
        let prefix = if failure == "Fail" { REQUIRED_GATES } else { GATES };
        let namespaces = match of {
            Of::These(these) => is_in(these),
            Of::AllBut(others) => not_in(others),
        };
        Entry {
            name,
            path: format!("{prefix}/{path}"),
            rules,
            conditions,
            namespaces: (gate == Gate::Preflight).then_some(namespaces),
            failure,
            seconds,
            side_effects: "NoneOnDryRun",
        }
    }

    fn written(&self, kind: Kind, entry: &Entry) -> Value {
        let service = json!({"namespace": self.namespace, "name": NAME, "path": entry.path, "port": 443});
        let conditions = entry.conditions.iter();
        let conditions: Value =
            conditions.map(|(name, expression)| json!({"name": name, "expression": expression})).collect();
        let mut written = json!({
            "name": entry.name,
            "clientConfig": {"service": service, "caBundle": ByteString(self.ca_bundle.as_bytes().to_vec())},
            "rules": entry.rules,
            "matchPolicy": "Equivalent",
            "sideEffects": entry.side_effects,
            "timeoutSeconds": entry.seconds,
            "failurePolicy": entry.failure,
            "matchConditions": conditions,
            "admissionReviewVersions": ["v1"],
        });
        if kind == Kind::Mutating {
            // Whatever others change of it does not concern a cut.
            written["reinvocationPolicy"] = "Never".into();
        }
        if let Some(selector) = &entry.namespaces {
            written["namespaceSelector"] = selector.clone();
        }
        written
    }

    fn required(&self) -> Vec<String> {
        self.required_and_left_out().0
    }

    fn required_and_left_out(&self) -> (Vec<String>, Vec<String>) {
        let left_alone = left_alone(self.namespace);
        let wanted: Vec<String> =
            self.required.iter().filter(|name| !left_alone.contains(&name.as_str())).cloned().collect();
        fitting(&wanted)
    }

    /// Namespaces and drivers that there is no room for: see [`fitting`]. Those namespaces are with all others that have Databases, in the entries of
    /// `Ignore`: the apiserver refuses for them what it cannot hold, and where nobody answers nobody refuses.
    pub fn left_out(&self) -> Vec<String> {
        [self.required_and_left_out().1, fitting(self.content_drivers).1].concat()
    }

    fn not_ours(&self) -> (&'static str, String) {
        ("not-ours", format!("request.userInfo.username != '{}'", account_user(self.namespace)))
    }

    fn common_conditions(&self) -> Vec<(&'static str, String)> {
        let (quiesce, skip) = (gate::QUIESCE, gate::SKIP);
        vec![
            self.not_ours(),
            (
                "not-skipped",
                format!("!({} && object.metadata.annotations['{quiesce}'] == '{skip}')", annotated("object", quiesce)),
            ),
        ]
    }
}

/// The resource of single snapshots, that of groups, and the scope of both.
const CONTENTS: [&str; 3] = ["volumesnapshotcontents", "volumegroupsnapshotcontents", "Cluster"];
const SNAPSHOTS: [&str; 3] = ["volumesnapshots", "volumegroupsnapshots", "Namespaced"];

/// Of the snapshot that a content is of.
const CONTENT_NAMESPACE: &str = "(has(object.spec.volumeSnapshotRef) ? object.spec.volumeSnapshotRef : object.spec.volumeGroupSnapshotRef).namespace";

/// The snapshotter's mark is added by this update.
fn cut_begins() -> String {
    let added = |key| format!("{} && !({})", annotated("object", key), annotated("oldObject", key));
    format!("({}) || ({})", added(gate::BEING_CREATED), added(gate::GROUP_BEING_CREATED))
}

fn content_conditions() -> Vec<(&'static str, String)> {
    vec![
        ("dynamic", "has(object.spec.source.volumeHandle) || has(object.spec.source.volumeHandles)".to_owned()),
        ("not-cut-with-a-group", format!("!({})", annotated("object", gate::GROUP_MEMBER))),
        (
            // While the storage uploads the mark comes and goes: see webhooks/src/gates.rs.
            "not-cut-before",
            "!has(object.status) || !(has(object.status.snapshotHandle) || has(object.status.volumeGroupSnapshotHandle))"
                .to_owned(),
        ),
    ]
}

fn snapshot_conditions() -> Vec<(&'static str, String)> {
    vec![
        ("dynamic", "has(object.spec.source.persistentVolumeClaimName) || has(object.spec.source.selector)".to_owned()),
        (
            "not-cut-with-a-group",
            format!(
                "!(has(object.metadata.ownerReferences) && object.metadata.ownerReferences.exists(o, o.kind == '{}'))",
                gate::GROUP_KIND
            ),
        ),
    ]
}

fn annotated(object: &str, key: &str) -> String {
    format!("has({object}.metadata.annotations) && '{key}' in {object}.metadata.annotations")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};

    use super::*;

    const KINDS: [Kind; 2] = [Kind::Mutating, Kind::Validating];

    fn configurations(required: &[&str], drivers: &[&str]) -> [Value; 2] {
        of_databases(required, None, drivers)
    }

    fn of_databases(required: &[&str], databases: Option<&[String]>, drivers: &[&str]) -> [Value; 2] {
        let (required, content_drivers) = (&owned(required)[..], &owned(drivers)[..]);
        let made = Webhooks {
            namespace: "stillpoint",
            ca_bundle: "PEM",
            required,
            databases,
            content_drivers,
            injects: false,
        };
        KINDS.map(|kind| made.configuration(kind))
    }

    fn all(configurations: &[Value; 2]) -> Vec<&Value> {
        configurations.iter().flat_map(|configuration| configuration["webhooks"].as_array().unwrap()).collect()
    }

    fn entries(configurations: &[Value; 2]) -> Vec<(&str, &str)> {
        all(configurations)
            .into_iter()
            .map(|e| (e["name"].as_str().unwrap(), e["failurePolicy"].as_str().unwrap()))
            .collect()
    }

    #[test]
    fn nobody_is_in_the_way_of_anybody_unless_told() {
        insta::assert_json_snapshot!(configurations(&[], &[]));
    }

    #[test]
    fn namespaces_that_want_nothing_less_have_entries_of_their_own_and_drivers_that_do_not_tell_too() {
        insta::assert_json_snapshot!(configurations(&["shop", "bank"], &["late.csi.example"]));
    }

    #[test]
    fn of_who_has_no_database_nobody_is_asked() {
        let databases = owned(&["shop", "bank", "kube-system"]);
        let some = of_databases(&["bank"], Some(&databases), &["late.csi.example"]);
        insta::assert_json_snapshot!(some);
        // Nobody has one yet.
        assert_eq!(entries(&of_databases(&[], Some(&[]), &["d"])), [("validate.stillpoint.dev", "Ignore")]);
        // There is no room for all who have.
        let many: Vec<String> = (0..2000).map(|at| format!("{at:0>63}")).collect();
        assert_eq!(of_databases(&["bank"], Some(&many), &["d"]), configurations(&["bank"], &["d"]));
    }

    /// Our own writes are what a freeze waits for: they must never wait for it, or for nobody.
    #[test]
    fn nobody_is_asked_about_what_is_ours() {
        let configurations = configurations(&["shop"], &["late.csi.example"]);
        let not_ours = "request.userInfo.username != 'system:serviceaccount:stillpoint:stillpoint-apiserver'";
        for entry in all(&configurations) {
            let conditions = entry["matchConditions"].as_array().unwrap();
            assert!(conditions.iter().any(|condition| condition["expression"] == not_ours), "{}", entry["name"]);
        }
    }

    #[test]
    fn who_selects_our_pods_selects_not_the_servers() {
        let [(name, ours), (component, webhooks)] = LABELS;
        let [(same, also), (kind, server)] = crate::install::LABELS;
        assert_eq!((name, ours, component), (same, also, kind));
        assert_ne!(webhooks, server);
    }

    #[test]
    fn it_is_what_kubernetes_reads() {
        let [mutating, validating] = configurations(&["shop"], &["late.csi.example"]);
        let read: MutatingWebhookConfiguration = serde_json::from_value(mutating.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), mutating, "a field is not Kubernetes'");
        let read: ValidatingWebhookConfiguration = serde_json::from_value(validating.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), validating, "a field is not Kubernetes'");
    }

    #[test]
    fn empty_lists_leave_their_entries_out_and_their_order_does_not_matter() {
        assert!(entries(&configurations(&[], &[])).iter().all(|(_, failure)| *failure == "Ignore"));
        let fails = |of: &[Value; 2]| entries(of).iter().filter(|(_, failure)| *failure == "Fail").count();
        assert_eq!(fails(&configurations(&["shop"], &[])), 2);
        assert_eq!(fails(&configurations(&["shop"], &["late.csi.example"])), 3);
        assert_eq!(configurations(&["a", "b", "a"], &[]), configurations(&["b", "a"], &[]));
    }

    #[test]
    fn what_there_is_no_room_for_is_said_and_is_with_all_others() {
        let many: Vec<String> = (0..2000).map(|at| format!("{at:0>63}")).collect();
        let made = Webhooks {
            namespace: "stillpoint",
            ca_bundle: "PEM",
            required: &many,
            databases: None,
            content_drivers: &many,
            injects: false,
        };
        let (fit, left_out) = fitting(&many);
        assert_eq!(fit.len() + left_out.len(), many.len());
        assert!(fit.len() > 1300 && !left_out.is_empty(), "{}", fit.len());
        assert_eq!(made.left_out(), [left_out.clone(), left_out.clone()].concat());
        let configurations = KINDS.map(|kind| made.configuration(kind));
        let entries = all(&configurations);
        let expressions = entries.iter().flat_map(|entry| entry["matchConditions"].as_array().unwrap());
        let longest = expressions.map(|condition| condition["expression"].as_str().unwrap().len()).max();
        assert!((80_000..100_000).contains(&longest.unwrap()), "{longest:?}");
        for entry in entries {
            assert!(!entry.to_string().contains(&left_out[0]), "neither required nor excepted: {}", entry["name"]);
        }
        assert_eq!(fitting(&owned(&["b", "a"])), (owned(&["a", "b"]), vec![]));
    }

    #[test]
    fn what_is_no_name_gets_into_no_expression_and_what_is_left_alone_cannot_be_required() {
        assert_eq!(cel_list(&owned(&["b", "a'] || true || ['", "a", "", "b"])), "['a', 'b']");
        assert_eq!(configurations(&["kube-system", "stillpoint", "x'y"], &["'"]), configurations(&[], &[]));
    }
}
