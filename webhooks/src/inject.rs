//! Pods that may get an agent. What becomes of them `api::inject` decides; here a review is turned into its question, and what it says
//! into an answer. A Pod is never denied.

use api::inject::{self, Asked, Decided, Installation, Verdict};

use crate::{
    answer::Answer,
    decision::Decision,
    ours::Ours,
    review::{Operation, Request},
};

/// In kube-apiserver's audit log, below the name of the webhook: what was done. Why, the Pod says: who reads logs need not be who may
/// read its annotations.
pub(crate) const AUDIT: &str = "inject";

/// `authority`: who signs the apiserver's certificates, as far as that is known.
pub(crate) fn decide(request: &Request, asked: Asked, ours: &Ours, authority: Option<&str>) -> Decision {
    let is_pod = request.group.is_empty() && request.resource == "pods" && request.sub_resource.is_empty();
    if !is_pod || request.operation != Operation::Create {
        return Decision::Allow("another resource or operation");
    }
    let installation = Installation {
        namespace: &ours.namespace,
        image: ours.agent.image.as_deref(),
        apiserver: ours.agent.apiserver.as_deref(),
        ca: authority,
    };
    let Decided { verdict, message, warnings, pod } =
        inject::decide(&request.object, request.namespace(), asked, installation);
    let (decided, done) = match verdict {
        Verdict::LeftAlone => return Decision::Spare(message),
        Verdict::Skipped => (Decision::Skipped as fn(Answer) -> Decision, inject::SKIPPED),
        Verdict::Injected => (Decision::Injected as fn(Answer) -> Decision, inject::INJECTED),
    };
    let patch = pod.map(|pod| inject::patch(&request.object, &pod));
    decided(Answer { patch, warnings, audit: [(AUDIT.to_owned(), done.to_owned())].into(), ..Answer::allowed() })
}
