//! An installation in a cluster, by its names: what `deploy/` makes, and what `kubectl still doctor` looks for.

/// Where it is installed unless told otherwise. The namespace of the APIService's Service says where it really is.
pub const NAMESPACE: &str = "stillpoint";
/// The API server's Service, its Deployment, and the ServiceAccount that it runs as.
pub const ACCOUNT: &str = "stillpoint-apiserver";
/// The ClusterRole that lets the account read Secrets, and the RoleBinding that grants it in one namespace.
pub const CREDENTIALS: &str = "stillpoint:credentials";
/// On everything that is ours.
pub const LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "stillpoint"), ("app.kubernetes.io/component", "apiserver")];
/// On Leases: `replica`, whose holder lives while it renews it, or `member`, of a Database.
pub const LEASE: &str = "stillpoint.dev/lease";
/// The APIService of our group.
pub fn api_service() -> String {
    format!("{}.{}", crate::VERSION, crate::LIVE_GROUP)
}
/// The name that our account is known to a cluster by.
pub fn account_user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{ACCOUNT}")
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
    pub const ALL: [&str; 5] = [QUIESCE, THAW, THAW_MORE, JOURNAL, SECRETS];
}

/// One rule of RBAC; `resources` and `verbs` are lists with commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub group: &'static str,
    pub resources: &'static str,
    pub verbs: &'static str,
}

/// What the account needs everywhere.
pub const EVERYWHERE: [Rule; 6] = [
    rule(crate::GROUP, "databases", "get,list,watch"),
    rule(crate::GROUP, "databases/status,freezes/status", "get,patch,update"),
    rule(crate::GROUP, "freezes", "create,delete,get,list,patch,update,watch"),
    rule("", "events", "create,patch"),
    rule("apiregistration.k8s.io", "apiservices", "get,patch"),
    rule("apiextensions.k8s.io", "customresourcedefinitions", "get,list,watch"),
];
/// What it needs in the namespace that it is installed in.
pub const AT_HOME: [Rule; 2] = [
    rule("", "secrets", "create,get,update"),
    rule("coordination.k8s.io", "leases", "create,delete,get,list,update,watch"),
];
/// What the ClusterRole `system:auth-delegator` grants: to ask who a token belongs to, and who may what.
pub const REVIEWS: [Rule; 2] = [
    rule("authentication.k8s.io", "tokenreviews", "create"),
    rule("authorization.k8s.io", "subjectaccessreviews", "create"),
];
/// What it reads in `kube-system`, of [`AUTHENTICATION`], by the Role `extension-apiserver-authentication-reader`.
pub const TRUST: Rule = rule("", "configmaps", "get,list,watch");
/// The ConfigMap that says whose certificates a server behind kube-apiserver is to trust.
pub const AUTHENTICATION: &str = "extension-apiserver-authentication";

/// A rule of these lists.
pub const fn rule(group: &'static str, resources: &'static str, verbs: &'static str) -> Rule {
    Rule { group, resources, verbs }
}

impl Rule {
    pub fn resources(&self) -> Vec<&'static str> {
        self.resources.split(',').collect()
    }

    pub fn verbs(&self) -> Vec<&'static str> {
        self.verbs.split(',').collect()
    }
}
