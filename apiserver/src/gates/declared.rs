//! When a snapshot is declared: what stands in its way is looked up, and said as warnings (`preflight.rs`).

use api::gate::{GateAnswer, GateRequest, atomic};
use kube::api::ListParams;
use serde_json::Value;
use tracing::debug;

use super::{
    Gates,
    cut::{self, Wanted},
    judge,
    preflight::{self, Declared},
};

impl Gates {
    /// What is going to be in its way.
    pub(super) async fn preflight(&self, request: &GateRequest) -> GateAnswer {
        let mut answer = GateAnswer::allow();
        let Some(namespace) = request.object.namespace.as_deref() else { return answer };
        if self.is_known().is_err() {
            return answer;
        }
        let claims = match &request.selector {
            Some(selector) => self.selected(namespace, selector).await,
            None => request.claims.clone(),
        };
        let names = preflight::names(namespace, &claims);
        let databases = self.0.verbs.records.databases(Some(namespace));
        let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
        let (wanted, driver) = {
            let index = self.0.watched.index();
            let driver = preflight::driver(&index, namespace, &claims).map(str::to_owned);
            (cut::wanted(&index, &names, &databases), driver)
        };
        if !matches!(wanted, Wanted::Hold(_)) {
            return answer;
        }
        let group = request.object.group;
        let class = match &request.class {
            Some(class) => self.class(group, class).await.ok().flatten(),
            None => None,
        };
        let said = class.as_ref().and_then(judge::said_by_class);
        // Which class is the default one is the snapshot controller's to find out.
        let known = said.is_some() || request.class.is_some();
        let atomic = driver.filter(|_| known).map(|driver| atomic::is_atomic(&driver, group, said.as_deref()));
        answer.warnings = preflight::warnings(&Declared { group, wanted: &wanted, databases: &databases, atomic });
        answer
    }

    /// The claims that a LabelSelector selects. What cannot be listed is nobody's: it is only about warnings.
    async fn selected(&self, namespace: &str, selector: &Value) -> Vec<String> {
        let Some(selector) = labels(selector) else { return Vec::new() };
        match self.0.kinds.claims(namespace).list_metadata(&ListParams::default().labels(&selector)).await {
            Ok(claims) => claims.items.into_iter().filter_map(|claim| claim.metadata.name).collect(),
            Err(error) => {
                debug!(namespace, %error, "the claims of a group could not be listed");
                Vec::new()
            }
        }
    }
}

/// A LabelSelector as a query has it. `None`: it is none.
fn labels(selector: &Value) -> Option<String> {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let equal = equal.map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten().map(|expression| {
        let key = expression["key"].as_str()?;
        let values = expression["values"].as_array().into_iter().flatten();
        let values = values.map(Value::as_str).collect::<Option<Vec<_>>>()?.join(",");
        Some(match expression["operator"].as_str()? {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        })
    });
    let all: Vec<String> = equal.chain(expressions).collect::<Option<_>>()?;
    (!all.is_empty()).then(|| all.join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn whatever_selects_is_asked_for_or_not(key in "\\PC{0,20}", operator in "\\PC{0,12}|In|Exists", values: Vec<i8>) {
            let expression = json!({"key": key, "operator": operator, "values": values});
            labels(&json!({"matchLabels": {key: values}, "matchExpressions": [expression]}));
            labels(&json!(operator));
        }
    }

    #[test]
    fn a_selector_is_asked_for_as_kubernetes_reads_it() {
        let selector = json!({
            "matchLabels": {"app": "shop"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"}, {"key": "data", "operator": "Exists"},
                {"key": "x", "operator": "NotIn", "values": ["y"]},
            ],
        });
        assert_eq!(labels(&selector).as_deref(), Some("app=shop,tier in (a,b),!old,data,x notin (y)"));
        for wrong in
            [json!({}), json!({"matchLabels": {"a": 1}}), json!({"matchExpressions": [{"key": "a", "operator": "?"}]})]
        {
            assert_eq!(labels(&wrong), None, "{wrong}");
        }
    }
}
