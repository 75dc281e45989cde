//! Log lines to a collector over HTTP: `POST`, many lines at once, as newline-delimited text.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Context as _;
use server::{Secret, config::Log};
use tracing::subscriber::NoSubscriber;

/// Bytes of lines that go in one request.
const REQUEST_BYTES: usize = 256 * 1024;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long to rest before lines that were not taken are sent again, each time twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the same lines are sent.
const TRIES: u32 = 5;

/// Sends what is written to it once it is flushed, or is much. Whoever writes waits: it is written to by a thread of
/// its own, before which a bounded number of lines waits.
pub(super) struct Sink {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    url: reqwest::Url,
    token: Option<Secret>,
    content_type: &'static str,
    lines: Vec<u8>,
    /// Whether the last request failed, of which people are told once.
    failing: bool,
}

impl Sink {
    /// One for the collector that the configuration names, if it does.
    pub(super) fn new(log: &Log) -> anyhow::Result<Option<Self>> {
        let Some(url) = &log.url else { return Ok(None) };
        let url = reqwest::Url::parse(url).context("log.url")?;
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // The token is for the collector, not for whom it names.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("log.url")?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("log.url")?;
        let content_type = match log.format {
            server::config::LogFormat::Json => "application/x-ndjson",
            server::config::LogFormat::Text => "text/plain; charset=utf-8",
        };
        let token = log.token_env.as_deref().map(Secret::from_env);
        Ok(Some(Self { runtime, client, url, token, content_type, lines: Vec::new(), failing: false }))
    }

    fn post(&self) -> Result<(), String> {
        let mut request = self.client.post(self.url.clone()).header("content-type", self.content_type);
        if let Some(token) = &self.token {
            // Read each time: it may be a new one.
            request = request.bearer_auth(token.read()?);
        }
        let request = request.body(self.lines.clone());
        let send = || self.runtime.block_on(async { request.send().await });
        // What the client logs of its own work would be sent as well, and logged, and sent.
        let answer = tracing::subscriber::with_default(NoSubscriber::new(), send);
        let status = answer.map_err(|error| error.without_url().to_string())?.status();
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
    }

    fn send(&mut self) {
        let (mut pause, mut tries) = (PAUSE, 0);
        while !self.lines.is_empty() {
            tries += 1;
            match self.post() {
                Ok(()) => {
                    self.lines.clear();
                    self.failing = false;
                }
                Err(reason) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        // Not as a log line, which would come here.
                        let _ = writeln!(io::stderr(), "log.url: lines are not taken: {reason}");
                    }
                    if tries == TRIES {
                        let _ =
                            writeln!(io::stderr(), "log.url: {} bytes of lines are lost", self.lines.len());
                        self.lines.clear();
                        return;
                    }
                    std::thread::park_timeout(pause);
                    pause *= 2;
                }
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(bytes);
        if self.lines.len() >= REQUEST_BYTES {
            self.send();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send();
        Ok(())
    }
}
