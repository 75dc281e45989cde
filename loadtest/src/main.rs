//! `loadtest`: load on a node over HTTP, and the benches of the layers. It only ever addresses the URL it is given,
//! and stops by itself.

mod bench;
mod cluster;
mod drive;
mod etcd;
mod layers;
mod levels;
mod load;
mod local;
mod peers;
mod restate;
mod soak;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

/// As the node has it: the benches of the layers run in this process.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every bench of `docs/benchmarks.md`: target, median, spread, met or missed.
    Bench {
        /// Runs of each bench.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Only benches whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
        /// Where data is written: a real file system, not one in memory.
        #[arg(long, default_value = ".")]
        directory: std::path::PathBuf,
        /// How often a leader is killed.
        #[arg(long, default_value_t = 100)]
        kills: usize,
    },
    /// Full load on three nodes for long: no shard may elect a leader. Exit code 1 if one did.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Where data is written: a real file system, not one in memory.
        #[arg(long, default_value = ".")]
        directory: std::path::PathBuf,
    },
    /// A fourth node takes in what three have, under writes. Exit code 1 if the p99 of the writes more than doubles.
    Intake {
        /// How much.
        #[arg(long, default_value_t = 1024)]
        mib: usize,
        /// Where data is written: a real file system, not one in memory.
        #[arg(long, default_value = ".")]
        directory: std::path::PathBuf,
    },
    /// A backup under writes, the loss of all nodes, and a restore. Exit code 1 if the p99 of the writes more than
    /// doubles, or the first commit comes after more than a minute.
    Backup {
        /// How many sessions.
        #[arg(long, default_value_t = 1_000_000)]
        sessions: u64,
        /// Where data is written: a real file system, not one in memory.
        #[arg(long, default_value = ".")]
        directory: std::path::PathBuf,
    },
    /// The same work on Orchestra with one and three nodes, on Restate and on etcd, in turns: what each did, and how
    /// they compare. Exit code 1 if a target is missed.
    Peers(peers::PeersArgs),
    /// Load over HTTP as a scenario has it, on nodes of this machine or on a cluster of its own, with a verdict. Exit
    /// code 1 if sessions failed, the load was not steady, or an objective was breached.
    Run(load::RunArgs),
}

pub(crate) fn line(text: impl std::fmt::Display) {
    // A closed pipe ends the output, not the run.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench { runs, only, directory, kills } => bench::run(runs, &only, &directory, kills).await?,
        Command::Soak { minutes, directory } => {
            if soak::full_load(&directory, minutes).await? > 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Intake { mib, directory } => {
            let (before, during) = soak::intake(&directory, mib).await?;
            if during > 2.0 * before {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Backup { sessions, directory } => {
            let cost = soak::backup(&directory, sessions).await?;
            if cost.p99_during_ms > 2.0 * cost.p99_before_ms || cost.restore_s > 60.0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Peers(args) => {
            if !peers::run(args).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Run(args) => {
            if !load::run(args).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
