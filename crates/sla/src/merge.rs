//! What several nodes have counted, as one.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use parking_lot::Mutex;
use proto::sla as message;

use crate::{Cell, Scope, Series, indicator::Kind};

/// What was counted in all, by series and slot.
#[derive(Debug, Default)]
pub struct Merged {
    series: BTreeMap<Series, Slots>,
}

/// What was counted of a series. Durations stay packed until somebody asks for their slots: unpacked, those of a month
/// take hundreds of megabytes.
#[derive(Debug, Default)]
struct Slots {
    /// What has to be added up, by slot.
    packed: BTreeMap<u64, Vec<message::Series>>,
    /// What was asked for.
    sums: Mutex<HashMap<Range, Arc<Cell>>>,
}

/// From a slot to a slot.
type Range = (Bound<u64>, Bound<u64>);

/// Merges the slots of one length that nodes have answered. Of what every replica counts, the one is taken that has
/// counted most in a slot: a replica that was away, or was started again, has counted less. What one node only sees is
/// added up.
#[must_use]
pub fn merge(of_nodes: Vec<Vec<message::Slot>>) -> Merged {
    let mut merged = Merged::default();
    let counted = |of: &message::Series| of.good + of.bad;
    for slot in of_nodes.into_iter().flatten() {
        for of in slot.series {
            let Some(series) = Series::decode(&of) else { continue };
            let scope = series.indicator.scope();
            match merged.series.entry(series).or_default().packed.entry(slot.number) {
                Entry::Vacant(entry) => drop(entry.insert(vec![of])),
                Entry::Occupied(mut entry) => match scope {
                    Scope::Node => entry.get_mut().push(of),
                    Scope::Replicas => {
                        if entry.get().iter().all(|before| counted(before) < counted(&of)) {
                            entry.insert(vec![of]);
                        }
                    }
                },
            }
        }
    }
    merged
}

impl Slots {
    fn sum(&self, kind: Kind, slots: Range) -> Option<Arc<Cell>> {
        let mut packed = self.packed.range(slots).flat_map(|(_, all)| all).peekable();
        packed.peek()?;
        let sum = || {
            let mut sum = Cell::new(kind);
            for of in packed {
                // Durations that this version does not know are not counted.
                let _ = sum.add_packed(of);
            }
            Arc::new(sum)
        };
        Some(Arc::clone(self.sums.lock().entry(slots).or_insert_with(sum)))
    }
}

impl Merged {
    /// What was counted of the series that a question is about, in the slots that it is about.
    pub fn select(&self, series: impl Fn(&Series) -> bool, slots: impl RangeBounds<u64>) -> Cell {
        let slots = (slots.start_bound().cloned(), slots.end_bound().cloned());
        let of_series = self.series.iter().filter(|(of, _)| series(of));
        let mut found: Option<Cell> = None;
        for cell in of_series.filter_map(|(of, all)| all.sum(of.indicator.kind(), slots)) {
            match &mut found {
                Some(found) => found.add(&cell),
                None => found = Some((*cell).clone()),
            }
        }
        found.unwrap_or_else(|| Cell::new(Kind::Ratio))
    }

    /// What was counted in all, in the slots that a question is about.
    pub fn all(&self, slots: impl RangeBounds<u64>) -> Cell {
        self.select(|_| true, slots)
    }

    /// All series.
    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.series.keys()
    }
}

#[cfg(test)]
mod tests {
    use ids::Timestamp;

    use super::*;
    use crate::{Indicator, Labels, Level, Recorder};

    #[test]
    fn replicas_are_not_counted_twice_and_nodes_are_added_up() {
        let (whole, restarted) = (Recorder::default(), Recorder::default());
        let at = Timestamp(60_000_000);
        for micros in [1_000, 2_000, 3_000] {
            whole.took(Indicator::AgentResponse, Labels::default(), at, micros);
            whole.took(Indicator::ApiLatency, Labels::default(), at, micros);
        }
        restarted.took(Indicator::AgentResponse, Labels::default(), at, 3_000);
        restarted.took(Indicator::ApiLatency, Labels::default(), at, 9_000);
        let merged = merge(vec![restarted.read(Level::Minute, 0), whole.read(Level::Minute, 0)]);
        let of = |indicator| merged.select(|series| series.indicator == indicator, ..);
        assert_eq!((of(Indicator::AgentResponse).count(), of(Indicator::ApiLatency).count()), (3, 4));
        assert_eq!(of(Indicator::AgentResponse).percentile(50.0), Some(2_000));
        assert_eq!(of(Indicator::ApiLatency).sum, 15_000);
        assert_eq!(of(Indicator::Uptime).count(), 0);
    }
}
