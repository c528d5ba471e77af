//! VolumeGroupSnapshots: made, made again after a fault, and gone when they are deleted.

use anyhow::ensure;
use cluster::{Cluster, until, workload};
use csi::Fault;
use serde_json::Value;

use crate::world::{SOON, WITH_STORAGE, World};

const CREATE: &str = "CreateVolumeGroupSnapshot";

#[tokio::test]
async fn a_group_of_claims_is_cut_by_one_call_and_is_gone_when_it_is_deleted() {
    let cluster = Cluster::start(WITH_STORAGE).await.unwrap();
    let (world, control) = (World(&cluster), cluster.csi().await.unwrap());
    for claim in ["data", "wal", "other"] {
        world.claim(claim, None).await.unwrap();
        world.kubectl(&["label", "persistentvolumeclaim", claim, "one="]).await.unwrap();
    }
    world.kubectl(&["label", "persistentvolumeclaim", "other", "one-"]).await.unwrap();
    let bound = ["wait", "persistentvolumeclaims", "--all", "--for=jsonpath={.status.phase}=Bound", "--timeout=60s"];
    world.kubectl(&bound).await.unwrap();

    for (name, failures) in [("noon", 0), ("failing", 1)] {
        let before = control.calls(CREATE).await.unwrap().len();
        let fault = Fault { method: CREATE.to_owned(), failures, code: 13, ..Fault::default() };
        control.set(fault).await.unwrap();
        cluster.apply(&workload::group_snapshot(name, "one", "").to_string()).await.unwrap();
        let status = until_ready(&world, name).await;
        assert!(status["creationTime"].is_string(), "{status}");
        let codes: Vec<u32> = control.calls(CREATE).await.unwrap()[before..].iter().map(|call| call.code).collect();
        assert_eq!(codes, if failures == 0 { &[0][..] } else { &[13, 0] }, "{name}");
        let members = members(&world, name).await;
        assert_eq!(members.len(), 2, "{members:?}");
        // A member is a VolumeSnapshot as any other.
        let ready = ["wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", "volumesnapshot"];
        world.kubectl(&[&ready[..], &[&members[0]]].concat()).await.unwrap();
        world.claim(&format!("copy-{name}"), Some(&members[0])).await.unwrap();
    }
    world.kubectl(&bound).await.unwrap();
    assert_eq!(control.calls("CreateSnapshot").await.unwrap(), [], "no member is cut for itself");
    assert_eq!(world.images("snapshots").await.unwrap().len(), 4);

    world.kubectl(&["delete", "volumegroupsnapshots", "--all", "--timeout=60s"]).await.unwrap();
    until("the driver holds none", SOON, || async {
        let left = world.images("snapshots").await?;
        ensure!(left.is_empty(), "{left:?}");
        let left = world.kubectl(&["get", "volumesnapshots,volumegroupsnapshotcontents", "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
    .unwrap();
}

async fn until_ready(world: &World<'_>, name: &str) -> Value {
    until(&format!("{name} is ready"), SOON, || async {
        let text = world.kubectl(&["get", "volumegroupsnapshot", name, "-o", "json"]).await?;
        let status = serde_json::from_str::<Value>(&text)?["status"].take();
        ensure!(status["readyToUse"] == true, "{status}");
        Ok(status)
    })
    .await
    .unwrap()
}

/// The VolumeSnapshots that a group owns.
async fn members(world: &World<'_>, group: &str) -> Vec<String> {
    let text = world.kubectl(&["get", "volumesnapshots", "-o", "json"]).await.unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    let all = list["items"].as_array().unwrap().iter();
    let owned = all.filter(|snapshot| {
        snapshot["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|owners| owners.iter().any(|owner| owner["name"] == group))
    });
    owned.map(|snapshot| snapshot["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}
