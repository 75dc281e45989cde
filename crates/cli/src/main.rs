//! `orchestra`: every role and every tool of the system in one binary.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a session did not end well; 4 a check found something.

mod client;
mod commands;
mod log;
mod output;
mod workdir;

use std::{io::Write as _, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::{client::Client, output::Format};

/// Rows and messages come and go on every core: the system's allocator takes a lock for what one thread made and
/// another frees. (RocksDB keeps to the system's.)
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs AI-agent sessions durably.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a session did not end well; 4 a check found something.
#[derive(Debug, Parser)]
#[command(name = "orchestra", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole system on a laptop: one node or several, and a simulated vendor where no provider is configured.
    Dev(commands::dev::DevArgs),
    /// A node, by its configuration.
    Node(commands::node::NodeArgs),
    /// Starts a session.
    Start(commands::start::StartArgs),
    /// Checks workflow files, without a node.
    Validate {
        /// The files.
        #[arg(required = true)]
        files: Vec<std::path::PathBuf>,
    },
    /// Looks at sessions and steers them.
    #[command(subcommand)]
    Sessions(commands::sessions::Command),
    /// Applies and shows workflows.
    #[command(subcommand)]
    Workflows(commands::workflows::Command),
    /// Checks the record of sessions.
    #[command(subcommand)]
    Audit(commands::audit::Command),
    /// Writes sessions with all their events to standard output: as JSON lines, as CSV, or as Markdown.
    Export(commands::export::ExportArgs),
    /// Makes sessions of what `export` wrote, each with an id of its own, which go on where those were.
    Import(commands::audit::ImportArgs),
    /// Looks at the workers outside the cluster, and at the queues that they serve.
    #[command(subcommand)]
    Workers(commands::workers::Command),
    RunWorker(commands::workers::RunWorkerArgs),
    /// Looks at the cluster.
    #[command(subcommand)]
    Cluster(commands::cluster::Command),
    /// What is promised, and what came of it.
    #[command(subcommand)]
    Sla(commands::sla::Command),
    /// Checks and prints the configuration.
    #[command(subcommand)]
    Config(commands::config::Command),
    /// Shows or changes the levels at which a node logs, until it ends.
    Log {
        /// A level, or levels by module, as `info,engine=debug`; shows those in force if it is not given.
        level: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Makes, checks and restores backups of a cluster.
    #[command(subcommand)]
    Backup(commands::backup::Command),
    /// Makes certificates to try things out with.
    #[command(subcommand)]
    Certs(commands::certs::Command),
    /// Checks everything that the system depends on.
    Doctor(commands::cluster::DoctorArgs),
    /// Prints a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Where the node is, and how to answer.
#[derive(Debug, Clone, Args)]
struct Remote {
    /// The node's URL.
    #[arg(long, env = "ORCHESTRA_URL", default_value = "http://127.0.0.1:7100", global = true)]
    url: String,
    /// The authority of the nodes' certificates (PEM), for an https URL; without it, those of the system.
    #[arg(long, env = "ORCHESTRA_CA", global = true)]
    ca: Option<std::path::PathBuf>,
    /// The bearer token.
    #[arg(long, env = "ORCHESTRA_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// How answers are printed.
    #[arg(long, value_enum, default_value_t = Format::Table, global = true)]
    output: Format,
}

impl Remote {
    fn client(&self) -> anyhow::Result<Client> {
        output::set_format(self.output);
        Client::new(&self.url, self.token.clone(), self.ca.as_deref())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("start the runtime")),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => commands::dev::dev(args).await,
        Command::Node(args) => commands::node::node(args).await,
        Command::Start(args) => commands::start::start(args).await,
        Command::Validate { files } => commands::workflows::validate(&files),
        Command::Sessions(command) => commands::sessions::run(command).await,
        Command::Workflows(command) => commands::workflows::run(command).await,
        Command::Audit(command) => commands::audit::run(command).await,
        Command::Export(args) => commands::export::export(args).await,
        Command::Import(args) => commands::audit::import(args).await,
        Command::Workers(command) => commands::workers::run(command).await,
        Command::RunWorker(args) => commands::workers::run_worker(args).await,
        Command::Cluster(command) => commands::cluster::run(command).await,
        Command::Sla(command) => commands::sla::run(command).await,
        Command::Backup(command) => commands::backup::run(command).await,
        Command::Certs(command) => commands::certs::run(command),
        Command::Config(command) => commands::config::run(command),
        Command::Log { level, remote } => commands::config::log(level.as_deref(), &remote).await,
        Command::Doctor(args) => commands::cluster::doctor(args).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "orchestra", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
