//! What the apiserver does to a question, and what becomes of it.

use std::{sync::Arc, time::Duration};

use api::gate::{GateAnswer, GateDecision, GateRequest};
use certs::Authority;
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use webhooks::{
    connection::Upstream,
    credentials::{Credentials, Files},
    forward::Forwarder,
    unanswered::Unanswered,
};

use crate::upstream::{Apiserver, Behaviour, allow, authority, deny, files, upstream_at};

/// A forwarder, and what it reads.
struct World {
    authority: Authority,
    files: Files,
    forwarder: Arc<Forwarder>,
    _keeping: AbortOnDropHandle<()>,
    _directory: TempDir,
}

impl World {
    fn to(authority: Authority, upstream: Upstream) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path(), &authority, "secret\n");
        let credentials = Credentials::read(files.clone()).unwrap();
        let keeping = tokio::spawn(Arc::clone(&credentials).keep(Duration::from_millis(20)));
        let forwarder = Arc::new(Forwarder::new(upstream, credentials));
        Self { authority, files, forwarder, _keeping: AbortOnDropHandle::new(keeping), _directory: directory }
    }

    async fn with_apiserver() -> (Self, Apiserver) {
        let authority = authority("ours");
        let apiserver = Apiserver::start(&authority, "secret").await;
        (Self::to(authority, apiserver.upstream()), apiserver)
    }

    async fn ask(&self) -> Result<GateAnswer, Unanswered> {
        self.ask_within(Duration::from_secs(20)).await
    }

    async fn ask_within(&self, within: Duration) -> Result<GateAnswer, Unanswered> {
        self.forwarder.ask(&question(), Instant::now() + within).await
    }

    /// Once it is answered: after files were changed.
    async fn ask_until_answered(&self) -> GateAnswer {
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            match self.ask().await {
                Ok(answer) => return answer,
                Err(why) => assert!(Instant::now() < patience, "{why:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn question() -> GateRequest {
    let object = json!({"group": "Single", "name": "c", "uid": "u"});
    serde_json::from_value(json!({"gate": "Cut", "object": object, "deadlineMilliseconds": 0})).unwrap()
}

#[tokio::test]
async fn what_the_apiserver_says_is_heard_and_it_is_told_how_long_it_has() {
    let (world, apiserver) = World::with_apiserver().await;
    apiserver.will([allow(), deny()]);
    assert_eq!(world.ask_within(Duration::from_secs(8)).await, Ok(GateAnswer::allow()));
    assert!(matches!(world.ask().await.unwrap().decision, GateDecision::Deny { code: 429, .. }));
    let told = apiserver.asked()[0].deadline_milliseconds;
    assert!((1000..=7700).contains(&told), "{told}");
    assert_eq!(apiserver.connections(), 1);
}

#[tokio::test]
async fn nobody_waits_beyond_the_deadline() {
    let (world, apiserver) = World::with_apiserver().await;
    apiserver.will([Behaviour::Hang]);
    let began = Instant::now();
    assert_eq!(world.ask_within(Duration::from_millis(400)).await, Err(Unanswered::Late));
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < Duration::from_secs(10));
    // And the next is not held up by it.
    assert_eq!(world.ask().await, Ok(GateAnswer::allow()));
    assert_eq!(apiserver.connections(), 1);
}

#[tokio::test]
async fn a_question_whose_kept_connection_is_lost_is_asked_once_more_on_another() {
    let (world, apiserver) = World::with_apiserver().await;
    world.ask().await.unwrap();
    apiserver.will([Behaviour::HangUp]);
    assert_eq!(world.ask().await, Ok(GateAnswer::allow()));
    assert_eq!((apiserver.asked().len(), apiserver.connections()), (3, 2));
    apiserver.will([Behaviour::HangUp, Behaviour::HangUp]);
    assert!(matches!(world.ask().await, Err(Unanswered::Lost(_))), "but not for ever");
}

#[tokio::test]
async fn a_connection_that_is_lost_as_soon_as_it_is_there_is_not_dialled_again() {
    let (world, apiserver) = World::with_apiserver().await;
    apiserver.will([Behaviour::HangUp]);
    assert!(matches!(world.ask().await, Err(Unanswered::Lost(_))));
    assert_eq!(apiserver.connections(), 1);
    assert_eq!(world.ask().await, Ok(GateAnswer::allow()));
}

#[tokio::test]
async fn a_token_that_is_refused_is_said_to_be_and_one_that_was_exchanged_is_shown() {
    let (world, apiserver) = World::with_apiserver().await;
    std::fs::write(&world.files.token, "stale").unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while world.ask().await.is_ok() {
        assert!(Instant::now() < patience, "the token is not read again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = Unanswered::Refused { code: 401, message: "Unauthorized".to_owned() };
    assert_eq!(world.ask().await, Err(refused));
    std::fs::write(&world.files.token, "secret").unwrap();
    world.ask_until_answered().await;
    assert_eq!(apiserver.connections(), 1, "a token is no reason to dial");
}

#[tokio::test]
async fn an_apiserver_of_another_authority_is_not_asked_until_it_is_trusted() {
    let theirs = authority("theirs");
    let apiserver = Apiserver::start(&theirs, "secret").await;
    let world = World::to(authority("ours"), apiserver.upstream());
    let why = world.ask().await.unwrap_err().to_string();
    assert!(why.contains("cannot be reached") && why.contains("certificate"), "{why}");
    assert!(apiserver.asked().is_empty(), "nobody is told anything before the handshake is over");
    // Both are trusted while one is exchanged for the other.
    let bundle = format!("{}{}", world.authority.certificate(), theirs.certificate());
    std::fs::write(&world.files.authority, bundle).unwrap();
    world.ask_until_answered().await;
}

#[tokio::test]
async fn a_connection_of_an_authority_that_is_no_longer_trusted_is_not_used() {
    let (world, apiserver) = World::with_apiserver().await;
    world.ask().await.unwrap();
    std::fs::write(&world.files.authority, authority("theirs").certificate()).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while world.ask().await.is_ok() {
        assert!(Instant::now() < patience, "the authority is not read again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(apiserver.connections(), 1);
}

#[tokio::test]
async fn many_questions_share_one_connection() {
    let (world, apiserver) = World::with_apiserver().await;
    let mut asking = JoinSet::new();
    for _ in 0..200 {
        let forwarder = Arc::clone(&world.forwarder);
        asking.spawn(async move { forwarder.ask(&question(), Instant::now() + Duration::from_secs(20)).await });
    }
    assert!(asking.join_all().await.iter().all(Result::is_ok));
    assert_eq!(apiserver.connections(), 1);
}

#[tokio::test]
async fn where_nobody_listens_and_where_nobody_answers_all_hear_so_together() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [gone, silent.local_addr().unwrap()] {
        let world = World::to(authority("ours"), upstream_at(address));
        let began = Instant::now();
        let mut asking = JoinSet::new();
        for _ in 0..50 {
            let forwarder = Arc::clone(&world.forwarder);
            asking.spawn(async move { forwarder.ask(&question(), Instant::now() + Duration::from_secs(25)).await });
        }
        let answers = asking.join_all().await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(Unanswered::Unreachable(_)))), "{answers:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "one after the other: {:?}", began.elapsed());
    }
}
