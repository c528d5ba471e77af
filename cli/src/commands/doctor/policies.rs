//! Whether the admission policies are there, bound, and in force everywhere: without one somebody may do what RBAC cannot refuse.

use api::{CheckResult, install::policies};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::{Api, Client};

use super::{Finding, installed::APPLY};

pub(super) async fn look(client: &Client) -> Vec<Finding> {
    let all: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let mut findings = Vec::new();
    for name in policies::ALL {
        findings.push(match (all.get_opt(name).await, bindings.get_opt(name).await) {
            (Ok(found), Ok(binding)) => policy(name, found.as_ref(), binding.as_ref()),
            (Err(error), _) | (_, Err(error)) => Finding::unseen("policy", &format!("policy {name}"), &error),
        });
    }
    // Alike, and no news.
    if findings.iter().all(|finding| finding.result == CheckResult::Pass) {
        findings = vec![Finding::pass("policy", format!("{} admission policies are in force", policies::ALL.len()))];
    }
    findings
}

fn policy(
    name: &str,
    found: Option<&ValidatingAdmissionPolicy>,
    binding: Option<&ValidatingAdmissionPolicyBinding>,
) -> Finding {
    let (Some(found), Some(binding)) = (found, binding) else {
        let missing = if found.is_none() { "is not there" } else { "is not bound" };
        return Finding::fail("policy", format!("ValidatingAdmissionPolicy {name} {missing}"), APPLY);
    };
    let binding = binding.spec.clone().unwrap_or_default();
    if !binding.validation_actions.iter().flatten().any(|action| action == "Deny") {
        return Finding::fail("policy", format!("the binding of {name} does not deny"), APPLY);
    }
    if binding.match_resources.is_some() || binding.param_ref.is_some() {
        let message = format!("the binding of {name} is not in force everywhere: somebody narrowed it");
        return Finding::warn("policy", message, APPLY);
    }
    let checked = found.status.as_ref().and_then(|status| status.type_checking.as_ref());
    let warnings: Vec<_> = checked.iter().flat_map(|checked| checked.expression_warnings.iter().flatten()).collect();
    if let Some(first) = warnings.first() {
        let message = format!("{name}: kube-apiserver warns of {}: {}", first.field_ref, first.warning);
        return Finding::warn("policy", message, APPLY);
    }
    Finding::pass("policy", name)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_policy_is_there_bound_denies_and_is_in_force_everywhere() {
        let found: ValidatingAdmissionPolicy = from_value(json!({"spec": {}})).unwrap();
        let bound = |spec| -> ValidatingAdmissionPolicyBinding { from_value(json!({"spec": spec})).unwrap() };
        for (found, binding, result) in [
            (None, None, CheckResult::Fail),
            (Some(&found), None, CheckResult::Fail),
            (Some(&found), Some(bound(json!({"validationActions": ["Audit"]}))), CheckResult::Fail),
            (
                Some(&found),
                Some(bound(json!({"validationActions": ["Deny"], "matchResources": {"namespaceSelector": {}}}))),
                CheckResult::Warn,
            ),
            (Some(&found), Some(bound(json!({"validationActions": ["Deny"]}))), CheckResult::Pass),
        ] {
            assert_eq!(policy("p", found, binding.as_ref()).result, result, "{binding:?}");
        }
    }
}
