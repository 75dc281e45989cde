//! `[log]`: what is logged, and where to.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level, or levels by module: `info`, `warn,engine=debug`. `orchestra log` changes it while the node runs.
    pub level: String,
    /// Where lines go besides standard error: a file a day, `orchestra.YYYY-MM-DD.log`. 16,384 lines wait for the disk;
    /// what comes beyond is lost, and no request waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// How many of these files are kept, 1 to 3,650.
    pub days_kept: usize,
    /// A collector that takes lines by `POST` over HTTP or HTTPS, many at once: as `application/x-ndjson`, or plain
    /// text. Besides standard error. 16,384 lines wait for it; lines that it does not take are sent five times in 15
    /// seconds, and are lost then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The variable with the collector's token, or with `_FILE` behind it the one that names a file with it. It is sent
    /// as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
}

impl Default for Log {
    fn default() -> Self {
        let level = "info,openraft=warn".into();
        Self { format: LogFormat::Text, level, directory: None, days_kept: 7, url: None, token_env: None }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Log {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=3_650).contains(&self.days_kept) {
            return Err(format!("log.days_kept must be 1 to 3650; found {}", self.days_kept));
        }
        match &self.url {
            Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
                return Err(format!("log.url: expected http:// or https://, found {url:?}"));
            }
            Some(url) => {
                if let Err(error) = reqwest::Url::parse(url) {
                    return Err(format!("log.url: {error}"));
                }
            }
            None if self.token_env.is_some() => {
                return Err("log.token_env is of no use without log.url".into());
            }
            None => {}
        }
        Ok(())
    }
}
