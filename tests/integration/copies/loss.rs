//! A directory and a real S3 server as two locations: one fails during the run, and then all but the other is lost.

use std::time::{Duration, Instant};

use fixtures::{FaultyS3, Load, Login, Options, S3, Server, ServerKind, StoreFault, compare};
use serde_json::{Value, json};

use super::world::{LIMIT, REPOSITORY, REPOSITORY_PASSWORD, World, condition};

fn bucket(store: &S3, endpoint: &str) -> Value {
    json!({"name": "bucket", "s3": {
        "bucket": store.bucket, "prefix": "copies/of/shop", "endpoint": endpoint, "region": S3::REGION,
        "credentials": {"secretRef": {"name": "bucket-account"}},
    }})
}

/// The Repository of these locations, with the Secrets that it needs.
async fn repository(world: &World, store: &S3, locations: Vec<Value>) {
    let account = json!({"access-key-id": store.access_key, "secret-access-key": store.secret_key});
    for (name, values) in [("bucket-account", account), ("repository-key", json!({"password": REPOSITORY_PASSWORD}))] {
        let secret = json!({"metadata": {"name": name}, "stringData": values});
        world.stillpoint.post("/api/v1/namespaces/default/secrets", &secret).await.unwrap();
    }
    let encryption = json!({"passwordSecretRef": {"name": "repository-key"}});
    world.make("repositories", REPOSITORY, json!({"locations": locations, "encryption": encryption})).await;
    world.until("repositories", REPOSITORY, |status| condition(status, "Ready") == "True").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_location_fails_in_the_middle_and_the_other_is_lost_with_everything_else() {
    let kind = ServerKind::POSTGRESQL_15;
    let store = S3::plain().await.unwrap();
    let before = FaultyS3::before(&store).await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let server = Server::start(kind, Options::default()).await.unwrap();
    Load::prepare(&server).await.unwrap();
    let writers = Load::new(2).start(&server);
    writers.next_acknowledgement(Instant::now(), Duration::from_secs(20)).await.unwrap();
    let noted = Instant::now();

    let world = World::with_programs_of(&[kind]).await;
    let directory = json!({"name": "disk", "directory": {"path": disk.path().join("copies")}});
    repository(&world, &store, vec![directory, bucket(&store, &before.endpoint())]).await;
    world.register("orders", &server).await;
    // It goes as the run has begun to write.
    before.say_to(fixtures::Requests::PutsOf("/data/".to_owned()), StoreFault::ExpiredToken { status: 403 });
    world.make("snapshots", "first", json!({"databases": ["orders"], "repository": REPOSITORY})).await;
    let status = world.until("snapshots", "first", |status| status["phase"] == "Replicating").await;
    assert!(before.met() > 0, "the fault was never met");
    let at = |name: &str| status["locations"].as_array().unwrap().iter().find(|at| at["name"] == name).unwrap().clone();
    assert_eq!(
        (at("disk")["stored"].clone(), at("bucket")["stored"].clone()),
        (json!(true), json!(false)),
        "{status:#}"
    );
    assert_eq!(condition(&status, "Ready"), "True", "it can be restored");
    before.well();
    let status = world.until("snapshots", "first", |status| status["phase"] == "Ready").await;
    assert!(status["locations"].as_array().unwrap().iter().all(|at| at["stored"] == true), "{status:#}");
    let acknowledged = writers.stop().await;

    // The fire: the server, its database, the directory. What is left is the bucket, and who remembers the password.
    drop((world, server, disk));
    let world = World::with_programs_of(&[kind]).await;
    let target = Server::start(kind, Options::default()).await.unwrap();
    world.register("fresh", &target).await;
    repository(&world, &store, vec![bucket(&store, &store.endpoint())]).await;
    let path = "/apis/live.stillpoint.dev/v1alpha1/namespaces/default/snapshots";
    let list = world.stillpoint.get(path).await.unwrap();
    let [copy] = list["items"].as_array().unwrap().as_slice() else { panic!("{list:#}") };
    assert_eq!(
        (copy["status"]["known"].clone(), copy["status"]["takenAs"].clone()),
        (json!("Repository"), json!("default/first"))
    );
    let name = copy["metadata"]["name"].as_str().unwrap();
    let body = json!({"spec": {"database": "fresh"}});
    let restore = world.stillpoint.post(&format!("{path}/{name}/restore"), &body).await.unwrap();
    let restore = restore["metadata"]["name"].as_str().unwrap();
    world.until("restores", restore, |status| status["phase"] == "Complete").await;
    let verdict = compare(&Login::of(&target), &acknowledged, noted).await.unwrap();
    assert!(verdict.is_sound() && verdict.acknowledged > 0, "{verdict:?}");
}

/// As a disk is that nobody has mounted after a restart: an empty directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_not_there_is_not_begun_anew_and_its_copies_are_not_called_missing() {
    let kind = ServerKind::POSTGRESQL_15;
    let mut world = World::with_programs_of(&[kind]).await;
    let server = Server::start(kind, Options::default()).await.unwrap();
    world.register("orders", &server).await;
    let directory = world.repository(&["disk"]).await.remove(0);
    world.snapshot("first", &["orders"]).await;
    let elsewhere = directory.with_extension("unmounted");
    std::fs::rename(&directory, &elsewhere).unwrap();
    std::fs::create_dir(&directory).unwrap();
    world.stillpoint.restart().await.unwrap();

    let status = world.until("repositories", REPOSITORY, |status| condition(status, "Ready") == "False").await;
    assert!(status.to_string().contains("is the disk mounted"), "{status:#}");
    let live = "/apis/live.stillpoint.dev/v1alpha1/namespaces/default/snapshots";
    let phase = async || world.stillpoint.get(live).await.unwrap()["items"][0]["status"]["phase"].clone();
    assert_eq!(phase().await, "Ready", "nobody could look");
    assert!(!directory.join("config").exists());

    std::fs::remove_dir(&directory).unwrap();
    std::fs::rename(&elsewhere, &directory).unwrap();
    world.until("repositories", REPOSITORY, |status| condition(status, "Ready") == "True").await;
    assert_eq!(phase().await, "Ready");
    // The control: what was looked for and is not there is missing.
    std::fs::remove_dir_all(directory.join("snapshots")).unwrap();
    let end = Instant::now() + LIMIT;
    while phase().await != "Missing" {
        assert!(Instant::now() < end, "{:#}", world.stillpoint.get(live).await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
