//! Answers that are kept for a moment, and questions that many ask at once and one asks for all.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use lru::LruCache;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::reviews::ReviewError;

/// SHA-256 of all that decides an answer: of one length whatever a client sends, and no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

/// Answers by what was asked. An error is shared by those who wait for it, and kept for nobody.
pub(super) struct Answers<V>(Arc<Mutex<LruCache<Key, Entry<V>>>>);

type Asking<V> = BoxFuture<'static, Result<V, ReviewError>>;

enum Entry<V> {
    Known {
        answer: V,
        until: Instant,
    },
    /// Lives as long as somebody waits for it: whoever is left goes on when the first is gone.
    Asked(WeakShared<Asking<V>>),
}

/// Upstream's defaults, for yes and no alike (apiserver `pkg/server/options/authorization.go`,
/// `authenticatorfactory/delegating.go`, `plugin/pkg/authorizer/webhook`).
const KEPT: Duration = Duration::from_secs(10);
pub(super) const MOST: NonZeroUsize = NonZeroUsize::new(8192).expect("more than none");

impl Key {
    pub(super) fn of(decides: &[u8]) -> Self {
        Self(Sha256::digest(decides).into())
    }
}

impl<V: Clone + Send + Sync + 'static> Answers<V> {
    /// The answer that is known, the one that somebody is asking for, or the one that `ask` brings.
    pub(super) async fn get(
        &self,
        key: Key,
        ask: impl Future<Output = Result<V, ReviewError>> + Send + 'static,
    ) -> Result<V, ReviewError> {
        let asking = match self.find(key, ask) {
            Ok(answer) => return Ok(answer),
            Err(asking) => asking,
        };
        asking.await
    }

    /// `Err`: it must be waited for. Takes the lock, and waits for nothing.
    fn find(
        &self,
        key: Key,
        ask: impl Future<Output = Result<V, ReviewError>> + Send + 'static,
    ) -> Result<V, Shared<Asking<V>>> {
        let mut entries = self.entries();
        match entries.get(&key) {
            Some(Entry::Known { answer, until }) if Instant::now() < *until => return Ok(answer.clone()),
            Some(Entry::Asked(asked)) => {
                if let Some(asking) = asked.upgrade() {
                    return Err(asking);
                }
            }
            _ => {}
        }
        let kept = Self(Arc::clone(&self.0));
        let asking = async move {
            let answered = ask.await;
            kept.keep(key, answered.as_ref().ok());
            answered
        };
        let asking = asking.boxed().shared();
        if let Some(asked) = asking.downgrade() {
            entries.put(key, Entry::Asked(asked));
        }
        Err(asking)
    }

    fn keep(&self, key: Key, answer: Option<&V>) {
        let mut entries = self.entries();
        match answer {
            Some(answer) => {
                entries.put(key, Entry::Known { answer: answer.clone(), until: Instant::now() + KEPT });
            }
            None => {
                entries.pop(&key);
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, LruCache<Key, Entry<V>>> {
        // Nothing is left half done in there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }
}

impl<V> Default for Answers<V> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(MOST))))
    }
}

impl<V> fmt::Debug for Answers<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}
