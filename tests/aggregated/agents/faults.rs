//! What is between an agent and its replicas is cut, and its clock is set: the database goes on in time, what was held says so, and
//! nothing is held twice.

use jiff::Timestamp;

use super::*;
use crate::forwarder::Forwarder;

/// An agent that reaches two replicas, each by a network of its own.
struct Between {
    networks: Vec<(&'static str, Forwarder)>,
}

impl Between {
    async fn start(doors: &[SocketAddr]) -> Result<Self> {
        let mut networks = Vec::new();
        for (name, door) in ["one", "two"].into_iter().zip(doors) {
            networks.push((name, Forwarder::start(([127, 0, 0, 1], 0).into(), vec![*door]).await?));
        }
        Ok(Self { networks })
    }

    fn addresses(&self) -> String {
        let addresses = self.networks.iter().map(|(_, network)| network.address.to_string());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// To the replica that holds a Freeze, or to the other one.
    fn of(&self, freeze: &Value, holds: bool) -> Result<(&'static str, &Forwarder)> {
        let freezer = freeze["status"]["freezer"].as_str().context("nobody holds it")?;
        let found = self.networks.iter().find(|(name, _)| freezer.starts_with(name) == holds);
        found.map(|(name, network)| (*name, network)).context("no such replica")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_cut_off_lets_go_in_time_and_nobody_holds_it_twice() {
    let setup = Setup { replicas: Vec::new(), can_be_cut: true, ..Setup::default() };
    let world = World::of(setup).await.unwrap();
    let between = Between::start(&two_replicas(&world).await.unwrap()).await.unwrap();
    let space = world.space("cut").await.unwrap();
    let beside = Beside::start(&space, "pg-0", ServerKind::POSTGRESQL_15, &between.addresses()).await.unwrap();
    beside.server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();

    until_come(&world, 1, SOON * 2).await.unwrap();
    // From the replica that holds nothing: the hold stays, and is proved.
    let held = beside.hold("WriteBlocked", 10).await.unwrap();
    let freeze = beside.freeze(&held["freeze"], &["Frozen"]).await.unwrap();
    let (_, network) = between.of(&freeze, false).unwrap();
    network.cut(true);
    for _ in 0..3 {
        assert!(!beside.is_writable(Duration::from_secs(1)).await);
    }
    let ended = space.run("pg-0", "unquiesce").await.unwrap();
    assert_eq!((&ended["phase"], &ended["proof"]["held"]), (&json!("Thawed"), &json!(true)), "{ended}");
    network.cut(false);
    assert!(beside.is_writable(SOON).await);

    // From the one that holds it; and that one from kube-apiserver.
    for what in ["its replica", "its replica from kube-apiserver"] {
        until_come(&world, 1, SOON * 2).await.unwrap();
        let held = beside.hold("WriteBlocked", 10).await.unwrap();
        let freeze = beside.freeze(&held["freeze"], &["Frozen"]).await.unwrap();
        let (name, network) = between.of(&freeze, true).unwrap();
        let cut = |is_cut| match what {
            "its replica" => network.cut(is_cut),
            _ => world.cut(name, is_cut),
        };
        let began = Instant::now();
        cut(true);
        assert!(beside.is_writable(LEASE_AND_A_SECOND).await, "{what}");
        println!("cut off, {what}: writable after {:.1?}", began.elapsed());
        let others = beside.freeze(&held["freeze"], &["Lost", "Expired", "Failed"]).await.unwrap();
        assert!(others["status"]["phase"] == "Lost" && others["status"]["proved"] != true, "{what}: {others}");
        cut(false);
        assert!(beside.is_writable(Duration::from_secs(1)).await, "{what}: taken again");
    }
    let freezes: Value =
        serde_json::from_str(&space.kubectl(&["get", "freezes", "-o", "json"]).await.unwrap()).unwrap();
    let freezes = freezes["items"].as_array().unwrap();
    assert!(freezes.len() == 3 && freezes.iter().all(|freeze| freeze["status"]["phase"] != "Frozen"), "{freezes:#?}");
}

/// A library that tells a process another time than it is, of which the monotonic clocks stay as they are; Debian has it at a place
/// that is named after the machine's kind.
fn faketime() -> Result<String> {
    let mut libraries = std::fs::read_dir("/usr/lib")?.filter_map(|entry| {
        let library = entry.ok()?.path().join("faketime/libfaketime.so.1");
        library.exists().then(|| library.display().to_string())
    });
    libraries.next().context("no libfaketime: run tests/tools/setup")
}

/// How far the clock of an agent is ahead, by its newest line.
fn ahead(beside: &Beside<'_>) -> Result<i64> {
    let (space, pod) = (beside.space, beside.pod);
    let log = space.world.cluster.root().join(format!("{}-{pod}-agent.log", space.name));
    let log = std::fs::read_to_string(log)?;
    let line: Value = serde_json::from_str(log.lines().last().context("it says nothing")?)?;
    let said: Timestamp = line["timestamp"].as_str().context("no time")?.parse()?;
    Ok(said.as_second() - Timestamp::now().as_second())
}

/// As a node's clock that is set: what a lease is told by nobody can set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_ends_no_hold_and_keeps_none() {
    let (world, replicas) = world().await.unwrap();
    let space = world.space("clock").await.unwrap();
    let offset = world.cluster.root().join("offset");
    let set = |hours: &str| std::fs::write(&offset, hours).unwrap();
    set("+2h");
    let environment = vec![
        ("LD_PRELOAD", faketime().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let beside = Beside::start_in(&space, "pg-0", ServerKind::POSTGRESQL_15, &replicas, environment).await.unwrap();
    beside.server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    // The control: it goes by that clock.
    assert!(ahead(&beside).unwrap() > 3_600, "{}", ahead(&beside).unwrap());
    for hours in ["+2h", "-2h"] {
        set("+0");
        let held = beside.hold("WriteBlocked", 10).await.unwrap();
        set(hours);
        for _ in 0..3 {
            assert!(!beside.is_writable(Duration::from_secs(1)).await, "{hours}: {held}");
        }
        let ended = space.run("pg-0", "unquiesce").await.unwrap();
        assert_eq!((&ended["phase"], &ended["proof"]["held"]), (&json!("Thawed"), &json!(true)), "{hours}: {ended}");

        set("+0");
        let held = beside.hold("WriteBlocked", 10).await.unwrap();
        set(hours);
        // Nobody is there who would keep it.
        world.first(|replica| replica.signal("-STOP")).unwrap().unwrap();
        let began = Instant::now();
        assert!(beside.is_writable(LEASE_AND_A_SECOND).await, "{hours}: {held}");
        println!("clock at {hours}, its replica stopped: writable after {:.1?}", began.elapsed());
        world.first(|replica| replica.signal("-CONT")).unwrap().unwrap();
        set("+0");
        beside.freeze(&held["freeze"], &["Lost"]).await.unwrap();
        beside.is_ready().await.unwrap();
    }
}
