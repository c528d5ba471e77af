//! A statement whose answer did not come in time: its session is lost, whatever comes later.

use std::{sync::Arc, time::Duration};

use api::{Copy, Level};
use fixtures::{Engine, Fault, Options, Proxy, Server, ServerKind};
use freeze::{
    Driver, Drivers, Error, Held, Member,
    contract::{Noted, plan, soon},
};
use tokio::time::{Instant, sleep};

use crate::real::Real;

const TTL: Duration = Duration::from_secs(5);

async fn hold(engine: Engine, member: &Member, level: Level) -> Box<dyn Held> {
    let engine = if engine == Engine::PostgreSQL { api::Engine::PostgreSQL } else { api::Engine::MariaDB };
    let driver: Arc<dyn Driver> = Arc::clone(Drivers::real().of(engine).unwrap());
    let plan = plan(level, Copy::Atomic);
    let deadline = soon();
    loop {
        match driver.prepare(member, &plan, Arc::new(Noted::default()), deadline).await {
            Ok(prepared) => return prepared.acquire().await.unwrap().0,
            // The server is still ending the session that was lost before.
            Err(Error::ForeignFreeze { .. }) if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_did_not_answer_in_time_is_lost_also_when_it_answers_later() {
    for kind in ServerKind::ALL {
        let server = Server::start(kind, Options::default()).await.unwrap();
        let relay = Proxy::to(server.port).await.unwrap();
        for level in [Level::Durable, Level::WriteBlocked] {
            let mut held = hold(kind.engine, &Real::at(relay.port), level).await;
            held.heartbeat(TTL, soon()).await.unwrap();
            relay.set(Fault::Stall);
            let error = held.heartbeat(TTL, Instant::now() + Duration::from_millis(200)).await.unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{kind} {level}: {error:?}");
            relay.set(Fault::Pass);
            for _ in 0..2 {
                let error = held.heartbeat(TTL, soon()).await.unwrap_err();
                assert!(matches!(error, Error::Lost { .. }), "{kind} {level}: {error:?}");
            }
            held.prove(soon()).await.unwrap_err();
            held.release(soon()).await.ok();
        }
        // The control: a stall that is over in time loses nothing.
        let mut held = hold(kind.engine, &Real::at(relay.port), Level::WriteBlocked).await;
        relay.set(Fault::Stall);
        let passing = async {
            sleep(Duration::from_millis(200)).await;
            relay.set(Fault::Pass);
        };
        let (beat, ()) = tokio::join!(held.heartbeat(TTL, soon()), passing);
        beat.unwrap();
        assert!(held.prove(soon()).await.unwrap().held, "{kind}");
        held.release(soon()).await.unwrap();
    }
}
