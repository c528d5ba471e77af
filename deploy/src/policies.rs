//! What RBAC cannot say, as ValidatingAdmissionPolicies: they ask the cluster's own authorizer about what an object names.
//!
//! kube-apiserver evaluates them itself, so none of ours has to run for them to hold.

use api::install::{ACCOUNT, policies as name};
use serde_json::{Value, json};

use crate::{labels, settings::NAMESPACE};

/// Of a Freeze; its schema says so.
const TARGETS: usize = 16;
/// How many targets one policy can ask two questions about. An answer of the authorizer costs 350,000 (apiserver:
/// `cel/library/cost.go`) of the 1,000,000 that an expression and the 10,000,000 that a policy may spend (`apis/cel/config.go`):
/// an expression can ask twice, a policy 28 times.
const AT_A_TIME: usize = 8;

/// Policies with their bindings, in the order in which they are applied.
pub(crate) fn policies() -> Vec<Value> {
    let all = [
        quiesce(),
        thaw(name::THAW, 0),
        thaw(name::THAW_MORE, AT_A_TIME),
        journal(),
        secrets(),
        copy(),
        restore(),
        repository(),
        run(),
    ];
    all.into_iter().flat_map(|policy| [policy.policy(), policy.binding()]).collect()
}

#[derive(Default)]
struct Policy {
    name: &'static str,
    operations: &'static [&'static str],
    resources: &'static [&'static str],
    /// Asked only when all of this holds; a name and an expression.
    when: Vec<(&'static str, String)>,
    /// Names for what the validations share.
    variables: Vec<(&'static str, String)>,
    validations: Vec<Value>,
}

impl Policy {
    fn policy(&self) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": self.name, "labels": labels()},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [api::GROUP], "apiVersions": ["*"],
                    "operations": self.operations, "resources": self.resources,
                }]},
                "matchConditions": named(&self.when),
                "variables": named(&self.variables),
                "validations": self.validations,
            },
        })
    }

    fn binding(&self) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": self.name, "labels": labels()},
            "spec": {"policyName": self.name, "validationActions": ["Deny"]},
        })
    }
}

/// Declaring a Freeze is quiescing each Database that it names. We make one for a caller of the verb, whom we have asked.
fn quiesce() -> Policy {
    Policy {
        name: name::QUIESCE,
        operations: &["CREATE"],
        resources: &["freezes"],
        when: vec![by_others()],
        variables: of_targets("object.spec.targets", &not_held("Freeze"), &["quiesce"]),
        validations: (0..TARGETS).map(|at| of_target(at, "database", &["quiesce"])).collect(),
    }
}

/// Declaring a Snapshot has each Database that it names held.
fn copy() -> Policy {
    Policy {
        name: name::COPY,
        operations: &["CREATE"],
        resources: &["snapshots"],
        when: vec![by_others()],
        variables: of_targets("object.spec.databases", &not_held("Snapshot"), &["quiesce"]),
        validations: (0..TARGETS).map(|at| of_target(at, "", &["quiesce"])).collect(),
    }
}

/// What is said of a Database that whoever declares one of this kind may not quiesce.
fn not_held(kind: &str) -> String {
    format!(
        " may not be quiesced by you, so you may not declare a {kind} of it; whoever administers the namespace can let \
         you: bind the ClusterRole stillpoint:freezer, or grant create on databases/quiesce (live.stillpoint.dev)"
    )
}

/// Whoever has a copy restored may look into it: that is a right by the copy's name, as for the verb.
fn restore() -> Policy {
    let live = format!("authorizer.group('{}')", api::LIVE_GROUP);
    let of_copy = format!("{live}.resource('snapshots').subresource('restore').namespace(request.namespace)");
    let of_database = format!("{live}.resource('databases').subresource('quiesce').namespace(request.namespace)");
    let advice = "may not be restored by you; whoever administers the namespace can let you: grant create on snapshots/restore \
                  (live.stillpoint.dev)";
    let into = "may not be quiesced by you, so you may restore nothing into it; whoever administers the namespace can let you: \
                grant create on databases/quiesce (live.stillpoint.dev)";
    let (source, database) = ("object.spec.source.?snapshot", "object.spec.?database");
    Policy {
        name: name::RESTORE,
        operations: &["CREATE"],
        resources: &["restores"],
        when: vec![by_others()],
        variables: vec![("copy", of_copy), ("database", of_database)],
        validations: vec![
            json!({
                // What is chosen by time may be any: that needs the right to all.
                "expression": format!("({source}.hasValue() ? variables.copy.name({source}.value()) : variables.copy).check('create').allowed()"),
                "messageExpression": format!("'Snapshot ' + {source}.orValue('(any)') + ' {advice}'"),
                "reason": "Forbidden",
            }),
            json!({
                "expression": format!("!{database}.hasValue() || variables.database.name({database}.value()).check('create').allowed()"),
                "messageExpression": format!("'Database ' + {database}.orValue('') + ' {into}'"),
                "reason": "Forbidden",
            }),
        ],
    }
}

/// Also of one that is there: a CRD's rule takes two objects for one whose fields it does not know and that are of other names
/// (apiserver `cel/common/values.go`, unstructuredMap.Equal).
fn run() -> Policy {
    let said = |object: &str| format!("{object}.spec.?runner.orValue({{}})");
    Policy {
        name: name::RUNNER,
        operations: &["CREATE", "UPDATE"],
        resources: &["restores", "snapshots"],
        when: vec![
            by_others(),
            ("another-runner", format!("oldObject == null || {} != {}", said("object"), said("oldObject"))),
        ],
        validations: vec![runner()],
        ..Policy::default()
    }
}

/// A Repository sends what is in its Secrets to its locations, for whoever wrote both; any may be named by any of its locations.
fn repository() -> Policy {
    let changed = "oldObject == null || object.spec != oldObject.spec".to_owned();
    Policy {
        name: name::REPOSITORY,
        operations: &["CREATE", "UPDATE"],
        resources: &["repositories"],
        when: vec![by_others(), ("another-spec", changed)],
        validations: vec![
            json!({
                "expression": "authorizer.group('').resource('secrets').namespace(request.namespace).check('get').allowed()",
                "message": "a Repository sends what is in Secrets of this namespace to its locations: have somebody who may read them write \
                            it, or have get on secrets granted to you",
                "reason": "Forbidden",
            }),
            runner(),
        ],
        ..Policy::default()
    }
}

/// Whoever says how Pods are made may make them.
fn runner() -> Value {
    json!({
        "expression": "!has(object.spec.runner) || authorizer.group('batch').resource('jobs').namespace(request.namespace).check('create').allowed()",
        "message": "spec.runner says how Pods are made, and you may make no Jobs here: leave it out, or have create on jobs (batch) granted to you",
        "reason": "Forbidden",
    })
}

/// Saying `desired: Thawed` is unquiescing, or thawing for whoever holds it; so is deleting one that is not finished. Whoever
/// deletes for others is not asked: a namespace, or an owner, that goes takes its Freezes along.
fn thaw(name: &'static str, first: usize) -> Policy {
    let advice = " may be neither quiesced nor thawed by you, so you may not end a Freeze of it; whoever administers the \
                  namespace can let you: grant create on databases/quiesce or databases/thaw (live.stillpoint.dev)";
    let verbs = ["quiesce", "thaw"];
    let deleted = format!(
        "(!(oldObject.?status.?phase.orValue('') in ['Thawed', 'Failed', 'Lost', 'Expired']) && \
         !(request.userInfo.username in ['system:serviceaccount:{NAMESPACE}:{ACCOUNT}', \
         'system:serviceaccount:kube-system:namespace-controller', \
         'system:serviceaccount:kube-system:generic-garbage-collector', 'system:kube-controller-manager']))"
    );
    Policy {
        name,
        operations: &["UPDATE", "DELETE"],
        resources: &["freezes"],
        when: vec![("is-ended", format!("object == null ? {deleted} : object.spec.desired != oldObject.spec.desired"))],
        variables: of_targets("(object == null ? oldObject : object).spec.targets", advice, &verbs),
        validations: (first..first + AT_A_TIME).map(|at| of_target(at, "database", &verbs)).collect(),
    }
}

/// A journal that others could write would prove nothing; a freeze whose finalizer others could take off would be forgotten
/// while it holds. Whoever may everything everywhere may this too: somebody must, when we are gone for good.
fn journal() -> Policy {
    let finalizer = api::FINALIZER_THAW;
    let kept = |object| format!("{object}.metadata.?finalizers.orValue([]).exists(name, name == '{finalizer}')");
    let touched = format!(
        "request.?subResource.orValue('') == 'status' || {} != (oldObject != null && {})",
        kept("object"),
        kept("oldObject")
    );
    let message = format!(
        "the status of what is Stillpoint's and the finalizer {finalizer} are Stillpoint's own to write, or they would prove \
         nothing; to end a freeze: kubectl still thaw, or spec.desired: Thawed. If Stillpoint is gone for good, a cluster \
         administrator may write them"
    );
    Policy {
        name: name::JOURNAL,
        operations: &["CREATE", "UPDATE"],
        resources: &[
            "freezes",
            "freezes/status",
            "databases/status",
            "repositories/status",
            "restores/status",
            "snapshots/status",
        ],
        when: vec![by_others(), ("status-or-our-finalizer", touched)],
        validations: vec![json!({
            "expression": "authorizer.group('*').resource('*').check('*').allowed()",
            "message": message, "reason": "Forbidden",
        })],
        ..Policy::default()
    }
}

/// We send what is in the Secrets to the endpoint, for whoever wrote both: it must be theirs to read.
fn secrets() -> Policy {
    let changed = ["credentials", "tls", "endpoint"]
        .map(|field| format!("object.spec.?{field}.orValue({{}}) != oldObject.spec.?{field}.orValue({{}})"));
    let advice = "may not be read by you, and Stillpoint sends what is in it to the endpoint; have somebody who may read it \
                  write this Database, or have get on it granted to you";
    let validation = |path: &str| {
        let name = format!("object.spec.?{}.?name", path.replace('.', ".?"));
        json!({
            "expression": format!("!{name}.hasValue() || variables.secrets.name({name}.value()).check('get').allowed()"),
            "messageExpression": format!("'Secret ' + {name}.orValue('') + ' (spec.{path}) ' + variables.advice"),
            "reason": "Forbidden",
        })
    };
    Policy {
        name: name::SECRETS,
        operations: &["CREATE", "UPDATE"],
        resources: &["databases"],
        when: vec![("other-secrets-or-elsewhere", format!("oldObject == null || {}", changed.join(" || ")))],
        variables: vec![
            ("secrets", "authorizer.group('').resource('secrets').namespace(request.namespace)".to_owned()),
            ("advice", format!("'{advice}'")),
        ],
        validations: ["credentials.secretRef", "tls.caSecretRef", "tls.certSecretRef"].map(validation).into(),
    }
}

/// We are excepted only where it is our own work.
fn by_others() -> (&'static str, String) {
    let us = format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}");
    ("by-others-than-stillpoint", format!("request.userInfo.username != '{us}'"))
}

/// What [`of_target`] is put in: the targets, a question for each verb, and what is said about one that is refused.
fn of_targets(targets: &str, advice: &str, verbs: &[&'static str]) -> Vec<(&'static str, String)> {
    let question = |verb: &&'static str| {
        let resource = format!("authorizer.group('{}').resource('databases')", api::LIVE_GROUP);
        (*verb, format!("{resource}.subresource('{verb}').namespace(request.namespace)"))
    };
    let targets = [("targets", targets.to_owned()), ("advice", format!("'{advice}'"))];
    targets.into_iter().chain(verbs.iter().map(question)).collect()
}

/// A target, if there are so many, is one that who asks may do one of `verbs` with. `field`: where in it the name is.
fn of_target(at: usize, field: &str, verbs: &[&str]) -> Value {
    let dot = if field.is_empty() { "" } else { "." };
    let database = format!("variables.targets[{at}]{dot}{field}");
    let may = |verb: &&str| format!("variables.{verb}.name({database}).check('create').allowed()");
    let any: Vec<_> = [format!("variables.targets.size() <= {at}")].into_iter().chain(verbs.iter().map(may)).collect();
    json!({
        "expression": any.join(" || "),
        "messageExpression": format!("'Database ' + {database} + variables.advice"),
        "reason": "Forbidden",
    })
}

fn named(expressions: &[(&str, String)]) -> Vec<Value> {
    expressions.iter().map(|(name, expression)| json!({"name": name, "expression": expression})).collect()
}
