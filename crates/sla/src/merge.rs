//! What several nodes have counted, as one.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::RangeBounds,
};

use proto::sla as message;

use crate::{Cell, Scope, Series, indicator::Kind};

/// What was counted in all, by series and slot.
#[derive(Debug, Default)]
pub struct Merged {
    cells: BTreeMap<Series, BTreeMap<u64, Cell>>,
}

/// Merges the slots of one length that nodes have answered. Of what every replica counts, the one is taken that has
/// counted most in a slot: a replica that was away, or was started again, has counted less. What one node only sees is
/// added up.
#[must_use]
pub fn merge(of_nodes: Vec<Vec<message::Slot>>) -> Merged {
    let mut merged = Merged::default();
    for slot in of_nodes.into_iter().flatten() {
        for of in slot.series {
            let Some(series) = Series::decode(&of) else { continue };
            let (kind, scope) = (series.indicator.kind(), series.indicator.scope());
            let entry = merged.cells.entry(series).or_default().entry(slot.number);
            if let Entry::Occupied(before) = &entry
                && scope == Scope::Replicas
                && of.good + of.bad <= before.get().count()
            {
                continue;
            }
            let Some(cell) = Cell::decode(kind, &of) else { continue };
            match entry {
                Entry::Vacant(entry) => drop(entry.insert(cell)),
                Entry::Occupied(mut entry) if scope == Scope::Node => entry.get_mut().add(&cell),
                Entry::Occupied(mut entry) => drop(entry.insert(cell)),
            }
        }
    }
    merged
}

impl Merged {
    /// What was counted of the series that a question is about, in the slots that it is about.
    pub fn select(&self, series: impl Fn(&Series) -> bool, slots: impl RangeBounds<u64> + Clone) -> Cell {
        let of_series = self.cells.iter().filter(|(of, _)| series(of)).map(|(_, cells)| cells);
        let mut found: Option<Cell> = None;
        for (_, cell) in of_series.flat_map(|cells| cells.range(slots.clone())) {
            match &mut found {
                Some(found) => found.add(cell),
                None => found = Some(cell.clone()),
            }
        }
        found.unwrap_or_else(|| Cell::new(Kind::Ratio))
    }

    /// What was counted in all, in the slots that a question is about.
    pub fn all(&self, slots: impl RangeBounds<u64> + Clone) -> Cell {
        self.select(|_| true, slots)
    }

    /// All series.
    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.cells.keys()
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
