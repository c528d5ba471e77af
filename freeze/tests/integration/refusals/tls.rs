//! Whom the server is taken for.

use std::sync::Arc;

use api::{CheckResult, ConnectionAddress, Copy, Level, TlsMode, conditions::reasons};
use fixtures::{Authority, Engine, Options, Server, ServerKind};
use freeze::{
    Error, Member, Tls, TlsRoots,
    contract::{plan, soon},
};

use super::driver;
use crate::real::Real;

/// The name in the certificate. `127.0.0.1` is the same server by a name that is not.
const HOST: &str = "localhost";

/// What comes of a probe.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    LetIn,
    Untrusted,
}
use Answer::{LetIn, Untrusted};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_believed_as_far_as_its_certificate_and_the_mode_go() {
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::MARIADB_10_11] {
        let (right, wrong) = (Authority::create().unwrap(), Authority::create().unwrap());
        let options = right.serve(kind.engine, HOST, Options::default()).unwrap();
        let server = Server::start(kind, options).await.unwrap();
        let (right, wrong) = (Some(right.certificate.as_str()), Some(wrong.certificate.as_str()));
        for (mode, ca, host, expected) in [
            (TlsMode::VerifyFull, right, HOST, LetIn),
            (TlsMode::VerifyFull, wrong, HOST, Untrusted),
            (TlsMode::VerifyFull, right, "127.0.0.1", Untrusted),
            (TlsMode::VerifyFull, None, HOST, Untrusted),
            (TlsMode::VerifyCA, right, HOST, LetIn),
            (TlsMode::VerifyCA, right, "127.0.0.1", LetIn),
            (TlsMode::VerifyCA, wrong, HOST, Untrusted),
            (TlsMode::Require, None, HOST, LetIn),
            (TlsMode::Require, wrong, "127.0.0.1", LetIn),
        ] {
            let found = answer(kind.engine, &member(server.port, mode, ca, host)).await;
            let ca = if ca.is_none() {
                "no CA"
            } else if ca == right {
                "the right CA"
            } else {
                "another CA"
            };
            println!("{kind} {:<10} {ca:<12} {host:<9} {found:?}", format!("{mode:?}"));
            assert_eq!(found, expected, "{kind} {mode:?} with {ca} at {host}");
        }
    }
}

/// `0.0.0.0` reaches this machine too, and by its looks it could be any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_shown_to_who_is_not_verified_is_warned_of() {
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::MARIADB_10_11] {
        let authority = Authority::create().unwrap();
        let options = authority.serve(kind.engine, "0.0.0.0", Options::default()).unwrap();
        let server = Server::start(kind, options).await.unwrap();
        let ca = Some(authority.certificate.as_str());
        for (mode, ca, host, warned) in [
            (TlsMode::Require, None, "0.0.0.0", true),
            (TlsMode::Require, None, "127.0.0.1", false),
            (TlsMode::VerifyCA, ca, "0.0.0.0", false),
        ] {
            let engine = if kind.engine == Engine::PostgreSQL { api::Engine::PostgreSQL } else { api::Engine::MariaDB };
            let plan = plan(Level::Durable, Copy::Atomic);
            let checks = driver(engine).preflight(&member(server.port, mode, ca, host), &plan, soon()).await.checks;
            assert_eq!(checks[0].result, CheckResult::Pass, "{kind} {mode:?} at {host}: {checks:?}");
            let tls = checks.iter().find(|check| check.name == "tls");
            assert_eq!(tls.is_some_and(|tls| tls.result == CheckResult::Warn), warned, "{kind} {mode:?} at {host}");
        }
    }
}

async fn answer(engine: Engine, member: &Member) -> Answer {
    let engine = if engine == Engine::PostgreSQL { api::Engine::PostgreSQL } else { api::Engine::MariaDB };
    match driver(engine).probe(member, soon()).await {
        Ok(_) => LetIn,
        Err(error @ Error::TlsUntrusted { .. }) => {
            assert_eq!(error.reason(), reasons::TLS_UNTRUSTED);
            assert!(error.advice().contains("caSecretRef"), "{}", error.advice());
            Untrusted
        }
        Err(error) => panic!("{engine:?}: {error:?}"),
    }
}

fn member(port: u16, mode: TlsMode, ca: Option<&str>, host: &str) -> Member {
    let roots = ca.map(|ca| TlsRoots { ca: Some(Arc::from(ca)), identity: None });
    let address = ConnectionAddress::Tcp { host: host.to_owned(), port };
    Member { address, tls: Tls { mode, roots }, ..Real::at(port) }
}
