//! `grants`: the SQL that gives an account the least it needs.

use api::{Copy, Database, Engine, Level};

use super::driver;
use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {
    /// A registered Database; or use --engine, which needs no server.
    #[arg(required_unless_present = "engine")]
    name: Option<String>,
    /// postgresql or mariadb.
    #[arg(long, value_name = "ENGINE", conflicts_with = "name")]
    engine: Option<Engine>,
    /// The account; for MariaDB also NAME@HOST.
    #[arg(long, value_name = "NAME", default_value = "stillpoint")]
    user: String,
    /// Up to which level.
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// Atomic or Files.
    #[arg(long, value_name = "METHOD", default_value_t = Copy::default())]
    copy: Copy,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let (engine, level) = match (self.engine, &self.name) {
            (Some(engine), _) => (engine, Level::default()),
            (None, Some(name)) => {
                let database = connection.connect().await?.objects::<Database>().get(name).await?;
                (database.spec.engine, database.spec.freeze.level)
            }
            (None, None) => return Err(Failure::new("name a Database, or give --engine")),
        };
        let level = self.level.unwrap_or(level);
        let driver = driver(engine)?;
        driver.supports(level, self.copy)?;
        let grants = driver.grants(&self.user, level, self.copy);
        if output == Output::Json {
            let grants: Vec<_> = grants
                .iter()
                .map(|grant| serde_json::json!({"statement": grant.statement, "reason": grant.reason}))
                .collect();
            return print::json(&grants).map(|()| 0);
        }
        println!("-- {engine}, {level}, copy: {}", self.copy);
        for grant in grants {
            println!("{}  -- {}", grant.statement, grant.reason);
        }
        Ok(0)
    }
}
