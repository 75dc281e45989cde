//! Load over HTTP.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::Instant};

use crate::{layers::THREE_STEPS, line};

/// A session that takes longer counts as failed.
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Sessions on their way in an open loop. Beyond that the run says that it could not keep the rate.
const OPEN_MAX: usize = 4096;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The node's URL, on this machine.
    #[arg(long, default_value = "http://127.0.0.1:7100")]
    url: String,
    /// How long, in seconds, at most 3600.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Sessions under way at once, in a closed loop.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Sessions started a second, in an open loop.
    #[arg(long)]
    rate: Option<f64>,
}

struct Run {
    http: reqwest::Client,
    url: String,
    took: Mutex<Histogram<u64>>,
    failed: std::sync::atomic::AtomicU64,
}

pub(crate) async fn run(args: RunArgs) -> anyhow::Result<()> {
    let url = reqwest::Url::parse(&args.url).context("--url")?;
    let local = url.host_str().is_some_and(|host| ["127.0.0.1", "localhost", "[::1]"].contains(&host));
    if !local {
        bail!("--url {}: load is only put on this machine", args.url);
    }
    let http = reqwest::Client::builder().timeout(SESSION_TIMEOUT).build()?;
    let applied = http.post(format!("{}/v1/workflows", args.url)).body(THREE_STEPS).send().await?;
    if !applied.status().is_success() {
        bail!("apply the workflow: {}", applied.text().await?);
    }
    let run = Arc::new(Run {
        http,
        url: args.url.clone(),
        took: Mutex::new(Histogram::new_with_bounds(1, 120_000_000, 3)?),
        failed: std::sync::atomic::AtomicU64::new(0),
    });
    let began = Instant::now();
    match args.rate {
        Some(rate) if rate > 0.0 => run.open(rate, args.seconds).await?,
        Some(rate) => bail!("--rate {rate}: expected more than 0"),
        None => run.closed(args.clients, args.seconds).await?,
    }
    run.report(began.elapsed()).await;
    let failed = run.failed.load(std::sync::atomic::Ordering::Relaxed);
    anyhow::ensure!(
        failed == 0,
        "{failed} sessions failed: figures of a load in which sessions fail say little"
    );
    Ok(())
}

impl Run {
    /// Every session has its place on the schedule, and its latency counts from there: a stall of the node is seen by
    /// all who would have come meanwhile.
    async fn open(self: &Arc<Self>, rate: f64, seconds: u64) -> anyhow::Result<()> {
        let permits = Arc::new(tokio::sync::Semaphore::new(OPEN_MAX));
        let (began, gap) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
        let mut intended = began;
        let mut tasks = tokio::task::JoinSet::new();
        while intended < began + Duration::from_secs(seconds) {
            tokio::time::sleep_until(intended).await;
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                tasks.join_all().await;
                self.report(began.elapsed()).await;
                bail!("{OPEN_MAX} sessions were under way: the node does not keep a rate of {rate} a second");
            };
            let (run, from) = (Arc::clone(self), intended);
            tasks.spawn(async move {
                run.session(from).await;
                drop(permit);
            });
            intended += gap;
        }
        tasks.join_all().await;
        Ok(())
    }

    async fn closed(self: &Arc<Self>, clients: usize, seconds: u64) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let run = Arc::clone(self);
            tasks.spawn(async move {
                while Instant::now() < end {
                    run.session(Instant::now()).await;
                }
            });
        }
        tasks.join_all().await;
        Ok(())
    }

    async fn session(&self, from: Instant) {
        match tokio::time::timeout(SESSION_TIMEOUT, self.run_session()).await {
            Ok(Ok(())) => {
                let micros = u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.took.lock().await.saturating_record(micros);
            }
            Ok(Err(_)) | Err(_) => {
                self.failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }

    /// Starts a session and follows its events to the end.
    async fn run_session(&self) -> anyhow::Result<()> {
        let body = json!({"workflow": "three", "input": {"text": "an input of a usual size"}});
        let answer = self.http.post(format!("{}/v1/sessions", self.url)).json(&body).send().await?;
        let started: Value = answer.error_for_status()?.json().await?;
        let id = started["id"].as_str().context("no id")?;
        let events = self.http.get(format!("{}/v1/sessions/{id}/events?from=3", self.url));
        let text =
            events.header("accept", "text/event-stream").send().await?.error_for_status()?.text().await?;
        if text.contains("event: session_completed") { Ok(()) } else { bail!("not completed") }
    }

    async fn report(&self, elapsed: Duration) {
        let took = self.took.lock().await;
        let ms = |quantile: f64| {
            #[expect(clippy::cast_precision_loss, reason = "microseconds of a session")]
            let ms = took.value_at_quantile(quantile) as f64 / 1000.0;
            ms
        };
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let rate = took.len() as f64 / elapsed.as_secs_f64();
        line(format!(
            "{} sessions in {:.1} s, {rate:.0} sessions/s, {:.0} steps/s, {} failed",
            took.len(),
            elapsed.as_secs_f64(),
            rate * 3.0,
            self.failed.load(std::sync::atomic::Ordering::Relaxed)
        ));
        line(format!(
            "latency ms: p50 {:.2}, p95 {:.2}, p99 {:.2}, max {:.2}",
            ms(0.5),
            ms(0.95),
            ms(0.99),
            ms(1.0)
        ));
    }
}
