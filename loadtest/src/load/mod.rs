//! Load as a scenario has it: sessions by a schedule or by clients, what is counted of them, and a verdict.

mod place;
mod result;
mod scenario;
mod sessions;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::line;
use place::Place;
use result::{Counted, Outcome, Sample};
use scenario::Scenario;
use sessions::Sessions;

/// Sessions under way in an open loop. Beyond that, the rate is more than the nodes can do.
const OPEN_MAX: usize = 4_096;
/// Samples that wait to be counted.
const SAMPLES_LEN: usize = 1 << 16;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// one, three, nine, workers, payload, fan-out, long, signals, mixed, soak, or a TOML file.
    #[arg(default_value = "three")]
    scenario: String,
    /// HTTP URLs of nodes on this machine, comma-separated; by default, a cluster of its own is started.
    #[arg(long, value_delimiter = ',')]
    url: Vec<String>,
    /// gRPC URLs of those nodes, for the worker of scenarios with tasks, comma-separated.
    #[arg(long, value_delimiter = ',', requires = "url")]
    grpc: Vec<String>,
    /// Nodes of the cluster of its own.
    #[arg(long, default_value_t = 1, conflicts_with = "url", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Where data of the cluster of its own is written: a real file system, not one in memory.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Instead of the scenario's: sessions under way at once, in a closed loop.
    #[arg(long, conflicts_with = "rate")]
    clients: Option<usize>,
    /// Instead of the scenario's: sessions started a second, in an open loop.
    #[arg(long)]
    rate: Option<f64>,
    /// Instead of the scenario's: seconds that are counted.
    #[arg(long)]
    seconds: Option<u64>,
    /// Instead of the scenario's: seconds before them.
    #[arg(long)]
    warm_up_seconds: Option<u64>,
    /// Chooses what comes when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the result (JSON), its picture (SVG) and the histograms (an HDR interval log) go.
    #[arg(long)]
    out: Option<PathBuf>,
    /// What is printed.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Runs a load; whether it passed.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<bool> {
    let mut scenario = Scenario::load(&args.scenario)?;
    if let Some(clients) = args.clients {
        (scenario.clients, scenario.rate) = (clients, None);
    }
    scenario.rate = args.rate.or(scenario.rate);
    scenario.seconds = args.seconds.unwrap_or(scenario.seconds);
    scenario.warm_up_seconds = args.warm_up_seconds.unwrap_or(scenario.warm_up_seconds);
    scenario.check().context("with what the command line has changed")?;
    let place = if args.url.is_empty() {
        Place::start(&args.directory, usize::from(args.nodes)).await?
    } else {
        Place::there(&args.url, &args.grpc, &scenario)?
    };
    let sessions = Arc::new(Sessions::begin(&place.urls, &scenario).await?);
    let counted = drive(&scenario, &sessions, args.seed).await?;
    let objectives = sessions.objectives().await?;
    let outcome = Outcome::of(&scenario, &place.about, &counted, objectives);
    if let Some(out) = &args.out {
        outcome.write(&scenario, out, &counted).with_context(|| format!("write to {}", out.display()))?;
    }
    match args.output {
        Format::Table => line(outcome.table()),
        Format::Json => line(serde_json::to_string_pretty(&outcome)?),
    }
    Ok(outcome.passed)
}

/// When what counts begins and ends.
#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    end: Instant,
}

async fn drive(scenario: &Scenario, sessions: &Arc<Sessions>, seed: u64) -> anyhow::Result<Counted> {
    let begin = Instant::now() + Duration::from_secs(scenario.warm_up_seconds);
    let window = Window { begin, end: begin + Duration::from_secs(scenario.seconds) };
    #[expect(clippy::disallowed_methods, reason = "a log of histograms tells when it was")]
    let at = SystemTime::now() + Duration::from_secs(scenario.warm_up_seconds);
    let (samples, mut incoming) = mpsc::channel(SAMPLES_LEN);
    let counting = async {
        let mut counted = Counted::new(scenario, at)?;
        while let Some((work, sample)) = incoming.recv().await {
            counted.count(work, sample);
        }
        anyhow::Ok(counted)
    };
    let progress = tokio::spawn(show(window, scenario.warm_up_seconds + scenario.seconds));
    let driving = async {
        match scenario.rate {
            Some(rate) => open(scenario, sessions, window, rate, seed, samples).await,
            None => closed(scenario, sessions, window, seed, samples).await,
        }
    };
    let (counted, driven) = tokio::join!(counting, driving);
    progress.abort();
    driven?;
    counted
}

type Samples = mpsc::Sender<(usize, Sample)>;

/// Does one session, and tells what came of it, unless it ended before the count began. One that was due in time and
/// outlasts the count has its duration, or its failure, in it all the same.
async fn one(sessions: &Sessions, work: usize, due: Instant, window: Window, samples: &Samples) {
    let done = sessions.run(work).await;
    let ended = Instant::now();
    if ended >= window.begin {
        let sample = Sample {
            at: ended - window.begin,
            took: ended - due,
            failed: done.err().map(|of| format!("{of:#}")),
        };
        // Whoever counts ends after all who tell.
        let _ = samples.send((work, sample)).await;
    }
}

async fn closed(
    scenario: &Scenario,
    sessions: &Arc<Sessions>,
    window: Window,
    seed: u64,
    samples: Samples,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for client in 0..scenario.clients as u64 {
        let (sessions, samples, mut mix) =
            (Arc::clone(sessions), samples.clone(), Mix::new(scenario, seed ^ client));
        tasks.spawn(async move {
            while Instant::now() < window.end {
                one(&sessions, mix.next(), Instant::now(), window, &samples).await;
            }
        });
    }
    drop(samples);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

/// Every session has its place on the schedule, and takes from there: a stall is seen by all who would have come
/// meanwhile.
async fn open(
    scenario: &Scenario,
    sessions: &Arc<Sessions>,
    window: Window,
    rate: f64,
    seed: u64,
    samples: Samples,
) -> anyhow::Result<()> {
    let (mut mix, mut tasks) = (Mix::new(scenario, seed), JoinSet::new());
    let begun = Instant::now();
    for number in 0u32.. {
        let due = begun + Duration::from_secs_f64(f64::from(number) / rate);
        if due >= window.end {
            break;
        }
        tokio::time::sleep_until(due).await;
        while let Some(ended) = tasks.try_join_next() {
            ended?;
        }
        anyhow::ensure!(
            tasks.len() < OPEN_MAX,
            "{OPEN_MAX} sessions were under way after {:.0} s: {rate} a second are more than the nodes can do",
            begun.elapsed().as_secs_f64()
        );
        let (sessions, samples, work) = (Arc::clone(sessions), samples.clone(), mix.next());
        tasks.spawn(async move { one(&sessions, work, due, window, &samples).await });
    }
    drop(samples);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

/// Kinds of work, each as often as its share has it.
struct Mix {
    random: StdRng,
    shares: Vec<u32>,
}

impl Mix {
    fn new(scenario: &Scenario, seed: u64) -> Self {
        let shares = scenario.work.iter().map(|work| work.share).collect();
        Self { random: StdRng::seed_from_u64(seed), shares }
    }

    fn next(&mut self) -> usize {
        let mut left = self.random.random_range(0..self.shares.iter().sum());
        for (work, share) in self.shares.iter().enumerate() {
            match left.checked_sub(*share) {
                Some(rest) => left = rest,
                None => return work,
            }
        }
        0
    }
}

/// Shows how far the load is, where somebody looks.
async fn show(window: Window, seconds: u64) {
    let bar = ProgressBar::new(seconds);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} s") {
        bar.set_style(style);
    }
    loop {
        let now = Instant::now();
        bar.set_message(if now < window.begin { "warming up" } else { "counting" });
        let left = window.end.saturating_duration_since(now).as_secs();
        bar.set_position(seconds.saturating_sub(left));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_work_come_as_often_as_their_shares_have_it() {
        let scenario = Scenario::load("payload").unwrap_or_else(|error| panic!("{error:#}"));
        let mut mix = Mix::new(&scenario, 1);
        let mut counts = [0u32; 3];
        for _ in 0..13_000 {
            counts[mix.next()] += 1;
        }
        for (count, expected) in counts.into_iter().zip([8_000, 4_000, 1_000]) {
            assert!(count.abs_diff(expected) < 300, "{counts:?}");
        }
    }
}
