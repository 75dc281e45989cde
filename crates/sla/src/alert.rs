//! Rules that say when somebody is to be told.
//!
//! A rule is written `metric comparator value [over window] [for duration]`:
//!
//! - **metric**: an indicator with a number of it, `api_latency.p95`, `task_duration.mean`, `recovery.count`,
//!   `session_completion.failed` (the share that failed), `uptime.ratio` (the share that went right), of some of it
//!   only with `agent_response{role=auditor,provider=a}.p95`; `fallback_rate`, the share of the agents' answers that
//!   another provider gave than the first one asked; or a [`Gauge`].
//! - **comparator**: `>` or `<`.
//! - **value**: a duration (`500ms`, `5s`, `5m`, `1h`), a share (`5%` or `0.05`), or a number.
//! - **window**: what is measured, of indicators: 5m if it is not given. Made of whole slots ([`Window`]).
//! - **duration**: how long it must hold before the alert fires; at once if it is not given.
//!
//! Besides, every objective has rules on how fast its error budget is spent ([`BURNS`]).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ids::Timestamp;
use serde::Deserialize;

use crate::{
    Cell, Comparator, Error, Indicator, Kind, Objective, Statistic, Window,
    objective::{DURATION, parse_duration},
    report::{Measured, needed, number, share_missed},
};

/// The documented thresholds.
const BUILT_IN: &str = include_str!("alerts.toml");

/// How many must be counted before a share of them, or a percentile, says something.
pub(crate) const COUNTED_MIN: u64 = 20;

/// Long window, short window, how many times faster than allowed, and how bad that is: Google, The Site Reliability
/// Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
pub const BURNS: [(Window, Window, f64, Severity); 3] = [
    (Window::Hour, Window::FiveMinutes, 14.4, Severity::Critical),
    (Window::SixHours, Window::HalfHour, 6.0, Severity::Critical),
    (Window::ThreeDays, Window::SixHours, 1.0, Severity::Warning),
];

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody should look.
    Warning,
    /// Somebody must look now.
    Critical,
}

impl Severity {
    /// The name in configuration and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What a node knows of itself now, and what becomes of it over nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gauge {
    /// Tasks that wait for a worker.
    QueueDepth,
    /// Connected workers; unknown where no queue is used.
    Workers,
    /// The share of the memory it may use that the fullest node uses.
    ProcessMemoryShare,
    /// The share of its memory that Redis uses. There is no Redis yet: unknown.
    RedisMemoryShare,
    /// Nodes that did not answer.
    NodesDown,
    /// Nodes that do not take writes, as their disk is full or failed.
    WritesStopped,
    /// 1 if the newest backup of the schedule is too old; unknown without a schedule.
    BackupOverdue,
}

impl Gauge {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::QueueDepth,
        Self::Workers,
        Self::ProcessMemoryShare,
        Self::RedisMemoryShare,
        Self::NodesDown,
        Self::WritesStopped,
        Self::BackupOverdue,
    ];

    /// The name in rules, and in `/metrics` after `orchestra_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueDepth => "queue_depth",
            Self::Workers => "workers",
            Self::ProcessMemoryShare => "process_memory_share",
            Self::RedisMemoryShare => "redis_memory_share",
            Self::NodesDown => "nodes_down",
            Self::WritesStopped => "writes_stopped",
            Self::BackupOverdue => "backup_overdue",
        }
    }

    /// Whether what nodes say is added up; else the largest counts.
    #[must_use]
    pub fn is_sum(self) -> bool {
        matches!(self, Self::QueueDepth | Self::Workers | Self::WritesStopped)
    }

    pub(crate) fn is_share(self) -> bool {
        matches!(self, Self::ProcessMemoryShare | Self::RedisMemoryShare)
    }
}

/// What nodes know of themselves, as one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gauges(BTreeMap<Gauge, f64>);

impl Gauges {
    /// Adds what a node says.
    pub fn add(&mut self, gauge: Gauge, value: f64) {
        let before = self.0.entry(gauge).or_insert(0.0);
        *before = if gauge.is_sum() { *before + value } else { before.max(value) };
    }

    /// As nodes tell one another.
    #[must_use]
    pub fn encode(&self) -> HashMap<String, f64> {
        self.0.iter().map(|(gauge, value)| (gauge.name().to_owned(), *value)).collect()
    }

    /// Adds what a node has told. What this version does not know is left out.
    pub fn add_encoded(&mut self, told: &HashMap<String, f64>) {
        for gauge in Gauge::ALL {
            if let Some(value) = told.get(gauge.name()).filter(|value| value.is_finite()) {
                self.add(gauge, *value);
            }
        }
    }

    /// What is known.
    #[must_use]
    pub fn get(&self, gauge: Gauge) -> Option<f64> {
        self.0.get(&gauge).copied()
    }
}

/// When somebody is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What it is called.
    pub name: String,
    /// When.
    pub condition: Condition,
    /// How long it must hold, in milliseconds.
    pub hold_ms: u64,
    /// How bad it is.
    pub severity: Severity,
    /// What is to be done, for whoever is told; empty if that is not said.
    pub action: String,
    /// The rule as it was written.
    pub text: String,
}

/// When a rule holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// A number is beyond a limit.
    Threshold {
        /// Which.
        metric: Metric,
        /// Whether it must be above; else below.
        above: bool,
        /// The limit: microseconds, a share of one, or a number.
        limit: f64,
        /// What is measured.
        over: Window,
    },
    /// An error budget is spent so many times as fast as it may be.
    Burn {
        /// Whose.
        objective: Objective,
        /// Over this window.
        long: Window,
        /// And over this one.
        short: Window,
        /// So many times.
        factor: f64,
    },
}

/// A number.
#[derive(Debug, Clone, PartialEq)]
pub enum Metric {
    /// A statistic of an indicator, which must be better than the target.
    Level(Objective),
    /// How many were counted of it.
    Count(Objective),
    /// The share of those that failed.
    Failed(Objective),
    /// The share of agents' answers that were not of the first provider asked.
    FallbackRate,
    /// What nodes know of themselves.
    Gauge(Gauge),
}

/// What a metric is written in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Duration,
    Share,
    Number,
}

/// What came of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Whether it holds.
    pub holds: bool,
    /// What was measured, for people.
    pub value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    alerts: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    when: String,
    severity: Severity,
    #[serde(default)]
    action: String,
}

/// The documented thresholds.
#[must_use]
pub fn built_in() -> Vec<Rule> {
    // A test reads them.
    parse(BUILT_IN).unwrap_or_default()
}

/// Reads rules: `[[alerts]]` with `name`, `when`, `severity` (warning, critical), and what is to be done, `action`, if
/// that is to be told.
///
/// # Errors
///
/// What is wrong, and what instead.
pub fn parse(text: &str) -> Result<Vec<Rule>, Error> {
    let document: Document = toml::from_str(text).map_err(|error| Error::Form(error.to_string()))?;
    let read = |of: Written| {
        let fail = |problem: String| Error::Alert { name: of.name.clone(), problem };
        let (condition, hold_ms) = condition(&of.when).map_err(fail)?;
        let Written { name, when: text, severity, action } = of;
        Ok(Rule { name, condition, hold_ms, severity, action, text })
    };
    document.alerts.into_iter().map(read).collect()
}

/// The rules on how fast the budgets of objectives are spent.
#[must_use]
pub fn burns(objectives: &[Objective]) -> Vec<Rule> {
    let of = |objective: &Objective| {
        let rule = |(long, short, factor, severity): (Window, Window, f64, Severity)| {
            // What more than everything would have to miss never fires.
            burn_limit(objective, factor).filter(|limit| *limit < 1.0)?;
            Some(Rule {
                name: format!("{}: budget burns {factor} times over {}", objective.name, long.name()),
                text: format!(
                    "burn of {:?} > {factor} over {} and {}",
                    objective.name,
                    long.name(),
                    short.name()
                ),
                condition: Condition::Burn { objective: objective.clone(), long, short, factor },
                hold_ms: 0,
                severity,
                action: String::new(),
            })
        };
        BURNS.into_iter().filter_map(rule).collect::<Vec<_>>()
    };
    objectives.iter().flat_map(of).collect()
}

/// The share that misses the target when the budget is spent so fast.
#[must_use]
pub fn burn_limit(objective: &Objective, factor: f64) -> Option<f64> {
    // What a person would have written.
    objective.budget().map(|budget| (factor * budget * 1e6).round() / 1e6)
}

fn condition(text: &str) -> Result<(Condition, u64), String> {
    const FORM: &str = "expected `metric > value [over window] [for duration]`";
    let words: Vec<&str> = text.split_whitespace().collect();
    let [written, comparator, value, options @ ..] = words.as_slice() else {
        return Err(format!("{text:?}: {FORM}"));
    };
    let above = match *comparator {
        ">" => true,
        "<" => false,
        other => return Err(format!("comparator {other:?}: expected > or <")),
    };
    let (mut over, mut hold_ms) = (None, 0);
    for option in options.chunks(2) {
        match option {
            ["over", name] => {
                over = Some(Window::named(name).ok_or_else(|| {
                    format!("window {name:?} is none of {}", Window::ALL.map(Window::name).join(", "))
                })?);
            }
            ["for", duration] => {
                let micros = parse_duration(duration).ok_or_else(|| format!("for {duration}: {DURATION}"))?;
                hold_ms = whole(micros / 1e3);
            }
            _ => return Err(format!("{:?}: {FORM}", option.join(" "))),
        }
    }
    let mut metric = Metric::parse(written)?;
    let limit = match (metric.unit(), value.strip_suffix('%')) {
        (Unit::Duration, _) => parse_duration(value),
        (Unit::Share, Some(percent)) => percent.parse().ok().map(|percent: f64| percent / 100.0),
        (Unit::Share, None) => value.parse().ok(),
        (Unit::Number, _) => value.parse().ok(),
    };
    let limit = limit.filter(|limit: &f64| limit.is_finite() && *limit >= 0.0).ok_or_else(|| {
        let wanted = match metric.unit() {
            Unit::Duration => DURATION,
            Unit::Share => "expected a share such as 5% or 0.05",
            Unit::Number => "expected a number",
        };
        format!("value {value:?} of {written}: {wanted}")
    })?;
    match &mut metric {
        Metric::Level(of) => {
            let wants_above = of.comparator() == Comparator::Below;
            if wants_above != above {
                let instead = if wants_above { ">" } else { "<" };
                return Err(format!("{written} is bad when it is {instead} its limit, not {comparator}"));
            }
            of.target = limit;
        }
        Metric::Gauge(_) if over.is_some() => {
            return Err(format!("{written} is known of now only: `over` is not possible, `for` is"));
        }
        _ => {}
    }
    let over = over.unwrap_or(Window::FiveMinutes);
    Ok((Condition::Threshold { metric, above, limit, over }, hold_ms))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and a duration")]
fn whole(number: f64) -> u64 {
    number as u64
}

impl Metric {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "fallback_rate" {
            return Ok(Self::FallbackRate);
        }
        if let Some(gauge) = Gauge::ALL.into_iter().find(|gauge| gauge.name() == text) {
            return Ok(Self::Gauge(gauge));
        }
        let known = || {
            let indicators = Indicator::ALL.map(|of| format!("{}.p95", of.name()));
            let gauges = Gauge::ALL.map(|of| of.name().to_owned());
            [&indicators[..], &["fallback_rate".to_owned()], &gauges[..]].concat().join(", ")
        };
        let unknown = || format!("metric {text:?}: expected one such as {}", known());
        let (series, statistic) = text.rsplit_once('.').ok_or_else(unknown)?;
        let (name, labels) = match series.split_once('{') {
            None => (series, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}').ok_or_else(unknown)?),
        };
        let indicator = Indicator::named(name).ok_or_else(unknown)?;
        let mut of = Objective {
            name: text.to_owned(),
            indicator,
            tenant: String::new(),
            workflow: String::new(),
            role: String::new(),
            provider: String::new(),
            statistic: Statistic::Ratio,
            target: 0.0,
            window: Window::FiveMinutes,
        };
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            let value = value.trim_matches('"').to_owned();
            match key {
                "tenant" => of.tenant = value,
                "workflow" => of.workflow = value,
                "role" => of.role = value,
                "provider" => of.provider = value,
                _ => return Err(format!("label {key:?} is none of tenant, workflow, role, provider")),
            }
        }
        match statistic {
            "count" => return Ok(Self::Count(of)),
            "failed" => return Ok(Self::Failed(of)),
            _ => {}
        }
        of.statistic = Statistic::parse(statistic).ok_or_else(|| {
            format!("{statistic:?} is not p50, p95, p99 or the like, mean, ratio, failed or count")
        })?;
        if of.statistic != Statistic::Ratio && indicator.kind() == Kind::Ratio {
            return Err(format!(
                "{name} has no durations: write {name}.ratio, {name}.failed or {name}.count"
            ));
        }
        Ok(Self::Level(of))
    }

    fn unit(&self) -> Unit {
        match self {
            Self::Level(of) if of.statistic != Statistic::Ratio => Unit::Duration,
            Self::Level(_) | Self::Failed(_) | Self::FallbackRate => Unit::Share,
            Self::Gauge(gauge) if gauge.is_share() => Unit::Share,
            Self::Count(_) | Self::Gauge(_) => Unit::Number,
        }
    }
}

impl Rule {
    /// What comes of it; `None` where too little is known to tell.
    #[must_use]
    pub fn evaluate(&self, measured: &Measured, gauges: &Gauges, now: Timestamp) -> Option<Reading> {
        match &self.condition {
            Condition::Threshold { metric, above, limit, over } => {
                let value = value(metric, measured, gauges, *over, now)?;
                let holds = if *above { value > *limit } else { value < *limit };
                Some(Reading { holds, value: shown(value, metric.unit()) })
            }
            Condition::Burn { objective, long, short, factor } => {
                let limit = burn_limit(objective, *factor)?;
                let over = |window| measured.about(objective, window, now);
                let of_long = over(*long);
                let (share, n) = share_missed(objective, &of_long)?;
                if n < needed(objective) {
                    return None;
                }
                let recent = share_missed(objective, &over(*short)).map_or(0.0, |(share, _)| share);
                let value = shown(share, Unit::Share);
                Some(Reading {
                    holds: share > limit && recent > limit,
                    value: format!("{value} of {n} missed the target"),
                })
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn value(metric: &Metric, measured: &Measured, gauges: &Gauges, over: Window, now: Timestamp) -> Option<f64> {
    let cell = |of: &Objective| measured.about(of, over, now);
    let enough = |cell: Arc<Cell>, least: u64| (cell.count() >= least).then_some(cell);
    match metric {
        Metric::Level(of) => {
            let least = match of.statistic {
                Statistic::Mean => 1,
                _ => needed(of).max(COUNTED_MIN),
            };
            let cell = enough(cell(of), least)?;
            number(of.statistic, &cell)
        }
        Metric::Count(of) => Some(cell(of).count() as f64),
        Metric::Failed(of) => {
            let cell = enough(cell(of), COUNTED_MIN)?;
            Some(cell.bad as f64 / cell.count() as f64)
        }
        Metric::FallbackRate => {
            let of = |indicator| Arc::new(measured.of(|series| series.indicator == indicator, over, now));
            let answers = enough(of(Indicator::AgentResponse), COUNTED_MIN)?;
            Some(of(Indicator::ProviderFallback).count() as f64 / answers.count() as f64)
        }
        Metric::Gauge(gauge) => gauges.get(*gauge),
    }
}

/// As exact as it was measured: three digits after the point, without zeros at their end.
fn shown(value: f64, unit: Unit) -> String {
    let (number, unit) = match unit {
        Unit::Duration if value < 1e6 => (value / 1e3, " ms"),
        Unit::Duration => (value / 1e6, " s"),
        Unit::Share => (100.0 * value, " %"),
        Unit::Number => return format!("{value}"),
    };
    let digits = format!("{number:.3}");
    format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;
    use crate::{Labels, Level, Recorder, built_in as objectives, merge};

    fn rule(when: &str) -> Result<Rule, Error> {
        let text = format!("[[alerts]]\nname = \"x\"\nwhen = {when:?}\nseverity = \"warning\"\n");
        parse(&text).map(|mut rules| rules.remove(0))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(1_700_000_000_000_000 + seconds * 1_000_000)
    }

    fn measured(recorder: &Recorder) -> Measured {
        let of = |level| merge(vec![recorder.read(level, 0)]);
        Measured::new(of(Level::Minute), of(Level::Hour), of(Level::Day))
    }

    fn holds(when: &str, recorder: &Recorder, gauges: &Gauges) -> Option<bool> {
        rule(when).unwrap().evaluate(&measured(recorder), gauges, at(0)).map(|reading| reading.holds)
    }

    #[test]
    fn the_twelve_documented_thresholds_are_there() {
        let rules = parse(BUILT_IN).unwrap();
        assert_eq!((rules.len(), rules.clone()), (15, built_in()));
        let of = |name: &str| rules.iter().find(|rule| rule.name == name).unwrap();
        assert_eq!((of("high latency").hold_ms, of("high latency").severity), (300_000, Severity::Warning));
        assert_eq!(of("error spike").severity, Severity::Critical);
        // Where the documents name no comparator, the right one: too few hits are bad, and too few workers.
        for (name, above, limit) in [
            ("high latency", true, 500e3),
            ("error spike", true, 0.05),
            ("queue depth", true, 1_000.0),
            ("task error rate", true, 0.05),
            ("task duration", true, 300e6),
            ("worker count", false, 2.0),
            ("Redis memory", true, 0.8),
            ("session initialization", true, 5e6),
            ("cache hit rate", false, 0.6),
            ("memory usage", true, 0.85),
            ("recovery activations", true, 5.0),
            ("agent fallback rate", true, 0.3),
        ] {
            let Condition::Threshold { above: is_above, limit: is, .. } = &of(name).condition else {
                panic!("{name}")
            };
            assert_eq!((*is_above, *is), (above, limit), "{name}");
        }
    }

    #[test]
    fn numbers_are_compared_in_the_right_direction_and_only_when_they_say_something() {
        let (recorder, labels, mut gauges) = (Recorder::default(), Labels::default(), Gauges::default());
        assert_eq!(holds("api_latency.p95 > 1s", &recorder, &gauges), None, "nothing is measured");
        for ms in 1..=19 {
            recorder.took(Indicator::ApiLatency, labels, at(0), ms * 1_000);
        }
        assert_eq!(holds("api_latency.p95 > 1ms", &recorder, &gauges), None, "too little");
        recorder.took(Indicator::ApiLatency, labels, at(0), 20_000);
        assert_eq!(holds("api_latency.p95 > 18ms", &recorder, &gauges), Some(true));
        assert_eq!(holds("api_latency.p95 > 20ms", &recorder, &gauges), Some(false));
        assert_eq!(holds("api_latency.mean > 10ms", &recorder, &gauges), Some(true));
        assert_eq!(holds("api_latency.count > 19", &recorder, &gauges), Some(true));
        assert_eq!(holds("api_latency.count > 20", &recorder, &gauges), Some(false));
        recorder.happened(Indicator::ApiLatency, labels, at(0), false);
        assert_eq!(holds("api_latency.failed > 4%", &recorder, &gauges), Some(true));
        assert_eq!(holds("api_latency.failed > 0.05", &recorder, &gauges), Some(false));
        assert_eq!(holds("api_latency.ratio < 95.3%", &recorder, &gauges), Some(true));
        assert_eq!(holds("workers < 2", &recorder, &gauges), None);
        gauges.add(Gauge::Workers, 1.0);
        assert_eq!(holds("workers < 2", &recorder, &gauges), Some(true));
        gauges.add(Gauge::Workers, 1.0);
        assert_eq!(holds("workers < 2", &recorder, &gauges), Some(false));
        gauges.add(Gauge::ProcessMemoryShare, 0.5);
        gauges.add(Gauge::ProcessMemoryShare, 0.4);
        assert_eq!(gauges.get(Gauge::ProcessMemoryShare), Some(0.5), "the fullest node counts");
        let mut again = Gauges::default();
        again.add_encoded(&gauges.encode());
        assert_eq!(again, gauges);
    }

    #[test]
    fn a_part_is_asked_for_by_its_labels() {
        let (recorder, gauges) = (Recorder::default(), Gauges::default());
        for (role, micros) in [("auditor", 90_000), ("executor", 1_000)] {
            for _ in 0..30 {
                let labels = Labels { role, provider: "p", ..Labels::default() };
                recorder.took(Indicator::AgentResponse, labels, at(0), micros);
            }
        }
        let of = |role: &str| format!("agent_response{{role={role},provider=\"p\"}}.p95 > 60ms over 1m");
        assert_eq!(holds(&of("auditor"), &recorder, &gauges), Some(true));
        assert_eq!(holds(&of("executor"), &recorder, &gauges), Some(false));
        assert_eq!(holds("fallback_rate > 30%", &recorder, &gauges), Some(false));
    }

    #[test]
    fn a_budget_burns_when_it_does_so_over_both_windows() {
        let objectives = objectives(3);
        let rules = burns(&objectives);
        let fast = rules.iter().find(|rule| rule.name == "audit: budget burns 14.4 times over 1h").unwrap();
        assert!(!rules.iter().any(|rule| rule.name.starts_with("file generation")), "a mean has no budget");
        let reading = |recorder: &Recorder| fast.evaluate(&measured(recorder), &Gauges::default(), at(0));
        let labels = Labels { role: "auditor", ..Labels::default() };
        let answers = |seconds_ago: u64, late: u64| {
            let recorder = Recorder::default();
            for number in 0..20 {
                let micros = if number < late { 31_000_000 } else { 1_000_000 };
                let time = Timestamp(at(0).0 - seconds_ago * 1_000_000);
                recorder.took(Indicator::AgentResponse, labels, time, micros);
            }
            recorder
        };
        assert_eq!(reading(&Recorder::default()), None);
        assert!(reading(&answers(0, 15)).unwrap().holds, "75 % are late, where 72 % are 14.4 times 5 %");
        assert!(!reading(&answers(0, 14)).unwrap().holds);
        assert!(!reading(&answers(1_800, 15)).unwrap().holds, "it is over");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_instead() {
        let refused = |when: &str| rule(when).unwrap_err().to_string();
        assert!(refused("queue_depth").contains("metric > value"));
        assert!(refused("speed > 5").contains("api_latency.p95"));
        assert!(refused("queue_depth >= 5").contains("expected > or <"));
        assert!(refused("api_latency.p95 > 5").contains("expected a duration"));
        assert!(refused("api_latency.failed > much").contains("5% or 0.05"));
        assert!(refused("api_latency.p95 < 5ms").contains("not <"));
        assert!(refused("api_latency.p95 > 5ms over 2h").contains("24h"));
        assert!(refused("api_latency.p95 > 5ms during 2h").contains("over window"));
        assert!(refused("queue_depth > 5 over 1h").contains("`for` is"));
        assert!(refused("uptime.p95 > 5ms").contains("uptime.ratio"));
        assert!(refused("api_latency{color=red}.p95 > 5ms").contains("tenant, workflow"));
    }
}
