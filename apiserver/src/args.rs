//! The command line, and the assembly: args → bound → running.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use freeze::Drivers;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::debug;
use tracing_subscriber::EnvFilter;

use crate::{
    aggregated::{self, Service, Serving},
    server::Ending,
    standalone,
};

/// Holds databases still while their copies are taken: verbs, live views, and, standalone, the stored kinds.
///
/// `--standalone` needs no cluster: one process on loopback that an unmodified kubectl talks to.
#[derive(Debug, Parser)]
#[command(name = "stillpoint-apiserver", version)]
pub struct Args {
    /// Serve everything from this one process, without a cluster.
    #[arg(long, requires = "data_dir")]
    standalone: bool,
    /// Standalone: where objects, keys and kubeconfigs are kept. Made if it is not there (0700).
    #[arg(long, value_name = "DIR", requires = "standalone")]
    data_dir: Option<PathBuf>,
    /// Where to listen. Standalone: loopback only, 127.0.0.1:7443 unless told; port 0 takes a free one, which the ready line and
    /// the kubeconfigs name. In a cluster: 0.0.0.0:6443 unless told.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// In a cluster: where `stillpoint-webhooks` asks before a snapshot is cut. Without it no snapshot is waited for.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "standalone")]
    gates_listen: Option<SocketAddr>,
    /// In a cluster: where agents beside databases come. Without it every server is dialled.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "standalone")]
    agents_listen: Option<SocketAddr>,
    /// In a cluster: the image that has the runner of dumps and restores in it, as this one has. Without it none are taken there.
    #[arg(long, value_name = "IMAGE", conflicts_with = "standalone", value_parser = image)]
    runner_image: Option<String>,
    /// In a cluster: Repositories that name no account are reached by this server's own cloud identity (workload identity, instance
    /// metadata), whoever wrote them. Without it they are refused.
    #[arg(long, conflicts_with = "standalone")]
    ambient_credentials: bool,
    /// In a cluster: the Service that the APIService names; our certificate is for it, and our authority in its namespace.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        default_value = "stillpoint/stillpoint-apiserver",
        conflicts_with = "standalone"
    )]
    service: Service,
    /// In a cluster: the certificate that the kube-apiserver sees, when it is not of our own authority; read again when it
    /// changes. Whoever made it keeps the APIService's caBundle, too (cert-manager.io/inject-ca-from does).
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file", conflicts_with = "standalone")]
    tls_cert_file: Option<PathBuf>,
    /// In a cluster: the key of --tls-cert-file.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file", conflicts_with = "standalone")]
    tls_private_key_file: Option<PathBuf>,
    /// In a cluster: how long an old and a new authority of ours are both trusted when one is exchanged for the other, in
    /// seconds; at least 15, for each replica reads it every 5. It is exchanged when it is old, or when its Secret is annotated
    /// with stillpoint.dev/rotate.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(15..),
        conflicts_with = "standalone"
    )]
    ca_overlap_seconds: u64,
    /// In a cluster: how to reach it, when not as the pod that we are.
    #[arg(long, value_name = "FILE", conflicts_with = "standalone")]
    kubeconfig: Option<PathBuf>,
    /// In a cluster: this replica's name; the pod's.
    #[arg(long, value_name = "NAME", env = "POD_NAME", conflicts_with = "standalone")]
    identity: Option<String>,
    /// In a cluster: where the other replicas reach this one; the pod's address.
    #[arg(long, value_name = "ADDRESS", env = "POD_IP", conflicts_with = "standalone", default_value = "127.0.0.1")]
    advertise: IpAddr,
    /// In a cluster, after SIGTERM: how long requests are answered as before while the cluster learns that this replica goes,
    /// in seconds. New freezes go to another replica at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, conflicts_with = "standalone")]
    shutdown_delay_seconds: u64,
    /// After SIGTERM, and that delay: how long freezes that hold may go on before they are thawed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    drain_seconds: u64,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
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

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7443);
const EVERYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 6443);

impl Args {
    /// Runs until a signal, or until something that must not end has ended.
    pub async fn run(self) -> anyhow::Result<()> {
        start_logging(self.log_format, &self.log)?;
        open_files();
        let ending = Ending {
            delay: Duration::from_secs(self.shutdown_delay_seconds),
            drain: Duration::from_secs(self.drain_seconds),
        };
        let server = match self.data_dir {
            Some(data_dir) => {
                let listen = self.listen.unwrap_or(LOOPBACK);
                let server = standalone::bind(&data_dir, listen, ending, Drivers::real()).await?;
                let kubeconfig = data_dir.join("admin.kubeconfig");
                // The one line on stdout: whoever starts us waits for it.
                println!("ready: https://{} KUBECONFIG={}", server.address(), kubeconfig.display());
                server
            }
            None => {
                let place = aggregated::Place {
                    listen: self.listen.unwrap_or(EVERYWHERE),
                    service: self.service,
                    serving: match (self.tls_cert_file, self.tls_private_key_file) {
                        (Some(certificate), Some(key)) => Serving::Files { certificate, key },
                        _ => Serving::Own,
                    },
                    overlap: Duration::from_secs(self.ca_overlap_seconds),
                    kubeconfig: self.kubeconfig,
                    advertise: self.advertise,
                    gates: self.gates_listen,
                    agents: self.agents_listen,
                    runner_image: self.runner_image,
                    lends_identity: self.ambient_credentials,
                    identity: self.identity.unwrap_or_else(|| format!("process {}", std::process::id())),
                };
                let server = aggregated::bind(place, ending, Drivers::real()).await?;
                println!("listening: https://{}", server.address());
                server
            }
        };
        let stop = server.stopping();
        let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let watch = tokio::spawn(async move {
            let [terminate, interrupt] = &mut signals;
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            stop.cancel();
        });
        let result = server.run().await;
        watch.abort();
        result
    }
}

fn image(text: &str) -> Result<String, String> {
    api::inject::is_image(text).then(|| text.to_owned()).ok_or_else(|| "must be the name of an image".to_owned())
}

/// As many files as the hard limit allows, as Go does for its programs (os/rlimit.go): each connection is one, of clients as of
/// databases, and a soft limit is often 1024, for the sake of programs that use select(2).
fn open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| (soft, hard)));
    match raised {
        Ok((before, now)) => debug!(before, now, "limit of open files"),
        Err(error) => debug!(%error, "the limit of open files stays as it is"),
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
