//! `export`.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{audit::ids_or_all, sessions::STEP_COLUMNS};
use crate::{
    Remote,
    client::Client,
    output::{self, line, table, text},
};

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The sessions; all if none is named.
    ids: Vec<String>,
    /// What is written of them.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    #[command(flatten)]
    remote: Remote,
}

/// What is written of sessions. It is streamed, session by session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Everything, one JSON object a line, which `import` takes.
    Jsonl,
    /// A row for each event, with a header (RFC 4180): session, workflow, status, seq, at, type, step, data, hash.
    Csv,
    /// A section for each session, for people: its steps, its events, its output.
    Markdown,
}

const CSV_HEADER: [&str; 9] = ["session", "workflow", "status", "seq", "at", "type", "step", "data", "hash"];

pub(crate) async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let client = args.remote.client()?;
    match args.format {
        Format::Csv => line(csv(&[CSV_HEADER.map(str::to_owned).to_vec()])?),
        Format::Markdown => output::set_format(output::Format::Markdown),
        Format::Jsonl => {}
    }
    for id in ids_or_all(&client, args.ids).await? {
        let mut session = client.get(&format!("/v1/sessions/{id}")).await?;
        let events = events(&client, &id).await?;
        match args.format {
            Format::Jsonl => {
                session["events"] = events.into();
                session["export"] = history(&client, &id).await;
                line(session);
            }
            Format::Csv if events.is_empty() => {}
            Format::Csv => line(csv(&rows(&session, &events))?),
            Format::Markdown => markdown(&session, &events),
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn events(client: &Client, id: &str) -> anyhow::Result<Vec<Value>> {
    let (mut events, mut next) = (Vec::new(), 0);
    loop {
        let page = client.get(&format!("/v1/sessions/{id}/events?from={next}")).await?;
        let found = page["events"].as_array().cloned().unwrap_or_default();
        if found.is_empty() {
            return Ok(events);
        }
        next = page["next"].as_u64().context("the answer has no `next`")?;
        events.extend(found);
    }
}

/// What an import is made of; nothing if the session can only be read.
async fn history(client: &Client, id: &str) -> Value {
    match client.get(&format!("/v1/sessions/{id}/history")).await {
        Ok(history) => history,
        Err(error) => {
            // A closed standard error keeps nobody from exporting.
            let _ = writeln!(std::io::stderr(), "{id} can be read, but not imported: {error:#}");
            Value::Null
        }
    }
}

fn rows(session: &Value, events: &[Value]) -> Vec<Vec<String>> {
    let row = |event: &Value| {
        let of_session = ["id", "workflow", "status"].map(|name| field(&session[name]));
        let of_event = ["seq", "at", "type", "step", "data", "hash"].map(|name| field(&event[name]));
        [of_session.as_slice(), of_event.as_slice()].concat()
    };
    events.iter().map(row).collect()
}

/// A value as a field: empty if there is none.
fn field(value: &Value) -> String {
    if value.is_null() { String::new() } else { text(value) }
}

/// Lines of comma-separated values, without the end of the last one.
fn csv(rows: &[Vec<String>]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row)?;
    }
    let mut text = String::from_utf8(writer.into_inner()?)?;
    text.truncate(text.trim_end_matches('\n').len());
    Ok(text)
}

fn markdown(session: &Value, events: &[Value]) {
    line(format!("## {}\n", text(&session["id"])));
    for name in ["workflow", "status", "created_at", "ended_at"] {
        line(format!("- {name}: {}", text(&session[name])));
    }
    line("\n### Steps\n");
    let steps = session["steps"].as_array().cloned().unwrap_or_default();
    table(&STEP_COLUMNS, &steps);
    line("\n### Events\n");
    table(&[("seq", "/seq"), ("at", "/at"), ("type", "/type"), ("step", "/step")], events);
    if !session["error"].is_null() {
        let (message, code) = (&session["error"]["message"], &session["error"]["code"]);
        line(format!("\n### Error\n\n{} ({})", text(message), text(code)));
    }
    let output = serde_json::to_string_pretty(&session["output"]).unwrap_or_default();
    // Four: a text in it may have three of its own.
    line(format!("\n### Output\n\n````json\n{output}\n````\n"));
}
