//! What the command line prints.

use std::{
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::ValueEnum;
use comfy_table::{
    Table,
    presets::{ASCII_MARKDOWN, UTF8_HORIZONTAL_ONLY},
};
use serde_json::Value;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For documents: tables in Markdown.
    Markdown,
    /// For programs.
    Json,
}

static MARKDOWN: AtomicBool = AtomicBool::new(false);

/// How tables look from now on.
pub(crate) fn set_format(format: Format) {
    MARKDOWN.store(format == Format::Markdown, Ordering::Relaxed);
}

/// Prints a line. A closed pipe ends the program quietly, as it does for other tools.
pub(crate) fn line(text: impl std::fmt::Display) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints JSON for programs.
pub(crate) fn json(value: &Value) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints a table: a column for each name, a row for each value.
pub(crate) fn table(columns: &[(&str, &str)], rows: &[Value]) {
    let mut table = Table::new();
    let markdown = MARKDOWN.load(Ordering::Relaxed);
    table.load_style(if markdown { ASCII_MARKDOWN } else { UTF8_HORIZONTAL_ONLY });
    table.set_header(columns.iter().map(|(title, _)| *title));
    for row in rows {
        table.add_row(columns.iter().map(|(_, field)| text(row.pointer(field).unwrap_or(&Value::Null))));
    }
    line(table);
}

/// A value for people.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
