//! What an admission is answered: allowed or denied, with what people should know. Everything is cut to its bound here, whoever
//! has written it.

use std::collections::BTreeMap;

use api::{
    gate::{self, Gate, GateAnswer, GateDecision, GateRequest, RETRY_AFTER_SECONDS, TRY_AGAIN},
    validate::Cause,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// The answer to one review.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// None: it is allowed.
    pub denial: Option<Denial>,
    /// What is to be changed of the object (RFC 6902); none: nothing.
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
    pub audit: BTreeMap<String, String>,
}

/// Why it is denied, as `metav1.Status` has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Value,
}

impl Answer {
    /// Nothing to say.
    pub fn allowed() -> Self {
        Self::default()
    }

    pub fn warned(warning: impl Into<String>) -> Self {
        Self { warnings: vec![warning.into()], ..Self::default() }
    }

    pub fn denied(denial: Denial) -> Self {
        Self { denial: Some(denial), ..Self::default() }
    }

    pub fn is_allowed(&self) -> bool {
        self.denial.is_none()
    }

    /// Nobody could be asked. `Preferred` never is in the way; `Required` waits for somebody who can.
    pub fn unheld(gate: Gate, required: bool, why: &str) -> Self {
        if required {
            let message = format!(
                "this namespace takes no copies that are not consistent, and this one would not be: {}; it may be tried again \
                 as it is (kubectl still doctor says what is missing; {}): {TRY_AGAIN}",
                cut(why, gate::LONGEST_MESSAGE / 2),
                way_around(gate),
            );
            let details = json!({"retryAfterSeconds": RETRY_AFTER_SECONDS});
            return Self::denied(Denial { code: 409, reason: "Conflict".to_owned(), message, details });
        }
        let (before, after) = match gate {
            Gate::Preflight => ("not checked: ", "; it may be crash-consistent only"),
            Gate::Cut | Gate::Content => ("not frozen: ", "; the snapshot will be crash-consistent"),
        };
        let room = gate::LONGEST_WARNING - before.len() - after.len();
        Self::warned(format!("{before}{}{after}", cut(why, room)))
    }

    /// An object that cannot be, in the words of the API machinery (apimachinery `api/errors` NewInvalid).
    pub fn invalid(kind: &str, name: &str, causes: &[Cause]) -> Self {
        let said: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.said())).collect();
        let list = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{kind}.{} {name:?} is invalid: {list}", api::GROUP);
        let causes: Vec<Value> = causes
            .iter()
            .map(|cause| json!({"reason": cause.kind.reason(), "message": cause.said(), "field": cause.field}))
            .collect();
        let details = json!({"name": name, "group": api::GROUP, "kind": kind, "causes": causes});
        Self::denied(Denial { code: 422, reason: "Invalid".to_owned(), message, details })
    }

    /// What the apiserver says to a request.
    pub fn to(request: &GateRequest, answer: GateAnswer) -> Self {
        let GateAnswer { decision, warnings, audit, claim } = answer;
        let claim = claim.filter(|claim| request.gate == Gate::Cut && claim.len() <= gate::LONGEST_UID);
        let denial = match decision {
            GateDecision::Allow => None,
            GateDecision::Deny { code, reason, message, retry_after_seconds } => {
                let details = retry_after_seconds.map_or(Value::Null, |seconds| json!({"retryAfterSeconds": seconds}));
                // A denial of any other code is an error of ours to kube-apiserver.
                let code = if (400..600).contains(&code) { code } else { 403 };
                Some(Denial { code, reason, message, details })
            }
        };
        let patch = claim.filter(|_| denial.is_none()).map(|claim| claimed(request.object.group.mark(), &claim));
        Self { denial, patch, warnings, audit }
    }

    /// `AdmissionResponse` for the request `uid`.
    pub fn response(&self, uid: &str) -> Value {
        let mut response = json!({"uid": uid, "allowed": self.is_allowed()});
        if let Some(Denial { code, reason, message, details }) = &self.denial {
            response["status"] = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code, "reason": reason, "message": cut(message, gate::LONGEST_MESSAGE),
            });
            if !details.is_null() {
                response["status"]["details"] = details.clone();
            }
        }
        if let Some(patch) = &self.patch {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = BASE64_STANDARD.encode(patch.to_string()).into();
        }
        if !self.warnings.is_empty() {
            let warnings = self.warnings.iter().take(gate::MOST_WARNINGS);
            response["warnings"] = warnings.map(|warning| cut(warning, gate::LONGEST_WARNING)).collect();
        }
        if !self.audit.is_empty() {
            let audit = self.audit.iter().take(gate::MOST_AUDIT);
            response["auditAnnotations"] =
                audit.map(|(key, value)| (key.clone(), cut(value, gate::LONGEST_AUDIT))).collect::<Value>();
        }
        response
    }
}

/// Says in the mark by which claim. In a JSON Pointer `/` is `~1` (RFC 6901).
fn claimed(mark: &str, claim: &str) -> Value {
    let path = format!("/metadata/annotations/{}", mark.replace('/', "~1"));
    json!([{"op": "replace", "path": path, "value": claim}])
}

/// What takes a copy all the same. Of a cut only its content is seen here, and the snapshot's annotations are the apiserver's to read,
/// which cannot be asked.
fn way_around(gate: Gate) -> String {
    let (skip, policy) = (format!("the annotation {}: {}", gate::QUIESCE, gate::SKIP), gate::POLICY);
    match gate {
        Gate::Preflight => format!("with {skip} on the snapshot it is not waited for"),
        Gate::Cut | Gate::Content => {
            format!("with {skip} on its content it is taken all the same, as in a namespace without the label {policy}")
        }
    }
}

/// At most so many bytes of a text, never half a character, and visibly cut.
pub fn cut(text: &str, longest: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= longest {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(longest.saturating_sub(MARK.len()));
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use api::gate::Group;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_not_be_asked_is_a_warning_or_a_conflict_to_try_again_after() {
        let allowed = Answer::unheld(Gate::Cut, false, "stillpoint-apiserver gave no answer in time");
        assert!(allowed.is_allowed());
        assert_eq!(
            allowed.warnings,
            ["not frozen: stillpoint-apiserver gave no answer in time; the snapshot will be crash-consistent"]
        );
        let denied = Answer::unheld(Gate::Cut, true, "stillpoint-apiserver gave no answer in time").response("u");
        let status = &denied["status"];
        assert_eq!((&status["code"], &status["reason"]), (&json!(409), &json!("Conflict")));
        assert_eq!(status["details"]["retryAfterSeconds"], 2);
        let message = status["message"].as_str().unwrap();
        assert!(message.ends_with(TRY_AGAIN) && message.contains("gave no answer"), "{message}");
    }

    #[test]
    fn the_way_around_is_one_that_the_gate_sees() {
        let told = |gate| Answer::unheld(gate, true, "why").denial.unwrap().message;
        assert!(told(Gate::Preflight).contains("stillpoint.dev/quiesce: skip on the snapshot"));
        for gate in [Gate::Cut, Gate::Content] {
            let told = told(gate);
            assert!(told.contains("stillpoint.dev/quiesce: skip on its content"), "{told}");
            assert!(!told.contains("skip on the snapshot") && told.contains(gate::POLICY), "{told}");
        }
    }

    #[test]
    fn what_the_apiserver_denies_is_denied_as_it_says() {
        let denied = GateAnswer {
            decision: GateDecision::Deny {
                code: 429,
                reason: "TooManyRequests".into(),
                message: "orders is being frozen for another".into(),
                retry_after_seconds: Some(3),
            },
            warnings: vec!["x".repeat(500)],
            audit: [("engine".to_owned(), "MariaDB".to_owned())].into(),
            claim: Some("of what is denied nothing is written".to_owned()),
        };
        let response = Answer::to(&cut_of(Group::Single), denied).response("u-1");
        insta::assert_json_snapshot!(response, {".warnings" => "cut"}, @r#"
        {
          "allowed": false,
          "auditAnnotations": {
            "engine": "MariaDB"
          },
          "status": {
            "apiVersion": "v1",
            "code": 429,
            "details": {
              "retryAfterSeconds": 3
            },
            "kind": "Status",
            "message": "orders is being frozen for another",
            "metadata": {},
            "reason": "TooManyRequests",
            "status": "Failure"
          },
          "uid": "u-1",
          "warnings": "cut"
        }
        "#);
        assert_eq!(response["warnings"][0].as_str().map(str::len), Some(gate::LONGEST_WARNING));
    }

    #[test]
    fn by_which_claim_it_is_held_is_said_in_the_mark() {
        let held = |claim: &str| GateAnswer { claim: Some(claim.to_owned()), ..GateAnswer::allow() };
        let patch = |request: &GateRequest, claim: &str| Answer::to(request, held(claim)).patch;
        for (group, path) in [
            (Group::Single, "/metadata/annotations/snapshot.storage.kubernetes.io~1volumesnapshot-being-created"),
            (
                Group::Group,
                "/metadata/annotations/groupsnapshot.storage.kubernetes.io~1volumegroupsnapshot-being-created",
            ),
        ] {
            let right = json!([{"op": "replace", "path": path, "value": "c"}]);
            assert_eq!(patch(&cut_of(group), "c"), Some(right));
        }
        let cut = cut_of(Group::Single);
        assert_eq!(patch(&cut, &"c".repeat(gate::LONGEST_UID + 1)), None);
        assert_eq!(patch(&GateRequest { gate: Gate::Content, ..cut.clone() }, "c"), None, "it has no mark");
        assert_eq!(Answer::to(&cut, GateAnswer::allow()).patch, None);
    }

    fn cut_of(group: Group) -> GateRequest {
        serde_json::from_value(json!({
            "gate": "Cut", "object": {"group": group, "name": "snapcontent-1", "uid": "u-1"}, "deadlineMilliseconds": 1,
        }))
        .unwrap()
    }

    proptest! {
        #[test]
        fn a_cut_text_is_within_its_bound_and_its_beginning_is_the_texts(text in "\\PC*", longest in 3_usize..80) {
            let cut = cut(&text, longest);
            prop_assert!(cut.len() <= longest);
            prop_assert!(cut == text || text.starts_with(cut.trim_end_matches('…')));
        }

        #[test]
        fn however_long_the_reason_a_warning_has_its_end(why in "\\PC{0,300}") {
            let Answer { warnings, .. } = Answer::unheld(Gate::Content, false, &why);
            prop_assert!(warnings[0].len() <= gate::LONGEST_WARNING);
            prop_assert!(warnings[0].ends_with("; the snapshot will be crash-consistent"));
        }
    }
}
