//! `database create | list | delete`: a Database and the Secrets that it needs, made and removed together.

use api::{Credentials, Database, DatabaseSpec, Endpoint, FreezePolicy, Level, SecretReference, Tls};
use clap::Subcommand;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};

use super::ServerArgs;
use crate::{
    client::{Api, Connection},
    failure::Failure,
    print::{self, Output},
};

/// On Secrets that `database create` made: they go with their Database.
const MADE_FOR: &str = "stillpoint.dev/made-for";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register a database server, with the account to freeze with.
    ///
    /// Example: STILLPOINT_PASSWORD=… kubectl still database create orders --engine postgresql --host 127.0.0.1
    Create {
        name: String,
        #[command(flatten)]
        server: ServerArgs,
        /// A database inside the server that freezes must cover; repeat it. Absent: all.
        #[arg(long = "database", value_name = "NAME")]
        databases: Vec<String>,
        /// What freezes promise unless told otherwise: Recoverable, Durable or WriteBlocked.
        #[arg(long, value_name = "LEVEL", default_value_t = Level::default())]
        level: Level,
        /// Say what would be made, and make nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the databases that are registered.
    List,
    /// Forget a database, and the Secrets that create made for it. The server itself is not touched.
    Delete {
        name: String,
        /// Keep its Secrets.
        #[arg(long)]
        keep_secret: bool,
    },
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        match self {
            Self::Create { name, server, databases, level, dry_run } => {
                create(&api, &name, &server, databases, level, dry_run, output).await
            }
            Self::List => list(&api, output).await,
            Self::Delete { name, keep_secret } => delete(&api, &name, keep_secret).await,
        }
    }
}

async fn create(
    api: &Api,
    name: &str,
    server: &ServerArgs,
    databases: Vec<String>,
    level: Level,
    dry_run: bool,
    output: Output,
) -> Result<u8, Failure> {
    // Before anything is asked for: a bad file or a bad combination.
    let (address, ca) = (server.address()?, server.ca()?);
    let password = server.password.read(&server.user)?;
    let params = PostParams { dry_run, ..PostParams::default() };
    let secret_name = format!("{name}-freezer");
    let mut data = vec![("username", server.user.clone())];
    data.extend(password.map(|password| ("password", password)));
    data.extend(ca.clone().map(|ca| ("ca.crt", ca)));
    let spec = DatabaseSpec {
        agent: api::AgentPolicy::default(),
        engine: server.engine,
        endpoint: Endpoint { host: server.host.clone(), port: server.port, socket: server.socket.clone() },
        pod_selector: None,
        databases,
        credentials: Some(Credentials {
            secret_ref: SecretReference { name: secret_name.clone() },
            username_key: "username".to_owned(),
            password_key: "password".to_owned(),
        }),
        tls: (server.tls_mode.is_some() || ca.is_some()).then(|| Tls {
            mode: server.tls_mode,
            ca_secret_ref: ca.is_some().then(|| SecretReference { name: secret_name.clone() }),
            cert_secret_ref: None,
        }),
        freeze: FreezePolicy { level, ..FreezePolicy::default() },
        paused: false,
    };
    let secrets = api.objects::<Secret>();
    secrets.create(&params, &secret(&secret_name, name, data)).await?;
    let made = match api.objects::<Database>().create(&params, &Database::new(name, spec)).await {
        Ok(made) => made,
        Err(error) => {
            // A Secret that nobody refers to must not stay behind with a password in it.
            if !dry_run {
                secrets.delete(&secret_name, &DeleteParams::default()).await.ok();
            }
            return Err(error.into());
        }
    };
    if output == Output::Json {
        return print::json(&made).map(|()| 0);
    }
    println!("database {name} registered ({} at {address}){}", server.engine, if dry_run { " (dry run)" } else { "" });
    println!("next:  kubectl still grants {name}      the SQL for its account");
    println!("       kubectl still preflight {name}   whether all is there");
    Ok(0)
}

async fn list(api: &Api, output: Output) -> Result<u8, Failure> {
    let databases = api.objects::<Database>().list(&ListParams::default()).await?;
    if output == Output::Json {
        return print::json(&databases).map(|()| 0);
    }
    let rows: Vec<Vec<String>> = databases
        .items
        .iter()
        .map(|database| {
            let status = database.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
            let ready = ready.map_or("Unknown".to_owned(), |ready| match ready.status.as_str() {
                "True" => "True".to_owned(),
                _ => format!("{} ({})", ready.status, ready.reason),
            });
            vec![
                database.metadata.name.clone().unwrap_or_default(),
                database.spec.engine.to_string(),
                database.spec.place(),
                database.spec.freeze.level.to_string(),
                ready,
                status.last_freeze.map(|last| last.phase.to_string()).unwrap_or_default(),
            ]
        })
        .collect();
    print!("{}", print::table(&["NAME", "ENGINE", "ENDPOINT", "LEVEL", "READY", "LAST-FREEZE"], &rows));
    Ok(0)
}

async fn delete(api: &Api, name: &str, keep_secret: bool) -> Result<u8, Failure> {
    api.objects::<Database>().delete(name, &DeleteParams::default()).await?;
    println!("database {name} forgotten; a freeze of it is thawed");
    if !keep_secret {
        let selector = ListParams::default().labels(&format!("{MADE_FOR}={name}"));
        let secrets = api.objects::<Secret>();
        for secret in secrets.list_metadata(&selector).await?.items {
            let secret = secret.metadata.name.unwrap_or_default();
            secrets.delete(&secret, &DeleteParams::default()).await?;
            println!("secret {secret} removed");
        }
    }
    Ok(0)
}

fn secret(name: &str, database: &str, data: Vec<(&str, String)>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(MADE_FOR.to_owned(), database.to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    }
}
