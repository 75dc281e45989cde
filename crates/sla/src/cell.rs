//! What was counted of one series in one stretch of time.

use hdrhistogram::Histogram;
use proto::sla as message;

use crate::{
    Series,
    indicator::Kind,
    packed::{self, DIGITS},
};

/// The longest duration of the first bucket that people are shown, in microseconds.
const FIRST_BUCKET: u64 = 1_000;

/// Counts, and durations in microseconds.
#[derive(Debug, Clone)]
pub struct Cell {
    /// How many went right.
    pub good: u64,
    /// How many went wrong.
    pub bad: u64,
    /// The sum of the durations of those that went right, in microseconds.
    pub sum: u64,
    durations: Option<Histogram<u64>>,
}

impl Cell {
    /// Nothing yet.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let durations = match kind {
            Kind::Durations => Histogram::new(DIGITS).ok(),
            Kind::Ratio => None,
        };
        Self { good: 0, bad: 0, sum: 0, durations }
    }

    /// Something went right, and took so long.
    pub fn took(&mut self, micros: u64) {
        self.good += 1;
        self.sum = self.sum.saturating_add(micros);
        if let Some(durations) = &mut self.durations {
            // It grows with its values.
            let _ = durations.record(micros.max(1));
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.good + self.bad
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.bad += other.bad;
        self.sum = self.sum.saturating_add(other.sum);
        if let (Some(ours), Some(theirs)) = (&mut self.durations, &other.durations) {
            // It grows with its values, so nothing is beyond it.
            let _ = ours.add(theirs);
        }
    }

    /// The duration that so many of a hundred do not exceed, in microseconds; `None` without any.
    #[must_use]
    pub fn percentile(&self, percentile: f64) -> Option<u64> {
        let durations = self.durations.as_ref().filter(|durations| !durations.is_empty())?;
        Some(durations.value_at_quantile(percentile / 100.0))
    }

    /// The longest duration, in microseconds.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        self.durations.as_ref().filter(|durations| !durations.is_empty()).map(Histogram::max)
    }

    /// The mean duration, in microseconds: exact.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a mean of durations")]
    pub fn mean(&self) -> Option<f64> {
        (self.good > 0).then(|| self.sum as f64 / self.good as f64)
    }

    /// How many took so long at most.
    #[must_use]
    pub fn within(&self, micros: u64) -> u64 {
        self.durations.as_ref().map_or(self.good, |durations| durations.count_between(0, micros))
    }

    /// How many took so long, by bucket: the longest duration of each in microseconds, twice that of the one before,
    /// and how many. From the first to the last that has any.
    #[must_use]
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let Some(durations) = &self.durations else { return Vec::new() };
        let edges = std::iter::successors(Some(FIRST_BUCKET), |edge| edge.checked_mul(2));
        let mut buckets = Vec::new();
        let mut from = 0;
        for edge in edges {
            if from > durations.max() || durations.is_empty() {
                break;
            }
            let count = durations.count_between(from, edge);
            if count > 0 || !buckets.is_empty() {
                buckets.push((edge, count));
            }
            from = edge + 1;
        }
        buckets
    }

    pub(crate) fn encode(&self, series: &Series) -> message::Series {
        message::Series {
            indicator: series.indicator.name().to_owned(),
            tenant: series.tenant.clone(),
            workflow: series.workflow.clone(),
            role: series.role.clone(),
            provider: series.provider.clone(),
            node: series.node.clone(),
            good: self.good,
            bad: self.bad,
            sum: self.sum,
            durations: self.durations.as_ref().map(packed::pack).unwrap_or_default().into(),
        }
    }

    /// Adds what was counted and packed. `None`, and nothing is added, for durations that this version does not know.
    #[must_use]
    pub(crate) fn add_packed(&mut self, other: &message::Series) -> Option<()> {
        if let Some(ours) = &mut self.durations {
            for (micros, count) in packed::unpack(other.durations.clone())? {
                // It grows with its values, so nothing is beyond it.
                let _ = ours.record_n(micros, count);
            }
        }
        self.good += other.good;
        self.bad += other.bad;
        self.sum = self.sum.saturating_add(other.sum);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_everything_that_was_counted() {
        let mut cell = Cell::new(Kind::Durations);
        assert!(cell.buckets().is_empty());
        for micros in [3_000, 3_500, 15_000] {
            cell.took(micros);
        }
        assert_eq!(cell.buckets(), [(4_000, 2), (8_000, 0), (16_000, 1)]);
        cell.took(100);
        assert_eq!(cell.buckets().first(), Some(&(1_000, 1)));
        assert_eq!(cell.buckets().iter().map(|(_, count)| count).sum::<u64>(), cell.count());
    }
}
