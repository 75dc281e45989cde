//! `config`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use server::Config;

use crate::output::line;

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
