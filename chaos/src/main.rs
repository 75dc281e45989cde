//! `chaos`: scenarios against real nodes of this machine. Exit code 1 when something was found that must not be.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use chaos::{
    cluster::{self, Fault},
    crash, drill,
    mutants::{self, Caught},
    packets_a_second,
    report::Report,
    scenario::Scenario,
    suite::Suite,
    vendor,
};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

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
    /// One run of a scenario: verdict, report and picture.
    Run {
        /// all, nodes, network, disks, clocks, upgrade, or a TOML file.
        scenario: String,
        /// Chooses the faults and their moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Nodes of the cluster.
        #[arg(long, value_parser = size, default_value = "3")]
        nodes: usize,
        /// How long faults are injected, at least: each kind comes once in any case, and from 120 s on they go on until
        /// there are 10,000 operations, for twice the time at most.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// Where the report and its picture go.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Many runs: seeds against sizes of clusters, with a page about all.
    Suite {
        /// all, nodes, network, disks, clocks, upgrade, or a TOML file.
        #[arg(long, default_value = "all")]
        scenario: String,
        /// The seeds, as first..last.
        #[arg(long, value_parser = seeds, default_value = "1..20")]
        seeds: (u64, u64),
        /// Nodes of the clusters, comma-separated.
        #[arg(long, value_parser = size, value_delimiter = ',', default_value = "3,5")]
        nodes: Vec<usize>,
        /// How long faults are injected in each run, at least: as for `run`.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// Where reports go.
        #[arg(long, default_value = "chaos-reports")]
        out: PathBuf,
        /// Do not repeat runs that passed before.
        #[arg(long)]
        resume: bool,
    },
    /// Load on a cluster that is there, and whether its clients saw what they may. Faults are yours to make.
    Check {
        /// The URLs of its nodes, comma-separated.
        #[arg(long, value_delimiter = ',', required = true)]
        endpoints: Vec<String>,
        /// A token with `admin = true`, where the cluster has tokens.
        #[arg(long, env = "ORCHESTRA_TOKEN", hide_env_values = true)]
        token: Option<String>,
        /// Chooses what clients do.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// A file of certificates (PEM) to trust besides those of the system.
        #[arg(long)]
        ca: Option<PathBuf>,
        /// Where the report and its picture go.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Builds that break a promise on purpose must be found out, and the one that does not must pass.
    Mutants {
        /// The build, made with the feature `mutants`; by default `orchestra-mutants` beside this program.
        #[arg(long)]
        program: Option<PathBuf>,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds each is tried with, at most.
        #[arg(long, default_value_t = 5)]
        tries: u64,
        /// Only those whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// So many faults of some kinds on a cluster under load.
    Cluster {
        /// Chooses the faults and their moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Nodes of the cluster.
        #[arg(long, value_parser = size, default_value = "3")]
        nodes: usize,
        /// How many faults, one after another.
        #[arg(long, default_value_t = 12)]
        faults: usize,
        /// The kinds of fault, comma-separated; by default those of the scenario `nodes`, and a full disk.
        #[arg(long, value_enum, value_delimiter = ',')]
        kinds: Vec<Fault>,
    },
    /// Loses a whole cluster between two backups, restores it in another size, and measures RTO and RPO.
    Drill {
        /// Chooses the moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Sessions before the first backup.
        #[arg(long, default_value_t = 2_000)]
        sessions: usize,
        /// Backups before everything is lost.
        #[arg(long, default_value_t = 3)]
        backups: usize,
        /// Nodes that are lost.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Nodes of the cluster that takes their place.
        #[arg(long, default_value_t = 5)]
        nodes_after: usize,
    },
    /// Measures what the switch of the network faults carries. One core: `taskset -c 0 chaos switch`.
    Switch {
        /// How long.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// A map of 100 items against vendors that fail in every way.
    Vendor {
        /// Chooses the faults.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once("..").and_then(|(from, to)| {
        let to = to.strip_prefix('=').unwrap_or(to);
        Some((from.parse().ok()?, to.parse().ok()?))
    });
    parsed.filter(|(from, to)| from <= to).ok_or_else(|| format!("{text:?} is not first..last, as 1..20"))
}

/// A size of the clusters under test.
fn size(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|nodes| cluster::NODES.contains(nodes));
    parsed.ok_or_else(|| {
        let (least, most) = (cluster::NODES.start(), cluster::NODES.end());
        format!("{text:?} is no number of nodes from {least} to {most}")
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut terminated = signal(SignalKind::terminate())?;
    // What is dropped here ends its nodes, and removes its mounts, namespaces and directories.
    tokio::select! {
        done = run(Cli::parse().command) => done,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
        _ = terminated.recv() => Ok(ExitCode::from(143)),
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let say = |text: &dyn std::fmt::Display| {
        // A closed pipe ends the output, not the run.
        let _ = writeln!(std::io::stdout(), "{text}");
    };
    let verdict = match command {
        Command::Crash { seed, kills } => crash::run(&crash::Options { seed, kills }).await?,
        Command::Run { scenario, seed, nodes, seconds, out } => {
            let scenario = Scenario::load(&scenario)?;
            let faults = scenario.faults.len();
            let options = cluster::Options { scenario, seed, nodes, faults, seconds, mutant: None };
            let run = cluster::run(&options).await?;
            if let Some(out) = out {
                run.report.write(&out)?;
            }
            run.verdict
        }
        Command::Suite { scenario, seeds, nodes, seconds, out, resume } => {
            let suite = Suite { scenario: Scenario::load(&scenario)?, seeds, nodes, seconds, out, resume };
            let reports = suite.run(|report| say(&told(report))).await?;
            let failed = reports.iter().filter(|report| !report.passed).count();
            say(&format!(
                "{} runs, {failed} failed: {}",
                reports.len(),
                suite.out.join("report.md").display()
            ));
            return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Mutants { program, seed, tries, only } => {
            let beside = || Ok(std::env::current_exe()?.with_file_name("orchestra-mutants"));
            let program = program.map_or_else(beside, anyhow::Ok)?;
            let all = mutants::run(program, seed, tries, &only, |caught| say(&told_of(caught))).await?;
            let good = all.iter().all(|caught| caught.by.is_some() && caught.sound_build_failed.is_none());
            return Ok(if good && !all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Cluster { seed, nodes, faults, kinds } => {
            let scenario = if kinds.is_empty() {
                let mut nodes = Scenario::load("nodes")?;
                nodes.faults.push(Fault::DiskFull);
                nodes
            } else {
                Scenario::of("cluster", kinds)
            };
            let options = cluster::Options { scenario, seed, nodes, faults, seconds: 0, mutant: None };
            cluster::run(&options).await?.verdict
        }
        Command::Check { endpoints, token, seed, seconds, ca, out } => {
            let ca = ca.map(|path| std::fs::read(&path).with_context(|| path.display().to_string()));
            let check = cluster::Check { endpoints, token, ca: ca.transpose()?, seed, seconds };
            let run = cluster::check(&check).await?;
            if let Some(out) = out {
                run.report.write(&out)?;
            }
            run.verdict
        }
        Command::Drill { seed, sessions, backups, nodes, nodes_after } => {
            anyhow::ensure!(nodes > 0 && nodes_after > 0, "a cluster has at least one node");
            drill::run(&drill::Options { seed, sessions, backups, nodes, nodes_after }).await?
        }
        Command::Switch { seconds } => {
            let seconds = std::time::Duration::from_secs(seconds.max(1));
            let came = packets_a_second(seconds).await?;
            let came = came.ok_or_else(|| {
                anyhow::anyhow!("this machine does not allow it: it needs root and /dev/net/tun")
            })?;
            say(&format!(
                "{came:.0} packets/s of 1,200 bytes, with their sender in the same process (target: 20,000)"
            ));
            return Ok(if came >= 20_000.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Vendor { seed } => vendor::run(seed).await?,
    };
    say(&verdict);
    Ok(if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(report: &Report) -> String {
    let mut told = format!(
        "{:<32} {:>6.0} s {:>7} operations {:>3} faults {:>4} leaders moved  {}",
        report.stem(),
        report.seconds,
        report.operations,
        report.faults.len(),
        report.leaders_moved,
        if report.passed { "passed" } else { "FAILED" }
    );
    for violation in report.all_violations().take(3) {
        told.push_str(&format!("\n    {}", violation.lines().next().unwrap_or_default()));
    }
    if !report.passed {
        told.push_str(&format!("\n    again: {}", report.again));
    }
    if let Some(kept) = &report.kept {
        told.push_str(&format!("\n    kept: {}", kept.display()));
    }
    if !report.not_run.is_empty() {
        told.push_str(&format!(
            "\n    NOT RUN, as this machine does not allow it: {}",
            report.not_run.join(", ")
        ));
    }
    told
}

fn told_of(caught: &Caught) -> String {
    let how = match caught.by {
        Some((seed, seconds)) => format!("caught with seed {seed} in {seconds:.0} s"),
        None => "NOT CAUGHT".into(),
    };
    let violation = caught.violation.lines().next().unwrap_or_default();
    let sound = match (&caught.by, &caught.sound_build_failed) {
        (None, _) => String::new(),
        (Some(_), None) => "; the build as it is passes there".into(),
        (Some(_), Some(why)) => format!("; the build as it is DOES NOT PASS there: {why}"),
    };
    format!("{:<22} {how}{sound}\n    {violation}", caught.mutant)
}
