//! `cluster` and `doctor`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use server::Config;

use crate::{
    Remote,
    output::{Format, json, line, text},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What the node says of itself.
    Status {
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The configuration file to check.
    #[arg(long, env = "ORCHESTRA_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Status { remote } = command;
    let status = remote.client()?.get("/v1/cluster").await?;
    if remote.output == Format::Json {
        json(&status);
        return Ok(ExitCode::SUCCESS);
    }
    line(format!(
        "version {}, {} pieces of work under way",
        text(&status["version"]),
        text(&status["work_running"])
    ));
    for (shard, of) in status["shards"].as_object().into_iter().flatten() {
        line(format!("shard {shard}: leader {}, term {}", text(&of["leader"]), text(&of["term"])));
    }
    for provider in status["providers"].as_array().into_iter().flatten() {
        line(format!("provider {}: circuit {}", text(&provider["name"]), text(&provider["circuit"])));
    }
    if let Some(reason) = status["writes_stopped"].as_str() {
        line(format!("writes are stopped: {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints each check; exit code 4 if one failed.
pub(crate) async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut failed = 0;
    let mut check = |name: &str, result: Result<String, String>| match result {
        Ok(detail) => line(format!("ok      {name}: {detail}")),
        Err(detail) => {
            failed += 1;
            line(format!("FAILED  {name}: {detail}"));
        }
    };
    let config = Config::load(args.config.as_deref());
    check("configuration", config.as_ref().map(|_| "valid".to_owned()).map_err(ToString::to_string));
    let unknown = Config::unknown_variables();
    check(
        "environment",
        if unknown.is_empty() {
            Ok("no unknown variable".into())
        } else {
            Err(format!("nothing reads {}", unknown.join(", ")))
        },
    );
    if let Ok(config) = &config {
        let providers = match config.providers.len() {
            0 => "none is configured: the simulated vendor runs".to_owned(),
            count => format!("{count} configured"),
        };
        check("providers", Ok(providers));
        for (name, provider) in &config.providers {
            if let Some(variable) = &provider.api_key_env {
                let set = std::env::var_os(variable).is_some()
                    || std::env::var_os(format!("{variable}_FILE")).is_some();
                let result = if set {
                    Ok(format!("{variable} is set"))
                } else {
                    Err(format!("neither {variable} nor {variable}_FILE is set"))
                };
                check(&format!("key of provider {name}"), result);
            }
        }
    }
    let client = args.remote.client()?;
    let ready = client.get("/health/ready").await;
    check("node", ready.map(|answer| text(&answer["status"])).map_err(|error| format!("{error:#}")));
    if let Ok(status) = client.get("/v1/cluster").await {
        for provider in status["providers"].as_array().into_iter().flatten() {
            let (name, circuit) = (text(&provider["name"]), text(&provider["circuit"]));
            check(
                &format!("provider {name}"),
                if circuit == "closed" {
                    Ok("circuit closed".into())
                } else {
                    Err(format!("circuit {circuit}"))
                },
            );
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(4) })
}
