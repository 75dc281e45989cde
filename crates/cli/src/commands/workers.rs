//! `workers` and `run-worker`.

use std::{
    process::{ExitCode, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command as Process,
    time::Instant,
};
use worker::{Failure, Options, Task};

use crate::{
    Remote,
    output::{Format, json, line, table},
};

/// Bytes of a command's output that are read. The limit of a value is lower, and is checked where it is stored.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
/// Bytes kept of what a command says on standard error.
const SAID_BYTES_MAX: usize = 4096;
/// Between two reports of progress.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// The exit code with which a command says that the same again would fail again (EX_DATAERR of sysexits.h).
const PERMANENT: i32 = 65;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the connected workers, and the queues with workers or tasks.
    List {
        #[command(flatten)]
        remote: Remote,
    },
}

/// Runs a command for every task of some queues: the task's input is on its standard input as JSON, its output is what
/// it prints, as JSON.
///
/// Exit code 0 ends the step with that output. 65 says that the same again would fail again; with any other the step's
/// `retry` decides. Lines on standard error are shown as progress, and the last 4 KiB become the error's message. The
/// environment has ORCHESTRA_SESSION, ORCHESTRA_STEP, ORCHESTRA_QUEUE, ORCHESTRA_ATTEMPT, ORCHESTRA_IDEMPOTENCY_KEY
/// and TRACEPARENT.
/// A command whose task is no longer wanted is killed. SIGTERM or Ctrl-C: no more tasks are taken, those in hand end.
#[derive(Debug, Args)]
pub(crate) struct RunWorkerArgs {
    /// gRPC URLs of nodes, comma-separated. With more than one, the worker outlives a node.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:7101")]
    endpoints: Vec<String>,
    /// A queue to serve; may be repeated.
    #[arg(long = "queue", required = true)]
    queues: Vec<String>,
    /// Tasks at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: u32,
    /// What people call it; by default the host's name and the process id.
    #[arg(long)]
    name: Option<String>,
    /// The authority of the nodes' certificates (PEM), for https URLs.
    #[arg(long, env = "ORCHESTRA_CA")]
    ca: Option<std::path::PathBuf>,
    /// The bearer token.
    #[arg(long, env = "ORCHESTRA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::List { remote } = command;
    let client = remote.client()?;
    let (mut workers, mut queues) = (client.get("/v1/workers").await?, client.get("/v1/queues").await?);
    if remote.output == Format::Json {
        json(&serde_json::json!({"workers": workers["workers"].take(), "queues": queues["queues"].take()}));
        return Ok(ExitCode::SUCCESS);
    }
    let rows = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let columns = [
        ("worker", "/name"),
        ("node", "/node"),
        ("queues", "/queues"),
        ("busy", "/busy"),
        ("capacity", "/capacity"),
        ("silent ms", "/silent_ms"),
    ];
    table(&columns, &rows(&workers["workers"]));
    let columns = [
        ("queue", "/queue"),
        ("waiting", "/waiting"),
        ("running", "/running"),
        ("workers", "/workers"),
        ("slots", "/slots"),
    ];
    table(&columns, &rows(&queues["queues"]));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn run_worker(args: RunWorkerArgs) -> anyhow::Result<ExitCode> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "worker".into());
    let name = args.name.unwrap_or_else(|| format!("{}-{}", host.trim(), std::process::id()));
    let ca = match &args.ca {
        Some(path) => Some(std::fs::read(path).with_context(|| path.display().to_string())?),
        None => None,
    };
    let options = Options {
        ca,
        endpoints: args.endpoints,
        name,
        queues: args.queues,
        capacity: args.capacity,
        token: args.token,
    };
    line(format!("worker {} serves {}", options.name, options.queues.join(", ")));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let command = Arc::new(args.command);
    worker::run(options, move |task| run_command(Arc::clone(&command), task), stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_command(command: Arc<Vec<String>>, task: Task) -> Result<Value, Failure> {
    let failed = |code: &str, permanent, message: String| Failure { code: code.into(), message, permanent };
    let (status, output, said) = execute(&command, &task)
        .await
        .map_err(|error| failed("command_not_run", false, format!("{}: {error:#}", command[0])))?;
    if !status.success() {
        let permanent = status.code() == Some(PERMANENT);
        return Err(failed("command_failed", permanent, format!("{status}: {}", said.trim())));
    }
    serde_json::from_slice(&output)
        .map_err(|error| failed("malformed_output", true, format!("standard output is not JSON: {error}")))
}

/// Runs the command; how it ended, what it printed, and the end of what it said.
async fn execute(command: &[String], task: &Task) -> anyhow::Result<(ExitStatus, Vec<u8>, String)> {
    let mut child = Process::new(&command[0])
        .args(&command[1..])
        .env("ORCHESTRA_SESSION", &task.session)
        .env("ORCHESTRA_STEP", &task.step)
        .env("ORCHESTRA_QUEUE", &task.queue)
        .env("ORCHESTRA_ATTEMPT", task.attempt.to_string())
        .env("ORCHESTRA_IDEMPOTENCY_KEY", &task.idempotency_key)
        .env("TRACEPARENT", &task.traceparent)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut stdin, stdout) = (stdin.context("standard input")?, stdout.context("standard output")?);
    let stderr = stderr.context("standard error")?;
    let write = async {
        // A command need not read its input.
        let _ = stdin.write_all(task.input.to_string().as_bytes()).await;
        drop(stdin);
    };
    let read = async {
        let mut output = Vec::new();
        stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await.map(|_| output)
    };
    let listen = async {
        let (mut lines, mut said) = (BufReader::new(stderr).split(b'\n'), String::new());
        let mut told = Instant::now().checked_sub(PROGRESS_PAUSE);
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line).into_owned();
            if told.is_none_or(|told| told.elapsed() >= PROGRESS_PAUSE) {
                task.progress(line.clone());
                told = Some(Instant::now());
            }
            said.push_str(&line);
            said.push('\n');
            let excess = said.len().saturating_sub(SAID_BYTES_MAX);
            said.drain(..said.ceil_char_boundary(excess));
        }
        said
    };
    let ((), output, said) = tokio::join!(write, read, listen);
    Ok((child.wait().await?, output?, said))
}
