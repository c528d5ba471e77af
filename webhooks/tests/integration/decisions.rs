//! What a review needs, for each condition that the configuration names, and for what is not in its way.

use api::gate::{Gate, GateRequest, Group};
use serde_json::{Value, json};
use webhooks::{
    decide::{Door, decide},
    decision::Decision,
    ours::Ours,
};

use crate::reviews::{
    BEING_CREATED, GROUP_BEING_CREATED, content_create, cut, database, database_update, freeze, group_cut,
    group_preflight, preflight, request, with,
};

const OUR_USER: &str = "system:serviceaccount:stillpoint:stillpoint-apiserver";

fn decided(path: &str, review: &Value) -> Decision {
    decide(Door::of(path).unwrap(), &request(review), &Ours::in_namespace("stillpoint"), None)
}

fn asked(path: &str, review: &Value) -> GateRequest {
    match decided(path, review) {
        Decision::Ask(request) => *request,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn a_cut_that_begins_is_asked_about_with_all_that_names_it() {
    insta::assert_json_snapshot!(asked("/gates/content", &cut()), @r#"
    {
      "gate": "Cut",
      "object": {
        "group": "Single",
        "name": "snapcontent-vs-1",
        "uid": "vsc-1"
      },
      "snapshot": {
        "namespace": "shop",
        "name": "nightly",
        "uid": "vs-1"
      },
      "driver": "csi.example",
      "class": "fast",
      "volumeHandles": [
        "vol-1"
      ],
      "user": "system:serviceaccount:csi:snapshotter",
      "dryRun": false,
      "required": false,
      "deadlineMilliseconds": 0
    }
    "#);
}

#[test]
fn a_snapshot_that_is_declared_is_asked_about_with_what_it_will_be_of() {
    insta::assert_json_snapshot!(asked("/required/snapshot", &preflight()), @r#"
    {
      "gate": "Preflight",
      "object": {
        "group": "Single",
        "namespace": "shop",
        "name": "velero-data-x7k2p",
        "uid": "vs-1"
      },
      "class": "fast",
      "claims": [
        "data"
      ],
      "user": "system:serviceaccount:csi:snapshotter",
      "dryRun": false,
      "required": true,
      "deadlineMilliseconds": 0
    }
    "#);
}

#[test]
fn groups_are_asked_about_once_for_all_of_their_volumes() {
    let group = asked("/gates/content", &group_cut());
    assert_eq!(
        (group.object.group, group.volume_handles),
        (Group::Group, vec!["vol-1".to_owned(), "vol-2".to_owned()])
    );
    let group = asked("/gates/snapshot", &group_preflight());
    assert_eq!(group.selector, Some(json!({"matchLabels": {"app": "orders"}})));
    assert_eq!(group.class.as_deref(), Some("fast"));
}

#[test]
fn a_content_that_is_made_is_asked_about_at_its_own_door_only() {
    assert_eq!(asked("/gates/content-create", &content_create()).gate, Gate::Content);
    assert_eq!(decided("/gates/content", &content_create()), Decision::Allow("another operation"));
    assert_eq!(decided("/gates/content-create", &cut()), Decision::Allow("another operation"));
}

#[test]
fn what_a_dry_run_asks_says_so() {
    for (path, review) in [("/gates/content", cut()), ("/gates/snapshot", preflight())] {
        assert!(!asked(path, &review).dry_run);
        assert!(asked(path, &with(review, "/request/dryRun", true.into())).dry_run);
    }
}

/// Each condition, and why it spares; that the same review is asked about without it, the tests above say.
#[test]
fn whatever_a_condition_would_have_kept_away_is_kept_away_here_too() {
    let object = |pointer: &str| format!("/request/object{pointer}");
    let annotation = |key: &str| object(&format!("/metadata/annotations/{}", key.replace('/', "~1")));
    let old = |key: &str| format!("/request/oldObject/metadata/annotations/{}", key.replace('/', "~1"));
    let member = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle";
    let cases: Vec<(&str, Value, &str)> = vec![
        // The mark is not added by this update: it was there, or it goes, or it is another's.
        ("/gates/content", with(cut(), &old(BEING_CREATED), "yes".into()), "no cut begins"),
        ("/gates/content", with(cut(), &annotation(BEING_CREATED), Value::Null), "no cut begins"),
        ("/gates/content", with(group_cut(), &old(GROUP_BEING_CREATED), "yes".into()), "no cut begins"),
        (
            "/gates/content",
            with(cut(), &object("/metadata/annotations"), json!({GROUP_BEING_CREATED: "yes"})),
            "no cut begins",
        ),
        // Not dynamic.
        (
            "/gates/content",
            with(cut(), &object("/spec/source"), json!({"snapshotHandle": "s"})),
            "made from a copy that is there",
        ),
        (
            "/gates/content",
            with(group_cut(), &object("/spec/source"), json!({"volumeHandles": []})),
            "made from a copy that is there",
        ),
        (
            "/gates/content-create",
            with(content_create(), &object("/spec/source"), json!({"snapshotHandle": "s"})),
            "made from a copy that is there",
        ),
        (
            "/gates/snapshot",
            with(preflight(), &object("/spec/source"), json!({"volumeSnapshotContentName": "c"})),
            "made from a copy that is there",
        ),
        (
            "/gates/snapshot",
            with(group_preflight(), &object("/spec/source"), json!({"volumeGroupSnapshotContentName": "c"})),
            "made from a copy that is there",
        ),
        // The driver is only asked how far the upload is.
        ("/gates/content", with(cut(), &object("/status/snapshotHandle"), "s".into()), "cut before"),
        ("/gates/content", with(group_cut(), &object("/status/volumeGroupSnapshotHandle"), "s".into()), "cut before"),
        // Cut with its group.
        ("/gates/content", with(cut(), &annotation(member), "g".into()), "cut with its group"),
        ("/gates/content-create", with(content_create(), &annotation(member), "g".into()), "cut with its group"),
        (
            "/gates/snapshot",
            with(preflight(), &object("/metadata/ownerReferences"), json!([{"kind": "VolumeGroupSnapshot"}])),
            "cut with its group",
        ),
        // Ours.
        ("/gates/content", with(cut(), "/request/userInfo/username", OUR_USER.into()), "our own request"),
        ("/gates/snapshot", with(preflight(), "/request/userInfo/username", OUR_USER.into()), "our own request"),
        // Skipped.
        ("/gates/content", with(cut(), &annotation("stillpoint.dev/quiesce"), "skip".into()), "skipped by annotation"),
        (
            "/gates/snapshot",
            with(preflight(), &annotation("stillpoint.dev/quiesce"), "skip".into()),
            "skipped by annotation",
        ),
        // Namespaces.
        (
            "/gates/content",
            with(cut(), &object("/spec/volumeSnapshotRef/namespace"), "kube-system".into()),
            "a namespace that is left alone",
        ),
        (
            "/gates/content",
            with(group_cut(), &object("/spec/volumeGroupSnapshotRef/namespace"), "stillpoint".into()),
            "a namespace that is left alone",
        ),
        (
            "/gates/snapshot",
            with(preflight(), "/request/namespace", "kube-system".into()),
            "a namespace that is left alone",
        ),
        (
            "/gates/snapshot",
            with(group_preflight(), "/request/namespace", "stillpoint".into()),
            "a namespace that is left alone",
        ),
        // Rules that are too wide.
        ("/gates/content", with(cut(), "/request/subResource", "status".into()), "another operation"),
        ("/gates/content", with(cut(), "/request/operation", "DELETE".into()), "another operation"),
        ("/gates/content", with(cut(), "/request/resource/resource", "pods".into()), "another resource"),
        ("/gates/content", with(cut(), "/request/resource/group", "example.org".into()), "another resource"),
        ("/gates/snapshot", content_create(), "another resource"),
    ];
    for (at, (path, review, why)) in cases.iter().enumerate() {
        assert_eq!(decided(path, review), Decision::Allow(why), "case {at}");
        assert_eq!(
            decided(&path.replace("/gates/", "/required/"), review),
            Decision::Allow(why),
            "case {at}, required"
        );
    }
}

#[test]
fn another_word_than_skip_skips_nothing_and_another_tools_snapshot_is_asked_about() {
    let at = "/request/object/metadata/annotations/stillpoint.dev~1quiesce";
    assert_eq!(asked("/gates/snapshot", &with(preflight(), at, "no".into())).object.name, "velero-data-x7k2p");
    let owned = with(preflight(), "/request/object/metadata/ownerReferences", json!([{"kind": "PhysicalBackup"}]));
    assert_eq!(asked("/gates/snapshot", &owned).object.name, "velero-data-x7k2p");
}

#[test]
fn what_is_beyond_a_bound_is_not_asked_about_as_if_it_were_less() {
    let handles = |handles: Value| with(group_cut(), "/request/object/spec/source/volumeHandles", handles);
    for (review, field) in [
        (handles(vec!["v"; 300].into()), "volumeHandles"),
        (handles(json!(["v", 7])), "volumeHandles"),
        (with(cut(), "/request/object/metadata/uid", Value::Null), "object.uid"),
        (with(preflight(), "/request/object/spec/source/persistentVolumeClaimName", "c".repeat(300).into()), "claims"),
    ] {
        let path = if field == "claims" { "/gates/snapshot" } else { "/gates/content" };
        match decided(path, &review) {
            Decision::Unaskable(why) => assert!(why.starts_with(field), "{why}"),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn our_own_kinds_are_judged_as_everywhere_else() {
    let right = json!({"engine": "PostgreSQL", "endpoint": {"host": "db"}});
    let wrong = json!({"engine": "PostgreSQL", "endpoint": {"host": "postgres://db"}});
    assert_eq!(decided("/validate", &database(right.clone())), Decision::Allow("valid"));
    let ours = with(database(wrong.clone()), "/request/userInfo/username", OUR_USER.into());
    assert_eq!(decided("/validate", &ours), Decision::Allow("our own request"));
    let answered = |review: &Value| match decided("/validate", review) {
        Decision::Answer(answer) => answer.response("u"),
        other => panic!("{other:?}"),
    };
    let denied = answered(&database(wrong.clone()));
    insta::assert_json_snapshot!(denied["status"], @r#"
    {
      "apiVersion": "v1",
      "code": 422,
      "details": {
        "causes": [
          {
            "field": "spec.endpoint.host",
            "message": "Invalid value: must be a host name or an address, without scheme or port",
            "reason": "FieldValueInvalid"
          }
        ],
        "group": "stillpoint.dev",
        "kind": "Database",
        "name": "orders"
      },
      "kind": "Status",
      "message": "Database.stillpoint.dev \"orders\" is invalid: spec.endpoint.host: Invalid value: must be a host name or an address, without scheme or port",
      "metadata": {},
      "reason": "Invalid",
      "status": "Failure"
    }
    "#);
    assert_eq!(answered(&freeze(json!({"targets": []})))["status"]["details"]["causes"][0]["field"], "spec.targets");
    let other_engine = json!({"engine": "MariaDB", "endpoint": {"host": "db"}});
    let changed = answered(&database_update(other_engine, right.clone()));
    assert_eq!(changed["status"]["details"]["causes"][0]["field"], "spec.engine");
    // What was stored once may be labelled, and let go.
    let kept = database_update(wrong.clone(), wrong.clone());
    assert_eq!(decided("/validate", &kept), Decision::Allow("nothing that is ours changes"));
    let going = with(database_update(wrong, right), "/request/object/metadata/deletionTimestamp", "2026-09-01".into());
    assert_eq!(decided("/validate", &going), Decision::Allow("being deleted"));
    // What a schema lets pass and no type holds: nobody of ours could read it.
    let unread = answered(&database(json!({"engine": "Oracle", "endpoint": {"host": "db"}})));
    assert_eq!(
        (&unread["allowed"], &unread["status"]["details"]["causes"][0]["field"]),
        (&json!(false), &json!("spec.engine")),
        "{unread}"
    );
    let env = json!({"databases": ["orders"], "repository": "r", "runner": {"env": [{"name": "P", "value": 8080}]}});
    let snapshot = with(database(env), "/request/resource/resource", "snapshots".into());
    let said = answered(&snapshot)["status"]["message"].to_string();
    assert!(said.contains("spec.runner.env[0].value") && said.contains("expected a string"), "{said}");
}

/// The one table of what is right and wrong, judged at this door.
#[test]
fn the_webhook_says_what_the_table_of_cases_says() {
    for case in api::cases::all() {
        let resource = match case.kind {
            "Repository" => "repositories".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        let review = match &case.old {
            None => database(case.spec.clone()),
            Some(old) => database_update(case.spec.clone(), old.clone()),
        };
        let review = with(review, "/request/resource/resource", resource.into());
        let right = match decided("/validate", &review) {
            Decision::Allow(_) => true,
            Decision::Answer(answer) => answer.is_allowed(),
            other => panic!("{}: {other:?}", case.name),
        };
        assert_eq!(right, case.verdict == api::cases::Verdict::Right, "{}: {}", case.kind, case.name);
    }
}
