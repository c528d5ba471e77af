//! Copies of databases under load, and what they turned out to be worth. Each scenario is run the same way by the demo, a
//! few times, and by the soak, many times.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fixtures::{Cut, Engine, Load, Options, Server, ServerKind, Verdict, Volume, Writers, start_on_copy, verify};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Stillpoint;

/// A database under load, on a volume that can be cut where there can be one.
pub struct Bench {
    pub server: Server,
    pub writers: Writers,
    pub kind: ServerKind,
    /// Nothing where [`Volume::unavailable`] says why: then files can be copied, and nothing can be cut.
    volume: Option<Volume>,
    cuts: u32,
}

/// A copy that a server was started on by plain means. Both end with their owner, the server first.
pub struct Opened {
    pub server: Server,
    pub path: PathBuf,
    _cut: Cut,
}

/// How a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Held by Stillpoint at this level.
    Held(&'static str),
    /// What is commonly done: FLUSH TABLES WITH READ LOCK, or nothing at all where there is no such thing.
    Without,
}

/// What one copy came to.
#[derive(Clone, Debug, Default)]
pub struct Made {
    pub verdict: Verdict,
    /// Commits acknowledged within the second before the still point: what could have been lost.
    pub at_risk: u64,
    /// Commits acknowledged while it said that writes were blocked.
    pub while_blocked: u64,
    pub proved: bool,
    pub held: Duration,
}

/// Large enough for two thousand accounts and some WAL.
const MEGABYTES: u64 = 768;

impl Bench {
    /// Starts a server on a volume, fills it and lets writers loose.
    pub async fn start(kind: ServerKind, settings: &[(&str, &str)], session: &str) -> Result<Self> {
        let volume = if Volume::unavailable().is_none() { Some(Volume::create(MEGABYTES)?) } else { None };
        let home = volume.as_ref().map(|volume| volume.path().join("server"));
        let options = settings
            .iter()
            .fold(Options { home, ..Options::default() }, |options, (name, value)| options.set(name, value));
        let server = Server::start(kind, options).await?;
        Load::prepare(&server).await?;
        if kind.engine == Engine::PostgreSQL {
            server.execute("postgres", "CHECKPOINT").await?;
        }
        // What was there before the writers is not what is looked for.
        if let Some(volume) = &volume {
            volume.sync()?;
        }
        let writers = Load::new(4).session(session).pause(Duration::from_millis(1)).start(&server);
        let began = Instant::now();
        writers
            .next_acknowledgement(began, Duration::from_secs(10))
            .await
            .context("no writer got anything acknowledged")?;
        Ok(Self { server, writers, kind, volume, cuts: 0 })
    }

    /// An atomic cut, now.
    pub fn cut(&mut self) -> Result<PathBuf> {
        self.cuts += 1;
        self.volume()?.snapshot(&format!("cut-{}", self.cuts))
    }

    /// Starts a server on a cut.
    pub async fn open(&self, image: PathBuf) -> Result<Opened> {
        let cut = self.volume()?.open(image)?;
        let path = cut.path.join("server");
        let server = start_on_copy(&self.server, &path).await?;
        Ok(Opened { server, path, _cut: cut })
    }

    fn volume(&self) -> Result<&Volume> {
        self.volume.as_ref().context("without a volume nothing can be cut")
    }

    /// One copy by an atomic cut.
    pub async fn atomic(&mut self, stillpoint: &Stillpoint, database: &str, how: How) -> Result<Made> {
        // Some load between two copies, or nothing is at risk.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let (image, before, mut made) = match how {
            How::Held(level) => self.held_cut(stillpoint, database, level).await?,
            How::Without => self.plain_cut().await?,
        };
        let acknowledged = self.writers.acknowledged();
        let risk = before.checked_sub(Duration::from_secs(1)).unwrap_or(before);
        made.at_risk = count(acknowledged.iter().filter(|one| one.answered <= before && one.answered > risk).count());
        let cut = self.volume()?.open(image)?;
        made.verdict = verify(&self.server, &cut.path.join("server"), &acknowledged, before).await?;
        Ok(made)
    }

    async fn held_cut(
        &mut self,
        stillpoint: &Stillpoint,
        database: &str,
        level: &str,
    ) -> Result<(PathBuf, Instant, Made)> {
        let status = stillpoint.quiesce(database, json!({"level": level})).await.map_err(anyhow::Error::msg)?;
        let answered = Instant::now();
        let image = self.cut()?;
        let letting_go = Instant::now();
        let ended = stillpoint.unquiesce(database, json!({})).await.map_err(anyhow::Error::msg)?;
        let frozen_at = instant(&status["frozenAt"])?;
        // At WriteBlocked the promise reaches up to the answer: nothing is acknowledged after the still point.
        let before = if level == "WriteBlocked" { answered } else { frozen_at };
        let acknowledged = self.writers.acknowledged();
        let blocked = acknowledged.iter().filter(|one| one.answered > answered && one.answered < letting_go);
        let made = Made {
            while_blocked: if level == "WriteBlocked" { count(blocked.count()) } else { 0 },
            proved: ended["proof"]["held"] == Value::Bool(true),
            held: letting_go - answered,
            ..Made::default()
        };
        Ok((image, before, made))
    }

    /// What is done without: the lock that everybody knows, and no barrier.
    async fn plain_cut(&mut self) -> Result<(PathBuf, Instant, Made)> {
        let lock = match self.kind.engine {
            Engine::MariaDB => {
                let mut connection = self.server.mariadb(fixtures::USER, fixtures::PASSWORD).await?;
                sqlx::raw_sql("FLUSH TABLES WITH READ LOCK").execute(&mut connection).await?;
                Some(connection)
            }
            Engine::PostgreSQL => None,
        };
        let before = Instant::now();
        let image = self.cut()?;
        drop(lock);
        Ok((image, before, Made::default()))
    }

    /// One copy file by file, in backup mode; `label`: whether the label is put into the copy.
    pub async fn files(&mut self, stillpoint: &Stillpoint, database: &str, label: bool) -> Result<Made> {
        let status = stillpoint.quiesce(database, json!({"copy": "Files"})).await.map_err(anyhow::Error::msg)?;
        let frozen_at = instant(&status["frozenAt"])?;
        let directory = tempfile::Builder::new().prefix("stillpoint-copy-").tempdir()?;
        let (from, to) = (self.server.data_dir(), directory.path().join("data"));
        copy_tables_with_a_checkpoint_between(&self.server, &from, &to).await?;
        let stopped = stillpoint.unquiesce(database, json!({"stage": "Stop"})).await.map_err(anyhow::Error::msg)?;
        shell(&format!(
            "mkdir -p {to}/pg_wal && cp -a {from}/pg_wal/. {to}/pg_wal/",
            from = from.display(),
            to = to.display()
        ))?;
        let ended = stillpoint.unquiesce(database, json!({})).await.map_err(anyhow::Error::msg)?;
        for artifact in stopped["artifacts"].as_array().into_iter().flatten().filter(|_| label) {
            if artifact["kind"] != "WalRange" {
                let name = artifact["name"].as_str().unwrap_or_default();
                std::fs::write(to.join(name), artifact["content"].as_str().unwrap_or_default())?;
            }
        }
        let own = if fixtures::is_root() { format!("chown -R postgres: {} && ", to.display()) } else { String::new() };
        shell(&format!("rm -rf {0}/pg_replslot/* && {own}chmod 700 {0}", to.display()))?;
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let acknowledged = self.writers.acknowledged();
        let verdict = verify(&self.server, directory.path(), &acknowledged, frozen_at).await?;
        Ok(Made { verdict, proved: ended["proof"]["held"] == Value::Bool(true), ..Made::default() })
    }
}

/// Half of the files before a checkpoint, half after: what a slow copy of a busy server looks like.
async fn copy_tables_with_a_checkpoint_between(server: &Server, from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    shell(&format!("mkdir -p {to}/base && cd {from} && for d in base/*; do cp -a $d {to}/base/; done"))?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.execute("postgres", "CHECKPOINT").await?;
    // Everything else later, pg_control last of all.
    shell(&format!(
        "cd {from} && for f in *; do case $f in base|pg_wal|postmaster.pid|postmaster.opts) ;; *) cp -a $f {to}/ ;; esac; done"
    ))
}

fn shell(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    // A table file that vanished meanwhile is no error of a copy of a live server.
    if output.status.success() || String::from_utf8_lossy(&output.stderr).contains("No such file") {
        return Ok(());
    }
    bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The instant of a timestamp of this machine's clock.
pub fn instant(value: &Value) -> Result<Instant> {
    let at: Timestamp = value.as_str().context("no frozenAt")?.parse()?;
    let ago = Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default();
    Instant::now().checked_sub(ago).context("frozenAt is before this machine started")
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
