//! `chaos`: scenarios against real nodes of this machine. Exit code 1 when something was found that must not be.

use std::{io::Write as _, process::ExitCode};

use chaos::{crash, vendor};
use clap::{Parser, Subcommand};

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
        Command::Vendor { seed } => vendor::run(seed).await?,
    };
    writeln!(std::io::stdout(), "{verdict}")?;
    Ok(if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
