//! What came of what was promised.

use std::{collections::HashMap, sync::Arc};

use ids::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

use crate::{Cell, Comparator, Level, Merged, Objective, Series, Statistic, Window};

/// What was counted, by the length of the slots.
#[derive(Debug, Default)]
pub struct Measured {
    /// By the minute.
    pub minutes: Merged,
    /// By the hour.
    pub hours: Merged,
    /// By the day.
    pub days: Merged,
    /// What objectives were told: those that differ in their number only are about the same.
    told: Mutex<HashMap<(Series, Window, u64), Arc<Cell>>>,
}

impl Measured {
    /// Of what was counted by the minute, the hour and the day.
    #[must_use]
    pub fn new(minutes: Merged, hours: Merged, days: Merged) -> Self {
        Self { minutes, hours, days, told: Mutex::default() }
    }

    /// What was counted of what an objective is about, in a window up to now.
    #[must_use]
    pub fn about(&self, objective: &Objective, window: Window, now: Timestamp) -> Arc<Cell> {
        let (level, count) = window.slots(now);
        let from = level.slot(now).saturating_sub(count);
        let mut told = self.told.lock();
        let sum = || Arc::new(self.level(level).select(|series| objective.is_about(series), from..));
        Arc::clone(told.entry((objective.series(), window, from)).or_insert_with(sum))
    }

    /// What was counted in a window up to now.
    pub fn of(&self, series: impl Fn(&Series) -> bool, window: Window, now: Timestamp) -> Cell {
        let (level, count) = window.slots(now);
        let from = level.slot(now).saturating_sub(count);
        self.level(level).select(series, from..)
    }

    fn level(&self, level: Level) -> &Merged {
        match level {
            Level::Minute => &self.minutes,
            Level::Hour => &self.hours,
            Level::Day => &self.days,
        }
    }
}

/// Whether a promise is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is.
    Met,
    /// It is not.
    Breached,
    /// Too little was measured to tell.
    InsufficientData,
}

/// How fast the budget is spent: 1 spends it exactly in its window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Burn {
    /// In the last 5 minutes.
    #[serde(rename = "5m")]
    pub five_minutes: Option<f64>,
    /// In the last hour.
    #[serde(rename = "1h")]
    pub hour: Option<f64>,
    /// In the last 24 hours.
    #[serde(rename = "24h")]
    pub day: Option<f64>,
}

/// The minute of the last hour in which the number was worst.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorstMinute {
    /// Its begin.
    pub at: String,
    /// The number: milliseconds, or a share.
    pub value: f64,
    /// How many were counted.
    pub n: u64,
}

/// What came of an objective. Durations are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// What it is called.
    pub name: String,
    /// What is measured.
    pub indicator: &'static str,
    /// Which number of it: p95, mean, ratio.
    pub statistic: String,
    /// `<` or `>=`.
    pub comparator: &'static str,
    /// What it is compared with: milliseconds, or a share.
    pub target: f64,
    /// `ms` or `share`.
    pub unit: &'static str,
    /// Over which time.
    pub window: &'static str,
    /// Whether it is met.
    pub state: State,
    /// The number itself.
    pub value: Option<f64>,
    /// How many it is made of.
    pub n: u64,
    /// How many went wrong. They have no duration.
    pub failed: u64,
    /// The durations.
    pub p50: Option<f64>,
    /// The durations.
    pub p95: Option<f64>,
    /// The durations.
    pub p99: Option<f64>,
    /// The durations.
    pub mean: Option<f64>,
    /// The durations.
    pub max: Option<f64>,
    /// The share that keeps to the target.
    pub compliance: Option<f64>,
    /// The share of the error budget that is left; below 0 if it is overspent.
    pub budget_left: Option<f64>,
    /// How fast the budget is spent, in the last hour.
    pub burn_rate: Option<f64>,
    /// The same over other times.
    pub burn: Burn,
    /// The worst minute of the last hour.
    pub worst_minute: Option<WorstMinute>,
    /// When the budget is spent if the last hour goes on, in seconds.
    pub exhausted_in_seconds: Option<f64>,
}

/// How many of so many missed the target.
#[derive(Clone, Copy)]
struct Missed {
    missed: u64,
    of: u64,
}

impl Missed {
    #[allow(clippy::cast_precision_loss, reason = "a share of counts")]
    fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.missed as f64 / self.of as f64)
    }
}

/// What came of an objective, over its window or another one.
#[must_use]
pub fn evaluate(
    objective: &Objective,
    window: Option<Window>,
    measured: &Measured,
    now: Timestamp,
) -> Outcome {
    let window = window.unwrap_or(objective.window);
    let cell = measured.about(objective, window, now);
    let missed = missed(objective, &cell);
    let value = number(objective.statistic, &cell);
    let is_share = objective.statistic == Statistic::Ratio;
    let state = match value {
        Some(value) if missed.of >= needed(objective) => match objective.comparator() {
            Comparator::Below if value < objective.target => State::Met,
            Comparator::AtLeast if value >= objective.target => State::Met,
            _ => State::Breached,
        },
        _ => State::InsufficientData,
    };
    let compliance = missed.share().map(|share| 1.0 - share);
    let budget_left = objective.budget().zip(missed.share()).map(|(budget, share)| left(budget, share));
    let burn = |window| {
        let share = self::missed(objective, &measured.about(objective, window, now)).share()?;
        objective.budget().filter(|budget| *budget > 0.0).map(|budget| share / budget)
    };
    let burn =
        Burn { five_minutes: burn(Window::FiveMinutes), hour: burn(Window::Hour), day: burn(Window::Day) };
    #[allow(clippy::cast_precision_loss, reason = "a time of days")]
    let exhausted_in_seconds = budget_left
        .zip(burn.hour.filter(|burn| *burn > 0.0))
        .map(|(left, burn)| left.max(0.0) * window.seconds(now) as f64 / burn);
    let ms = |micros: u64| shown(false, precise(micros));
    Outcome {
        name: objective.name.clone(),
        indicator: objective.indicator.name(),
        statistic: objective.statistic.to_string(),
        comparator: if objective.comparator() == Comparator::Below { "<" } else { ">=" },
        target: shown(is_share, objective.target),
        unit: if is_share { "share" } else { "ms" },
        window: window.name(),
        state,
        value: value.map(|value| shown(is_share, value)),
        n: missed.of,
        failed: cell.bad,
        p50: cell.percentile(50.0).map(ms),
        p95: cell.percentile(95.0).map(ms),
        p99: cell.percentile(99.0).map(ms),
        mean: cell.mean().filter(|_| !is_share || cell.max().is_some()).map(|mean| shown(false, mean)),
        max: cell.max().map(ms),
        compliance,
        budget_left,
        burn_rate: burn.hour,
        burn,
        worst_minute: worst_minute(objective, measured, now),
        exhausted_in_seconds,
    }
}

/// One slot of an objective's window.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// Its begin.
    pub at: String,
    /// How many were counted.
    pub n: u64,
    /// How many of them missed the target.
    pub missed: u64,
    /// The number itself: milliseconds, or a share.
    pub value: Option<f64>,
    /// The share of the whole window's error budget that was left after it.
    pub budget_left: Option<f64>,
}

/// What became of an objective slot by slot, the oldest first, and the length of the slots in seconds.
#[must_use]
pub fn history(
    objective: &Objective,
    window: Window,
    measured: &Measured,
    now: Timestamp,
) -> (u32, Vec<Point>) {
    let (level, count) = window.slots(now);
    let merged = measured.level(level);
    let slots = level.slot(now).saturating_sub(count)..=level.slot(now);
    let cells: Vec<(u64, Cell)> =
        slots.map(|slot| (slot, merged.select(|series| objective.is_about(series), slot..=slot))).collect();
    let all: u64 = cells.iter().map(|(_, cell)| missed(objective, cell).of).sum();
    let mut spent = 0;
    let points = cells.into_iter().map(|(slot, cell)| {
        let Missed { missed, of } = missed(objective, &cell);
        spent += missed;
        let budget = objective.budget().filter(|_| all > 0);
        Point {
            at: Timestamp(slot * u64::from(level.seconds()) * 1_000_000).to_string(),
            n: of,
            missed,
            value: number(objective.statistic, &cell)
                .map(|value| shown(objective.statistic == Statistic::Ratio, value)),
            budget_left: budget.map(|budget| left(budget, precise(spent) / precise(all))),
        }
    });
    (level.seconds(), points.collect())
}

fn left(budget: f64, share: f64) -> f64 {
    if budget > 0.0 {
        1.0 - share / budget
    } else if share > 0.0 {
        0.0
    } else {
        1.0
    }
}

#[allow(clippy::cast_precision_loss, reason = "durations and counts below 2^53")]
fn precise(number: u64) -> f64 {
    number as f64
}

/// Durations in milliseconds, shares as they are.
fn shown(is_share: bool, number: f64) -> f64 {
    if is_share { number } else { number / 1_000.0 }
}

pub(crate) fn number(statistic: Statistic, cell: &Cell) -> Option<f64> {
    match statistic {
        Statistic::Percentile(percentile) => cell.percentile(percentile).map(precise),
        Statistic::Mean => cell.mean(),
        Statistic::Ratio => (cell.count() > 0).then(|| precise(cell.good) / precise(cell.count())),
    }
}

/// The share that missed the target, and of how many.
pub(crate) fn share_missed(objective: &Objective, cell: &Cell) -> Option<(f64, u64)> {
    let missed = missed(objective, cell);
    Some((missed.share()?, missed.of))
}

fn missed(objective: &Objective, cell: &Cell) -> Missed {
    match objective.statistic {
        Statistic::Ratio => Missed { missed: cell.bad, of: cell.count() },
        Statistic::Percentile(_) | Statistic::Mean => {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "positive, and a duration"
            )]
            let within = cell.within(objective.target as u64);
            Missed { missed: cell.good.saturating_sub(within), of: cell.good }
        }
    }
}

/// How many must be counted before a number says something: one more or less could not change the outcome.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub(crate) fn needed(objective: &Objective) -> u64 {
    match objective.budget() {
        Some(budget) if budget > 0.0 => ((1.0 / budget).round() as u64).min(1_000),
        _ => 1,
    }
}

fn worst_minute(objective: &Objective, measured: &Measured, now: Timestamp) -> Option<WorstMinute> {
    let (last, count) = (Level::Minute.slot(now), Window::Hour.slots(now).1);
    let is_share = objective.statistic == Statistic::Ratio;
    let mut worst: Option<(u64, f64, u64)> = None;
    for minute in last.saturating_sub(count)..=last {
        let cell = measured.minutes.select(|series| objective.is_about(series), minute..=minute);
        let Some(value) = number(objective.statistic, &cell) else { continue };
        let is_worse =
            worst.is_none_or(|(_, before, _)| if is_share { value < before } else { value > before });
        if is_worse {
            worst = Some((minute, value, missed(objective, &cell).of));
        }
    }
    worst.map(|(minute, value, n)| WorstMinute {
        at: Timestamp(minute * 60_000_000).to_string(),
        value: shown(is_share, value),
        n,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;
    use crate::{Indicator, Labels, Recorder, built_in, merge};

    fn outcome(recorder: &Recorder, name: &str, now: Timestamp) -> Outcome {
        let read = |level| merge(vec![recorder.read(level, 0)]);
        let measured = Measured::new(read(Level::Minute), read(Level::Hour), read(Level::Day));
        let all = built_in(3);
        let objective = all.iter().find(|objective| objective.name == name).unwrap();
        evaluate(objective, None, &measured, now)
    }

    #[test]
    fn a_breach_is_told_from_too_little_data_and_from_a_promise_that_is_kept() {
        let (recorder, now) = (Recorder::default(), Timestamp(1_000_000_000_000));
        let name = "agent response, P95";
        assert_eq!(outcome(&recorder, name, now).state, State::InsufficientData);
        let labels = Labels { role: "executor", ..Labels::default() };
        for _ in 0..19 {
            recorder.took(Indicator::AgentResponse, labels, now, 1_000_000);
        }
        assert_eq!(outcome(&recorder, name, now).state, State::InsufficientData, "19 say nothing of 1 in 20");
        for _ in 0..81 {
            recorder.took(Indicator::AgentResponse, labels, now, 1_000_000);
        }
        let kept = outcome(&recorder, name, now);
        assert_eq!(
            (kept.state, kept.n, kept.compliance, kept.budget_left),
            (State::Met, 100, Some(1.0), Some(1.0))
        );
        for _ in 0..25 {
            recorder.took(Indicator::AgentResponse, labels, now, 70_000_000);
        }
        let broken = outcome(&recorder, name, now);
        assert_eq!((broken.state, broken.n, broken.compliance), (State::Breached, 125, Some(0.8)));
        // 20 % missed, where 5 % may: four times the budget.
        assert!(
            (broken.burn.hour.unwrap() - 4.0).abs() < 1e-9
                && (broken.budget_left.unwrap() + 3.0).abs() < 1e-9
        );
        assert_eq!(broken.exhausted_in_seconds, Some(0.0));
        assert!((broken.value.unwrap() - 70_000.0).abs() <= 70.0, "{broken:?}");
        assert!((broken.worst_minute.unwrap().value - 70_000.0).abs() <= 70.0);
        // The mean is exact.
        assert_eq!(outcome(&recorder, "file generation", now).value, Some(14_800.0));
    }

    #[test]
    fn a_share_is_compared_with_its_target() {
        let (recorder, now) = (Recorder::default(), Timestamp(1_000_000_000_000));
        for number in 0..1_000 {
            recorder.happened(Indicator::Uptime, Labels::default(), now, number % 100 != 0);
        }
        let uptime = outcome(&recorder, "uptime", now);
        assert_eq!(
            (uptime.state, uptime.value, uptime.n, uptime.failed),
            (State::Breached, Some(0.99), 1_000, 10)
        );
        assert!((uptime.budget_left.unwrap() + 1.0).abs() < 1e-9, "{uptime:?}");
        recorder.happened(Indicator::DataPersistence, Labels::default(), now, true);
        let persisted = outcome(&recorder, "data persistence", now);
        assert_eq!((persisted.state, persisted.budget_left), (State::Met, Some(1.0)));
    }

    #[test]
    fn the_budget_burns_down_slot_by_slot() {
        let recorder = Recorder::default();
        let labels = Labels { role: "auditor", ..Labels::default() };
        let at = |seconds: u64| Timestamp(1_700_000_040_000_000 + seconds * 1_000_000);
        let now = at(10 * 60);
        for (minute, late) in [(7, 1), (8, 0), (10, 2)] {
            for number in 0..20 {
                let micros = if number < late { 31_000_000 } else { 1_000_000 };
                recorder.took(Indicator::AgentResponse, labels, at(minute * 60), micros);
            }
        }
        let objective = built_in(3).into_iter().find(|of| of.name == "audit").unwrap();
        let measured =
            Measured::new(merge(vec![recorder.read(Level::Minute, 0)]), Merged::default(), Merged::default());
        let (seconds, points) = history(&objective, Window::FiveMinutes, &measured, now);
        assert_eq!((seconds, points.len()), (60, 6));
        let counted: Vec<(u64, u64)> = points.iter().map(|point| (point.n, point.missed)).collect();
        assert_eq!(counted, [(0, 0), (0, 0), (20, 1), (20, 0), (0, 0), (20, 2)]);
        // 5 % of 60 may miss: three, which did.
        for (point, left) in points.iter().zip([300.0, 300.0, 200.0, 200.0, 200.0, 0.0]) {
            assert!((point.budget_left.unwrap() * 300.0 - left).abs() < 1e-6, "{point:?}");
        }
        assert!((points[2].value.unwrap() - 1_000.0).abs() < 1.0, "19 of 20 took a second");
    }
}
