//! The server that a plan restores into, in the words of its own programs: where it is, how it is reached, what is in the way there. Pure.

use api::{ConnectionAddress, Database, DumpFile, DumpFormat, Engine, TlsMode};

use super::{
    places::Needed,
    script::{Plan, quoted, rooted, said},
};

/// Every new server of PostgreSQL has one, which nobody has put anything into.
pub const IS_ALWAYS_THERE: &str = "postgres";
const POSTGRESQL: &str = include_str!("postgresql.sh");
const MARIADB: &str = include_str!("mariadb.sh");

/// What a database is empty of: everything but what the server put there. Objects of extensions are the extension's.
const HOLDS: &str = "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') \
    + (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') + (SELECT count(*) FROM pg_largeobject_metadata)";
/// One a line, whatever is in it.
const ROLES: &str = "SELECT replace(rolname::text, chr(10), chr(1)) FROM pg_roles";
/// As `mariadb-dump --system=users` writes them: in grants, and in what is said of default roles.
const USERS: &str = "SELECT CONCAT('`', REPLACE(User, '`', '``'), '`@`', REPLACE(Host, '`', '``'), '`'), \
    CONCAT(QUOTE(User), '@', QUOTE(Host)) FROM mysql.user";

/// How it is reached, and what is asked of it before anything is touched.
pub fn server(plan: &Plan<'_>) -> String {
    let (engine, target) = (plan.of.engine, plan.target);
    let address = target.and_then(|target| target.spec.endpoint.address(engine));
    let account = target.and_then(|target| target.spec.credentials.as_ref());
    let account = account.map_or_else(String::new, |account| {
        let (secret, key) = (said(&account.secret_ref.name), said(&account.username_key));
        format!("; Stillpoint's own is key {key} of Secret {secret}")
    });
    let (user, password) = match engine {
        Engine::PostgreSQL => ("PGUSER", "PGPASSWORD, or ~/.pgpass"),
        Engine::MariaDB => ("MYSQL_USER", "MYSQL_PWD, or ~/.my.cnf"),
    };
    let may = format!("an account that may make databases and accounts{account} (its password: {password})");
    let mode = target.and_then(|target| mode(target, address.as_ref()));
    let ca = target.and_then(|target| target.spec.tls.as_ref()?.ca_secret_ref.as_ref());
    let ca = ca.filter(|_| mode != Some(TlsMode::Disable)).map(|secret| {
        let variable = if engine == Engine::PostgreSQL { "PGSSLROOTCERT" } else { SERVER_CA };
        plan.need(&Needed::new(variable, "a file that holds", &secret.name, "ca.crt"))
    });
    let place = match engine {
        Engine::PostgreSQL => postgresql(address.as_ref(), mode),
        Engine::MariaDB => mariadb(address.as_ref(), mode, ca.is_some()),
    };
    let words = match engine {
        Engine::PostgreSQL => POSTGRESQL,
        Engine::MariaDB => MARIADB,
    };
    format!("need {user} {}\n{}{place}{words}{}", quoted(&may), ca.unwrap_or_default(), checks(plan))
}

/// The server can be asked, who is there is written down, and nothing is in the way.
fn checks(plan: &Plan<'_>) -> String {
    let there = match plan.of.engine {
        Engine::PostgreSQL => ROLES,
        Engine::MariaDB => USERS,
    };
    let mut text = format!("asked {} >\"$scratch/there\"\n", quoted(there));
    for file in &plan.of.files {
        match (file.format, file.database.as_deref()) {
            (DumpFormat::PostgreSQLCustom, Some(IS_ALWAYS_THERE)) => {
                text += &format!("free {IS_ALWAYS_THERE} {} {IS_ALWAYS_THERE}\n", quoted(HOLDS));
            }
            (DumpFormat::PostgreSQLCustom, Some(name)) => {
                let sql = format!("SELECT count(*) FROM pg_database WHERE datname = {}", literal(name));
                text += &format!("free {} {}\n", quoted(name), quoted(&sql));
            }
            (DumpFormat::MariaDBSql, _) => text += &format!("free {}\n", quoted(&rooted(&file.path))),
            _ => {}
        }
    }
    text
}

/// What is done before a file is restored.
pub fn before(file: &DumpFile) -> String {
    match (file.format, file.database.as_deref()) {
        (DumpFormat::PostgreSQLCustom, Some(name)) => {
            let sql = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", name.replace('"', "\"\""));
            format!("replaced {}\n", quoted(&sql))
        }
        _ => String::new(),
    }
}

/// What is said when all is done.
pub fn last(engine: Engine) -> &'static str {
    match engine {
        Engine::PostgreSQL => "",
        Engine::MariaDB => {
            "if test -n \"$some\"; then echo 'Restored; some users or grants were refused, see above.' >&2; fi\n"
        }
    }
}

const SERVER_CA: &str = "SERVER_CA_FILE";

/// The encryption in force; none: it goes to a place that nobody has named.
fn mode(target: &Database, address: Option<&ConnectionAddress>) -> Option<TlsMode> {
    match (address, &target.spec.tls) {
        (Some(address), _) => Some(target.spec.tls_mode(address)),
        (None, Some(tls)) => tls.mode.or(tls.ca_secret_ref.as_ref().map(|_| TlsMode::VerifyFull)),
        (None, None) => None,
    }
}

/// libpq reads its environment, and a socket's directory as a host.
fn postgresql(address: Option<&ConnectionAddress>, mode: Option<TlsMode>) -> String {
    let place = match address {
        Some(ConnectionAddress::Tcp { host, port } | ConnectionAddress::Socket { path: host, port }) => {
            format!("export PGHOST={} PGPORT={port}\n", quoted(host))
        }
        None => "need PGHOST 'the server that it goes to, and PGPORT its port'\n".to_owned(),
    };
    let word = mode.map(|mode| match mode {
        TlsMode::Disable => "disable",
        TlsMode::Require => "require",
        TlsMode::VerifyCA => "verify-ca",
        TlsMode::VerifyFull => "verify-full",
    });
    place + &word.map(|word| format!("export PGSSLMODE={word}\n")).unwrap_or_default()
}

/// The client asks for TLS and verifies where nobody says otherwise (MariaDB 11.4), which a server of this machine need not have. It
/// has no way to verify who signed a certificate and not whom it names.
fn mariadb(address: Option<&ConnectionAddress>, mode: Option<TlsMode>, has_ca: bool) -> String {
    let (need, place) = match address {
        Some(ConnectionAddress::Tcp { host, port }) => {
            ("", format!("--protocol=tcp --host={} --port={port}", quoted(host)))
        }
        Some(ConnectionAddress::Socket { path, .. }) => ("", format!("--socket={}", quoted(path))),
        None => ("need MYSQL_HOST 'the server that it goes to'\n", "--host=\"$MYSQL_HOST\"".to_owned()),
    };
    let tls = match mode {
        None => "",
        Some(TlsMode::Disable) => " --skip-ssl",
        Some(TlsMode::Require) => " --ssl --skip-ssl-verify-server-cert",
        Some(TlsMode::VerifyCA | TlsMode::VerifyFull) => " --ssl --ssl-verify-server-cert",
    };
    let ca = if has_ca { format!(" --ssl-ca=\"${SERVER_CA}\"") } else { String::new() };
    format!("{need}server() {{ mariadb {place}{tls}{ca} --user=\"$MYSQL_USER\" \"$@\"; }}\n")
}

/// A text of SQL's, whatever the server's `standard_conforming_strings` are.
fn literal(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
