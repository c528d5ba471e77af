//! What the kube-apiserver is asked: whose token this is, and whether somebody may do something.

use std::{
    fmt::{self, Display},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus},
};
use kube::{Api, Client, api::PostParams};
use rand::Rng;
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Whoever knows tokens and rights.
#[async_trait]
pub trait Reviews: fmt::Debug + Send + Sync {
    async fn token_review(&self, spec: TokenReviewSpec) -> Result<TokenReviewStatus, ReviewError>;
    async fn access_review(&self, spec: SubjectAccessReviewSpec) -> Result<SubjectAccessReviewStatus, ReviewError>;
}

/// A question that was not answered. Says nothing of what the answer would have been.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct ReviewError {
    why: String,
    /// Another try may do better.
    again: bool,
}

/// Reviews by the kube-apiserver.
#[derive(Clone)]
pub struct KubeReviews {
    client: Client,
}

/// Asks with patience, and not too much at once.
#[derive(Clone, Debug)]
pub(super) struct Patience(Arc<Semaphore>);

/// Of a question with all its tries, waiting for its turn included (upstream's webhook timeout).
const DEADLINE: Duration = Duration::from_secs(10);
/// Upstream's `DefaultAuthWebhookRetryBackoff`: 5 tries, 500 ms between the first two, then 1.5 times as long each.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// Questions at once: a flood of made-up tokens must not become one of reviews.
pub(super) const AT_ONCE: usize = 100;

impl ReviewError {
    fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => Self {
                why: format!(
                    "the kube-apiserver does not let this server ask it ({status}); bind the ClusterRole \
                     system:auth-delegator to this server's ServiceAccount"
                ),
                again: false,
            },
            kube::Error::Api(status) => Self {
                why: format!("the kube-apiserver gave no answer ({}: {status}); see its log", status.code),
                again: status.code == 429 || status.code >= 500,
            },
            kube::Error::SerdeError(error) => Self::nonsense(error),
            other => Self { why: format!("the kube-apiserver was not reached: {other}"), again: true },
        }
    }

    /// An answer that answers nothing.
    pub(super) fn nonsense(why: impl Display) -> Self {
        Self { why: format!("the kube-apiserver's answer cannot be understood: {why}"), again: false }
    }

    fn late() -> Self {
        let seconds = DEADLINE.as_secs();
        Self {
            why: format!("the kube-apiserver did not answer within {seconds} s; see whether it does well"),
            again: false,
        }
    }
}

impl KubeReviews {
    /// Its own client: one that tries again by itself would do so for longer than a request may wait.
    pub fn connect(mut config: kube::Config) -> Result<Self, kube::Error> {
        config.default_retry = false;
        Client::try_from(config).map(Self::new)
    }

    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl fmt::Debug for KubeReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeReviews").finish_non_exhaustive()
    }
}

#[async_trait]
impl Reviews for KubeReviews {
    async fn token_review(&self, spec: TokenReviewSpec) -> Result<TokenReviewStatus, ReviewError> {
        let review = TokenReview { spec, ..TokenReview::default() };
        let answered = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let answered = answered.map_err(|error| ReviewError::of(&error))?;
        answered.status.ok_or_else(|| ReviewError::nonsense("a TokenReview without status"))
    }

    async fn access_review(&self, spec: SubjectAccessReviewSpec) -> Result<SubjectAccessReviewStatus, ReviewError> {
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answered = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let answered = answered.map_err(|error| ReviewError::of(&error))?;
        answered.status.ok_or_else(|| ReviewError::nonsense("a SubjectAccessReview without status"))
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Patience {
    /// Asks until there is an answer, a further try would not help, or it is too late.
    pub(super) async fn ask<T, F>(self, mut ask: impl FnMut() -> F + Send) -> Result<T, ReviewError>
    where
        F: Future<Output = Result<T, ReviewError>> + Send,
    {
        let tries = async {
            // Never closed; if it were, asking without a permit would only be asking more.
            let _turn = self.0.acquire().await;
            let mut pause = PAUSE;
            for _ in 1..TRIES {
                match ask().await {
                    Err(error) if error.again => sleep(jittered(pause)).await,
                    answered => return answered,
                }
                pause = pause * 3 / 2;
            }
            ask().await
        };
        timeout(DEADLINE, tries).await.unwrap_or_else(|_| Err(ReviewError::late()))
    }
}

/// Up to a fifth more, so that many who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(1.0..1.2))
}
