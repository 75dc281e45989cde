//! Service levels as Prometheus sees them: counters with every target as a bucket's edge, and rules that alert on the
//! speed at which error budgets are spent.
//!
//! Every node counts all sessions of its cluster, so what is about sessions is not added up over nodes: the node that
//! has counted most is taken. Rules: Google, The Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate
//! Alerts".

use std::{collections::BTreeSet, fmt::Write as _};

use crate::{
    Indicator, Kind, Objective, Scope, Statistic,
    alert::{self, BURNS, Condition, Gauge, Metric, Rule},
    report::needed,
};

/// Edges of buckets besides the targets, in seconds.
const EDGES: [f64; 15] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// The edges of buckets, in microseconds: every target of an objective is one, and every limit of a rule.
#[must_use]
pub fn edges(objectives: &[Objective], alerts: &[Rule]) -> Vec<u64> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and a duration")]
    let whole = |micros: f64| micros as u64;
    let limits = alerts.iter().filter_map(|rule| match &rule.condition {
        Condition::Threshold { metric: Metric::Level(of), .. } => Some(of),
        _ => None,
    });
    let targets = objectives.iter().chain(limits).filter(|of| of.statistic != Statistic::Ratio);
    let edges: BTreeSet<u64> = EDGES
        .iter()
        .map(|seconds| whole(seconds * 1e6))
        .chain(targets.map(|objective| whole(objective.target)))
        .collect();
    edges.into_iter().collect()
}

/// What was counted of a series since the process began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub(crate) good: u64,
    pub(crate) bad: u64,
    sum: u64,
    /// How many were in each bucket, and beyond the last edge.
    buckets: Vec<u64>,
}

impl Totals {
    pub(crate) fn took(&mut self, micros: u64, edges: &[u64]) {
        self.good += 1;
        self.sum = self.sum.saturating_add(micros);
        self.buckets.resize(edges.len() + 1, 0);
        self.buckets[edges.partition_point(|edge| *edge < micros)] += 1;
    }

    /// Adds what another has counted, in buckets of the same edges.
    pub(crate) fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.bad += other.bad;
        self.sum = self.sum.saturating_add(other.sum);
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours += theirs;
        }
    }

    pub(crate) fn happened(&mut self, well: bool) {
        if well {
            self.good += 1;
        } else {
            self.bad += 1;
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "durations below 2^53 microseconds")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A text between quotes, in exposition and rules alike.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// The label of a region with a comma after it; nothing where the region is not told.
pub(crate) fn region_label(region: &str) -> String {
    if region.is_empty() { String::new() } else { format!("region={},", quoted(region)) }
}

/// What was counted, as `OpenMetrics` text without its end.
pub(crate) fn exposition<'a>(
    all: impl Iterator<Item = (&'a crate::Series, &'a Totals)>,
    edges: &[u64],
    region: &str,
) -> String {
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(series, _)| *series);
    let mut text = String::new();
    let mut last = None;
    for (series, totals) in all {
        let (indicator, name) = (series.indicator, series.indicator.name());
        let is_first = last.replace(indicator) != Some(indicator);
        let about = match indicator.scope() {
            Scope::Replicas => "every node counts all sessions: take the largest over nodes, not the sum",
            Scope::Node => "what this node has seen",
        };
        let mut labels = String::new();
        for (label, value) in [
            ("region", region),
            ("tenant", &series.tenant),
            ("workflow", &series.workflow),
            ("role", &series.role),
            ("provider", &series.provider),
            ("node", &series.node),
        ] {
            if !value.is_empty() {
                let _ = write!(labels, "{label}={},", quoted(value));
            }
        }
        if indicator.kind() == Kind::Ratio {
            if is_first {
                let _ = writeln!(text, "# HELP orchestra_{name} Right and wrong; {about}.");
                let _ = writeln!(text, "# TYPE orchestra_{name} counter");
            }
            let _ = writeln!(text, "orchestra_{name}_total{{{labels}outcome=\"good\"}} {}", totals.good);
            let _ = writeln!(text, "orchestra_{name}_total{{{labels}outcome=\"bad\"}} {}", totals.bad);
            continue;
        }
        if is_first {
            let _ = writeln!(text, "# HELP orchestra_{name}_seconds Durations; {about}.");
            let _ = writeln!(text, "# TYPE orchestra_{name}_seconds histogram");
        }
        histogram(&mut text, &format!("orchestra_{name}_seconds"), &labels, totals, edges);
    }
    text
}

/// The samples of a histogram of seconds. `labels` ends with a comma, if there are any.
pub(crate) fn histogram(text: &mut String, name: &str, labels: &str, totals: &Totals, edges: &[u64]) {
    let mut below = 0;
    for (place, edge) in edges.iter().enumerate() {
        below += totals.buckets.get(place).copied().unwrap_or(0);
        let le = seconds(*edge);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name}_bucket{{{labels}le=\"{le:?}\"}} {below}");
    }
    let good = totals.good;
    let bare = labels.trim_end_matches(',');
    let bare = if bare.is_empty() { String::new() } else { format!("{{{bare}}}") };
    let _ = writeln!(text, "{name}_bucket{{{labels}le=\"+Inf\"}} {good}");
    let _ = writeln!(text, "{name}_count{bare} {good}");
    let _ = writeln!(text, "{name}_sum{bare} {:?}", seconds(totals.sum));
}

/// The counters of what went wrong, which are another family than the durations.
pub(crate) fn failures<'a>(
    all: impl Iterator<Item = (&'a crate::Series, &'a Totals)>,
    region: &str,
) -> String {
    let of_durations = |(series, _): &(&crate::Series, &Totals)| series.indicator.kind() == Kind::Durations;
    let mut all: Vec<_> = all.filter(of_durations).collect();
    all.sort_by_key(|(series, _)| *series);
    let mut text = String::from(
        "# HELP orchestra_failures What has no duration, because it failed.\n# TYPE orchestra_failures counter\n",
    );
    for (series, totals) in all {
        let _ = writeln!(
            text,
            "orchestra_failures_total{{{}indicator={},tenant={},workflow={},role={},provider={}}} {}",
            region_label(region),
            quoted(series.indicator.name()),
            quoted(&series.tenant),
            quoted(&series.workflow),
            quoted(&series.role),
            quoted(&series.provider),
            totals.bad
        );
    }
    text
}

/// The rules of objectives and of thresholds, as a Prometheus rule file: the share that misses each target by window,
/// alerts on how fast the budget is spent, and one alert a threshold. Objectives without a budget (means) have none.
#[must_use]
pub fn rules(objectives: &[Objective], alerts: &[Rule]) -> String {
    let mut text = String::from("groups:\n");
    thresholds(&mut text, alerts);
    for objective in objectives {
        if objective.budget().is_none() {
            continue;
        }
        let _ = write!(text, "  - name: {}\n    rules:\n", quoted(&format!("orchestra: {}", objective.name)));
        let windows: BTreeSet<&str> =
            BURNS.iter().flat_map(|(long, short, ..)| [long.name(), short.name()]).collect();
        let label = format!("        labels: {{objective: {}}}\n", quoted(&objective.name));
        for window in windows {
            let _ = write!(
                text,
                "      - record: orchestra:missed:share_{window}\n        expr: {}\n{label}",
                quoted(&missed(objective, window)),
            );
        }
        for (long, short, factor, severity) in BURNS {
            let (long, short, severity) = (long.name(), short.name(), severity.name());
            let Some(threshold) = alert::burn_limit(objective, factor) else { continue };
            if threshold >= 1.0 {
                continue;
            }
            let share = |window: &str| {
                format!(
                    "orchestra:missed:share_{window}{{objective={}}} > {threshold}",
                    quoted(&objective.name)
                )
            };
            // One event more or less says nothing.
            let enough = format!("{} >= {}", count(objective, long), needed(objective));
            let expr = format!("({} and {}) and on() ({enough})", share(long), share(short));
            let summary = format!(
                "{}: the error budget is spent {factor} times as fast as it may be, over {long} and {short}",
                objective.name
            );
            let _ = write!(
                text,
                "      - alert: OrchestraBudgetBurns\n        expr: {}\n        labels: {{objective: {}, severity: \
                 {severity}, window: {long}}}\n        annotations: {{summary: {}}}\n",
                quoted(&expr),
                quoted(&objective.name),
                quoted(&summary),
            );
        }
    }
    text
}

/// One alert a threshold; those of gauges, and of what is measured.
fn thresholds(text: &mut String, alerts: &[Rule]) {
    let mut begun = false;
    for rule in alerts {
        let Condition::Threshold { metric, above, limit, over } = &rule.condition else { continue };
        if !begun {
            text.push_str("  - name: \"orchestra: thresholds\"\n    rules:\n");
            begun = true;
        }
        let window = over.name();
        let comparator = if *above { '>' } else { '<' };
        let expr = match metric {
            Metric::Level(of) if of.statistic == Statistic::Mean => {
                let sum = counted(of, "_seconds_sum", "", window, "rate");
                let count = counted(of, "_seconds_count", "", window, "rate");
                format!("{sum} / {count} > {}", limit / 1e6)
            }
            // So a percentile is compared without an estimate: its limit is the edge of a bucket.
            Metric::Level(of) => {
                let allowed = of.budget().map_or(0.0, |budget| (budget * 1e6).round() / 1e6);
                let least = needed(of).max(alert::COUNTED_MIN);
                format!("({} > {allowed}) and on() ({} >= {least})", missed(of, window), count(of, window))
            }
            Metric::Failed(of) => {
                let all = format!("{} >= {}", all(of, window), alert::COUNTED_MIN);
                format!("({} {comparator} {limit}) and on() ({all})", missed(of, window))
            }
            Metric::Count(of) => format!("{} {comparator} {limit}", all(of, window)),
            Metric::FallbackRate => {
                let of = |indicator: Indicator, function| {
                    let name = indicator.name();
                    over_nodes(indicator, &format!("{function}(orchestra_{name}_seconds_count[{window}])"))
                };
                let answers = of(Indicator::AgentResponse, "increase");
                format!(
                    "({} / {} {comparator} {limit}) and on() ({answers} >= {})",
                    of(Indicator::ProviderFallback, "rate"),
                    of(Indicator::AgentResponse, "rate"),
                    alert::COUNTED_MIN
                )
            }
            Metric::Gauge(gauge) => format!("{} {comparator} {limit}", gauge_over_nodes(*gauge)),
        };
        let hold = if rule.hold_ms > 0 {
            format!("        for: {}s\n", rule.hold_ms / 1_000)
        } else {
            String::new()
        };
        let action = if rule.action.is_empty() {
            String::new()
        } else {
            format!(", action: {}", quoted(&rule.action))
        };
        let _ = write!(
            text,
            "      - alert: OrchestraThreshold\n        expr: {}\n{hold}        labels: {{rule: {}, severity: \
             {}{action}}}\n        annotations: {{summary: {}}}\n",
            quoted(&expr),
            quoted(&rule.name),
            rule.severity.name(),
            quoted(&format!("{}: {}", rule.name, rule.text)),
        );
    }
}

fn gauge_over_nodes(gauge: Gauge) -> String {
    let over = if gauge.is_sum() { "sum" } else { "max" };
    format!("{over}(orchestra_{})", gauge.name())
}

/// How many were counted in a window, those that failed included.
fn all(objective: &Objective, window: &str) -> String {
    if objective.indicator.kind() == Kind::Ratio {
        return counted(objective, "_total", "", window, "increase");
    }
    let of = format!("indicator={}", quoted(objective.indicator.name()));
    let bad = over_nodes(
        objective.indicator,
        &format!("increase(orchestra_failures_total{}[{window}])", selector(objective, &of)),
    );
    let good = counted(objective, "_seconds_count", "", window, "increase");
    format!("(({good} or vector(0)) + ({bad} or vector(0)))")
}

fn selector(objective: &Objective, more: &str) -> String {
    let labels = [
        ("tenant", &objective.tenant),
        ("workflow", &objective.workflow),
        ("role", &objective.role),
        ("provider", &objective.provider),
    ];
    let given = labels.into_iter().filter(|(_, value)| !value.is_empty());
    let given = given.map(|(label, value)| format!("{label}={}", quoted(value)));
    let all: Vec<String> = given.chain((!more.is_empty()).then(|| more.to_owned())).collect();
    format!("{{{}}}", all.join(","))
}

/// Over nodes: the largest of what all of a region have counted, the sum of what each has seen. Regions add up.
fn over_nodes(indicator: Indicator, per_series: &str) -> String {
    match indicator.scope() {
        Scope::Replicas => format!("sum(max by (region) (sum by (region, instance) ({per_series})))"),
        Scope::Node => format!("sum({per_series})"),
    }
}

fn counted(objective: &Objective, what: &str, more: &str, window: &str, function: &str) -> String {
    let name = objective.indicator.name();
    over_nodes(
        objective.indicator,
        &format!("{function}(orchestra_{name}{what}{}[{window}])", selector(objective, more)),
    )
}

/// How many an objective is about in a window: what failed has no duration, but is a part of a share.
fn count(objective: &Objective, window: &str) -> String {
    match objective.statistic {
        Statistic::Ratio => all(objective, window),
        _ => counted(objective, "_seconds_count", "", window, "increase"),
    }
}

/// The share that missed the target in a window.
fn missed(objective: &Objective, window: &str) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and a duration")]
    let le = format!("le=\"{:?}\"", seconds(objective.target as u64));
    match (objective.statistic, objective.indicator.kind()) {
        (Statistic::Ratio, Kind::Ratio) => format!(
            "{} / {}",
            counted(objective, "_total", "outcome=\"bad\"", window, "rate"),
            counted(objective, "_total", "", window, "rate")
        ),
        (Statistic::Ratio, Kind::Durations) => {
            let of = format!("indicator={}", quoted(objective.indicator.name()));
            let bad = over_nodes(
                objective.indicator,
                &format!("rate(orchestra_failures_total{}[{window}])", selector(objective, &of)),
            );
            let good = counted(objective, "_seconds_count", "", window, "rate");
            format!("{bad} / ({bad} + {good})")
        }
        _ => format!(
            "1 - {} / {}",
            counted(objective, "_seconds_bucket", &le, window, "rate"),
            counted(objective, "_seconds_count", "", window, "rate")
        ),
    }
}

#[cfg(test)]
mod tests {
    use ids::Timestamp;

    use super::*;
    use crate::{Labels, Recorder, built_in};

    #[test]
    fn every_target_is_the_edge_of_a_bucket() {
        let objectives = built_in(3);
        let recorder = Recorder::with_edges(edges(&objectives, &alert::built_in()));
        let labels = Labels { role: "auditor", provider: "a \"b\"", ..Labels::default() };
        let at = Timestamp(0);
        for micros in [29_999_999, 30_000_000, 30_000_001] {
            recorder.took(Indicator::AgentResponse, labels, at, micros);
        }
        recorder.happened(Indicator::AgentResponse, labels, at, false);
        recorder.happened(Indicator::Uptime, Labels { node: "7", ..Labels::default() }, at, true);
        let text = recorder.exposition();
        let recorder = recorder.in_region("7");
        for of in recorder.exposition().lines().filter(|line| !line.starts_with('#')) {
            assert!(of.contains("{region=\"7\""), "{of}");
        }
        let has = |line: &str| assert!(text.lines().any(|of| of == line), "{line} is not in\n{text}");
        has(r#"orchestra_agent_response_seconds_bucket{role="auditor",provider="a \"b\"",le="30.0"} 2"#);
        has(r#"orchestra_agent_response_seconds_bucket{role="auditor",provider="a \"b\"",le="60.0"} 3"#);
        has(r#"orchestra_agent_response_seconds_count{role="auditor",provider="a \"b\""} 3"#);
        has(
            r#"orchestra_failures_total{indicator="agent_response",tenant="",workflow="",role="auditor",provider="a \"b\""} 1"#,
        );
        has(r#"orchestra_uptime_total{node="7",outcome="good"} 1"#);
        for objective in objectives.iter().filter(|objective| objective.statistic != Statistic::Ratio) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test")]
            let le = format!("le=\"{:?}\"", seconds(objective.target as u64));
            assert!(text.contains(&le), "{le}");
        }
    }
}
