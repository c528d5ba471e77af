//! `cluster up`, `cluster down`: a Kubernetes that stays until it is told to go.

use std::{env, path::PathBuf};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use cluster::{Node, Options};

#[derive(Parser)]
#[command(about = "A real Kubernetes on this machine")]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start it, if it does not run; prints a line for the shell
    Up {
        #[command(flatten)]
        place: Place,
        /// With a node, which runs Pods, and storage with snapshots; needs root
        #[arg(long)]
        node: bool,
    },
    /// End it, and remove all it stored
    Down(Place),
}

#[derive(Args)]
struct Place {
    /// Where it keeps everything; `cluster` in the cache when not given
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse().verb {
        Verb::Up { place, node } => {
            let options = Options { node: node.then_some(Node { storage: true }), ..Options::default() };
            let up = cluster::up(&place.directory()?, options).await?;
            eprintln!("{}", if up.already { "a cluster runs already" } else { "a cluster is ready" });
            println!("export KUBECONFIG={}", quoted(&up.kubeconfig.display().to_string()));
        }
        Verb::Down(place) => {
            let ended = cluster::down(&place.directory()?).await?;
            let ended =
                if ended.is_empty() { "no cluster runs".to_owned() } else { format!("ended: {}", ended.join(", ")) };
            eprintln!("{ended}");
        }
    }
    Ok(())
}

impl Place {
    /// Absolute: the line that is printed is good in every directory.
    fn directory(self) -> Result<PathBuf> {
        let cache = || {
            let cache = env::var_os("STILLPOINT_CACHE").filter(|cache| !cache.is_empty());
            cache
                .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.cache"), PathBuf::from)
                .join("cluster")
        };
        Ok(std::path::absolute(self.dir.unwrap_or_else(cache))?)
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@".contains(character);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
