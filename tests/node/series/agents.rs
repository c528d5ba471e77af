//! The same through agents: StatefulSets that ask for them by a label, with nothing else configured.

use anyhow::{Context, Result, ensure};
use cluster::{until, workload};
use fixtures::Engine;
use serde_json::Value;

use super::{
    How, Written, count, group,
    numbers::{Promises, Table, group_row, row},
    single, written_to,
};
use crate::{
    agents::{account, injects, stateful_set},
    gates::world::World,
    installed::{SOON, start},
};

#[tokio::test]
#[ignore = "long: make soak"]
async fn through_agents() {
    let count = count();
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    // Nobody but kubelets reads a Secret.
    world.kubectl(&["delete", "rolebinding", "credentials"]).await.unwrap();
    injects(&world).await.unwrap();
    let databases = [
        beside(&world, "shop", Engine::PostgreSQL).await.unwrap(),
        beside(&world, "stock", Engine::MariaDB).await.unwrap(),
    ];
    let (mut table, mut traced) = (Table::default(), Vec::new());
    // Of what nobody is there for a few are enough to see that it loses something.
    for (how, count) in [(How::Stillpoint, count), (How::Nothing, count.div_ceil(5))] {
        for number in 0..count {
            let of = &databases[number % 2];
            let copy = single(&world, of, how, number, &mut traced).await.unwrap();
            table.add(row(how, of.login.engine), copy);
        }
    }
    for number in 0..count.div_ceil(5) {
        for (of, copy) in databases.iter().zip(group(&world, &databases, number, &mut traced).await.unwrap()) {
            table.add(group_row(of.login.engine), copy);
        }
    }
    for database in databases {
        database.writers.stop().await;
    }
    let asked: Vec<Value> = world.freezes().await.unwrap();
    assert!(asked.len() >= count, "{} Freezes", asked.len());
    let asked = asked.iter().flat_map(|freeze| freeze["status"]["targets"].as_array().into_iter().flatten());
    for target in asked {
        assert_eq!(target["via"], "Agent", "{target}");
    }
    println!("{table}");
    let promises = Promises(table.wholeness());
    println!("{promises}");
    promises.are_kept().unwrap();
}

/// A StatefulSet of one, and the Database that was made for it.
async fn beside(world: &World<'_>, name: &'static str, engine: Engine) -> Result<Written> {
    let objects = match engine {
        Engine::PostgreSQL => workload::postgresql(name),
        Engine::MariaDB => workload::mariadb(name),
    };
    let secret = format!("{name}-account");
    world.apply(&account(&secret, engine)).await?;
    let [set, mut service] = stateful_set(objects, &secret);
    // Writers come from elsewhere.
    service["spec"].as_object_mut().context("no spec")?.remove("clusterIP");
    for object in [service, set] {
        world.apply(&object).await?;
    }
    world.kubectl(&["rollout", "status", "statefulset", name, "--timeout=120s"]).await?;
    until("a Database is made of it, and is ready", SOON * 2, || async {
        let database = world.object("databases.stillpoint.dev", name).await?;
        let conditions = database["status"]["conditions"].as_array().context("nobody has looked at it")?;
        let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        ensure!(conditions.iter().any(is_ready), "{database}");
        Ok(())
    })
    .await?;
    let login = world.login(engine, name).await?;
    written_to(world, name, format!("data-{name}-0"), login).await
}
