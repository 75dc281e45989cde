//! `start`: the main job.

use std::{
    collections::{BTreeMap, HashMap},
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Remote,
    client::Client,
    output::{Format, json as print_json, line},
    workdir,
};

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The task, for workflows that take one.
    task: Option<String>,
    /// The workflow, by name.
    #[arg(long, default_value = "code")]
    workflow: String,
    /// A workflow file, instead of a name.
    #[arg(long, conflicts_with = "workflow")]
    file: Option<PathBuf>,
    /// The input as JSON, for workflows that take another.
    #[arg(long, conflicts_with_all = ["task", "workdir", "approve"])]
    input: Option<String>,
    /// The project: its text files are given to the session.
    #[arg(long)]
    workdir: Option<PathBuf>,
    /// Where result files are written. Needs --wait.
    #[arg(long, requires = "wait")]
    out: Option<PathBuf>,
    /// Asks for approval of the plan.
    #[arg(long)]
    approve: bool,
    /// Follows the session until it ends.
    #[arg(long)]
    wait: bool,
    /// A label, to find the session by: key=value. May be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Makes a repeated command the same session.
    #[arg(long)]
    idempotency_key: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) async fn start(args: StartArgs) -> anyhow::Result<ExitCode> {
    let client = args.remote.client()?;
    let input = input(&args)?;
    let workflow = match &args.file {
        Some(file) => {
            let source = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let name = file.display().to_string();
            let definition = workflow::compile(&name, &source)?;
            let applied = client.request(Method::POST, "/v1/workflows")?.body(source);
            client.send(applied).await?;
            definition.name
        }
        None => args.workflow.clone(),
    };
    // A key of its own makes the start safe to repeat when the answer is lost.
    let key = args.idempotency_key.clone().unwrap_or_else(random_key);
    let mut labels = BTreeMap::new();
    for (key, value) in &args.labels {
        if labels.insert(key, value).is_some() {
            bail!("--label {key}=…: given twice");
        }
    }
    let body = json!({"workflow": workflow, "input": input, "labels": labels});
    let started = client
        .send_patiently(|| {
            Ok(client.request(Method::POST, "/v1/sessions")?.header("idempotency-key", &key).json(&body))
        })
        .await?;
    let id = started["id"].as_str().context("the answer has no id")?.to_owned();
    if !args.wait {
        match args.remote.output {
            Format::Json => print_json(&started),
            Format::Table | Format::Markdown => line(&id),
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.remote.output != Format::Json {
        line(format!("session {id}"));
    }
    let mut progress = Progress::new(args.remote.output != Format::Json);
    client
        .follow(&id, 0, |event| {
            progress.event(event);
            Ok(())
        })
        .await?;
    progress.end();
    let session =
        client.send_patiently(|| client.request(Method::GET, &format!("/v1/sessions/{id}"))).await?;
    finish(&args, &client, &session)
}

fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = parts.ok_or_else(|| format!("expected key=value; found {text:?}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn input(args: &StartArgs) -> anyhow::Result<Value> {
    if let Some(input) = &args.input {
        return serde_json::from_str(input).context("--input: expected JSON");
    }
    if args.file.is_some() && args.task.is_none() && args.workdir.is_none() {
        return Ok(json!({}));
    }
    let Some(task) = &args.task else { bail!("what is the task? orchestra start \"Add a health endpoint\"") };
    let files = match &args.workdir {
        None => Vec::new(),
        Some(root) => {
            let read = workdir::read(root)?;
            for left_out in &read.left_out {
                warn(&format!("left out {left_out}"));
            }
            read.files
        }
    };
    Ok(json!({"task": task, "files": files, "approve": args.approve}))
}

fn warn(message: &str) {
    use std::io::Write as _;
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "warning: {message}");
}

/// From the system's random numbers, through the standard library's hasher keys.
fn random_key() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    format!("cli-{:016x}{:016x}", RandomState::new().hash_one(1u8), RandomState::new().hash_one(2u8))
}

fn finish(args: &StartArgs, client: &Client, session: &Value) -> anyhow::Result<ExitCode> {
    let _ = client;
    let mut refused = 0;
    if let Some(out) = &args.out {
        let output = &session["output"];
        let files = output.get("files").unwrap_or(output).as_array().cloned().unwrap_or_default();
        for file in &files {
            let (Some(path), Some(content)) = (file["path"].as_str(), file["content"].as_str()) else {
                if !file["error"].is_null() {
                    refused += 1;
                    warn(&format!(
                        "a file was not written: {}",
                        file["error"]["message"].as_str().unwrap_or("?")
                    ));
                }
                continue;
            };
            match workdir::write(out, path, content) {
                Ok(at) if args.remote.output != Format::Json => {
                    let approved = file["approved"].as_bool() != Some(false);
                    line(format!(
                        "  {} {}",
                        if approved { "wrote" } else { "wrote (not approved)" },
                        at.display()
                    ));
                }
                Ok(_) => {}
                Err(error) => {
                    refused += 1;
                    warn(&format!("{error:#}"));
                }
            }
        }
    }
    let status = session["status"].as_str().unwrap_or_default();
    match args.remote.output {
        Format::Json => print_json(session),
        Format::Table | Format::Markdown => {
            let usage = &session["usage"];
            line(format!(
                "{status}: {} steps, {} tokens in, {} out, {:.6} USD",
                usage["steps"],
                usage["tokens_in"],
                usage["tokens_out"],
                usage["cost_microusd"].as_f64().unwrap_or(0.0) / 1e6
            ));
            let simulated = session["steps"]
                .as_array()
                .is_some_and(|steps| steps.iter().any(|step| step["simulated"].as_bool() == Some(true)));
            if simulated {
                line("SIMULATED: the answers of this session were made up; no model was asked");
            }
            if let Some(message) = session["error"]["message"].as_str() {
                line(format!("error: {message}"));
            }
        }
    }
    Ok(if status == "completed" && refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Live progress on a terminal; a line an event elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    done: HashMap<&'static str, u64>,
}

impl Progress {
    fn new(show: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (show && terminal).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, lines: show && !terminal, done: HashMap::new() }
    }

    fn event(&mut self, event: &Value) {
        let (kind, step) =
            (event["type"].as_str().unwrap_or_default(), event["step"].as_str().unwrap_or_default());
        let text = match kind {
            "step_completed" => format!("done    {step}"),
            "step_failed" if event["data"]["retry_at"].is_null() => {
                format!("failed  {step}: {}", event["data"]["error"]["code"].as_str().unwrap_or_default())
            }
            "step_failed" => {
                format!("retry   {step}: {}", event["data"]["error"]["code"].as_str().unwrap_or_default())
            }
            "step_redispatched" => format!("again   {step}"),
            "wait_started" => format!("waits   {step}"),
            "recovery_started" => format!("repair  {step}"),
            _ => return,
        };
        let counted = match kind {
            "step_completed" => "done",
            "step_failed" => "failed",
            _ => "other",
        };
        *self.done.entry(counted).or_default() += 1;
        if let Some(bar) = &self.bar {
            let done = self.done.get("done").copied().unwrap_or(0);
            bar.set_message(format!("{done} steps done; {text}"));
        } else if self.lines {
            line(format!("  {text}"));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
