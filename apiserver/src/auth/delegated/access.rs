//! Whether somebody may, by SubjectAccessReview (apiserver `plugin/pkg/authorizer/webhook`).

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::{
    api::authorization::v1::{
        FieldSelectorAttributes, LabelSelectorAttributes, NonResourceAttributes, ResourceAttributes,
        SubjectAccessReviewSpec, SubjectAccessReviewStatus,
    },
    apimachinery::pkg::apis::meta::v1::{FieldSelectorRequirement, LabelSelectorRequirement},
};

use super::{
    answers::{Answers, Key},
    reviews::{Patience, ReviewError, Reviews},
};
use crate::{
    auth::{Authorizer, Question, Refusal, User},
    query::Selection,
};

/// The kube-apiserver's word on who may what.
#[derive(Debug)]
pub struct SubjectAccessReviews {
    reviews: Arc<dyn Reviews>,
    known: Answers<Verdict>,
    patience: Patience,
}

#[derive(Clone, Debug)]
enum Verdict {
    Allowed,
    Denied(String),
}

/// Whoever is in it may everything, also when nobody can be asked (upstream's `--authorization-always-allow-groups`).
const MASTERS: &str = "system:masters";
/// Open to everybody (upstream's `--authorization-always-allow-paths`).
const OPEN: &[&str] = &["/healthz", "/livez", "/readyz"];

impl SubjectAccessReviews {
    pub fn new(reviews: Arc<dyn Reviews>) -> Self {
        Self { reviews, known: Answers::default(), patience: Patience::default() }
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }
}

#[async_trait]
impl Authorizer for SubjectAccessReviews {
    async fn allowed(&self, user: &User, question: Question<'_>) -> Result<(), Refusal> {
        let open = matches!(question, Question::Path { path, .. } if OPEN.contains(&path));
        if open || user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let spec = spec(user, question);
        let decides = serde_json::to_vec(&spec).map_err(|error| Refusal::Unanswered(error.to_string()))?;
        let (reviews, patience) = (Arc::clone(&self.reviews), self.patience.clone());
        let review = async move { verdict(patience.ask(|| reviews.access_review(spec.clone())).await?) };
        match self.known.get(Key::of(&decides), review).await {
            Ok(Verdict::Allowed) => Ok(()),
            Ok(Verdict::Denied(why)) => Err(Refusal::Denied(why)),
            Err(error) => Err(Refusal::Unanswered(format!("whether {:?} may: {error}", user.name))),
        }
    }
}

fn verdict(status: SubjectAccessReviewStatus) -> Result<Verdict, ReviewError> {
    match (status.allowed, status.denied == Some(true)) {
        (true, false) => Ok(Verdict::Allowed),
        (false, _) => Ok(Verdict::Denied(status.reason.unwrap_or_default())),
        (true, true) => Err(ReviewError::nonsense("both allowed and denied")),
    }
}

/// The question as the kube-apiserver itself would ask it.
fn spec(user: &User, question: Question<'_>) -> SubjectAccessReviewSpec {
    let mut spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: user.uid.clone(),
        groups: Some(user.groups.clone()),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    match question {
        Question::Path { path, verb } => {
            spec.non_resource_attributes =
                Some(NonResourceAttributes { path: Some(path.to_owned()), verb: Some(verb.to_owned()) });
        }
        Question::Resource { target, selection } => {
            let name = question.name();
            spec.resource_attributes = Some(ResourceAttributes {
                verb: Some(target.verb.word().to_owned()),
                group: Some(target.group.clone()),
                version: Some(target.version.clone()),
                namespace: target.namespace.clone(),
                resource: Some(target.resource.clone()),
                subresource: target.subresource.clone(),
                name: (!name.is_empty()).then(|| name.to_owned()),
                field_selector: selection.and_then(fields),
                label_selector: selection.and_then(labels),
            });
        }
    }
    spec
}

fn fields(selection: &Selection) -> Option<FieldSelectorAttributes> {
    let requirements = selection.fields.requirements().map(|(path, equal, value)| FieldSelectorRequirement {
        key: path.to_owned(),
        operator: if equal { "In" } else { "NotIn" }.to_owned(),
        values: Some(vec![value.to_owned()]),
    });
    let requirements: Vec<_> = requirements.collect();
    (!requirements.is_empty())
        .then(|| FieldSelectorAttributes { requirements: Some(requirements), ..FieldSelectorAttributes::default() })
}

fn labels(selection: &Selection) -> Option<LabelSelectorAttributes> {
    let requirements = selection.labels.requirements().map(|(key, operator, values)| LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then(|| values.to_vec()),
    });
    let requirements: Vec<_> = requirements.collect();
    (!requirements.is_empty())
        .then(|| LabelSelectorAttributes { requirements: Some(requirements), ..LabelSelectorAttributes::default() })
}
