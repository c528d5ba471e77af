//! What kube-apiserver was told of the webhooks: whom it asks, by what it knows them, and where it goes on without them.

use std::collections::BTreeSet;

use api::{
    gate,
    install::{
        ACCOUNT,
        webhooks::{CONTENT_DRIVERS, NAME, SERVING, fitting, left_alone},
    },
};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
    core::v1::Secret,
};
use kube::ResourceExt;

use super::{Finding, text};

/// Whether kube-apiserver asks, asks the right ones, and knows them.
pub(super) fn trusted(
    home: &str,
    configuration: Option<&ValidatingWebhookConfiguration>,
    secret: Option<&Secret>,
) -> Finding {
    let about = format!("ValidatingWebhookConfiguration {NAME}");
    let fix = format!(
        "whoever leads puts it right within seconds; if it stays so, see the log of {ACCOUNT}, and the rights above"
    );
    let Some(configuration) = configuration else {
        let fix = "apply deploy/webhooks/configuration.yaml, or the release again: it is installed, and whoever leads fills it in";
        return Finding::fail("gates", format!("{about} is not there: nobody is asked before a snapshot is cut"), fix);
    };
    let entries = configuration.webhooks.as_deref().unwrap_or_default();
    if entries.is_empty() {
        return Finding::fail("gates", format!("{about} is empty: nobody is asked before a snapshot is cut"), fix);
    }
    let elsewhere = entries.iter().find(|entry| {
        let service = entry.client_config.service.as_ref();
        service.is_none_or(|service| service.namespace != home || service.name != NAME)
    });
    if elsewhere.is_some() {
        let message = format!("{about} does not lead to Service {home}/{NAME}");
        return Finding::fail("gates", message, format!("{fix}; there is one installation in a cluster"));
    }
    let Some(authority) = secret.and_then(|secret| text(secret, "ca.crt")) else {
        return Finding::warn("gates", format!("{about} is there; whether it trusts the right one is not known"), fix);
    };
    let bundle = |entry: &ValidatingWebhook| {
        let bundle = entry.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.clone()).unwrap_or_default();
        String::from_utf8_lossy(&bundle).trim() == authority.trim()
    };
    match entries.iter().find(|entry| !bundle(entry)) {
        Some(entry) => {
            let message = format!(
                "caBundle of {} is not ca.crt of Secret {home}/{SERVING}: kube-apiserver may not trust it",
                entry.name
            );
            Finding::fail("gates", message, fix)
        }
        None => {
            Finding::pass("gates", format!("kube-apiserver asks before a snapshot is cut ({} entries)", entries.len()))
        }
    }
}

/// Whether snapshots are shown of all namespaces that have Databases.
pub(super) fn shown(
    configuration: &ValidatingWebhookConfiguration,
    with_databases: &BTreeSet<String>,
    home: &str,
) -> Finding {
    let wanted: BTreeSet<&String> =
        with_databases.iter().filter(|name| !left_alone(home).contains(&name.as_str())).collect();
    let of_declared = |entry: &&ValidatingWebhook| entry.name.starts_with("preflight.");
    let these: BTreeSet<String> = values(configuration, "In", of_declared).into_iter().flatten().collect();
    let all_but = values(configuration, "NotIn", of_declared).into_iter().next();
    let is_shown =
        |name: &str| these.contains(name) || all_but.as_ref().is_some_and(|but| !but.iter().any(|one| one == name));
    let missing: Vec<&str> = wanted.iter().map(|name| name.as_str()).filter(|name| !is_shown(name)).collect();
    if wanted.is_empty() {
        return Finding::pass("shown", "no namespace has a Database yet: about snapshots nobody is asked");
    }
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
pub(super) fn required(
    configuration: &ValidatingWebhookConfiguration,
    labelled: &BTreeSet<String>,
    home: &str,
) -> Finding {
    let is_left_alone = |name: &&String| left_alone(home).contains(&name.as_str());
    let wanted: Vec<String> = labelled.iter().filter(|name| !is_left_alone(name)).cloned().collect();
    let (wanted, left_out) = fitting(&wanted);
    let wanted: BTreeSet<String> = wanted.into_iter().collect();
    let known = in_fail_entries(configuration);
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

fn in_fail_entries(configuration: &ValidatingWebhookConfiguration) -> BTreeSet<String> {
    let strict = |entry: &&ValidatingWebhook| entry.failure_policy.as_deref() == Some("Fail");
    values(configuration, "In", strict).into_iter().flatten().collect()
}

/// What the selectors of namespaces of such entries have beside this operator.
fn values(
    configuration: &ValidatingWebhookConfiguration,
    operator: &str,
    of: impl Fn(&&ValidatingWebhook) -> bool,
) -> Vec<Vec<String>> {
    let entries = configuration.webhooks.iter().flatten().filter(of);
    let selectors = entries.filter_map(|entry| entry.namespace_selector.as_ref()?.match_expressions.as_ref());
    selectors.flatten().filter(|one| one.operator == operator).filter_map(|one| one.values.clone()).collect()
}

/// Worth knowing: of these drivers a database is held from the declaration of the cut on.
pub(super) fn drivers(configuration: &ValidatingWebhookConfiguration) -> Option<Finding> {
    let drivers = configuration.annotations().get(CONTENT_DRIVERS).filter(|drivers| !drivers.is_empty())?;
    let message =
        format!("held from when a content is made, for their snapshotters do not tell when they cut: {drivers}");
    Some(Finding::warn("drivers", message, "upgrade their csi-snapshotter: it marks a content right before it cuts"))
}

#[cfg(test)]
mod tests {
    use api::{
        CheckResult,
        install::webhooks::{Webhooks, stub},
    };
    use k8s_openapi::ByteString;
    use serde_json::from_value;

    use super::*;

    fn configuration(required: &[&str], bundle: &str) -> ValidatingWebhookConfiguration {
        of_databases(required, None, bundle)
    }

    fn of_databases(required: &[&str], databases: Option<&[String]>, bundle: &str) -> ValidatingWebhookConfiguration {
        let required: Vec<String> = required.iter().map(|name| (*name).to_owned()).collect();
        let made =
            Webhooks { namespace: "home", ca_bundle: bundle, required: &required, databases, content_drivers: &[] };
        from_value(made.configuration()).unwrap()
    }

    fn secret(of: &[(&str, &str)]) -> Secret {
        let data = of.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn kube_apiserver_asks_the_right_ones_and_knows_them() {
        let ours = secret(&[("ca.crt", "PEM\n")]);
        for (home, configuration, secret, result, says) in [
            ("home", None, Some(&ours), CheckResult::Fail, "is not there"),
            ("other", Some(configuration(&[], "PEM")), Some(&ours), CheckResult::Fail, "does not lead"),
            ("home", Some(from_value(stub()).unwrap()), Some(&ours), CheckResult::Fail, "is empty"),
            ("home", Some(configuration(&[], "OLD")), Some(&ours), CheckResult::Fail, "caBundle of"),
            ("home", Some(configuration(&[], "PEM")), None, CheckResult::Warn, "not known"),
            ("home", Some(configuration(&["shop"], "PEM")), Some(&ours), CheckResult::Pass, "5 entries"),
        ] {
            let finding = trusted(home, configuration.as_ref(), secret);
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
            let finding = required(&configuration(known, "PEM"), &labelled(names), "home");
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
    }

    #[test]
    fn who_has_no_room_in_it_is_told() {
        let many: Vec<String> = (0..2000).map(|at| format!("{at:0>63}")).collect();
        let known: Vec<&str> = many.iter().map(String::as_str).collect();
        let finding = required(&configuration(&known, "PEM"), &many.iter().cloned().collect(), "home");
        let (_, left_out) = fitting(&many);
        assert!(finding.result == CheckResult::Warn && finding.message.contains(&left_out[0]), "{finding:?}");
    }

    #[test]
    fn drivers_that_do_not_tell_are_named() {
        let mut marked = configuration(&[], "PEM");
        assert_eq!(drivers(&marked), None);
        marked.annotations_mut().insert(CONTENT_DRIVERS.to_owned(), "late.csi.example".to_owned());
        assert!(drivers(&marked).is_some_and(|finding| finding.message.contains("late.csi.example")));
    }
}
