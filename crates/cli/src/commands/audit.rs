//! `audit` and `import`; which sessions commands mean that name none.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    Remote,
    client::Client,
    output::{Format, json, line, text},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Checks the hash chain over the events of sessions. Exit code 4 if one is broken.
    Verify {
        /// The sessions; all if none is named.
        ids: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// What `export` wrote; `-` for standard input.
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Verify { ids, remote } = command;
    let client = remote.client()?;
    let mut broken = 0;
    for id in ids_or_all(&client, ids).await? {
        let verified = client.get(&format!("/v1/sessions/{id}/audit")).await?;
        let intact = verified["intact"].as_bool() == Some(true);
        broken += usize::from(!intact);
        match (remote.output, intact) {
            (Format::Json, _) => json(&verified),
            (Format::Table | Format::Markdown, true) => {
                line(format!(
                    "{id}: intact, {} events, head {}",
                    verified["events"],
                    text(&verified["head"])
                ));
            }
            (Format::Table | Format::Markdown, false) => {
                line(format!("{id}: BROKEN at event {}", text(&verified["first_broken_seq"])));
            }
        }
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

/// Imports one session after another. What came before one that is refused is there.
pub(crate) async fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let client = args.remote.client()?;
    let name = args.file.display().to_string();
    let input: Box<dyn BufRead> = if name == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(std::fs::File::open(&args.file).with_context(|| name.clone())?))
    };
    for (number, read) in (1..).zip(input.lines()) {
        let place = || format!("{name}: line {number}");
        let session: Value = serde_json::from_str(&read.with_context(place)?).with_context(place)?;
        let export = session.get("export").filter(|export| export.is_object());
        let export = export.with_context(|| format!("{}: there is no `export` to import", place()))?;
        let imported = client.post("/v1/sessions/import", export).await.with_context(place)?;
        match args.remote.output {
            Format::Json => json(&imported),
            Format::Table | Format::Markdown => {
                line(format!("{} -> {}", text(&session["id"]), text(&imported["id"])));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn ids_or_all(client: &Client, ids: Vec<String>) -> anyhow::Result<Vec<String>> {
    if !ids.is_empty() {
        return Ok(ids);
    }
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("/v1/sessions?limit=500{cursor}")).await?;
        let sessions = page["sessions"].as_array().cloned().unwrap_or_default();
        all.extend(sessions.iter().filter_map(|session| session["id"].as_str().map(str::to_owned)));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(all),
        }
    }
}
