//! Pods in, patches out: `tests/pods/` has the Pods, each beside what becomes of it. `STILLPOINT_WRITE=1` writes the latter anew; look
//! at the difference. And what has to be true of every one of them is looked at by code (`kept.rs`), with a control for each.

mod kept;
mod settings;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use api::inject::Installation;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use webhooks::{
    answer::Answer,
    decide::{Door, decide},
    decision::Decision,
    ours::{Agent, Ours},
};

use crate::reviews::{pod_create, request};

pub(crate) const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

pub(crate) fn agent() -> Agent {
    Agent {
        image: Some("registry.example/stillpoint-agent:1".to_owned()),
        apiserver: Some("stillpoint-agents.stillpoint.svc:8444".to_owned()),
    }
}

fn ours() -> Ours {
    Ours::in_namespace("stillpoint").with_agent(agent())
}

/// A Pod, the door that it comes by, and what is written down of it.
struct Case {
    name: String,
    door: Door,
    pod: Value,
    golden: PathBuf,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods");
    let mut cases = Vec::new();
    for (folder, path) in [("label", "/inject"), ("namespace", "/inject/namespace")] {
        let mut files: Vec<PathBuf> =
            fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
            let pod = serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap();
            let name = format!("{folder}/{}", file.file_stem().unwrap().to_string_lossy());
            cases.push(Case { name, door: Door::of(path).unwrap(), pod, golden: file.with_extension("json") });
        }
    }
    cases
}

/// What became of a Pod.
#[derive(Debug)]
struct Done {
    verdict: &'static str,
    why: String,
    answer: Answer,
    after: Value,
}

fn done(pod: &Value, door: Door) -> Done {
    done_by(pod, door, &ours(), Some(CA))
}

fn done_by(pod: &Value, door: Door, ours: &Ours, ca: Option<&str>) -> Done {
    let (verdict, why, answer) = match decide(door, &request(&pod_create(pod.clone())), ours, ca) {
        Decision::Allow(why) => ("left alone", why.to_owned(), Answer::allowed()),
        Decision::Spare(why) => ("left alone", why, Answer::allowed()),
        Decision::Skipped(answer) => ("skipped", String::new(), answer),
        Decision::Injected(answer) => ("injected", String::new(), answer),
        other => panic!("{other:?}"),
    };
    let mut after = pod.clone();
    // As kube-apiserver reads it.
    if let Some(patch) = answer.response("u")["patch"].as_str() {
        let patch: json_patch::Patch = serde_json::from_slice(&BASE64_STANDARD.decode(patch).unwrap()).unwrap();
        json_patch::patch(&mut after, &patch).unwrap();
    }
    let why = if why.is_empty() {
        after["metadata"]["annotations"]["stillpoint.dev/inject-message"].clone()
    } else {
        why.into()
    };
    Done { verdict, why: why.as_str().unwrap_or_default().to_owned(), answer, after }
}

fn written(done: &Done) -> Value {
    let patch = done.answer.patch.clone().unwrap_or_default();
    json!({"verdict": done.verdict, "why": done.why, "warnings": done.answer.warnings, "patch": patch})
}

fn plain() -> Value {
    cases().into_iter().find(|case| case.name == "label/plain-postgresql").unwrap().pod
}

#[test]
fn every_pod_becomes_what_is_written_down() {
    for Case { name, door, pod, golden } in cases() {
        let written = written(&done(&pod, door));
        if env::var_os("STILLPOINT_WRITE").is_some() {
            fs::write(&golden, format!("{}\n", serde_json::to_string_pretty(&written).unwrap())).unwrap();
        }
        let right: Value = serde_json::from_str(&fs::read_to_string(&golden).unwrap_or_default()).unwrap_or_default();
        assert_eq!(written, right, "{name}: STILLPOINT_WRITE=1 cargo test -p webhooks writes it anew");
    }
}

/// And a word that is not there any more is not kept.
#[test]
fn nothing_is_written_down_of_a_pod_that_is_not_there() {
    for case in cases() {
        let beside: Vec<String> = fs::read_dir(case.golden.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let is_alone = |name: &&String| {
            let pod = name.strip_suffix(".json").map(|stem| format!("{stem}.yaml"));
            pod.is_some_and(|pod| !beside.contains(&pod))
        };
        assert_eq!(beside.iter().filter(is_alone).collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn there_are_pods_of_every_verdict_and_none_is_ever_denied() {
    let all: Vec<Done> = cases().iter().map(|case| done(&case.pod, case.door)).collect();
    assert!(all.len() >= 30);
    for verdict in ["injected", "skipped", "left alone"] {
        assert!(all.iter().filter(|done| done.verdict == verdict).count() >= 5, "{verdict}");
    }
    for done in all {
        assert!(done.answer.is_allowed());
        match done.verdict {
            "left alone" => assert_eq!(done.answer, Answer::allowed()),
            "skipped" => assert!(!done.answer.warnings.is_empty()),
            _ => assert!(done.answer.patch.is_some()),
        }
    }
}

#[test]
fn what_is_done_twice_is_done_once() {
    for Case { name, door, pod, .. } in cases() {
        let once = done(&pod, door);
        let twice = done(&once.after, door);
        assert_eq!(twice.after, once.after, "{name}");
        assert_eq!(twice.answer.patch, None, "{name}");
        let verdict = if once.verdict == "injected" { "left alone" } else { once.verdict };
        assert_eq!(twice.verdict, verdict, "{name}");
    }
}

/// As kube-apiserver has it at the second look: others have added containers, and LimitRanger has looked at the agent.
#[test]
fn what_others_have_changed_of_the_agent_is_theirs() {
    for Case { name, door, pod, .. } in
        cases().into_iter().filter(|case| done(&case.pod, case.door).verdict == "injected")
    {
        let mut after = done(&pod, door).after;
        let containers = after.pointer_mut(kept::place(&after)).and_then(Value::as_array_mut).unwrap();
        containers.last_mut().unwrap()["resources"]["limits"]["cpu"] = "7".into();
        containers.push(json!({"name": "istio-proxy", "image": "istio/proxyv2:1", "restartPolicy": "Always"}));
        assert_eq!(done(&after, door).after, after, "{name}");
    }
}

/// A hash is of what was decided: of the Pod that came of it, too, and of no authority, which is exchanged now and then.
#[test]
fn a_hash_tells_whether_it_would_be_decided_otherwise() {
    let agent = agent();
    let here = Installation {
        namespace: "stillpoint",
        image: agent.image.as_deref(),
        apiserver: agent.apiserver.as_deref(),
        ca: Some(CA),
    };
    let other_ca = CA.replace("MIIB", "MIIC");
    for Case { name, door, pod, .. } in cases() {
        let Door::Pods(asked) = door else { panic!("{name}") };
        let hash = |pod: &Value, installation| api::inject::hash(pod, "shop", asked, installation);
        let done = done(&pod, door);
        if done.verdict == "injected" {
            let mut running = done.after;
            running["status"] = json!({"phase": "Running"});
            let written = running["metadata"]["annotations"][api::inject::HASH].as_str().map(str::to_owned);
            assert!(written.is_some(), "{name}");
            assert_eq!(hash(&running, here), written, "{name}");
            assert_eq!(hash(&running, Installation { ca: Some(&other_ca), ..here }), written, "{name}");
            assert_ne!(hash(&running, Installation { apiserver: Some("b:1"), ..here }), written, "{name}");
            running["metadata"]["annotations"]["stillpoint.dev/credentials-secret"] = "another".into();
            assert_ne!(hash(&running, here), written, "{name}");
        }
    }
}

#[test]
fn without_an_installation_that_says_how_a_pod_is_skipped_and_told_why() {
    let pod = &plain();
    let door = Door::of("/inject").unwrap();
    let without = |agent: Agent, ca: Option<&str>| {
        let done = done_by(pod, door, &Ours::in_namespace("stillpoint").with_agent(agent), ca);
        assert_eq!(done.verdict, "skipped");
        done.why
    };
    assert!(without(Agent { image: None, ..agent() }, Some(CA)).contains("--agent-image"));
    assert!(without(Agent { apiserver: None, ..agent() }, Some(CA)).contains("--agent-apiserver"));
    assert!(without(agent(), None).contains("trust"));
    let key = "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n";
    for no_bundle in ["", "PEM", key, &format!("{CA}{}", "x".repeat(70_000)), &format!("{CA}$(HOME)")] {
        assert!(without(agent(), Some(no_bundle)).contains("no bundle"), "{no_bundle:.60}");
    }
}

#[test]
fn other_objects_and_operations_are_no_business_of_ours() {
    let pod = &plain();
    for (pointer, value) in [
        ("/request/operation", "UPDATE"),
        ("/request/subResource", "ephemeralcontainers"),
        ("/request/resource/resource", "podtemplates"),
        ("/request/resource/group", "example.org"),
    ] {
        let review = crate::reviews::with(pod_create(pod.clone()), pointer, value.into());
        let decided = decide(Door::of("/inject").unwrap(), &request(&review), &ours(), Some(CA));
        assert_eq!(decided, Decision::Allow("another resource or operation"), "{pointer}");
    }
}

/// The document explains messages that there are.
#[test]
fn what_the_document_explains_is_said() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/injection.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, table) = document.split_once("| `inject-message` | what to do |\n").unwrap();
    let explained: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).skip(1).collect();
    let pod = plain();
    let without = |agent, ca| {
        done_by(&pod, Door::of("/inject").unwrap(), &Ours::in_namespace("stillpoint").with_agent(agent), ca).why
    };
    let mut said: Vec<String> = cases().iter().map(|case| done(&case.pod, case.door).why).collect();
    said.push(without(Agent::default(), None));
    said.push(without(Agent { image: None, ..agent() }, Some(CA)));
    said.push(without(agent(), None));
    let messages: Vec<&str> = explained.iter().flat_map(|row| row.split(" | ").next().unwrap().split('`')).collect();
    let messages: Vec<&str> =
        messages.into_iter().filter(|text| text.trim_matches(['|', ',', ' ']).len() > 3).collect();
    assert!(messages.len() > 5, "{messages:?}");
    for message in messages {
        let parts: Vec<&str> = message.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
        assert!(said.iter().any(|said| parts.iter().all(|part| said.contains(part))), "nothing says {message:?}");
    }
}

/// The words of a message fit where they are shown.
#[test]
fn whatever_is_said_is_within_its_bounds_and_says_what_to_do() {
    for Case { name, door, pod, .. } in cases() {
        let done = done(&pod, door);
        assert!(done.why.len() <= api::inject::LONGEST_MESSAGE, "{name}");
        let response = done.answer.response("u");
        let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
        assert!(warnings.iter().all(|warning| warning.as_str().unwrap().len() <= 120), "{name}");
    }
}

/// A Pod that has all of the annotations that one may have gets its agent, and no word more.
#[test]
fn there_is_always_room_for_a_pod() {
    const MOST: usize = 256 * 1024;
    let mut pod = plain();
    for left in [0, 40, 100, 200, 400] {
        pod["metadata"]["annotations"] = json!({"big": "x".repeat(MOST - "big".len() - left)});
        let done = done(&pod, Door::of("/inject").unwrap());
        assert_eq!(done.verdict, "injected");
        let annotations = done.after["metadata"]["annotations"].as_object().unwrap();
        let total: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().unwrap().len()).sum();
        assert!(total <= MOST, "{left}: {total}");
        assert_eq!(annotations.contains_key(api::inject::STATUS), left >= 40);
    }
}
