//! `workflows` and `validate`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::Method;

use crate::{
    Remote,
    output::{Format, json, line, table, text},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Gives a workflow file its name in the cluster.
    Apply {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lists workflows.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Prints a workflow's source.
    Show {
        /// The name.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Apply { file, remote } => {
            let source = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            workflow::compile(&file.display().to_string(), &source)?;
            let client = remote.client()?;
            let applied = client.send(client.request(Method::POST, "/v1/workflows")?.body(source)).await?;
            match remote.output {
                Format::Json => json(&applied),
                Format::Table | Format::Markdown => {
                    line(format!("{} version {}", text(&applied["name"]), text(&applied["version"])));
                }
            }
        }
        Command::List { remote } => {
            let list = remote.client()?.get("/v1/workflows").await?;
            match remote.output {
                Format::Json => json(&list),
                Format::Table | Format::Markdown => {
                    let columns =
                        [("workflow", "/name"), ("version", "/version"), ("applied", "/applied_at")];
                    table(&columns, list["workflows"].as_array().map(Vec::as_slice).unwrap_or_default());
                }
            }
        }
        Command::Show { name, remote } => {
            let shown = remote.client()?.get(&format!("/v1/workflows/{name}")).await?;
            match remote.output {
                Format::Json => json(&shown),
                Format::Table | Format::Markdown => line(text(&shown["source"])),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn validate(files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let mut wrong = 0;
    for file in files {
        let name = file.display().to_string();
        let source = std::fs::read_to_string(file).with_context(|| name.clone())?;
        match workflow::compile(&name, &source) {
            Ok(definition) => {
                line(format!("{name}: {} is valid, {} steps", definition.name, definition.nodes.len()))
            }
            Err(error) => {
                wrong += 1;
                line(error);
            }
        }
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(4) })
}
