//! `loadtest`: load on a node over HTTP, and the benches of the layers. It only ever addresses the URL it is given,
//! and stops by itself.

mod bench;
mod cluster;
mod http;
mod layers;
mod local;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

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
    /// Load over HTTP. With --rate an open loop (latency from the intended start), without it a closed loop.
    Run(http::RunArgs),
}

pub(crate) fn line(text: impl std::fmt::Display) {
    // A closed pipe ends the output, not the run.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench { runs, only, directory, kills } => bench::run(runs, &only, &directory, kills).await?,
        Command::Run(args) => http::run(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
