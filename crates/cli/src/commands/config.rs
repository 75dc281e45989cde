//! `config` and `log`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::Method;
use serde_json::json;
use server::Config;

use crate::{
    Remote,
    output::{Format, json as print_json, line, text},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Checks a configuration file and the environment.
    Check {
        /// The file.
        #[arg(env = "ORCHESTRA_CONFIG")]
        file: Option<PathBuf>,
    },
    /// Prints the configuration in force, without secrets.
    Print {
        /// The file.
        #[arg(env = "ORCHESTRA_CONFIG")]
        file: Option<PathBuf>,
    },
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check { file } => {
            let config = Config::load(file.as_deref())?;
            let objectives = config.sla.objectives().context("[sla]")?;
            config.alerts.rules(&objectives).context("[alerts]")?;
            for variable in Config::unknown_variables() {
                line(format!("warning: nothing reads {variable}"));
            }
            line("the configuration is valid");
        }
        Command::Print { file } => line(Config::load(file.as_deref())?.print()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The levels at which a node logs.
pub(crate) async fn log(level: Option<&str>, remote: &Remote) -> anyhow::Result<ExitCode> {
    let client = remote.client()?;
    let said = match level {
        Some(level) => {
            client.send(client.request(Method::PUT, "/v1/log")?.json(&json!({"level": level}))).await?
        }
        None => client.get("/v1/log").await?,
    };
    match remote.output {
        Format::Json => print_json(&said),
        Format::Table | Format::Markdown => line(text(&said["level"])),
    }
    Ok(ExitCode::SUCCESS)
}
