//! An installation in a cluster, by its names: what `deploy/` makes, and what `kubectl still doctor` looks for.

pub mod injection;
mod rules;
pub mod webhooks;

/// Where it is installed unless told otherwise. The namespace of the APIService's Service says where it really is.
pub const NAMESPACE: &str = "stillpoint";
/// The API server's Service, its Deployment, and the ServiceAccount that it runs as.
pub const ACCOUNT: &str = "stillpoint-apiserver";
/// Both webhook configurations, and the Service, the Deployment and the ServiceAccount of the webhooks.
pub const WEBHOOKS: &str = "stillpoint-webhooks";
/// The ClusterRole that lets the account read Secrets, and make VolumeSnapshots and claims, and the RoleBinding that grants it in one
/// namespace.
pub const CREDENTIALS: &str = "stillpoint:credentials";
/// On everything that is ours, but what is the webhooks'; the server's pods are selected by them.
pub const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "stillpoint"), ("app.kubernetes.io/component", "apiserver")];
/// On Leases: `replica`, whose holder lives while it renews it, or `member`, of a Database.
pub const LEASE: &str = "stillpoint.dev/lease";
/// The Secret of the authority that replicas sign with.
pub const AUTHORITY: &str = "stillpoint-apiserver-ca";
/// The name by which ours ask a replica: whoever asks by it is shown a certificate of our own authority, whatever others see.
pub const REPLICAS: &str = "replicas.stillpoint.internal";
/// It, and [`webhooks::SERVING`].
const OUR_SECRETS: &str = "stillpoint-apiserver-ca,stillpoint-webhooks-tls";
/// What the account may do in the whole cluster; what the leader makes there goes with it.
pub const ROLE: &str = "stillpoint:apiserver";
/// The APIService of our group.
pub fn api_service() -> String {
    API_SERVICE.to_owned()
}
const API_SERVICE: &str = "v1alpha1.live.stillpoint.dev";
/// The name that our account is known to a cluster by.
pub fn account_user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{ACCOUNT}")
}

/// The same of the webhooks' account.
pub fn webhooks_user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{}", webhooks::NAME)
}

/// ValidatingAdmissionPolicies, and their bindings of the same names.
pub mod policies {
    /// A Freeze is declared only by who may quiesce each of its Databases.
    pub const QUIESCE: &str = "quiesce.stillpoint.dev";
    /// A Freeze is ended by its `spec.desired` only by who may quiesce or thaw each of its Databases.
    pub const THAW: &str = "thaw.stillpoint.dev";
    /// The same, of the second half of its targets.
    pub const THAW_MORE: &str = "thaw-more.stillpoint.dev";
    /// Status and finalizer are ours.
    pub const JOURNAL: &str = "journal.stillpoint.dev";
    /// A Database is given only Secrets that its author may read.
    pub const SECRETS: &str = "secrets.stillpoint.dev";
    /// A Snapshot is declared only by who may quiesce each of its Databases.
    pub const COPY: &str = "copy.stillpoint.dev";
    /// A Restore is declared only by who may restore that copy, and quiesce the Database that it goes to.
    pub const RESTORE: &str = "restore.stillpoint.dev";
    /// A Repository is made only by who may read the Secrets of its namespace.
    pub const REPOSITORY: &str = "repository.stillpoint.dev";
    /// How Pods of runs are made is said, of a Snapshot and of a Restore, only by who may make Jobs.
    pub const RUNNER: &str = "runner.stillpoint.dev";
    pub const ALL: [&str; 9] = [QUIESCE, THAW, THAW_MORE, JOURNAL, SECRETS, COPY, RESTORE, REPOSITORY, RUNNER];
}

/// One rule of RBAC; `resources`, `names` and `verbs` are lists with commas. Without names it is about all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub group: &'static str,
    pub resources: &'static str,
    pub names: &'static str,
    pub verbs: &'static str,
}

/// What the account needs everywhere: what it calls, and nothing beside.
pub const EVERYWHERE: [Rule; 26] = [
    // One is made for a workload that has agents and no Database.
    rule(crate::GROUP, "databases", "create,get,list,watch"),
    rule(crate::GROUP, "databases/status", "update"),
    rule(crate::GROUP, "freezes", "create,delete,get,list,patch,watch"),
    rule(crate::GROUP, "freezes/status", "patch,update"),
    // Copies: declared by people, or made for a caller of ours; kept until what was cut is removed.
    rule(crate::GROUP, "restores,snapshots", "create,get,list,watch"),
    rule(crate::GROUP, "snapshots", "patch"),
    rule(crate::GROUP, "repositories", "get,list,watch"),
    // By which program a dump is made, looked up when it is.
    rule(crate::GROUP, "dumptools", "get"),
    rule(crate::GROUP, "repositories/status,restores/status,snapshots/status", "update"),
    rule("", "events", "create"),
    // Whose data a volume holds, and who stands still for its cut.
    rule("", "namespaces,persistentvolumes,pods,services", "list,watch"),
    rule("", "persistentvolumeclaims", "list"),
    rule("discovery.k8s.io", "endpointslices", "list,watch"),
    rule(crate::LIVE_GROUP, "databases/quiesce,databases/renew,databases/unquiesce", "create"),
    // Which Pods are members of it.
    rule("apps", "deployments,replicasets,statefulsets", "get"),
    // How far a cut is, and what it is worth.
    rule(crate::gate::SNAPSHOTS, "volumesnapshotcontents", "get,list,patch,watch"),
    // Those that were made for a Snapshot are followed.
    rule(crate::gate::SNAPSHOTS, "volumesnapshots", "get,list,patch,watch"),
    rule(crate::gate::SNAPSHOTS, "volumesnapshotclasses", "get"),
    rule(crate::gate::GROUP_SNAPSHOTS, "volumegroupsnapshotcontents", "get,list,patch,watch"),
    rule(crate::gate::GROUP_SNAPSHOTS, "volumegroupsnapshots", "get,patch"),
    rule(crate::gate::GROUP_SNAPSHOTS, "volumegroupsnapshotclasses", "get,list"),
    // Whether a claim waits for the first Pod.
    rule("storage.k8s.io", "storageclasses", "get"),
    // Who is asked before a snapshot is made.
    named("admissionregistration.k8s.io", "validatingwebhookconfigurations", webhooks::NAME, "get,patch"),
    // Who is asked before a cut begins, and before a Pod is made.
    named("admissionregistration.k8s.io", "mutatingwebhookconfigurations", webhooks::NAME, "get,patch"),
    named("apiregistration.k8s.io", "apiservices", API_SERVICE, "get,patch"),
    named(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "databases.stillpoint.dev,dumptools.stillpoint.dev,freezes.stillpoint.dev,repositories.stillpoint.dev,restores.stillpoint.dev,snapshots.stillpoint.dev",
        "get",
    ),
];
/// What it needs in a namespace that it was let into, [`CREDENTIALS`]: what its Databases name, and what copies of them are made of.
pub const ENABLED: [Rule; 7] = [
    rule("", "secrets", "get"),
    // Dumps are taken and restored by Jobs, which say in their logs how it goes; whose image has a server's programs is in its Pod.
    rule("batch", "jobs", "create,delete,get"),
    rule("", "pods", "get"),
    rule("", "pods/log", "get"),
    rule(crate::gate::SNAPSHOTS, "volumesnapshots", "create,delete"),
    rule(crate::gate::GROUP_SNAPSHOTS, "volumegroupsnapshots", "create,delete"),
    rule("", "persistentvolumeclaims", "create"),
];
/// What it needs in the namespace that it is installed in. What is created has no name yet that RBAC could ask for.
pub const AT_HOME: [Rule; 3] = [
    rule("", "secrets", "create"),
    named("", "secrets", OUR_SECRETS, "get,update"),
    rule("coordination.k8s.io", "leases", "create,delete,get,list,update,watch"),
];
/// What the ClusterRole `system:auth-delegator` grants: to ask who a token belongs to, and who may what.
pub const REVIEWS: [Rule; 2] = [
    rule("authentication.k8s.io", "tokenreviews", "create"),
    rule("authorization.k8s.io", "subjectaccessreviews", "create"),
];
/// What it reads in `kube-system`, of [`AUTHENTICATION`], by the Role `extension-apiserver-authentication-reader`.
pub const TRUST: Rule = named("", "configmaps", AUTHENTICATION, "get,list,watch");
/// The ConfigMap that says whose certificates a server behind kube-apiserver is to trust.
pub const AUTHENTICATION: &str = "extension-apiserver-authentication";

/// A rule of these lists.
pub const fn rule(group: &'static str, resources: &'static str, verbs: &'static str) -> Rule {
    named(group, resources, "", verbs)
}

/// One about these only.
pub const fn named(group: &'static str, resources: &'static str, names: &'static str, verbs: &'static str) -> Rule {
    Rule { group, resources, names, verbs }
}

impl Rule {
    pub fn resources(&self) -> Vec<&'static str> {
        self.resources.split(',').collect()
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.names.split(',').filter(|name| !name.is_empty()).collect()
    }

    pub fn verbs(&self) -> Vec<&'static str> {
        self.verbs.split(',').collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_written_out_are_those_of_the_types() {
        assert_eq!(API_SERVICE, format!("{}.{}", crate::VERSION, crate::LIVE_GROUP));
        assert_eq!(OUR_SECRETS, [AUTHORITY, webhooks::SERVING].join(","));
        let crds: Vec<String> = crate::crds::all().into_iter().filter_map(|crd| crd.metadata.name).collect();
        let named = EVERYWHERE.iter().find(|rule| rule.resources == "customresourcedefinitions");
        assert_eq!(named.map(|rule| rule.names().len()), Some(crds.len()));
        assert!(named.is_some_and(|rule| crds.iter().all(|crd| rule.names().contains(&crd.as_str()))), "{crds:?}");
    }
}
