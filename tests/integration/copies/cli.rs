//! Copies as a user has them who knows the command line alone: a Repository, a Snapshot, its files, the way back with us and without
//! us, and the end of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fixtures::{Options, PASSWORD, Server, ServerKind, Session, USER, clients};
use tempfile::TempDir;
use tests::binary;

use super::world::World;

/// A server with a Repository, made by commands; and what these said.
struct User {
    world: World,
    home: TempDir,
    /// The Repository's, as it was printed.
    password: String,
}

/// Nothing that a shell, SQL or a path would leave as it is.
const DATABASE: &str = "it's a \"shop\" $(x)/..";
/// More than a range of a download.
const BIG: &str = "CREATE TABLE big AS SELECT i, md5(i::text) AS text FROM generate_series(1, 600000) i";
const SUM: &str = "SELECT concat(count(*), ' ', sum(i), ' ', max(text)) FROM big";
/// The administrator's where a copy is taken; where it goes he has another, and keeps it.
const OTHER: &str = "another-8842";
/// What a restore adds to, whatever else it does.
const POSTGRESQL_STATE: &str = "SELECT concat((SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database), ' ', \
    (SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles))";
const MARIADB_STATE: &str = "SELECT CAST(CONCAT((SELECT GROUP_CONCAT(schema_name ORDER BY 1) FROM information_schema.schemata), ' ', \
    (SELECT GROUP_CONCAT(User ORDER BY 1) FROM mysql.user)) AS CHAR)";
const POSTGRESQL: ServerKind = ServerKind::POSTGRESQL_15;
const MARIADB: ServerKind = ServerKind::MARIADB_10_11;

impl User {
    async fn with_a_repository(kind: ServerKind) -> Self {
        let mut user = Self {
            world: World::with_programs_of(&[kind]).await,
            home: tempfile::tempdir().unwrap(),
            password: String::new(),
        };
        let place = format!("near={}", user.directory().display());
        let said = user.does(&["repository", "create", "nightly", "--location", &place, "--generate-password"]);
        assert!(said.contains("is ready in") && said.contains("without it nothing"), "{said}");
        let password = said.lines().find_map(|line| line.strip_prefix("    ")).unwrap();
        password.clone_into(&mut user.password);
        user
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("repository")
    }

    fn says(&self, arguments: &[&str]) -> (i32, String) {
        self.says_with(PASSWORD, arguments)
    }

    fn says_with(&self, password: &str, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(binary("kubectl-still").unwrap())
            .args(arguments)
            .env("KUBECONFIG", &self.world.stillpoint.kubeconfig)
            .env("STILLPOINT_PASSWORD", password)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    /// What has to succeed.
    fn does(&self, arguments: &[&str]) -> String {
        let (code, said) = self.says(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}\n{}", self.world.stillpoint.log().unwrap());
        said
    }

    /// What has to fail, and to say why.
    fn fails(&self, arguments: &[&str], wanted: &[&str]) {
        let (code, said) = self.says(arguments);
        assert!(code != 0 && wanted.iter().all(|wanted| said.contains(wanted)), "{arguments:?}: {code} {said}");
    }

    async fn server(&self, name: &str, kind: ServerKind) -> Server {
        let server = Server::start(kind, Options::default()).await.unwrap();
        self.register(name, &server, PASSWORD);
        server
    }

    fn register(&self, name: &str, server: &Server, password: &str) {
        let port = server.port.to_string();
        let engine = if server.kind == MARIADB { "mariadb" } else { "postgresql" };
        let at = ["--engine", engine, "--host", "127.0.0.1", "--port", &port, "--user", USER];
        let (code, said) = self.says_with(password, &[&["database", "create", name], &at[..]].concat());
        assert_eq!(code, 0, "{said}");
    }

    /// The plan of copy `first`, into Database `plain`: with a password that is none, with the right one, and once more, when all of
    /// it is there and was changed.
    async fn restores_by_plain_means(&self, plain: &Server, changed: &str, seen: &str) {
        let script = self.home.path().join("plan.sh");
        fs::write(&script, self.does(&["restore-plan", "first", "--into", "plain"])).unwrap();
        let run = |password: &str, replace: &str| by_plain_means(plain.kind, &script, password, replace);
        let before = state(plain).await;
        let (code, said) = run("wrong", "yes");
        assert!(code != 0 && said.contains("Nothing was touched"), "{said}");
        assert_eq!(state(plain).await, before);
        let (code, said) = run(&self.password, "");
        assert_eq!(code, 0, "{said}\n{}", fs::read_to_string(&script).unwrap());
        let (restored, was) = (state(plain).await, scalar(plain, seen).await);
        assert!(restored != before && restored.contains("auditor"), "the negative control: {restored}");
        assert!(!said.contains("ERROR"), "{said}");

        let place = if plain.kind == MARIADB { "" } else { DATABASE };
        plain.execute(place, changed).await.unwrap();
        let now = scalar(plain, seen).await;
        let (code, said) = run(&self.password, "");
        assert!(code != 0 && said.contains("already") && said.contains("REPLACE=yes"), "{said}");
        assert_eq!((state(plain).await, scalar(plain, seen).await), (restored.clone(), now.clone()));
        let (code, said) = run(&self.password, "yes");
        assert_eq!(code, 0, "{said}");
        assert_eq!((state(plain).await, scalar(plain, seen).await), (restored, was.clone()));
        assert_ne!(now, was);
    }

    /// What cannot be opened is not called damaged, and what can is whole.
    fn tells_damaged_from_away(&self) {
        let [near, far] = ["a", "b"].map(|name| self.home.path().join(name));
        let [at_near, at_far] =
            [("near", &near), ("far", &far)].map(|(name, path)| format!("{name}={}", path.display()));
        let place = ["--password-secret", "nightly-key", "--location", &at_near, "--location", &at_far];
        self.does(&[&["repository", "create", "both"], &place[..]].concat());
        fs::write(far.join("config"), "of something else").unwrap();
        let (code, said) = self.says(&["repository", "check", "both", "--read-data"]);
        assert!(code == 1 && said.contains("both could not be looked at in far"), "{said}");
        assert!(
            said.contains("both is whole in near (every byte was read)") && !said.contains("both is damaged"),
            "{said}"
        );
    }

    fn restic(&self, arguments: &[&str]) -> String {
        let output = Command::new("restic")
            .args(["--no-cache", "-r"])
            .arg(self.directory())
            .args(arguments)
            .env("RESTIC_PASSWORD", &self.password)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

async fn sum(server: &Server) -> String {
    scalar(server, SUM).await
}

/// The database that the tests are about.
fn inside(server: &Server) -> &'static str {
    if server.kind == MARIADB { "it's $(x)" } else { DATABASE }
}

async fn scalar(server: &Server, sql: &str) -> String {
    let mut session = Session::open(server.kind.engine, server.port, inside(server)).await.unwrap();
    session.scalar(sql).await.unwrap()
}

/// Which databases and accounts there are.
async fn state(server: &Server) -> String {
    let (database, sql) =
        if server.kind == MARIADB { ("mysql", MARIADB_STATE) } else { ("postgres", POSTGRESQL_STATE) };
    let mut session = Session::open(server.kind.engine, server.port, database).await.unwrap();
    session.scalar(sql).await.unwrap()
}

async fn filled(server: &Server) {
    let name = DATABASE.replace('"', "\"\"");
    server.execute("postgres", &format!("CREATE DATABASE \"{name}\"")).await.unwrap();
    server.execute(DATABASE, BIG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_taken_downloaded_and_brought_back_with_us_and_without_us() {
    let user = User::with_a_repository(POSTGRESQL).await;
    let source = Server::start(POSTGRESQL, Options::default()).await.unwrap();
    filled(&source).await;
    let was = sum(&source).await;
    source.execute("postgres", &format!("CREATE ROLE auditor; ALTER ROLE {USER} PASSWORD '{OTHER}'")).await.unwrap();
    user.register("orders", &source, OTHER);
    let said = user.does(&["snapshot", "create", "orders", "--name", "first"]);
    assert!(said.contains("snapshot first is Ready: application at Durable"), "{said}");
    assert!(user.does(&["snapshot", "log", "first"]).contains("Z "));
    user.fails(&["generate", "snapshot", "first"], &["there are no Jobs here"]);
    let list = user.does(&["snapshot", "list", "--repository", "nightly"]);
    let row = list.lines().find(|line| line.starts_with("first ")).unwrap();
    assert!(["orders", "application", "nightly", "Snapshot", "Ready"].iter().all(|cell| row.contains(cell)), "{list}");
    // The negative control: what came to nothing is no success.
    user.fails(&["snapshot", "create", "nothing", "--name", "never", "--deadline", "1s"], &["snapshot never failed"]);

    downloads(&user);

    let target = user.server("fresh", POSTGRESQL).await;
    let said = user.does(&["restore", "fresh", "--latest", "--from", "orders", "--name", "back"]);
    assert!(said.contains("restore back is Complete") && said.contains("into fresh from copy first"), "{said}");
    assert_eq!(sum(&target).await, was);
    assert!(!user.does(&["restore", "log", "back"]).is_empty());
    let there = ["is there already", "(here: --existing replace)", "the Database is as it was"];
    user.fails(&["restore", "fresh", "--snapshot", "first"], &there);
    let replace = ["restore", "fresh", "--snapshot", "first", "--existing", "replace"];
    user.fails(&replace, &["say --yes"]);
    user.does(&[&replace[..], &["--yes", "--no-globals"]].concat());
    user.fails(&["restore", "fresh", "--as-of", "2026-11-29T03:00:00"], &["which zone", "2026-11-29T03:00:00Z"]);

    let plain = user.server("plain", POSTGRESQL).await;
    user.restores_by_plain_means(&plain, "DELETE FROM big WHERE i > 5", SUM).await;
    assert_eq!(sum(&plain).await, was);
}

/// Files are gone on with where they ended, and are what was dumped or are not there.
fn downloads(user: &User) {
    let to = user.home.path().join("files");
    let to = to.to_str().unwrap();
    user.does(&["snapshot", "download", "first", "--to", to]);
    let files: Vec<PathBuf> = fs::read_dir(format!("{to}/orders")).unwrap().map(|file| file.unwrap().path()).collect();
    let big = files.iter().max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let (name, whole) = (big.file_name().unwrap().to_str().unwrap(), fs::read(big).unwrap());
    assert!(whole.len() > 16 << 20, "one range would have it all: {} bytes", whole.len());
    let part = big.with_file_name(format!("{name}.part"));
    let again = ["snapshot", "download", "first", "--to", to];

    fs::rename(big, &part).unwrap();
    fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    let said = user.does(&again);
    assert!(said.contains("gone on with after") && said.contains("is there already"), "{said}");
    assert!(fs::read(big).unwrap() == whole && !part.exists());

    // The negative control: one bit of what was there before.
    fs::remove_file(big).unwrap();
    let mut flipped = whole[..whole.len() / 2].to_vec();
    flipped[1000] ^= 1;
    fs::write(&part, flipped).unwrap();
    user.fails(&again, &["is not what was dumped"]);
    assert!(!big.exists() && !part.exists());
    let path = format!("orders/{name}");
    user.does(&[&again[..], &["--file", &path]].concat());
    assert!(fs::read(big).unwrap() == whole);
    user.fails(&[&again[..], &["--file", "orders/none"]].concat(), &["no file orders/none", &path]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_a_mariadb_brings_it_back_with_its_users() {
    let user = User::with_a_repository(MARIADB).await;
    let source = Server::start(MARIADB, Options::default()).await.unwrap();
    let sql = "CREATE DATABASE `it's $(x)`; CREATE TABLE `it's $(x)`.t AS SELECT 42 AS n; CREATE USER auditor@localhost IDENTIFIED BY 'x'; \
               GRANT SELECT ON `it's $(x)`.t TO auditor@localhost";
    source.execute("", sql).await.unwrap();
    source.execute("", &format!("SET PASSWORD = PASSWORD('{OTHER}')")).await.unwrap();
    user.register("orders", &source, OTHER);
    user.does(&["snapshot", "create", "orders", "--name", "first"]);
    let plain = user.server("plain", MARIADB).await;
    user.restores_by_plain_means(&plain, "UPDATE `it's $(x)`.t SET n = 1", "SELECT CAST(n AS CHAR) FROM t").await;
    let mut session = Session::open(MARIADB.engine, plain.port, "it's $(x)").await.unwrap();
    assert_eq!(session.scalar("SELECT CAST(n AS CHAR) FROM t").await.unwrap(), "42");
    let granted = "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.tables_priv WHERE User = 'auditor' AND Table_name = 't'";
    assert_eq!(session.scalar(granted).await.unwrap(), "1");
}

fn by_plain_means(kind: ServerKind, script: &Path, password: &str, replace: &str) -> (i32, String) {
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", clients(kind).unwrap().display());
    let output = Command::new("sh")
        .arg(script)
        .env_clear()
        .envs([("PATH", path.as_str()), ("HOME", "/nowhere"), ("RESTIC_PASSWORD", password), ("REPLACE", replace)])
        .envs([("PGUSER", USER), ("PGPASSWORD", PASSWORD), ("MYSQL_USER", USER), ("MYSQL_PWD", PASSWORD)])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_repository_is_read_checked_and_deleted() {
    let user = User::with_a_repository(POSTGRESQL).await;
    let server = user.server("orders", POSTGRESQL).await;
    server.execute("postgres", "CREATE DATABASE shop").await.unwrap();
    for name in ["first", "second"] {
        user.does(&["snapshot", "create", "orders", "--name", name, "--repository", "nightly"]);
    }
    fs::write(user.home.path().join("note"), "not ours").unwrap();
    user.restic(&["backup", user.home.path().join("note").to_str().unwrap()]);
    let said = user.does(&["repository", "scan", "nightly"]);
    assert!(said.contains("2 with a Snapshot here; 1 of other programs"), "{said}");
    assert!(user.does(&["repository", "check", "nightly", "--read-data"]).contains("is whole in near"));

    user.does(&["snapshot", "delete", "first"]);
    user.does(&["snapshot", "delete", "second", "--keep-copy"]);
    let said = user.does(&["repository", "scan"]);
    assert!(said.contains("1 without one") && !said.contains("Snapshot here"), "{said}");
    let entry = said.lines().find(|line| line.contains("default/second")).unwrap().split(' ').next().unwrap();
    user.fails(&["snapshot", "delete", entry], &["no Snapshot of here", "forget --prune"]);
    user.fails(&["snapshot", "delete", "first"], &["not found"]);

    // The negative control: what is damaged is not called whole. All of it: what no copy needs any more is not looked at.
    for pack in walk(&user.directory().join("data")) {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&pack, bytes).unwrap();
    }
    user.fails(&["repository", "check", "nightly", "--read-data"], &["near", "Fail", "nightly is damaged"]);
    user.tells_damaged_from_away();
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
