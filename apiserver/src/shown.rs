//! Of which namespaces kube-apiserver shows us snapshots before they are cut. It is told so by the leader, a moment after the first
//! Database of a namespace is there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// As far as this replica has told it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shown(Arc<watch::Sender<Namespaces>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namespaces {
    /// Or nobody's snapshots are shown to anybody, and nobody waits for it.
    All,
    These(BTreeSet<String>),
}

impl Default for Shown {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Namespaces::All).0))
    }
}

impl Shown {
    pub(crate) fn are(&self, namespaces: Namespaces) {
        self.0.send_if_modified(|known| {
            let is_news = *known != namespaces;
            *known = namespaces;
            is_news
        });
    }

    /// Of what is shown only these still are.
    pub(crate) fn keep(&self, these: &BTreeSet<String>) {
        self.0.send_if_modified(|known| {
            let Namespaces::These(known) = known else { return false };
            let before = known.len();
            known.retain(|namespace| these.contains(namespace));
            known.len() != before
        });
    }

    pub(crate) fn contains(&self, namespace: &str) -> bool {
        self.0.borrow().contains(namespace)
    }

    /// Until they are, and no longer than this.
    pub(crate) async fn wait_for(&self, namespace: &str, patience: Duration) {
        let mut known = self.0.subscribe();
        timeout(patience, known.wait_for(|known| known.contains(namespace))).await.ok();
    }
}

impl Namespaces {
    fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.contains(namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_is_waited_for_until_it_is_shown_and_no_longer_than_that() {
        let (shown, patience) = (Shown::default(), Duration::from_secs(5));
        let began = Instant::now();
        shown.wait_for("shop", patience).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "where nobody is asked nobody waits");
        shown.are(Namespaces::These(BTreeSet::new()));
        shown.wait_for("shop", patience).await;
        assert_eq!(began.elapsed(), patience);
        let telling = shown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            telling.are(Namespaces::These(["shop".to_owned()].into()));
        });
        shown.wait_for("shop", patience).await;
        assert_eq!(began.elapsed(), patience + Duration::from_secs(1));
        assert!(shown.contains("shop") && !shown.contains("bank"));
        shown.keep(&["bank".to_owned()].into());
        assert!(!shown.contains("shop") && !shown.contains("bank"), "what is kept is not shown by that");
    }
}
