//! The ConfigMap, followed by a watch.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use crate::auth::delegated::{
    Trust,
    testing::{FakeKubeApi, Reply, Signer, Wanted, config_map, headers, now},
};

/// Waits until `holds`, on tokio's clock.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let held = timeout(Duration::from_secs(60), async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    held.await.unwrap_or_else(|_| panic!("{what}"));
}

/// Whether this authority's front proxy would be believed.
fn believes(trust: &Trust, signer: &Signer) -> bool {
    let chain = signer.sign(&Wanted::client("front-proxy-client")).chain;
    let asks = headers(&[("X-Remote-User", "alice")]);
    trust.current().is_some_and(|config| config.front_proxy.user(&chain, &asks, now()).is_ok())
}

#[tokio::test(start_paused = true)]
async fn trust_begins_with_the_config_map_and_follows_it() {
    let (old, new) = (Signer::new("front-proxy-ca"), Signer::new("front-proxy-ca"));
    let fake = FakeKubeApi::new(|_| Reply::Hangs);
    let trust = Arc::new(Trust::default());
    let following = tokio::spawn(Arc::clone(&trust).follow(fake.client()));
    until("it is told that there is none", || trust.ready().is_err_and(|why| why.contains("it is not there"))).await;
    assert!(trust.current().is_none());

    let mut broken = config_map(&old, None);
    broken.insert("requestheader-allowed-names".into(), "front-proxy-client".into());
    fake.put(Some(broken.clone()));
    until("what is wrong is told", || trust.ready().is_err_and(|why| why.contains("requestheader-allowed-names")))
        .await;
    assert!(trust.current().is_none());

    fake.put(Some(config_map(&old, None)));
    until("it is ready", || trust.ready().is_ok()).await;
    assert!(believes(&trust, &old) && !believes(&trust, &new));

    fake.put(Some(config_map(&new, None)));
    until("the new authority is known", || believes(&trust, &new)).await;
    assert!(!believes(&trust, &old), "the old one is not");

    for slip in [Some(broken), None] {
        fake.put(slip);
        sleep(Duration::from_secs(90)).await;
        assert!(trust.ready().is_ok() && believes(&trust, &new), "what it said last holds");
    }
    fake.put(Some(config_map(&old, None)));
    until("it is followed still", || believes(&trust, &old)).await;
    following.abort();
}
