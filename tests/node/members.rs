//! A StatefulSet of PostgreSQL, first of one member and then with a standby: each has an agent, a Database is made of them with nothing
//! else configured, and the one that is held is the one that is meant.

use anyhow::{Context, Result, ensure};
use cluster::{until, workload};
use fixtures::Engine;
use serde_json::{Value, json};

use crate::{
    agents::{account, injects, stateful_set},
    gates::world::World,
    installed::{SOON, psql, start, verb},
};

/// Its Service leads to all of it.
const NAME: &str = "orders";
const ACCOUNT: &str = "account";

/// Members are the Pods of it; whatever has the number 0 is the primary, and the others follow it.
fn postgresql() -> [Value; 2] {
    let [mut set, service] = stateful_set(workload::postgresql(NAME), ACCOUNT);
    let begin = format!(
        "case $HOSTNAME in {NAME}-0) ;; *) : >$PGDATA/standby.signal ;; esac
         exec start -c wal_keep_size=256MB -c primary_conninfo='host={NAME}-0.{NAME} user=postgres password={}'",
        workload::PASSWORD
    );
    set["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", begin]);
    [set, service]
}

#[tokio::test]
async fn of_several_members_the_one_that_is_meant_is_held_and_no_other() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    // Nobody but kubelets reads a Secret.
    world.kubectl(&["delete", "rolebinding", "credentials"]).await.unwrap();
    injects(&world).await.unwrap();
    for object in [account(ACCOUNT, Engine::PostgreSQL)].iter().chain(&postgresql()) {
        world.apply(object).await.unwrap();
    }
    world.kubectl(&["rollout", "status", "statefulset", NAME, "--timeout=120s"]).await.unwrap();
    members(&world, &[("orders-0", "Primary", "data-orders-0")]).await.unwrap();
    psql(&cluster, "orders-0", "CREATE TABLE lines AS SELECT generate_series(1, 1000) AS n").await.unwrap();

    // The standby begins as a copy of the primary, by a snapshot that was held for.
    world.snapshot("seed", "data-orders-0").await.unwrap();
    let said = world.worth("seed", "application").await.unwrap();
    held_at(&world, &said, "orders-0").await.unwrap();
    world.until_ready("volumesnapshot", "seed").await.unwrap();
    world.apply(&workload::claim("data-orders-1", Some("seed"))).await.unwrap();
    world.kubectl(&["scale", "statefulset", NAME, "--replicas=2"]).await.unwrap();
    world.kubectl(&["rollout", "status", "statefulset", NAME, "--timeout=120s"]).await.unwrap();
    let both = [("orders-0", "Primary", "data-orders-0"), ("orders-1", "Replica", "data-orders-1")];
    members(&world, &both).await.unwrap();
    psql(&cluster, "orders-0", "INSERT INTO lines SELECT generate_series(1001, 2000)").await.unwrap();
    until("the standby follows", SOON, || async {
        let lines = psql(&cluster, "orders-1", "SELECT count(*) FROM lines").await?;
        ensure!(lines == "2000", "{lines}");
        Ok(())
    })
    .await
    .unwrap();

    let held = verb(&cluster, NAME, "quiesce").await.unwrap();
    assert_eq!(held["phase"], "Frozen", "{held}");
    let ended = verb(&cluster, NAME, "unquiesce").await.unwrap();
    assert_eq!(
        (&ended["proof"]["held"], &ended["targets"][0]["member"]),
        (&json!(true), &json!("orders-0")),
        "{ended}"
    );
    world.snapshot("noon", "data-orders-0").await.unwrap();
    let said = world.worth("noon", "application").await.unwrap();
    held_at(&world, &said, "orders-0").await.unwrap();

    // Of the standby's volume the primary's hold would say nothing: it is not held instead.
    world.snapshot("standbys", "data-orders-1").await.unwrap();
    let said = world.worth("standbys", "crash").await.unwrap();
    let annotations = &said["annotations"];
    assert_eq!(annotations[api::gate::REASON], "NotFrozen", "{said}");
    let message = annotations[api::gate::MESSAGE].as_str().unwrap();
    assert!(message.contains("Replica") && message.contains("spec.freeze.target.role"), "{said}");

    // Of the standby its server can promise that its copy starts.
    let standby = json!({"spec": {"freeze": {"level": "Recoverable", "target": {"role": "Replica"}}}}).to_string();
    let patch = ["patch", "databases.stillpoint.dev", NAME, "--type=merge", "--patch", &standby];
    world.kubectl(&patch).await.unwrap();
    members(&world, &[both[1], both[0]]).await.unwrap();
    world.snapshot("evening", "data-orders-1").await.unwrap();
    let said = world.worth("evening", "application").await.unwrap();
    held_at(&world, &said, "orders-1").await.unwrap();

    // Its backups outlive the workload, and so does what they are of.
    world.kubectl(&["delete", "statefulset", NAME, "--wait"]).await.unwrap();
    let database = world.object("databases.stillpoint.dev", NAME).await.unwrap();
    assert!(database["metadata"]["ownerReferences"].is_null(), "{database}");
    assert_eq!(database["metadata"]["annotations"]["stillpoint.dev/made-for"], "StatefulSet/orders", "{database}");
}

/// With nothing configured but its label and its account.
#[tokio::test]
async fn a_stateful_set_of_mariadb_is_held_through_its_agent() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    world.kubectl(&["delete", "rolebinding", "credentials"]).await.unwrap();
    injects(&world).await.unwrap();
    let set = stateful_set(workload::mariadb(NAME), ACCOUNT);
    for object in [account(ACCOUNT, Engine::MariaDB)].iter().chain(&set) {
        world.apply(object).await.unwrap();
    }
    world.kubectl(&["rollout", "status", "statefulset", NAME, "--timeout=120s"]).await.unwrap();
    members(&world, &[("orders-0", "Primary", "data-orders-0")]).await.unwrap();
    let held = verb(&cluster, NAME, "quiesce").await.unwrap();
    assert_eq!(held["phase"], "Frozen", "{held}");
    let ended = verb(&cluster, NAME, "unquiesce").await.unwrap();
    assert_eq!((&ended["proof"]["held"], &ended["targets"][0]["via"]), (&json!(true), &json!("Agent")), "{ended}");
    world.snapshot("noon", "data-orders-0").await.unwrap();
    let said = world.worth("noon", "application").await.unwrap();
    held_at(&world, &said, "orders-0").await.unwrap();
    world.until_ready("volumesnapshot", "noon").await.unwrap();
    world.restored("noon", Engine::MariaDB, "copy").await.unwrap();

    // It goes while it is held: the hold is lost and says so, and the next run is written to.
    let held = verb(&cluster, NAME, "quiesce").await.unwrap();
    world.kubectl(&["delete", "pod", "orders-0", "--wait"]).await.unwrap();
    let freeze = held["freeze"].as_str().unwrap();
    let freeze = until("the hold is over", SOON, || async {
        let freeze = world.object("freezes.stillpoint.dev", freeze).await?;
        ensure!(freeze["status"]["phase"] != "Frozen", "{freeze}");
        Ok(freeze)
    })
    .await
    .unwrap();
    assert!(freeze["status"]["phase"] == "Lost" && freeze["status"]["proved"] != true, "{freeze}");
    world.kubectl(&["rollout", "status", "statefulset", NAME, "--timeout=120s"]).await.unwrap();
    let settings = "SELECT @@innodb_flush_log_at_trx_commit; CREATE DATABASE again";
    let client = [
        "exec",
        "orders-0",
        "-c",
        "mariadb",
        "--",
        "mariadb",
        "--no-defaults",
        "-h127.0.0.1",
        "-uroot",
        "-e",
        settings,
    ];
    world.kubectl(&client).await.unwrap();
    members(&world, &[("orders-0", "Primary", "data-orders-0")]).await.unwrap();
    let held = verb(&cluster, NAME, "quiesce").await.unwrap();
    assert_eq!(held["phase"], "Frozen", "{held}");
}

/// Who asks for an agent in words that say nothing is told so where he looks first.
#[tokio::test]
async fn who_owns_pods_that_were_skipped_is_told() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    injects(&world).await.unwrap();
    let [mut set, service] = postgresql();
    set["spec"]["replicas"] = 2.into();
    set["spec"]["template"]["metadata"]["annotations"]["stillpoint.dev/level"] = "Perfect".into();
    for object in [service, set] {
        world.apply(&object).await.unwrap();
    }
    until("the StatefulSet is told", SOON * 2, || async {
        let told = world.kubectl(&["describe", "statefulset", NAME]).await?;
        let told = told.rsplit_once("Events:").context("no Events")?.1;
        ensure!(told.contains("NotInjected") && told.contains("Recoverable, Durable or WriteBlocked"), "{told}");
        Ok(())
    })
    .await
    .unwrap();
    let pod = world.object("pod", "orders-0").await.unwrap();
    assert_eq!(pod["metadata"]["annotations"][api::inject::STATUS], api::inject::SKIPPED, "{pod}");
}

/// Waits until the Database is ready and has these members, first the one that would be held: its name, its role, its volume.
async fn members(world: &World<'_>, wanted: &[(&str, &str, &str)]) -> Result<()> {
    until("the Database has its members", SOON * 2, || async {
        let database = world.object("databases.stillpoint.dev", NAME).await?;
        let members = database["status"]["members"].as_array().context("it has none")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let found: Vec<_> = members
            .iter()
            .map(|member| (text(&member["name"]), text(&member["role"]), text(&member["volumes"][0])))
            .collect();
        let found: Vec<_> = found.iter().map(|(name, role, of)| (name.as_str(), role.as_str(), of.as_str())).collect();
        ensure!(found == wanted, "{database}");
        let ready = &database["status"]["conditions"];
        let ready = ready.as_array().into_iter().flatten().find(|condition| condition["type"] == "Ready");
        ensure!(ready.is_some_and(|ready| ready["status"] == "True"), "{database}");
        Ok(())
    })
    .await
}

/// Whether what is said of a snapshot was seen at this member, through its agent.
async fn held_at(world: &World<'_>, said: &Value, member: &str) -> Result<()> {
    let freeze = said["annotations"][api::gate::FREEZE].as_str().context("it names no Freeze")?;
    let freeze = world.object("freezes.stillpoint.dev", freeze).await?;
    let target = &freeze["status"]["targets"][0];
    ensure!(target["member"] == member && target["via"] == "Agent", "{freeze}");
    Ok(())
}
