//! The command line, and the assembly: args → bound → running.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::Context;
use api::inject;
use clap::{Parser, ValueEnum};
use rustls::pki_types::ServerName;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    connection::Upstream,
    credentials::{Files, LOOK_EVERY},
    ours::Agent,
    server::{Ending, Place, Server},
};

/// Answers admission reviews: holds snapshots until their databases stand still, checks Databases and Freezes, and puts agents
/// beside databases.
///
/// It decides on what a review holds, or asks stillpoint-apiserver. It watches nothing, and needs no rights in the cluster.
#[derive(Debug, Parser)]
#[command(name = "stillpoint-webhooks", version)]
pub struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", env = "STILLPOINT_LISTEN", default_value = "0.0.0.0:9443")]
    listen: SocketAddr,
    /// The certificate that kube-apiserver sees, for the Service's names; read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "STILLPOINT_TLS_CERT_FILE",
        default_value = "/etc/stillpoint/serving/tls.crt"
    )]
    tls_cert_file: PathBuf,
    /// The key of --tls-cert-file.
    #[arg(
        long,
        value_name = "FILE",
        env = "STILLPOINT_TLS_PRIVATE_KEY_FILE",
        default_value = "/etc/stillpoint/serving/tls.key"
    )]
    tls_private_key_file: PathBuf,
    /// Whose certificates those must show who send reviews; without it whoever reaches the port may. kube-apiserver shows one
    /// when its --admission-control-config-file says so.
    #[arg(long, value_name = "FILE", env = "STILLPOINT_CLIENT_CA_FILE")]
    client_ca_file: Option<PathBuf>,
    /// Where stillpoint-apiserver answers at gates.
    #[arg(
        long,
        value_name = "URL",
        env = "STILLPOINT_APISERVER",
        default_value = "https://stillpoint-apiserver.stillpoint.svc:8443"
    )]
    apiserver: Url,
    /// What its certificate is for, when that is not the host of --apiserver.
    #[arg(long, value_name = "NAME", env = "STILLPOINT_APISERVER_NAME")]
    apiserver_name: Option<String>,
    /// Whose certificate it must show; read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "STILLPOINT_APISERVER_CA_FILE",
        default_value = "/etc/stillpoint/serving/ca.crt"
    )]
    apiserver_ca_file: PathBuf,
    /// Our token for it, of the audience gates.stillpoint.dev; read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "STILLPOINT_TOKEN_FILE",
        default_value = "/var/run/secrets/stillpoint.dev/token"
    )]
    token_file: PathBuf,
    /// The image of the agents that are put beside databases; without it only Pods that name one get an agent.
    #[arg(long, value_name = "IMAGE", env = "STILLPOINT_AGENT_IMAGE", value_parser = image)]
    agent_image: Option<String>,
    /// Where those agents find all replicas of stillpoint-apiserver: its headless Service. Without it no Pod gets an agent.
    #[arg(long, value_name = "HOST:PORT", env = "STILLPOINT_AGENT_APISERVER", value_parser = authority)]
    agent_apiserver: Option<String>,
    /// The namespace that Stillpoint is installed in: nothing in it is waited for.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = api::install::NAMESPACE)]
    namespace: String,
    /// After SIGTERM: how long reviews are answered as before while the cluster learns that this replica goes, in seconds.
    #[arg(long, value_name = "SECONDS", env = "STILLPOINT_SHUTDOWN_DELAY_SECONDS", default_value_t = 5)]
    shutdown_delay_seconds: u64,
    /// After that delay: how long reviews that wait for a freeze may go on, in seconds.
    #[arg(long, value_name = "SECONDS", env = "STILLPOINT_DRAIN_SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// How log lines look.
    #[arg(long, value_enum, env = "STILLPOINT_LOG_FORMAT", default_value_t = LogFormat::Json)]
    log_format: LogFormat,
    /// What is logged (`RUST_LOG` syntax).
    #[arg(long, value_name = "FILTER", env = "STILLPOINT_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "must be https://HOST:PORT";
        let url: http::Uri = text.parse().map_err(|_| WRONG)?;
        let (true, "" | "/", Some(host)) = (url.scheme_str() == Some("https"), url.path(), url.host()) else {
            return Err(WRONG);
        };
        // An IPv6 address is in brackets in a URL only.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: url.port_u16().unwrap_or(443) })
    }
}

/// What a Pod may name, too.
fn image(text: &str) -> Result<String, String> {
    inject::is_image(text).then(|| text.to_owned()).ok_or_else(|| "must be the name of an image".to_owned())
}

/// `HOST:PORT`.
fn authority(text: &str) -> Result<String, String> {
    inject::is_authority(text).then(|| text.to_owned()).ok_or_else(|| "must be HOST:PORT".to_owned())
}

impl Args {
    /// Runs until a signal, or until something that must not end has ended.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self {
            listen,
            tls_cert_file,
            tls_private_key_file,
            client_ca_file,
            apiserver: Url { host, port },
            apiserver_name,
            apiserver_ca_file,
            token_file,
            agent_image,
            agent_apiserver,
            namespace,
            shutdown_delay_seconds,
            drain_seconds,
            log_format,
            log,
        } = self;
        start_logging(log_format, &log)?;
        let name = apiserver_name.unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(name).context("--apiserver-name, or the host of --apiserver")?;
        let server = Server::bind(Place {
            listen,
            upstream: Upstream { host, port, name },
            files: Files {
                certificate: tls_cert_file,
                key: tls_private_key_file,
                authority: apiserver_ca_file,
                token: token_file,
                clients: client_ca_file,
            },
            look_every: LOOK_EVERY,
            namespace,
            agent: Agent { image: agent_image, apiserver: agent_apiserver },
            ending: Ending {
                delay: Duration::from_secs(shutdown_delay_seconds),
                drain: Duration::from_secs(drain_seconds),
            },
        })
        .await?;
        // The one line on stdout: whoever starts us waits for it.
        println!("listening: https://{}", server.address());
        let stop = server.stopping();
        let [mut terminate, mut interrupt] = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let watch = tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            stop.cancel();
        });
        let result = server.run().await;
        watch.abort();
        result
    }
}

fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_a_variable_and_says_what_it_is_for() {
        for argument in Args::command().get_arguments() {
            let flag = argument.get_long().unwrap_or_default();
            assert!(argument.get_env().is_some(), "--{flag} has no variable");
            assert!(argument.get_help().is_some(), "--{flag} is not explained");
        }
    }

    #[test]
    fn only_https_with_a_host_is_an_apiserver() {
        let url = |host: &str, port| Ok(Url { host: host.to_owned(), port });
        assert_eq!("https://a.b.svc:8443".parse(), url("a.b.svc", 8443));
        assert_eq!("https://[::1]:1".parse(), url("::1", 1));
        assert_eq!("https://10.96.0.3".parse(), url("10.96.0.3", 443));
        for wrong in ["http://a:1", "a:1", "https://a:1/path", "https://", ""] {
            assert!(wrong.parse::<Url>().is_err(), "{wrong}");
        }
    }
}
