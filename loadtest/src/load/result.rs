//! What is counted of a load, and what comes of it: a table, JSON, a picture, histograms, and a verdict.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use hdrhistogram::{
    Histogram,
    serialization::{
        V2DeflateSerializer,
        interval_log::{IntervalLogWriterBuilder, Tag},
    },
};
use serde::Serialize;
use serde_json::Value;
use testkit::plot::{Chart, Line, Picture};

use super::scenario::Scenario;

/// Points of a picture, at most.
const INTERVALS_MAX: u64 = 120;
/// Significant digits of durations.
const DIGITS: u8 = 3;
/// Reasons of failures that are told.
const REASONS_MAX: usize = 5;
/// Parts of the time by which it is told whether the load is steady.
const PARTS: usize = 10;

/// A session that has ended.
pub(crate) struct Sample {
    /// When, since the count began.
    pub(crate) at: Duration,
    /// How long it took, from when it was due.
    pub(crate) took: Duration,
    /// Why it failed, if it did.
    pub(crate) failed: Option<String>,
}

/// What was counted.
pub(crate) struct Counted {
    /// When the count began.
    at: SystemTime,
    /// How long an interval is, in seconds.
    interval_s: u64,
    /// By kind of work and interval.
    took: Vec<Vec<Histogram<u64>>>,
    /// By kind of work: those that ended well while it counted. Only they make the rate.
    ended: Vec<u64>,
    /// By kind of work.
    failed: Vec<u64>,
    /// Sessions of all kinds, by the second.
    seconds: Vec<u64>,
    reasons: BTreeMap<String, u64>,
}

impl Counted {
    pub(crate) fn new(scenario: &Scenario, at: SystemTime) -> anyhow::Result<Self> {
        let interval_s = scenario.seconds.div_ceil(INTERVALS_MAX);
        let intervals = usize::try_from(scenario.seconds.div_ceil(interval_s))?;
        let none = Histogram::new(DIGITS)?;
        Ok(Self {
            at,
            interval_s,
            took: vec![vec![none; intervals]; scenario.work.len()],
            ended: vec![0; scenario.work.len()],
            failed: vec![0; scenario.work.len()],
            seconds: vec![0; usize::try_from(scenario.seconds)?],
            reasons: BTreeMap::new(),
        })
    }

    pub(crate) fn count(&mut self, work: usize, sample: Sample) {
        if let Some(reason) = sample.failed {
            self.failed[work] += 1;
            if self.reasons.len() < REASONS_MAX || self.reasons.contains_key(&reason) {
                *self.reasons.entry(reason).or_default() += 1;
            }
            return;
        }
        let second = usize::try_from(sample.at.as_secs()).unwrap_or(usize::MAX);
        let interval = usize::try_from(sample.at.as_secs() / self.interval_s).unwrap_or(usize::MAX);
        let took = &mut self.took[work];
        let last = took.len().saturating_sub(1);
        if let Some(of) = self.seconds.get_mut(second) {
            *of += 1;
            self.ended[work] += 1;
        }
        if let Some(took) = took.get_mut(interval.min(last)) {
            // It grows with its values.
            let _ = took.record(u64::try_from(sample.took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn of(&self, work: usize) -> anyhow::Result<Histogram<u64>> {
        let mut all = Histogram::new(DIGITS)?;
        for interval in &self.took[work] {
            all.add(interval)?;
        }
        Ok(all)
    }

    /// Every interval of every kind of work, in the format that all tools for HDR histograms read. Microseconds.
    fn log(&self, scenario: &Scenario, to: File) -> anyhow::Result<()> {
        let (mut to, mut serializer) = (std::io::BufWriter::new(to), V2DeflateSerializer::new());
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(&format!("loadtest, scenario {}: microseconds from due to ended", scenario.name))
            .with_start_time(self.at)
            .with_base_time(self.at)
            .begin_log_with(&mut to, &mut serializer)
            .context("begin the log of histograms")?;
        for interval in 0..self.took.first().map_or(0, Vec::len) {
            for (work, took) in scenario.work.iter().zip(&self.took) {
                let from = Duration::from_secs(interval as u64 * self.interval_s);
                let length = Duration::from_secs(self.interval_s);
                log.write_histogram(&took[interval], from, length, Tag::new(&work.name))
                    .map_err(|error| anyhow::anyhow!("write a histogram: {error:?}"))?;
            }
        }
        Ok(())
    }
}

/// What came of a kind of work. Times are in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct OfWork {
    name: String,
    sessions: u64,
    failed: u64,
    sessions_per_second: f64,
    steps_per_second: f64,
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

/// Whether as much was done in the end as in the beginning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Steady {
    steady: bool,
    /// What the second half did more or less than the first, as a share.
    drift: f64,
    /// The standard deviation of the parts of the time, as a share of their mean.
    spread: f64,
}

/// What came of a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outcome {
    scenario: String,
    about: String,
    place: String,
    seconds: u64,
    /// Sessions under way at once, in a closed loop.
    clients: Option<usize>,
    /// Sessions started a second, in an open loop.
    rate: Option<f64>,
    work: Vec<OfWork>,
    steady: Steady,
    /// What the cluster says of its objectives for which enough was counted.
    objectives: Vec<Value>,
    /// Why sessions failed, and how many for each reason.
    reasons: BTreeMap<String, u64>,
    /// What is wrong. Empty if it passed.
    violations: Vec<String>,
    pub(crate) passed: bool,
}

#[expect(clippy::cast_precision_loss, reason = "counts and microseconds far below 2^52")]
fn precise(number: u64) -> f64 {
    number as f64
}

impl Steady {
    /// Of sessions by the second.
    fn of(seconds: &[u64], drift_max: f64) -> Self {
        let parts: Vec<f64> = (0..PARTS)
            .map(|part| &seconds[part * seconds.len() / PARTS..(part + 1) * seconds.len() / PARTS])
            .filter(|part| !part.is_empty())
            .map(|part| precise(part.iter().sum()) / precise(part.len() as u64))
            .collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / precise(of.len().max(1) as u64);
        let (all, (first, second)) = (mean(&parts), parts.split_at(parts.len() / 2));
        if all <= 0.0 {
            return Self { steady: false, drift: 0.0, spread: 0.0 };
        }
        // A single part says nothing of a drift.
        let drift = if first.is_empty() { 0.0 } else { (mean(second) - mean(first)) / all };
        let squares: Vec<f64> = parts.iter().map(|part| (part - all).powi(2)).collect();
        Self { steady: drift.abs() <= drift_max, drift, spread: mean(&squares).sqrt() / all }
    }
}

impl Outcome {
    pub(crate) fn of(scenario: &Scenario, place: &str, counted: &Counted, objectives: Vec<Value>) -> Self {
        let seconds = precise(scenario.seconds);
        let of_work = |(number, work): (usize, &super::scenario::Work)| {
            let (took, failed) = (counted.of(number).ok(), counted.failed[number]);
            let sessions = took.as_ref().map_or(0, Histogram::len);
            let ms = |quantile: f64| {
                took.as_ref().map_or(0.0, |took| precise(took.value_at_quantile(quantile)) / 1e3)
            };
            let per_second = precise(counted.ended[number]) / seconds;
            OfWork {
                name: work.name.clone(),
                sessions,
                failed,
                sessions_per_second: per_second,
                steps_per_second: per_second * f64::from(work.steps_each()),
                mean: took.as_ref().filter(|took| !took.is_empty()).map_or(0.0, |took| took.mean() / 1e3),
                p50: ms(0.5),
                p95: ms(0.95),
                p99: ms(0.99),
                max: ms(1.0),
            }
        };
        let work: Vec<OfWork> = scenario.work.iter().enumerate().map(of_work).collect();
        let steady = Steady::of(&counted.seconds, scenario.drift_max);
        let objectives: Vec<Value> =
            objectives.into_iter().filter(|of| of["state"] == "met" || of["state"] == "breached").collect();
        let mut violations = Vec::new();
        for work in &work {
            if work.failed > 0 {
                violations.push(format!("{} sessions of {} failed", work.failed, work.name));
            }
            if work.sessions == 0 {
                violations.push(format!("no session of {} ended in time", work.name));
            }
        }
        if !steady.steady {
            violations.push(format!(
                "not steady: the second half did {:+.0} % of what the first did, {:.0} % is allowed",
                100.0 * steady.drift,
                100.0 * scenario.drift_max
            ));
        }
        for of in objectives.iter().filter(|of| of["state"] == "breached") {
            violations.push(format!("objective {} is breached: {}", of["name"], shown(of)));
        }
        Self {
            scenario: scenario.name.clone(),
            about: scenario.about.clone(),
            place: place.to_owned(),
            seconds: scenario.seconds,
            clients: scenario.rate.is_none().then_some(scenario.clients),
            rate: scenario.rate,
            work,
            steady,
            objectives,
            reasons: counted.reasons.clone(),
            passed: violations.is_empty(),
            violations,
        }
    }

    fn how(&self) -> String {
        match (self.rate, self.clients) {
            (Some(rate), _) => format!("{rate} sessions started a second"),
            (None, clients) => format!("{} clients", clients.unwrap_or_default()),
        }
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!("{}: {}", self.scenario, self.about),
            format!("{}, {}, {} s", self.place, self.how(), self.seconds),
            format!(
                "{:<12} {:>9} {:>7} {:>11} {:>10} {:>9} {:>9} {:>9} {:>9}",
                "WORK", "SESSIONS", "FAILED", "SESSIONS/S", "STEPS/S", "P50 MS", "P95 MS", "P99 MS", "MAX MS"
            ),
        ];
        for of in &self.work {
            lines.push(format!(
                "{:<12} {:>9} {:>7} {:>11.1} {:>10.1} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                of.name,
                of.sessions,
                of.failed,
                of.sessions_per_second,
                of.steps_per_second,
                of.p50,
                of.p95,
                of.p99,
                of.max
            ));
        }
        let Steady { drift, spread, .. } = &self.steady;
        lines.push(format!(
            "second half against first {:+.1} %, spread {:.1} %",
            100.0 * drift,
            100.0 * spread
        ));
        for of in &self.objectives {
            lines.push(format!(
                "objective {}: {} ({})",
                of["name"].as_str().unwrap_or_default(),
                of["state"].as_str().unwrap_or_default(),
                shown(of)
            ));
        }
        for (reason, count) in &self.reasons {
            lines.push(format!("{count} times: {reason}"));
        }
        lines.extend(self.violations.iter().map(|violation| format!("VIOLATION: {violation}")));
        lines.push(if self.passed { "PASSED" } else { "FAILED" }.to_owned());
        lines.join("\n")
    }

    /// Writes the result, its picture and the histograms into a directory.
    pub(crate) fn write(
        &self,
        scenario: &Scenario,
        directory: &Path,
        counted: &Counted,
    ) -> anyhow::Result<()> {
        fs::create_dir_all(directory)?;
        let at = |ending: &str| directory.join(format!("{}.{ending}", scenario.name));
        fs::write(at("json"), serde_json::to_vec_pretty(self)?)?;
        fs::write(at("svg"), self.picture(counted).svg())?;
        counted.log(scenario, File::create(at("hlog"))?)
    }

    fn picture(&self, counted: &Counted) -> Picture {
        let interval = precise(counted.interval_s);
        let points = |of: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
            let intervals = 0..counted.took.first().map_or(0, Vec::len);
            intervals.map(|number| ((precise(number as u64) + 0.5) * interval, of(number))).collect()
        };
        let rate =
            |number: usize| counted.took.iter().map(|of| precise(of[number].len())).sum::<f64>() / interval;
        let ms = |quantile: f64| {
            let all = |number: usize| {
                let of_interval = counted.took.iter().map(|of| &of[number]).filter(|of| !of.is_empty());
                of_interval.map(|of| precise(of.value_at_quantile(quantile)) / 1e3).fold(0.0, f64::max)
            };
            points(&all)
        };
        let verdict = if self.passed { "passed" } else { "FAILED" };
        Picture {
            title: format!("{}: {}, {}: {verdict}", self.scenario, self.place, self.how()),
            seconds: precise(self.seconds),
            spans: Vec::new(),
            charts: vec![
                Chart {
                    title: "sessions a second".to_owned(),
                    lines: vec![Line { color: "#284", points: points(&rate) }],
                },
                Chart {
                    title: "ms: p50, p99 of the slowest kind".to_owned(),
                    lines: vec![
                        Line { color: "#284", points: ms(0.5) },
                        Line { color: "#c82", points: ms(0.99) },
                    ],
                },
            ],
        }
    }
}

/// The number of an objective, and what it should be.
fn shown(of: &Value) -> String {
    let number = |of: &Value| of.as_f64().map(|of| format!("{of:.3}")).unwrap_or_default();
    format!(
        "{} of {} is {} {}, should be {} {}",
        of["statistic"].as_str().unwrap_or_default(),
        of["indicator"].as_str().unwrap_or_default(),
        number(&of["value"]),
        of["unit"].as_str().unwrap_or_default(),
        of["comparator"].as_str().unwrap_or_default(),
        number(&of["target"]),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn counted(scenario: &Scenario, per_second: impl Fn(u64) -> u64) -> Counted {
        let mut counted = Counted::new(scenario, SystemTime::UNIX_EPOCH).unwrap();
        for second in 0..scenario.seconds {
            for number in 0..per_second(second) {
                let took = Duration::from_millis(1 + number % 100);
                counted.count(0, Sample { at: Duration::from_secs(second), took, failed: None });
            }
        }
        counted
    }

    #[test]
    fn a_load_passes_if_it_is_steady_and_everything_ends_well() {
        let scenario = Scenario::load("three").unwrap();
        let outcome = |counted: &Counted| Outcome::of(&scenario, "here", counted, Vec::new());
        let steady = outcome(&counted(&scenario, |_| 100));
        assert!(steady.passed, "{}", steady.table());
        assert_eq!(
            (steady.work[0].sessions, steady.work[0].p50, steady.work[0].max),
            (2_000, 50.015, 100.031)
        );
        assert!((steady.work[0].steps_per_second - 300.0).abs() < 1e-9);
        let slower = outcome(&counted(&scenario, |second| 100 - 3 * second));
        assert!(!slower.passed && slower.violations[0].starts_with("not steady"), "{}", slower.table());
        let mut failing = counted(&scenario, |_| 100);
        let failed = Some("503: no leader".to_owned());
        failing.count(0, Sample { at: Duration::ZERO, took: Duration::ZERO, failed });
        let failing = outcome(&failing);
        assert_eq!(failing.violations, ["1 sessions of three failed"]);
        assert!(failing.table().contains("1 times: 503: no leader"), "{}", failing.table());
        assert!(!outcome(&counted(&scenario, |_| 0)).passed);
        let mut hanging = counted(&scenario, |_| 100);
        let (at, took) = (Duration::from_secs(scenario.seconds + 5), Duration::from_secs(6));
        hanging.count(0, Sample { at, took, failed: None });
        let hanging = outcome(&hanging);
        assert!(
            (hanging.work[0].sessions, hanging.work[0].max >= 6_000.0) == (2_001, true),
            "{}",
            hanging.table()
        );
        assert!((hanging.work[0].steps_per_second - 300.0).abs() < 1e-9, "it is no part of the rate");
        let breached = serde_json::json!({"name": "p95 of sessions", "state": "breached", "indicator": "session",
            "statistic": "p95", "comparator": "<", "target": 10.0, "value": 20.0, "unit": "ms"});
        let unknown = serde_json::json!({"name": "uptime", "state": "insufficient_data"});
        let outcome = Outcome::of(&scenario, "here", &counted(&scenario, |_| 100), vec![breached, unknown]);
        assert_eq!(outcome.violations.len(), 1);
        assert!(
            outcome.violations[0].contains("is 20.000 ms, should be < 10.000"),
            "{:?}",
            outcome.violations
        );
    }

    #[test]
    fn the_log_of_histograms_has_every_interval() {
        let scenario = Scenario::load("mixed").unwrap();
        let counted = counted(&scenario, |_| 100);
        let temp = tempfile::tempdir().unwrap();
        let outcome = Outcome::of(&scenario, "here", &counted, Vec::new());
        outcome.write(&scenario, temp.path(), &counted).unwrap();
        let log = fs::read(temp.path().join("mixed.hlog")).unwrap();
        let intervals = IntervalLogIterator::new(&log)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(of) => {
                    Some((of.start_timestamp().as_secs(), of.tag().unwrap().as_str().to_owned()))
                }
                _ => None,
            })
            .collect::<Vec<_>>();
        assert_eq!(intervals.len(), 4 * 30);
        assert_eq!(intervals[5], (1, "nine".to_owned()));
        assert!(fs::read_to_string(temp.path().join("mixed.svg")).unwrap().contains("sessions a second"));
    }
}
