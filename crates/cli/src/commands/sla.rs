//! `sla`.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    Remote,
    output::{Format, json as print_json, line, table, text},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What came of every objective: target, number, percentiles, how many failed (they have no duration, and are no
    /// part of percentiles), what is left of the error budget, and when it is spent if the last hour goes on. Exit code
    /// 4 if one is missed.
    Report {
        /// Over this window instead of each objective's own: 1m, 5m, 30m, 1h, 6h, 24h, 3d, 30d or month (of the
        /// calendar, UTC).
        #[arg(long)]
        window: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Every alert rule, and how its alert stands; with an admin token where there are tokens. Exit code 4 if one
    /// fires.
    Alerts {
        /// Only those that are pending, fire, or fired.
        #[arg(long)]
        active: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Prints Prometheus rules of the cluster's objectives: the share that misses each target, and alerts on how
    /// fast the error budget is spent (1 h and 5 min: 14.4 times; 6 h and 30 min: 6 times; 3 d and 6 h: once).
    Rules {
        #[command(flatten)]
        remote: Remote,
    },
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let (window, remote) = match command {
        Command::Report { window, remote } => (window, remote),
        Command::Alerts { active, remote } => return alerts(active, &remote).await,
        Command::Rules { remote } => {
            line(remote.client()?.get_text("/v1/sla/rules").await?.trim_end());
            return Ok(ExitCode::SUCCESS);
        }
    };
    let query = window.map(|window| format!("?window={window}")).unwrap_or_default();
    let report = remote.client()?.get(&format!("/v1/sla{query}")).await?;
    let outcomes = report["objectives"].as_array().cloned().unwrap_or_default();
    if remote.output == Format::Json {
        print_json(&report);
    } else {
        let rows: Vec<Value> = outcomes.iter().map(row).collect();
        let columns = [
            ("objective", "/objective"),
            ("target", "/target"),
            ("now", "/value"),
            ("P50", "/p50"),
            ("P95", "/p95"),
            ("P99", "/p99"),
            ("n", "/n"),
            ("failed", "/failed"),
            ("within", "/compliance"),
            ("budget left", "/budget_left"),
            ("burn 1h", "/burn"),
            ("spent in", "/exhausted"),
            ("worst minute of 1h", "/worst"),
            ("window", "/window"),
            ("", "/state"),
        ];
        table(&columns, &rows);
        for of in report["maintenance"].as_array().into_iter().flatten() {
            let now = if of["now"] == true { "maintenance now" } else { "maintenance" };
            line(format!("{now}: {}", text(&of["when"])));
        }
        for node in report["nodes_missing"].as_array().into_iter().flatten() {
            line(format!("node {} did not answer: what only it has measured is missing", text(node)));
        }
    }
    let missed = outcomes.iter().any(|outcome| outcome["state"] == "breached");
    Ok(if missed { ExitCode::from(4) } else { ExitCode::SUCCESS })
}

async fn alerts(active: bool, remote: &Remote) -> anyhow::Result<ExitCode> {
    let mut list = remote.client()?.get("/v1/alerts").await?;
    if active && let Some(alerts) = list["alerts"].as_array_mut() {
        alerts.retain(|alert| alert["state"] != "inactive");
    }
    if remote.output == Format::Json {
        print_json(&list);
    } else {
        let columns = [
            ("alert", "/alert"),
            ("severity", "/severity"),
            ("", "/state"),
            ("since", "/since"),
            ("value", "/value"),
            ("now", "/now"),
            ("when", "/when"),
            ("action", "/action"),
        ];
        table(&columns, list["alerts"].as_array().map_or(&[], Vec::as_slice));
    }
    let fires = |alert: &Value| alert["state"] == "firing";
    let any = list["alerts"].as_array().is_some_and(|alerts| alerts.iter().any(fires));
    Ok(if any { ExitCode::from(4) } else { ExitCode::SUCCESS })
}

fn row(outcome: &Value) -> Value {
    let is_share = outcome["unit"] == "share";
    let number = |value: &Value| match value.as_f64() {
        None => "-".to_owned(),
        Some(share) if is_share => percent(share),
        Some(ms) => duration(ms),
    };
    let ms = |field: &str| outcome[field].as_f64().map_or_else(|| "-".to_owned(), duration);
    let share = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), percent);
    json!({
        "objective": outcome["name"],
        "target": format!("{} {} {}", text(&outcome["statistic"]), text(&outcome["comparator"]), number(&outcome["target"])),
        "value": number(&outcome["value"]),
        "p50": ms("p50"), "p95": ms("p95"), "p99": ms("p99"),
        "n": outcome["n"],
        "failed": outcome["failed"],
        "compliance": share(&outcome["compliance"]),
        "budget_left": share(&outcome["budget_left"]),
        "burn": outcome["burn_rate"].as_f64().map_or_else(|| "-".to_owned(), |burn| format!("{burn:.2}")),
        "exhausted": outcome["exhausted_in_seconds"].as_f64().map_or_else(|| "-".to_owned(), |of| duration(1e3 * of)),
        "worst": match &outcome["worst_minute"] {
            Value::Null => "-".to_owned(),
            worst => format!("{} of {} at {}", number(&worst["value"]), worst["n"], minute(&worst["at"])),
        },
        "window": outcome["window"],
        "state": text(&outcome["state"]).replace('_', " "),
    })
}

/// The time of day of a moment, UTC, to the minute.
fn minute(at: &Value) -> String {
    let time = at.as_str().and_then(|at| at.get(11..16));
    time.map_or_else(|| text(at), |time| format!("{time} UTC"))
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Milliseconds for people.
fn duration(ms: f64) -> String {
    if ms < 1_000.0 {
        format!("{ms:.1} ms")
    } else if ms < 120_000.0 {
        format!("{:.1} s", ms / 1_000.0)
    } else if ms < 7_200_000.0 {
        format!("{:.1} min", ms / 60_000.0)
    } else if ms < 172_800_000.0 {
        format!("{:.1} h", ms / 3_600_000.0)
    } else {
        format!("{:.1} d", ms / 86_400_000.0)
    }
}
