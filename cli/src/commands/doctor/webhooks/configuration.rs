//! What kube-apiserver was told of the webhooks: whom it asks, by what it knows them, and where it goes on without them.

use std::collections::BTreeSet;

use api::{
    gate,
    install::{
        ACCOUNT,
        webhooks::{self, CONTENT_DRIVERS, NAME, SERVING, fitting, left_alone},
    },
};
use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhook, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    core::v1::Secret,
};
use kube::ResourceExt;

use super::{Finding, text};

/// Both of them: what is asked when a snapshot is declared, and what holds for its cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configurations {
    pub(crate) validating: Option<ValidatingWebhookConfiguration>,
    pub(crate) mutating: Option<MutatingWebhookConfiguration>,
}

impl Configurations {
    /// Each entry's name, and whom it leads to.
    fn entries(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let declared = self.validating.iter().flat_map(|all| all.webhooks.iter().flatten());
        let cut = self.mutating.iter().flat_map(|all| all.webhooks.iter().flatten());
        let declared = declared.map(|entry| (entry.name.as_str(), &entry.client_config));
        declared.chain(cut.map(|entry| (entry.name.as_str(), &entry.client_config))).collect()
    }

    /// Whether there is an entry of one of these failure policies that is asked before volumes of this namespace are cut.
    pub(crate) fn cuts(&self, namespace: &str, how: &[&str]) -> bool {
        let entries = self.mutating.iter().flat_map(|all| all.webhooks.iter().flatten());
        let fails = |policy: &Option<String>| policy.as_deref().is_none_or(|policy| how.contains(&policy));
        let cuts = entries.filter(|entry| entry.name.starts_with("cut.") && fails(&entry.failure_policy));
        let mut conditions = cuts.flat_map(|entry| entry.match_conditions.iter().flatten());
        let quoted = format!("'{namespace}'");
        conditions.any(|condition| match condition.name.as_str() {
            webhooks::IN_THESE => condition.expression.contains(&quoted),
            webhooks::IN_OTHERS => !condition.expression.contains(&quoted),
            _ => false,
        })
    }
}

const STRICT: &[&str] = &["Fail"];

/// Whether kube-apiserver asks, asks the right ones, and knows them.
pub(super) fn trusted(home: &str, found: &Configurations, secret: Option<&Secret>) -> Finding {
    let about = format!("of the webhook configurations {NAME}");
    let fix = format!(
        "whoever leads puts it right within seconds; if it stays so, see the log of {ACCOUNT}, and the rights above"
    );
    let missing = match (&found.validating, &found.mutating) {
        (None, _) => Some("ValidatingWebhookConfiguration"),
        (_, None) => Some("MutatingWebhookConfiguration"),
        _ => None,
    };
    if let Some(missing) = missing {
        let fix = "apply deploy/webhooks/configuration.yaml, or the release again: it is installed, and whoever leads fills it in";
        let message = format!("{missing} {NAME} is not there: nobody is asked before a snapshot is cut");
        return Finding::fail("gates", message, fix);
    }
    let entries = found.entries();
    if entries.is_empty() {
        let message = format!("all {about} are empty: nobody is asked before a snapshot is cut");
        return Finding::fail("gates", message, fix);
    }
    let elsewhere = entries.iter().find(|(_, to)| {
        let service = to.service.as_ref();
        service.is_none_or(|service| service.namespace != home || service.name != NAME)
    });
    if let Some((entry, _)) = elsewhere {
        let message = format!("{entry} {about} does not lead to Service {home}/{NAME}");
        return Finding::fail("gates", message, format!("{fix}; there is one installation in a cluster"));
    }
    let Some(authority) = secret.and_then(|secret| text(secret, "ca.crt")) else {
        let message = format!("whether the entries {about} trust the right one is not known");
        return Finding::warn("gates", message, fix);
    };
    let bundle = |to: &WebhookClientConfig| {
        let bundle = to.ca_bundle.as_ref().map(|bundle| bundle.0.clone()).unwrap_or_default();
        String::from_utf8_lossy(&bundle).trim() == authority.trim()
    };
    match entries.iter().find(|(_, to)| !bundle(to)) {
        Some((entry, _)) => {
            let message = format!(
                "caBundle of {entry} is not ca.crt of Secret {home}/{SERVING}: kube-apiserver may not trust it"
            );
            Finding::fail("gates", message, fix)
        }
        None => {
            Finding::pass("gates", format!("kube-apiserver asks before a snapshot is cut ({} entries)", entries.len()))
        }
    }
}

/// Whether snapshots are shown of all namespaces that have Databases, when they are declared and before they are cut.
pub(super) fn shown(found: &Configurations, with_databases: &BTreeSet<String>, home: &str) -> Finding {
    let wanted: BTreeSet<&String> =
        with_databases.iter().filter(|name| !left_alone(home).contains(&name.as_str())).collect();
    if wanted.is_empty() {
        return Finding::pass("shown", "no namespace has a Database yet: about snapshots nobody is asked");
    }
    let of_declared = |entry: &&ValidatingWebhook| entry.name.starts_with("preflight.");
    let these: BTreeSet<String> = values(found, "In", of_declared).into_iter().flatten().collect();
    let all_but = values(found, "NotIn", of_declared).into_iter().next();
    let is_declared =
        |name: &str| these.contains(name) || all_but.as_ref().is_some_and(|but| !but.iter().any(|one| one == name));
    let is_shown = |name: &&str| is_declared(name) && found.cuts(name, &["Ignore", "Fail"]);
    let missing: Vec<&str> = wanted.iter().map(|name| name.as_str()).filter(|name| !is_shown(name)).collect();
    match missing.as_slice() {
        [] => Finding::pass("shown", format!("snapshots are shown of all {} namespaces with Databases", wanted.len())),
        missing => Finding::fail(
            "shown",
            format!("snapshots of {} are cut without asking: kube-apiserver was not told of it", missing.join(", ")),
            format!(
                "whoever leads tells it within seconds; if it stays so, see the log of {ACCOUNT}, and the rights above"
            ),
        ),
    }
}

/// Namespaces that want nothing less: those that say so, and those that are asked about with `Fail`.
pub(super) fn required(found: &Configurations, labelled: &BTreeSet<String>, home: &str) -> Finding {
    let is_left_alone = |name: &&String| left_alone(home).contains(&name.as_str());
    let wanted: Vec<String> = labelled.iter().filter(|name| !is_left_alone(name)).cloned().collect();
    let (wanted, left_out) = fitting(&wanted);
    let wanted: BTreeSet<String> = wanted.into_iter().collect();
    let known = in_fail_entries(found);
    // Those whose cuts are not refused are not held to it, whatever is refused when they are declared.
    let known: BTreeSet<String> = known.into_iter().filter(|name| found.cuts(name, STRICT)).collect();
    let list = |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let missing: Vec<&String> = wanted.difference(&known).collect();
    let too_many: Vec<&String> = known.difference(&wanted).collect();
    let fix = format!("whoever leads puts it right within seconds; if it stays so, see the log of {ACCOUNT}");
    if !missing.is_empty() {
        let message = format!("{} is labelled {}=Required, and not held to it yet", list(missing), gate::POLICY);
        return Finding::fail("required", message, fix);
    }
    if !too_many.is_empty() {
        let message = format!("{} is held to {}=Required, and not labelled so any more", list(too_many), gate::POLICY);
        return Finding::fail("required", message, fix);
    }
    if let Some(first) = left_out.first() {
        let message = format!(
            "there is no room for {} of the namespaces that are labelled {}=Required, from {first} on: where the webhooks cannot be \
             reached, their snapshots are taken all the same",
            left_out.len(),
            gate::POLICY
        );
        return Finding::warn("required", message, "label fewer namespaces, or give them shorter names");
    }
    let ignored: Vec<&String> = labelled.iter().filter(is_left_alone).collect();
    if !ignored.is_empty() {
        let message = format!("{} is left alone, whatever its label {} says", list(ignored), gate::POLICY);
        return Finding::warn("required", message, "take the label off: nothing there may wait for Stillpoint");
    }
    match wanted.len() {
        0 => Finding::pass("required", format!("no namespace says {}=Required", gate::POLICY)),
        _ => Finding::pass(
            "required",
            format!("no snapshot that is not consistent is taken in {}", list(wanted.iter().collect())),
        ),
    }
}

fn in_fail_entries(found: &Configurations) -> BTreeSet<String> {
    let strict = |entry: &&ValidatingWebhook| entry.failure_policy.as_deref() == Some("Fail");
    values(found, "In", strict).into_iter().flatten().collect()
}

/// What the selectors of namespaces of such entries have beside this operator.
fn values(found: &Configurations, operator: &str, of: impl Fn(&&ValidatingWebhook) -> bool) -> Vec<Vec<String>> {
    let entries = found.validating.iter().flat_map(|all| all.webhooks.iter().flatten()).filter(of);
    let selectors = entries.filter_map(|entry| entry.namespace_selector.as_ref()?.match_expressions.as_ref());
    selectors.flatten().filter(|one| one.operator == operator).filter_map(|one| one.values.clone()).collect()
}

/// Worth knowing: of these drivers a database is held from the declaration of the cut on.
pub(super) fn drivers(found: &Configurations) -> Option<Finding> {
    let drivers =
        found.validating.as_ref()?.annotations().get(CONTENT_DRIVERS).filter(|drivers| !drivers.is_empty())?;
    let message =
        format!("held from when a content is made, for their snapshotters do not tell when they cut: {drivers}");
    Some(Finding::warn("drivers", message, "upgrade their csi-snapshotter: it marks a content right before it cuts"))
}

#[cfg(test)]
mod tests {
    use api::{
        CheckResult,
        install::webhooks::{Kind, Webhooks},
    };
    use k8s_openapi::ByteString;
    use serde_json::from_value;

    use super::*;

    fn configurations(required: &[&str], bundle: &str) -> Configurations {
        of_databases(required, None, bundle)
    }

    fn of_databases(required: &[&str], databases: Option<&[String]>, bundle: &str) -> Configurations {
        let required: Vec<String> = required.iter().map(|name| (*name).to_owned()).collect();
        let made = Webhooks {
            namespace: "home",
            ca_bundle: bundle,
            required: &required,
            databases,
            content_drivers: &[],
            injects: true,
        };
        Configurations {
            validating: from_value(made.configuration(Kind::Validating)).unwrap(),
            mutating: from_value(made.configuration(Kind::Mutating)).unwrap(),
        }
    }

    fn secret(of: &[(&str, &str)]) -> Secret {
        let data = of.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn kube_apiserver_asks_the_right_ones_and_knows_them() {
        let ours = secret(&[("ca.crt", "PEM\n")]);
        let full = || configurations(&[], "PEM");
        let empty = Configurations {
            validating: from_value(Kind::Validating.stub()).unwrap(),
            mutating: from_value(Kind::Mutating.stub()).unwrap(),
        };
        let elsewhere = Configurations { mutating: configurations(&[], "OLD").mutating, ..full() };
        for (home, found, secret, result, says) in [
            ("home", Configurations::default(), Some(&ours), CheckResult::Fail, "ValidatingWebhookConfiguration"),
            ("home", Configurations { mutating: None, ..full() }, Some(&ours), CheckResult::Fail, "Mutating"),
            ("other", full(), Some(&ours), CheckResult::Fail, "does not lead"),
            ("home", empty, Some(&ours), CheckResult::Fail, "are empty"),
            ("home", configurations(&[], "OLD"), Some(&ours), CheckResult::Fail, "caBundle of"),
            ("home", elsewhere, Some(&ours), CheckResult::Fail, "caBundle of cut."),
            ("home", full(), None, CheckResult::Warn, "not known"),
            ("home", configurations(&["shop"], "PEM"), Some(&ours), CheckResult::Pass, "7 entries"),
        ] {
            let finding = trusted(home, &found, secret);
            assert!(finding.result == result && finding.message.contains(says), "{finding:?}");
        }
    }

    #[test]
    fn who_wants_nothing_less_is_known_and_nobody_else() {
        let labelled = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        for (known, names, result, says) in [
            (&[][..], &[][..], CheckResult::Pass, "no namespace"),
            (&["shop"], &["shop"], CheckResult::Pass, "in shop"),
            (&[], &["shop"], CheckResult::Fail, "shop is labelled"),
            (&["shop"], &[], CheckResult::Fail, "shop is held to"),
            (&[], &["kube-system", "home"], CheckResult::Warn, "home, kube-system is left alone"),
        ] {
            let finding = required(&configurations(known, "PEM"), &labelled(names), "home");
            assert!(finding.result == result && finding.message.contains(says), "{finding:?}");
        }
    }

    #[test]
    fn who_has_a_database_and_is_not_shown_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let shop = names(&["shop"]);
        for (known, databases, result, says) in [
            (None, &[][..], CheckResult::Pass, "no namespace"),
            (None, &["shop", "home"], CheckResult::Pass, "all 1"),
            (Some(&shop[..]), &["shop", "bank"], CheckResult::Pass, "all 2"),
            (Some(&shop), &["shop", "stock", "till", "kube-system"], CheckResult::Fail, "of stock, till are cut"),
            (Some(&[]), &["shop"], CheckResult::Fail, "of shop are cut"),
        ] {
            let databases: BTreeSet<String> = names(databases).into_iter().collect();
            let finding = shown(&of_databases(&["bank"], known, "PEM"), &databases, "home");
            assert!(finding.result == result && finding.message.contains(says), "{finding:?}");
        }
        // Nobody is asked before the cut: whoever took that entry out is not the leader.
        let mut half = of_databases(&[], Some(&shop), "PEM");
        half.mutating = from_value(Kind::Mutating.stub()).unwrap();
        let finding = shown(&half, &["shop".to_owned()].into(), "home");
        assert!(finding.result == CheckResult::Fail && finding.message.contains("of shop are cut"), "{finding:?}");
    }

    #[test]
    fn who_has_no_room_in_it_is_told() {
        let many: Vec<String> = (0..2000).map(|at| format!("{at:0>63}")).collect();
        let known: Vec<&str> = many.iter().map(String::as_str).collect();
        let finding = required(&configurations(&known, "PEM"), &many.iter().cloned().collect(), "home");
        let (_, left_out) = fitting(&many);
        assert!(finding.result == CheckResult::Warn && finding.message.contains(&left_out[0]), "{finding:?}");
    }

    #[test]
    fn drivers_that_do_not_tell_are_named() {
        let mut marked = configurations(&[], "PEM");
        assert_eq!(drivers(&marked), None);
        marked
            .validating
            .as_mut()
            .unwrap()
            .annotations_mut()
            .insert(CONTENT_DRIVERS.to_owned(), "late.csi.example".to_owned());
        assert!(drivers(&marked).is_some_and(|finding| finding.message.contains("late.csi.example")));
    }
}
