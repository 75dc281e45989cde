//! `chaos`: scenarios against real nodes of this machine. Exit code 1 when something was found that must not be.

use std::{io::Write as _, process::ExitCode};

use chaos::{
    cluster::{self, Fault},
    crash, vendor,
};
use clap::{Parser, Subcommand, ValueEnum as _};

#[derive(Debug, Parser)]
#[command(name = "chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kills a node at seeded moments under load.
    Crash {
        /// Chooses the moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How often to kill.
        #[arg(long, default_value_t = 20)]
        kills: u32,
    },
    /// Faults on a cluster under load.
    Cluster {
        /// Chooses the faults and their moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Nodes of the cluster.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// How many faults, one after another.
        #[arg(long, default_value_t = 12)]
        faults: usize,
        /// The kinds of fault, comma-separated; by default all.
        #[arg(long, value_enum, value_delimiter = ',')]
        kinds: Vec<Fault>,
    },
    /// A map of 100 items against vendors that fail in every way.
    Vendor {
        /// Chooses the faults.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let verdict = match Cli::parse().command {
        Command::Crash { seed, kills } => crash::run(&crash::Options { seed, kills }).await?,
        Command::Cluster { seed, nodes, faults, kinds } => {
            let kinds = if kinds.is_empty() { Fault::value_variants().to_vec() } else { kinds };
            cluster::run(&cluster::Options { seed, nodes, faults, kinds }).await?
        }
        Command::Vendor { seed } => vendor::run(seed).await?,
    };
    writeln!(std::io::stdout(), "{verdict}")?;
    Ok(if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
