//! `sessions`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    Remote,
    output::{Format, json as print_json, line, table, text},
};

/// What tables of a session's steps show.
pub(super) const STEP_COLUMNS: [(&str, &str); 6] = [
    ("step", "/id"),
    ("kind", "/kind"),
    ("status", "/status"),
    ("attempt", "/attempt"),
    ("provider", "/provider"),
    ("ended", "/ended_at"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists sessions, newest first.
    List {
        /// Only those that are running, waiting, completed, failed or canceled.
        #[arg(long)]
        status: Option<String>,
        /// Only those of a workflow.
        #[arg(long)]
        workflow: Option<String>,
        /// Only those with a label: key=value.
        #[arg(long)]
        label: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows a session with its steps and its output.
    Get {
        /// The session.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Says why a session is not moving.
    Describe {
        /// The session.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows a session's events.
    Events {
        /// The session.
        id: String,
        /// Goes on until the session ends.
        #[arg(long)]
        follow: bool,
        /// The first event.
        #[arg(long, default_value_t = 0)]
        from: u64,
        #[command(flatten)]
        remote: Remote,
    },
    /// Gives a session a named value.
    Signal {
        /// The session.
        id: String,
        /// The signal's name.
        name: String,
        /// Its value (JSON).
        #[arg(default_value = "null")]
        payload: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Decides a step that waits for approval.
    Approve {
        /// The session.
        id: String,
        /// The step; needed where several wait.
        #[arg(long)]
        step: Option<String>,
        /// Goes on with this value instead (JSON).
        #[arg(long, conflicts_with = "reject")]
        edit: Option<String>,
        /// Does not go on, for this reason.
        #[arg(long)]
        reject: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Ends a session.
    Cancel {
        /// The session.
        id: String,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Makes a session that goes on where this one was after an event, with everything that was done until then.
    Fork {
        /// The session.
        id: String,
        /// The number of the last event that is taken over; the last one if it is not given.
        #[arg(long)]
        at: Option<u64>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Runs the failed steps of a failed session again.
    Retry {
        /// The session.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { status, workflow, label, limit, remote } => {
            let given = [("status", status), ("workflow", workflow), ("label", label)];
            let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
            list(&given.chain([("limit", limit.to_string())]).collect::<Vec<_>>(), &remote).await?;
        }
        Command::Get { id, remote } => {
            let session = remote.client()?.get(&format!("/v1/sessions/{id}")).await?;
            show(&session, remote.output);
        }
        Command::Describe { id, remote } => {
            let described = remote.client()?.get(&format!("/v1/sessions/{id}/describe")).await?;
            describe(&described, remote.output);
        }
        Command::Events { id, follow, from, remote } => events(&id, follow, from, &remote).await?,
        Command::Signal { id, name, payload, remote } => {
            let payload: Value = serde_json::from_str(&payload).context("the payload: expected JSON")?;
            let body = json!({"name": name, "payload": payload});
            remote.client()?.post(&format!("/v1/sessions/{id}/signal"), &body).await?;
        }
        Command::Approve { id, step, edit, reject, remote } => {
            let mut body = match (edit, reject) {
                (Some(value), _) => {
                    let value: Value = serde_json::from_str(&value).context("--edit: expected JSON")?;
                    json!({"decision": "edit", "value": value})
                }
                (None, Some(reason)) => json!({"decision": "reject", "reason": reason}),
                (None, None) => json!({"decision": "approve"}),
            };
            if let Some(step) = step {
                body["step"] = step.into();
            }
            remote.client()?.post(&format!("/v1/sessions/{id}/approve"), &body).await?;
        }
        Command::Cancel { id, reason, remote } => {
            remote.client()?.post(&format!("/v1/sessions/{id}/cancel"), &json!({"reason": reason})).await?;
        }
        Command::Fork { id, at, remote } => {
            let forked =
                remote.client()?.post(&format!("/v1/sessions/{id}/fork"), &json!({"at": at})).await?;
            match remote.output {
                Format::Json => print_json(&forked),
                Format::Table | Format::Markdown => line(text(&forked["id"])),
            }
        }
        Command::Retry { id, remote } => {
            remote.client()?.post(&format!("/v1/sessions/{id}/retry"), &json!({})).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(wanted: &[(&str, String)], remote: &Remote) -> anyhow::Result<()> {
    let page = remote.client()?.find("/v1/sessions", wanted).await?;
    if remote.output == Format::Json {
        print_json(&page);
        return Ok(());
    }
    let sessions = page["sessions"].as_array().cloned().unwrap_or_default();
    let columns = [
        ("session", "/id"),
        ("status", "/status"),
        ("workflow", "/workflow"),
        ("created", "/created_at"),
        ("steps", "/usage/steps"),
    ];
    table(&columns, &sessions);
    if !page["next_cursor"].is_null() {
        line(format!("more: raise --limit, or ask the API with cursor={}", text(&page["next_cursor"])));
    }
    Ok(())
}

fn show(session: &Value, format: Format) {
    if format == Format::Json {
        print_json(session);
        return;
    }
    line(format!("{}  {}  {}", text(&session["id"]), text(&session["status"]), text(&session["workflow"])));
    let steps = session["steps"].as_array().cloned().unwrap_or_default();
    table(&STEP_COLUMNS, &steps);
    if !session["error"].is_null() {
        line(format!("error: {} ({})", text(&session["error"]["message"]), text(&session["error"]["code"])));
    }
    line(format!("output: {}", serde_json::to_string_pretty(&session["output"]).unwrap_or_default()));
}

fn describe(described: &Value, format: Format) {
    if format == Format::Json {
        print_json(described);
        return;
    }
    line(format!(
        "{}  {}  {}",
        text(&described["id"]),
        text(&described["status"]),
        text(&described["workflow"])
    ));
    let coming = described["coming"].as_array().cloned().unwrap_or_default();
    if coming.is_empty() {
        line("nothing is coming: the session has ended");
    } else {
        let columns = [
            ("step", "/step"),
            ("attempt", "/attempt"),
            ("waits for", "/waits_for"),
            ("last error", "/last_error/message"),
        ];
        table(&columns, &coming);
    }
    if !described["error"].is_null() {
        line(format!(
            "error: {} ({})",
            text(&described["error"]["message"]),
            text(&described["error"]["code"])
        ));
    }
    let providers = described["providers"].as_array().cloned().unwrap_or_default();
    table(
        &[("provider", "/provider"), ("circuit", "/circuit"), ("calls on their way", "/in_flight")],
        &providers,
    );
    if let Some(reason) = described["writes_stopped"].as_str() {
        line(format!("writes are stopped: {reason}"));
    }
}

async fn events(id: &str, follow: bool, from: u64, remote: &Remote) -> anyhow::Result<()> {
    let client = remote.client()?;
    let print = |event: &Value| match remote.output {
        Format::Json => line(event),
        Format::Table | Format::Markdown => line(format!(
            "{:>5}  {}  {:<20} {:<24} {}",
            text(&event["seq"]),
            text(&event["at"]),
            text(&event["type"]),
            text(&event["step"]),
            event["data"].to_string().chars().take(100).collect::<String>()
        )),
    };
    if follow {
        return client
            .follow(id, from, |event| {
                print(event);
                Ok(())
            })
            .await;
    }
    let mut next = from;
    loop {
        let page = client.get(&format!("/v1/sessions/{id}/events?from={next}")).await?;
        let events = page["events"].as_array().cloned().unwrap_or_default();
        events.iter().for_each(print);
        next = page["next"].as_u64().unwrap_or(next);
        if events.is_empty() {
            return Ok(());
        }
    }
}
