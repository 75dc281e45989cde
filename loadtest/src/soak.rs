//! What takes long: full load for half an hour, and a new node that takes in a gibibyte.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use testkit::Cluster;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    cluster::{CONFIG, Loaded},
    line,
};

const CLIENTS: usize = 256;
/// How long the load is left alone between two looks at the terms.
const SLICE_SECONDS: u64 = 30;
/// Each shard's term when a cluster stands: terms only grow by elections and hand-overs.
type Terms = BTreeMap<String, u64>;

async fn terms(cluster: &Cluster) -> anyhow::Result<Terms> {
    let mut terms = Terms::new();
    for number in cluster.members() {
        let status = cluster.status(number).await?;
        for (shard, of) in status["shards"].as_object().into_iter().flatten() {
            let term = terms.entry(shard.clone()).or_default();
            *term = (*term).max(of["term"].as_u64().unwrap_or_default());
        }
    }
    Ok(terms)
}

/// Full load on three nodes, all healthy: no shard may elect a leader. Answers how many did.
pub(crate) async fn full_load(directory: &Path, minutes: u64) -> anyhow::Result<u64> {
    let loaded = Arc::new(Loaded::start(directory, 3).await?);
    // Leads go to where they belong first; those are no elections under load.
    loaded.cluster.until_spread().await?;
    let before = terms(&loaded.cluster).await?;
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let (mut slices, mut rates) = (0u64, Vec::new());
    while Instant::now() < until {
        rates.push(3.0 * loaded.sessions(CLIENTS, SLICE_SECONDS).await?.per_second);
        slices += 1;
        let now = terms(&loaded.cluster).await?;
        if now != before {
            line(format!("terms after {} s: {now:?}, before: {before:?}", slices * SLICE_SECONDS));
        }
    }
    let after = terms(&loaded.cluster).await?;
    let elections: u64 = before.iter().map(|(shard, term)| after[shard].abs_diff(*term)).sum();
    let (first, last) =
        (rates.first().copied().unwrap_or_default(), rates.last().copied().unwrap_or_default());
    let verified = verify(&loaded.cluster).await?;
    line(format!(
        "full load: {minutes} min, {CLIENTS} clients, {first:.0} steps/s at first, {last:.0} at last, elections {elections}, \
         replicas equal: {verified}"
    ));
    if !verified {
        bail!("replicas differ");
    }
    Ok(elections)
}

async fn verify(cluster: &Cluster) -> anyhow::Result<bool> {
    let url = format!("{}/v1/cluster/verify", cluster.url(0));
    let answer = reqwest::Client::new().post(url).json(&json!({"scrub": false})).send().await?;
    let said: Value = answer.error_for_status()?.json().await?;
    Ok(said["equal"] == true)
}

/// Bytes of one session's input: inline values may have 256 KiB.
const INPUT_BYTES: usize = 200 << 10;
/// How long writes are measured before anything happens.
const QUIET: Duration = Duration::from_secs(20);
/// Whole backups, one after the other: one alone takes too short a time for its p99 to tell it from what the disk does
/// once in a while by itself.
const BACKUPS: u32 = 5;
/// Writes a second, as a service in its usual day has them: the machine is not saturated.
const RATE: u64 = 200;

/// The p99 of writes in milliseconds: before, and while a new node takes in so many MiB.
pub(crate) async fn intake(directory: &Path, mib: usize) -> anyhow::Result<(f64, f64)> {
    let temp = tempfile::tempdir_in(directory)?;
    let mut cluster = Cluster::start(temp.path(), 3, CONFIG).await?;
    let http = reqwest::Client::new();
    let waits = "name: one\nsteps:\n  - {id: a, wait: {signal: never}}\n";
    let applied = http.post(format!("{}/v1/workflows", cluster.url(0))).body(waits).send().await?;
    applied.error_for_status()?;
    let urls: Arc<[String]> = cluster.urls().into();
    fill(&http, &urls, (mib << 20) / INPUT_BYTES).await?;
    let quiet = Writes::begin(&http, &urls)?;
    tokio::time::sleep(QUIET).await;
    let (before, counted) = quiet.end()?;
    let busy = Writes::begin(&http, &urls)?;
    let began = Instant::now();
    cluster.add().await?;
    cluster.until_whole().await?;
    let took = began.elapsed();
    let (during, counted_during) = busy.end()?;
    line(format!(
        "a new node took in {mib} MiB in {:.1} s; p99 of {RATE} writes a second: {before:.2} ms of {counted} before, \
         {during:.2} ms of {counted_during} meanwhile",
        took.as_secs_f64()
    ));
    Ok((before, during))
}

/// What a backup of so many sessions and its restore cost.
pub(crate) struct BackupCost {
    pub(crate) p99_before_ms: f64,
    pub(crate) p99_during_ms: f64,
    pub(crate) restore_s: f64,
}

/// Backs up three nodes with so many sessions under writes, loses them, and restores one.
pub(crate) async fn backup(directory: &Path, sessions: u64) -> anyhow::Result<BackupCost> {
    let loaded = Arc::new(Loaded::start(directory, 3).await?);
    let filling = Instant::now();
    loaded.fill(CLIENTS, sessions).await?;
    line(format!("{sessions} sessions in {:.0} s", filling.elapsed().as_secs_f64()));
    let (http, urls) = (reqwest::Client::new(), Arc::<[String]>::from(loaded.cluster.urls()));
    let temp = tempfile::tempdir_in(directory)?;
    let store = temp.path().join("store").display().to_string();
    let quiet = Writes::begin(&http, &urls)?;
    tokio::time::sleep(QUIET).await;
    let (p99_before_ms, _) = quiet.end()?;
    let busy = Writes::begin(&http, &urls)?;
    let began = Instant::now();
    // Each is of everything: nothing of it is in a store that is new.
    for number in 1..BACKUPS {
        let other = temp.path().join(format!("store-{number}")).display().to_string();
        run(&["backup", "create", "--to", &other, "--url", &urls[0]]).await?;
    }
    run(&["backup", "create", "--to", &store, "--url", &urls[0]]).await?;
    let first = began.elapsed() / BACKUPS;
    let (p99_during_ms, counted) = busy.end()?;
    let began = Instant::now();
    run(&["backup", "create", "--to", &store, "--url", &urls[0]]).await?;
    let second = began.elapsed();
    drop(Arc::into_inner(loaded).context("the load still runs")?);
    let data = temp.path().join("new/node-0/data");
    let began = Instant::now();
    run(&["backup", "restore", "--from", &store, "--data-dir", &data.display().to_string()]).await?;
    let restored = began.elapsed();
    let cluster = Cluster::start(&temp.path().join("new"), 1, CONFIG).await?;
    start(&http, &cluster.url(0), &json!(0)).await?;
    let restore_s = began.elapsed().as_secs_f64();
    line(format!(
        "backup of {sessions} sessions in {:.1} s (mean of {BACKUPS}), another into the same store in {:.1} s; p99 of \
         {RATE} writes a second {p99_before_ms:.2} ms before, {p99_during_ms:.2} ms of {counted} meanwhile; \
         restored in {:.1} s, first commit after {restore_s:.1} s",
        first.as_secs_f64(),
        second.as_secs_f64(),
        restored.as_secs_f64()
    ));
    Ok(BackupCost { p99_before_ms, p99_during_ms, restore_s })
}

async fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let output = tokio::process::Command::new(testkit::binary()?).args(arguments).output().await?;
    if !output.status.success() {
        bail!("{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Writes at a fixed rate, whatever the answers take: the time of each counts from when it was due.
struct Writes {
    took: Arc<Mutex<Histogram<u64>>>,
    writing: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Writes {
    fn begin(http: &reqwest::Client, urls: &Arc<[String]>) -> anyhow::Result<Self> {
        let took = Arc::new(Mutex::new(Histogram::<u64>::new(3)?));
        let writing = tokio::spawn(write(http.clone(), Arc::clone(urls), Arc::clone(&took)));
        Ok(Self { took, writing })
    }

    /// The p99 in milliseconds, and of how many.
    fn end(self) -> anyhow::Result<(f64, u64)> {
        self.writing.abort();
        let took = self.took.lock().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a call")]
        let p99 = took.value_at_quantile(0.99) as f64 / 1000.0;
        Ok((p99, took.len()))
    }
}

async fn fill(http: &reqwest::Client, urls: &Arc<[String]>, sessions: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for part in 0..8 {
        let (http, urls) = (http.clone(), Arc::clone(urls));
        tasks.spawn(async move {
            for number in (part..sessions).step_by(8) {
                // Text that does not shrink to nothing on the disk.
                let text: String =
                    (0..INPUT_BYTES).map(|_| char::from(rand::random_range(b'0'..=b'z'))).collect();
                let text = text.replace('\\', "/");
                start(&http, &urls[number % urls.len()], &json!(text)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn start(http: &reqwest::Client, url: &str, input: &Value) -> anyhow::Result<()> {
    let body = json!({"workflow": "one", "input": input});
    let answer = http.post(format!("{url}/v1/sessions")).json(&body).send().await?;
    let status = answer.status();
    if !status.is_success() {
        bail!("a start was answered {status}: {}", answer.text().await.unwrap_or_default());
    }
    Ok(())
}

async fn write(
    http: reqwest::Client,
    urls: Arc<[String]>,
    took: Arc<Mutex<Histogram<u64>>>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    for number in 0u64.. {
        let due = began + Duration::from_micros(number * 1_000_000 / RATE);
        tokio::time::sleep_until(due).await;
        let (http, urls, took) = (http.clone(), Arc::clone(&urls), Arc::clone(&took));
        tokio::spawn(async move {
            let url = &urls[usize::try_from(number)? % urls.len()];
            start(&http, url, &json!(number)).await.context("a write")?;
            let micros = u64::try_from(due.elapsed().as_micros())?;
            took.lock().map_err(|_| anyhow::anyhow!("a writer panicked"))?.record(micros)?;
            anyhow::Ok(())
        });
    }
    Ok(())
}
