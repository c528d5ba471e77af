//! Small things that every engine says the same way.

use std::net::IpAddr;

use api::{Check, ConnectionAddress, TlsMode};

use crate::driver::Member;

/// The error and its sources, once each.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// The first check of every preflight.
pub(super) fn reachable(member: &Member) -> Check {
    Check::pass("reachable", format!("{} answers, and lets the account in", member.address))
}

/// A warning where nobody verifies whom the password is shown to: encryption alone does not keep a man in the middle out, and a
/// server may ask for a password in clear. (sqlx answers it whatever the server asks for.)
pub(super) fn unverified(member: &Member) -> Option<Check> {
    let password = member.account.as_ref().and_then(|account| account.password.as_deref());
    let ConnectionAddress::Tcp { host, .. } = &member.address else { return None };
    let shown = password.is_some_and(|password| !password.is_empty()) && !is_loopback(host);
    (shown && member.tls.mode == TlsMode::Require).then(|| {
        Check::warn(
            "tls",
            "the connection is encrypted, and nobody verifies the server: whoever stands in between could get the password",
            "set spec.tls.mode: VerifyFull, and spec.tls.caSecretRef to the CA that signed the server's certificate",
        )
    })
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Account, Tls};

    #[test]
    fn only_a_password_that_leaves_the_machine_unverified_is_warned_of() {
        let member = |host: &str, mode, password: Option<&str>| Member {
            address: ConnectionAddress::Tcp { host: host.to_owned(), port: 5432 },
            account: Some(Account { user: "u".to_owned(), password: password.map(str::to_owned) }),
            tls: Tls { mode, roots: None },
            databases: Vec::new(),
        };
        for (host, mode, password, warned) in [
            ("db.example", TlsMode::Require, Some("pw"), true),
            ("10.0.0.7", TlsMode::Require, Some("pw"), true),
            ("10.0.0.7", TlsMode::Require, Some(""), false),
            ("10.0.0.7", TlsMode::Require, None, false),
            ("10.0.0.7", TlsMode::VerifyCA, Some("pw"), false),
            ("10.0.0.7", TlsMode::VerifyFull, Some("pw"), false),
            ("10.0.0.7", TlsMode::Disable, Some("pw"), false),
            ("127.0.0.1", TlsMode::Require, Some("pw"), false),
            ("::1", TlsMode::Require, Some("pw"), false),
            ("::ffff:127.0.0.1", TlsMode::Require, Some("pw"), false),
            ("localhost", TlsMode::Require, Some("pw"), false),
        ] {
            assert_eq!(unverified(&member(host, mode, password)).is_some(), warned, "{host} {mode:?} {password:?}");
        }
        let socket = ConnectionAddress::Socket { path: "/run/db".to_owned(), port: 5432 };
        let local = Member { address: socket, ..member("", TlsMode::Require, Some("pw")) };
        assert!(unverified(&local).is_none());
    }
}
