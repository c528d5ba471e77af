//! The verbs on real databases, through the real server: semantics, deaths, refusals.

use std::time::{Duration, Instant};

use fixtures::{Fault, Load, Options, Proxy, Server, ServerKind};
use serde_json::json;
use tests::Stillpoint;

const BOTH: [ServerKind; 2] = [ServerKind::POSTGRESQL_15, ServerKind::MARIADB_10_11];

async fn bank(kind: ServerKind) -> (Stillpoint, Server) {
    let stillpoint = Stillpoint::start().await.unwrap();
    let server = Server::start(kind, Options::default()).await.unwrap();
    Load::prepare(&server).await.unwrap();
    stillpoint.register("bank", &server, json!({"acquireTimeoutSeconds": 2})).await.unwrap();
    (stillpoint, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uid_is_one_claim_from_beginning_to_end() {
    for kind in BOTH {
        let (stillpoint, _server) = bank(kind).await;
        let spec = json!({"uid": "one", "level": "Durable"});
        let first = stillpoint.quiesce("bank", spec.clone()).await.unwrap();
        assert_eq!(stillpoint.quiesce("bank", spec.clone()).await.unwrap()["frozenAt"], first["frozenAt"]);
        let late = stillpoint.quiesce("bank", json!({"uid": "two"})).await.unwrap();
        assert_eq!(late["freeze"], first["freeze"]);
        assert_ne!(late["frozenAt"], first["frozenAt"]);
        let conflict = stillpoint.quiesce("bank", json!({"uid": "three", "level": "WriteBlocked"})).await.unwrap_err();
        assert!(
            conflict.code == 409 && conflict.message.contains("one") && conflict.message.contains("until"),
            "{conflict}"
        );
        let left = stillpoint.unquiesce("bank", json!({"uid": "one"})).await.unwrap();
        assert_eq!(left["stillClaimedBy"][0]["uid"], "two");
        let ended = stillpoint.unquiesce("bank", json!({"uid": "two"})).await.unwrap();
        assert_eq!((&ended["phase"], &ended["proof"]["held"]), (&json!("Thawed"), &json!(true)));
        assert_eq!(stillpoint.unquiesce("bank", json!({"uid": "two"})).await.unwrap()["phase"], "Thawed");
        assert_eq!(stillpoint.quiesce("bank", spec).await.unwrap_err().code, 410);
        assert!(
            stillpoint.unquiesce("bank", json!({})).await.unwrap()["message"]
                .as_str()
                .unwrap()
                .contains("nothing to end")
        );
    }
}

/// Whoever does not wait is answered when the claim is written down, or refused: never with a Freeze that will not be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_wait_gets_a_freeze_that_is_there_or_is_refused() {
    let (stillpoint, _server) = bank(ServerKind::POSTGRESQL_15).await;
    let status = stillpoint.quiesce("bank", json!({"uid": "one", "wait": false, "level": "Durable"})).await.unwrap();
    let freeze = status["freeze"].as_str().unwrap();
    let path = format!("/apis/stillpoint.dev/v1alpha1/namespaces/default/freezes/{freeze}");
    assert_eq!(stillpoint.get(&path).await.unwrap()["metadata"]["name"], freeze, "at once");
    stillpoint.reaches(freeze, &["Frozen"], Duration::from_secs(10)).await.unwrap();
    let joined = stillpoint.quiesce("bank", json!({"uid": "two", "wait": false})).await.unwrap();
    assert_eq!(joined["freeze"], freeze);
    let refused = stillpoint.quiesce("bank", json!({"uid": "three", "wait": false, "level": "WriteBlocked"})).await;
    assert_eq!(refused.unwrap_err().code, 409);
    let verb = "/apis/live.stillpoint.dev/v1alpha1/namespaces/default/databases/bank/unquiesce?dryRun=All";
    let dry = stillpoint.post(verb, &json!({"spec": {"uid": "one"}})).await.unwrap();
    assert!(dry["status"]["message"].as_str().unwrap().contains("would end claim one"), "{dry}");
    assert_eq!(dry["status"]["stillClaimedBy"][0]["uid"], "two");
    for uid in ["one", "two"] {
        stillpoint.unquiesce("bank", json!({"uid": uid})).await.unwrap();
    }
    assert_eq!(stillpoint.finished(freeze, Duration::from_secs(5)).await.unwrap()["phase"], "Thawed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_leaves_the_database_writable_and_its_settings_as_they_were() {
    for kind in BOTH {
        let settings = if kind == ServerKind::MARIADB_10_11 {
            Options::default().set("innodb-flush-log-at-trx-commit", "2")
        } else {
            Options::default()
        };
        let mut stillpoint = Stillpoint::start().await.unwrap();
        let server = Server::start(kind, settings).await.unwrap();
        Load::prepare(&server).await.unwrap();
        stillpoint.register("bank", &server, json!({})).await.unwrap();
        let writers = Load::new(2).start(&server);
        let status = stillpoint.quiesce("bank", json!({"level": "WriteBlocked", "ttlSeconds": 3})).await.unwrap();
        let killed = Instant::now();
        stillpoint.kill9();
        let first = writers.next_acknowledgement(killed, Duration::from_secs(10)).await.expect("writable");
        assert!(first - killed < Duration::from_secs(4), "within the lease and a second: {:?}", first - killed);
        stillpoint.restart().await.unwrap();
        let freeze = status["freeze"].as_str().unwrap();
        assert_eq!(stillpoint.finished(freeze, Duration::from_secs(10)).await.unwrap()["phase"], "Lost");
        stillpoint.quiesce("bank", json!({"level": "WriteBlocked"})).await.unwrap();
        let ended = stillpoint.unquiesce("bank", json!({})).await.unwrap();
        assert_eq!(ended["proof"]["held"], true);
        if kind == ServerKind::MARIADB_10_11 {
            assert_eq!(server.scalar("", "SELECT @@global.innodb_flush_log_at_trx_commit").await.unwrap(), "2");
        }
        writers.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_network_loses_the_freeze_and_the_database_goes_on() {
    for kind in BOTH {
        let stillpoint = Stillpoint::start().await.unwrap();
        let server = Server::start(kind, Options::default()).await.unwrap();
        Load::prepare(&server).await.unwrap();
        let proxy = Proxy::to(server.port).await.unwrap();
        stillpoint.register_at("bank", kind.engine, proxy.port, json!({})).await.unwrap();
        let writers = Load::new(2).start(&server);
        let status = stillpoint.quiesce("bank", json!({"level": "WriteBlocked", "ttlSeconds": 3})).await.unwrap();
        proxy.set(Fault::Stall);
        let stalled = Instant::now();
        let first = writers.next_acknowledgement(stalled, Duration::from_secs(10)).await.expect("writable");
        assert!(first - stalled < Duration::from_secs(5), "{:?}", first - stalled);
        let freeze = status["freeze"].as_str().unwrap();
        let phase = stillpoint.finished(freeze, Duration::from_secs(15)).await.unwrap()["phase"].clone();
        assert!(phase == "Lost" || phase == "Expired", "{phase}");
        proxy.set(Fault::Cut);
        proxy.set(Fault::Pass);
        stillpoint.quiesce("bank", json!({"level": "WriteBlocked"})).await.unwrap();
        stillpoint.unquiesce("bank", json!({})).await.unwrap();
        writers.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocker_is_named_and_others_are_not_stalled_for_long() {
    let (stillpoint, server) = bank(ServerKind::POSTGRESQL_15).await;
    let mut open = server.postgres("bank", fixtures::USER, fixtures::PASSWORD).await.unwrap();
    sqlx::raw_sql("BEGIN; UPDATE a SET balance = balance WHERE id = 999").execute(&mut open).await.unwrap();
    let writers = Load::new(2).start(&server);
    let began = Instant::now();
    let refused = stillpoint.quiesce("bank", json!({"level": "WriteBlocked"})).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3), "acquireTimeout and a second: {:?}", began.elapsed());
    assert!(refused.code == 409 && refused.message.contains("idle in transaction, BEGIN"), "{refused}");
    assert!(writers.longest_stall(began) < Duration::from_secs(3), "{:?}", writers.longest_stall(began));
    writers.stop().await;

    stillpoint
        .register(
            "impatient",
            &server,
            json!({"blockers": {"policy": "KillAll", "olderThanSeconds": 0}, "acquireTimeoutSeconds": 2}),
        )
        .await
        .unwrap();
    let held = stillpoint.quiesce("impatient", json!({"level": "WriteBlocked"})).await.unwrap();
    assert!(held["targets"][0]["endedSessions"][0].as_str().unwrap().contains("admin"), "{held}");
    stillpoint.unquiesce("impatient", json!({})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_escapes_is_not_proved_away() {
    let (stillpoint, server) = bank(ServerKind::POSTGRESQL_15).await;
    stillpoint.quiesce("bank", json!({"level": "WriteBlocked"})).await.unwrap();
    // A table that is made while all others are locked is locked by nobody.
    server.execute("bank", "CREATE TABLE escaped (n int); INSERT INTO escaped VALUES (1)").await.unwrap();
    let ended = stillpoint.unquiesce("bank", json!({})).await.unwrap();
    assert_eq!(ended["proof"]["held"], false, "{ended}");
    assert!(ended["proof"]["reason"].as_str().unwrap().contains("CommitEscaped"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_freeze_holds_and_is_thawed_when_it_is_deleted() {
    let (stillpoint, _server) = bank(ServerKind::POSTGRESQL_15).await;
    let path = "/apis/stillpoint.dev/v1alpha1/namespaces/default/freezes";
    let freeze =
        json!({"metadata": {"name": "declared"}, "spec": {"targets": [{"database": "bank"}], "ttlSeconds": 30}});
    stillpoint.post(path, &freeze).await.unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while stillpoint.get(&format!("{path}/declared")).await.unwrap()["status"]["phase"] != "Frozen" {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let delete = http::Request::delete(format!("{path}/declared")).body(Vec::new()).unwrap();
    stillpoint.client.request::<serde_json::Value>(delete).await.unwrap();
    while stillpoint.get(&format!("{path}/declared")).await.is_ok() {
        assert!(Instant::now() < end, "the finalizer goes with the thaw");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let live = stillpoint.get("/apis/live.stillpoint.dev/v1alpha1/namespaces/default/databases/bank").await.unwrap();
    assert_eq!(live["status"]["state"], "Idle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_freeze_that_joined_another_ends_with_it() {
    let (stillpoint, server) = bank(ServerKind::POSTGRESQL_15).await;
    let path = "/apis/stillpoint.dev/v1alpha1/namespaces/default/freezes";
    stillpoint.quiesce("bank", json!({"uid": "first"})).await.unwrap();
    for (name, lose) in [("thawed", false), ("lost", true)] {
        let freeze = json!({"metadata": {"name": name}, "spec": {"targets": [{"database": "bank"}], "ttlSeconds": 30}});
        stillpoint.post(path, &freeze).await.unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        let joined = loop {
            let status = stillpoint.get(&format!("{path}/{name}")).await.unwrap()["status"].clone();
            if status["phase"] == "Frozen" {
                break status;
            }
            assert!(Instant::now() < end, "{status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(joined["message"].as_str().unwrap().contains("joined"), "{joined}");
        if lose {
            let sql =
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/%'";
            server.execute("postgres", sql).await.unwrap();
        } else {
            // The claim of the object is all that holds after the first has gone.
            stillpoint.unquiesce("bank", json!({"uid": "first"})).await.unwrap();
            stillpoint.unquiesce("bank", json!({"force": true})).await.unwrap();
        }
        let finished = stillpoint.finished(name, Duration::from_secs(10)).await.unwrap();
        assert_eq!(finished["phase"], if lose { "Lost" } else { "Thawed" }, "{finished}");
        stillpoint.quiesce("bank", json!({"uid": format!("after-{name}")})).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_told_to_stop_thaws_what_holds_and_leaves_no_task_behind() {
    let (mut stillpoint, server) = bank(ServerKind::POSTGRESQL_15).await;
    let status = stillpoint.quiesce("bank", json!({"level": "WriteBlocked", "ttlSeconds": 3})).await.unwrap();
    stillpoint.terminate().await.unwrap();
    server.execute("bank", "INSERT INTO ledger VALUES (99, 1)").await.unwrap();
    assert!(!stillpoint.log().unwrap().contains("did not end in time"), "{}", stillpoint.log().unwrap());
    stillpoint.restart().await.unwrap();
    let finished = stillpoint.finished(status["freeze"].as_str().unwrap(), Duration::from_secs(5)).await.unwrap();
    assert!(["Thawed", "Expired"].contains(&finished["phase"].as_str().unwrap()), "{finished}");
}
