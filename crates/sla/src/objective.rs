//! What is promised, as data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Indicator, Kind, Labels, Series, Window, indicator::Key};

/// The documented service levels.
const BUILT_IN: &str = include_str!("objectives.toml");

/// A promise: a statistic of an indicator, compared with a target, over a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// What it is called.
    pub name: String,
    /// What is measured.
    pub indicator: Indicator,
    /// Of whose sessions; of all if empty. So with the others.
    pub tenant: String,
    /// Of which workflow.
    pub workflow: String,
    /// Of which role.
    pub role: String,
    /// Of which provider.
    pub provider: String,
    /// Which number of it.
    pub statistic: Statistic,
    /// What it is compared with: microseconds, or a share of one.
    pub target: f64,
    /// Over which time.
    pub window: Window,
}

/// Which number of an indicator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// The duration that so many of a hundred do not exceed.
    Percentile(f64),
    /// The mean duration.
    Mean,
    /// The share of those that went right.
    Ratio,
}

/// How a number must stand to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparator {
    /// Durations.
    Below,
    /// Shares.
    AtLeast,
}

/// Why something is not an objective.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not TOML, or not in this form.
    #[error("{0}")]
    Form(String),
    /// A rule that can not be.
    #[error("alert {name:?}: {problem}")]
    Alert {
        /// Its name.
        name: String,
        /// What is wrong, and what instead.
        problem: String,
    },
    /// An objective that can not be.
    #[error("objective {name:?}: {problem}")]
    Objective {
        /// Its name.
        name: String,
        /// What is wrong, and what instead.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    objectives: Vec<Written>,
}

/// An objective as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    indicator: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    workflow: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    provider: String,
    statistic: String,
    target: toml::Value,
    #[serde(default = "month")]
    window: String,
}

fn month() -> String {
    Window::Month.name().to_owned()
}

/// The documented service levels, of a support tier: 1 promises no uptime, 2 promises 99 %, 3 promises 99.5 %, 4
/// promises 99.9 %.
#[must_use]
pub fn built_in(tier: u8) -> Vec<Objective> {
    // A test reads them.
    let mut all = parse(BUILT_IN).unwrap_or_default();
    let uptime = match tier {
        0 | 1 => None,
        2 => Some(0.99),
        3 => Some(0.995),
        _ => Some(0.999),
    };
    all.retain_mut(|objective| match uptime {
        _ if objective.indicator != Indicator::Uptime => true,
        Some(target) => {
            objective.target = target;
            true
        }
        None => false,
    });
    all
}

/// Reads objectives: `[[objectives]]` with `name`, `indicator`, `statistic` (p50, p95, p99, ..., mean, ratio),
/// `target` (a duration as `200ms`, `30s`, `5m`, `1h`; for ratios a share, 0 to 1), and, if they are not of all,
/// `tenant`, `workflow`, `role`, `provider`; `window` is 1m, 5m, 30m, 1h, 6h, 24h, 3d, 30d or month (of the calendar,
/// in UTC), and 30d if it is not given.
///
/// # Errors
///
/// What is wrong, and what instead.
pub fn parse(text: &str) -> Result<Vec<Objective>, Error> {
    let document: Document = toml::from_str(text).map_err(|error| Error::Form(error.to_string()))?;
    document.objectives.into_iter().map(Written::check).collect()
}

impl Written {
    fn check(self) -> Result<Objective, Error> {
        let fail = |problem: String| Error::Objective { name: self.name.clone(), problem };
        let names = || Indicator::ALL.map(Indicator::name).join(", ");
        let indicator = Indicator::named(&self.indicator)
            .ok_or_else(|| fail(format!("indicator {:?} is none of {}", self.indicator, names())))?;
        let statistic = Statistic::parse(&self.statistic).ok_or_else(|| {
            fail(format!("statistic {:?} is not p50, p95, p99 or the like, mean, or ratio", self.statistic))
        })?;
        if statistic != Statistic::Ratio && indicator.kind() == Kind::Ratio {
            return Err(fail(format!("{} has no durations: its statistic is ratio", self.indicator)));
        }
        let target = match (statistic, &self.target) {
            (Statistic::Ratio, toml::Value::Float(share)) if (0.0..=1.0).contains(share) => *share,
            (Statistic::Ratio, toml::Value::Integer(1)) => 1.0,
            (Statistic::Ratio, other) => {
                return Err(fail(format!("target {other}: expected a share, 0 to 1")));
            }
            (_, toml::Value::String(text)) => {
                parse_duration(text).ok_or_else(|| fail(format!("target {text:?}: {DURATION}")))?
            }
            (_, other) => return Err(fail(format!("target {other}: {DURATION}"))),
        };
        let window = Window::named(&self.window).ok_or_else(|| {
            fail(format!("window {:?} is none of {}", self.window, Window::ALL.map(Window::name).join(", ")))
        })?;
        let Self { name, tenant, workflow, role, provider, .. } = self;
        Ok(Objective { name, indicator, tenant, workflow, role, provider, statistic, target, window })
    }
}

pub(crate) const DURATION: &str = "expected a duration such as \"200ms\", \"30s\", \"5m\" or \"1h\"";

/// Microseconds.
pub(crate) fn parse_duration(text: &str) -> Option<f64> {
    let units = [("ms", 1e3), ("s", 1e6), ("m", 6e7), ("h", 3.6e9)];
    let (number, unit) =
        units.into_iter().find_map(|(name, micros)| Some((text.strip_suffix(name)?, micros)))?;
    let number: f64 = number.trim().parse().ok()?;
    (number > 0.0 && number.is_finite()).then_some(number * unit)
}

impl Statistic {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "mean" => Some(Self::Mean),
            "ratio" => Some(Self::Ratio),
            _ => {
                let percentile: f64 = text.strip_prefix('p')?.parse().ok()?;
                (percentile > 0.0 && percentile < 100.0).then_some(Self::Percentile(percentile))
            }
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percentile(percentile) => write!(f, "p{percentile}"),
            Self::Mean => f.write_str("mean"),
            Self::Ratio => f.write_str("ratio"),
        }
    }
}

impl Objective {
    /// How its number must stand to its target.
    #[must_use]
    pub fn comparator(&self) -> Comparator {
        if self.statistic == Statistic::Ratio { Comparator::AtLeast } else { Comparator::Below }
    }

    /// What it is about, as a series: empty where it is about all.
    pub(crate) fn series(&self) -> Series {
        let Self { indicator, tenant, workflow, role, provider, .. } = self;
        Series::of(Key(*indicator, Labels { tenant, workflow, role, provider, node: "" }))
    }

    /// Whether it is about a series.
    #[must_use]
    pub fn is_about(&self, series: &Series) -> bool {
        let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        self.indicator == series.indicator
            && fits(&self.tenant, &series.tenant)
            && fits(&self.workflow, &series.workflow)
            && fits(&self.role, &series.role)
            && fits(&self.provider, &series.provider)
    }

    /// The share that may miss the target; `None` where that is not said.
    #[must_use]
    pub fn budget(&self) -> Option<f64> {
        match self.statistic {
            Statistic::Percentile(percentile) => Some(1.0 - percentile / 100.0),
            Statistic::Ratio => Some(1.0 - self.target),
            Statistic::Mean => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;

    #[test]
    fn the_documented_levels_are_there_with_their_targets() {
        let all = parse(BUILT_IN).unwrap();
        assert_eq!(all.len(), 14);
        assert_eq!(all, built_in(3));
        assert_eq!((built_in(1).len(), built_in(4).len()), (13, 14));
        let of = |name: &str| all.iter().find(|objective| objective.name == name).unwrap();
        assert_eq!(of("agent response, P95").target, 60e6);
        assert_eq!(of("agent response, P95").statistic, Statistic::Percentile(95.0));
        assert_eq!(of("uptime").target, 0.995);
        assert_eq!(of("recovery, full cycle").target, 300e6);
        assert_eq!(of("global latency").target, 200e3);
    }

    #[test]
    fn what_can_not_be_is_refused_with_what_instead() {
        let refused =
            |fields: &str| parse(&format!("[[objectives]]\nname = \"x\"\n{fields}")).unwrap_err().to_string();
        let duration = "indicator = \"agent_response\"\nstatistic = \"p95\"\n";
        assert!(
            refused("indicator = \"speed\"\nstatistic = \"p95\"\ntarget = \"1s\"").contains("session_init")
        );
        assert!(refused(&format!("{duration}target = 5")).contains("expected a duration"));
        assert!(refused(&format!("{duration}target = \"5 parsecs\"")).contains("expected a duration"));
        assert!(refused(&format!("{duration}target = \"1s\"\nwindow = \"2h\"")).contains("24h"));
        assert!(refused("indicator = \"uptime\"\nstatistic = \"p95\"\ntarget = \"1s\"").contains("ratio"));
        assert!(refused("indicator = \"uptime\"\nstatistic = \"ratio\"\ntarget = 99.5").contains("0 to 1"));
    }
}
