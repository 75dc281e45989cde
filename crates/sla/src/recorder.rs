//! Counts by the minute, the hour and the day.

use std::collections::{BTreeMap, BTreeSet};

use ids::Timestamp;
use parking_lot::Mutex;
use proto::sla as message;

use crate::{
    Cell, Indicator, Labels, Series,
    indicator::Key,
    prometheus::{self, Totals},
};

/// Series that a recorder tells apart. Beyond them, tenants and workflows are counted together.
const SERIES_MAX: usize = 4_096;
/// What stands for the tenants and workflows that are not told apart.
const OTHER: &str = "(other)";
/// A slot is packed so long after its end: what is measured comes late by less than that, as a rule.
const LATE_SECONDS: u64 = 120;

/// A length of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// 60 seconds; kept for 2 hours.
    Minute,
    /// 3,600 seconds; kept for 2 days.
    Hour,
    /// 86,400 seconds; kept for 32 days.
    Day,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// How long its slots are.
    #[must_use]
    pub fn seconds(self) -> u32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// How many slots are kept.
    #[must_use]
    pub fn kept(self) -> u64 {
        match self {
            Self::Minute => 120,
            Self::Hour => 48,
            Self::Day => 32,
        }
    }

    /// The slot of a moment.
    #[must_use]
    pub fn slot(self, at: Timestamp) -> u64 {
        at.0 / 1_000_000 / u64::from(self.seconds())
    }

    /// The level whose slots are so long.
    #[must_use]
    pub fn of_seconds(seconds: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.seconds() == seconds)
    }
}

/// A stretch of time up to now. It is made of whole slots, the current one included: it may be longer by one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// 1 minute.
    Minute,
    /// 5 minutes.
    FiveMinutes,
    /// 30 minutes.
    HalfHour,
    /// 1 hour.
    Hour,
    /// 6 hours, of whole hours.
    SixHours,
    /// 24 hours, of whole hours.
    Day,
    /// 3 days, of whole days.
    ThreeDays,
    /// 30 days, of whole days.
    Month,
}

impl Window {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Minute,
        Self::FiveMinutes,
        Self::HalfHour,
        Self::Hour,
        Self::SixHours,
        Self::Day,
        Self::ThreeDays,
        Self::Month,
    ];

    /// The name in configuration and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "1m",
            Self::FiveMinutes => "5m",
            Self::HalfHour => "30m",
            Self::Hour => "1h",
            Self::SixHours => "6h",
            Self::Day => "24h",
            Self::ThreeDays => "3d",
            Self::Month => "30d",
        }
    }

    /// The window of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.name() == name)
    }

    /// The length of its slots, and how many there are besides the current one.
    #[must_use]
    pub fn slots(self) -> (Level, u64) {
        match self {
            Self::Minute => (Level::Minute, 1),
            Self::FiveMinutes => (Level::Minute, 5),
            Self::HalfHour => (Level::Minute, 30),
            Self::Hour => (Level::Minute, 60),
            Self::SixHours => (Level::Hour, 6),
            Self::Day => (Level::Hour, 24),
            Self::ThreeDays => (Level::Day, 3),
            Self::Month => (Level::Day, 30),
        }
    }

    /// How long it is, in seconds.
    #[must_use]
    pub fn seconds(self) -> u64 {
        let (level, count) = self.slots();
        u64::from(level.seconds()) * count
    }
}

/// Counts what it is told. Cheap: less than a microsecond, one lock.
#[derive(Debug, Default)]
pub struct Recorder {
    counted: Mutex<Counted>,
    /// Of the buckets that Prometheus sees, in microseconds.
    edges: Vec<u64>,
}

#[derive(Debug, Default)]
struct Counted {
    ids: hashbrown::HashMap<Series, u32>,
    series: Vec<Series>,
    /// Since the process began, by series.
    totals: Vec<Totals>,
    levels: [Slots; Level::ALL.len()],
}

#[derive(Debug, Default)]
struct Slots {
    /// Those that are counted in. Seldom more than two.
    open: BTreeMap<u64, Open>,
    /// Those that are over.
    packed: BTreeMap<u64, Vec<message::Series>>,
}

/// A slot that is counted in, by the ids of series.
#[derive(Debug, Default)]
struct Open {
    cells: hashbrown::HashMap<u32, Cell>,
    /// Whether it has changed since it was last handed out to be kept.
    changed: bool,
}

impl Recorder {
    /// One whose buckets have these edges, in microseconds and in order.
    #[must_use]
    pub fn with_edges(edges: Vec<u64>) -> Self {
        Self { counted: Mutex::default(), edges }
    }

    /// Something went right, and took so long.
    pub fn took(&self, indicator: Indicator, labels: Labels<'_>, at: Timestamp, micros: u64) {
        let (cell, totals) =
            (|cell: &mut Cell| cell.took(micros), |of: &mut Totals| of.took(micros, &self.edges));
        self.record(indicator, labels, at, cell, totals);
    }

    /// Something went right or wrong.
    pub fn happened(&self, indicator: Indicator, labels: Labels<'_>, at: Timestamp, well: bool) {
        let cell = |cell: &mut Cell| {
            if well {
                cell.good += 1;
            } else {
                cell.bad += 1;
            }
        };
        self.record(indicator, labels, at, cell, |totals| totals.happened(well));
    }

    /// What was counted since the process began, as `OpenMetrics` text without its end.
    #[must_use]
    pub fn exposition(&self) -> String {
        let counted = self.counted.lock();
        let all = || counted.series.iter().zip(&counted.totals);
        prometheus::exposition(all(), &self.edges) + &prometheus::failures(all())
    }

    fn record(
        &self,
        indicator: Indicator,
        labels: Labels<'_>,
        at: Timestamp,
        count: impl Fn(&mut Cell),
        total: impl FnOnce(&mut Totals),
    ) {
        let mut counted = self.counted.lock();
        let id = counted.id(Key(indicator, labels));
        total(&mut counted.totals[id as usize]);
        for level in Level::ALL {
            let slot = level.slot(at);
            count(counted.cell(level, slot, id));
        }
    }

    /// Packs what is over, and forgets what is too old: the slots that it forgets.
    pub fn tidy(&self, now: Timestamp) -> Vec<(Level, u64)> {
        let counted = &mut *self.counted.lock();
        let mut gone = Vec::new();
        for (level, slots) in Level::ALL.iter().zip(&mut counted.levels) {
            let late = Timestamp(now.0.saturating_sub(LATE_SECONDS * 1_000_000));
            let first_open = level.slot(late);
            // What is not kept yet stays open until it is.
            let is_over = |slot: &u64, open: &Open| *slot < first_open && !open.changed;
            let over: Vec<u64> = slots.open.iter().filter(|of| is_over(of.0, of.1)).map(|of| *of.0).collect();
            for slot in over {
                let open = slots.open.remove(&slot).unwrap_or_default();
                slots.packed.insert(slot, pack(&counted.series, &open));
            }
            let oldest = level.slot(now).saturating_sub(level.kept());
            let kept = slots.packed.split_off(&oldest);
            let forgotten = std::mem::replace(&mut slots.packed, kept);
            gone.extend(forgotten.into_keys().map(|slot| (*level, slot)));
        }
        gone
    }

    /// What has changed since the last call.
    pub fn changes(&self) -> Vec<message::Slot> {
        let counted = &mut *self.counted.lock();
        let mut changes = Vec::new();
        for (level, slots) in Level::ALL.iter().zip(&mut counted.levels) {
            for (number, open) in slots.open.iter_mut().filter(|(_, open)| open.changed) {
                open.changed = false;
                let series = pack(&counted.series, open);
                changes.push(message::Slot { seconds: level.seconds(), number: *number, series });
            }
        }
        changes
    }

    /// What was counted before this process began. Comes before anything is counted.
    pub fn restore(&self, slots: impl IntoIterator<Item = message::Slot>) {
        let mut counted = self.counted.lock();
        for slot in slots {
            let Some(level) = Level::of_seconds(slot.seconds) else { continue };
            counted.levels[level as usize].packed.insert(slot.number, slot.series);
        }
    }

    /// What was counted from a slot on.
    #[must_use]
    pub fn read(&self, level: Level, from: u64) -> Vec<message::Slot> {
        let counted = self.counted.lock();
        let slots = &counted.levels[level as usize];
        let numbers: BTreeSet<u64> = slots
            .packed
            .range(from..)
            .map(|of| *of.0)
            .chain(slots.open.range(from..).map(|of| *of.0))
            .collect();
        numbers.into_iter().filter_map(|number| slots.read(&counted.series, level, number)).collect()
    }
}

impl Counted {
    fn id(&mut self, key: Key<'_>) -> u32 {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let mut series = Series::of(key);
        if self.series.len() >= SERIES_MAX {
            series.tenant = OTHER.to_owned();
            series.workflow = OTHER.to_owned();
            if let Some(id) = self.ids.get(&series) {
                return *id;
            }
        }
        let id = u32::try_from(self.series.len()).unwrap_or(u32::MAX);
        self.series.push(series.clone());
        self.totals.push(Totals::default());
        self.ids.insert(series, id);
        id
    }

    fn cell(&mut self, level: Level, slot: u64, id: u32) -> &mut Cell {
        if !self.levels[level as usize].open.contains_key(&slot) {
            self.open(level, slot);
        }
        let kind = self.series[id as usize].indicator.kind();
        let open = self.levels[level as usize].open.entry(slot).or_default();
        open.changed = true;
        open.cells.entry(id).or_insert_with(|| Cell::new(kind))
    }

    /// What comes late, or after a restart, is added to what was counted before.
    fn open(&mut self, level: Level, slot: u64) {
        let mut open = Open::default();
        for of in self.levels[level as usize].packed.remove(&slot).into_iter().flatten() {
            if let Some(series) = Series::decode(&of)
                && let Some(cell) = Cell::decode(series.indicator.kind(), &of)
            {
                let id = self.id(Key(series.indicator, series.labels()));
                open.cells.insert(id, cell);
            }
        }
        self.levels[level as usize].open.insert(slot, open);
    }
}

impl Slots {
    fn read(&self, series: &[Series], level: Level, number: u64) -> Option<message::Slot> {
        let of = match self.open.get(&number) {
            Some(open) => pack(series, open),
            None => self.packed.get(&number)?.clone(),
        };
        Some(message::Slot { seconds: level.seconds(), number, series: of })
    }
}

fn pack(series: &[Series], open: &Open) -> Vec<message::Series> {
    open.cells.iter().map(|(id, cell)| cell.encode(&series[*id as usize])).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;
    use crate::merge;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    fn count(recorder: &Recorder, level: Level) -> u64 {
        merge(vec![recorder.read(level, 0)]).all(|_| true).count()
    }

    #[test]
    fn what_was_counted_outlives_packing_restarts_and_late_comers() {
        let recorder = Recorder::default();
        let labels = Labels { tenant: "t", ..Labels::default() };
        recorder.took(Indicator::SessionInit, labels, at(30), 1_000);
        recorder.tidy(at(1_000));
        recorder.took(Indicator::SessionInit, labels, at(31), 3_000);
        recorder.took(Indicator::SessionInit, labels, at(1_001), 5_000);
        let kept = recorder.changes();
        assert!(recorder.changes().is_empty(), "nothing has changed since");
        let again = Recorder::default();
        again.restore(kept);
        again.happened(Indicator::SessionInit, labels, at(32), false);
        for level in Level::ALL {
            assert_eq!(count(&recorder, level), 3);
            assert_eq!(count(&again, level), 4);
        }
        let minute = merge(vec![again.read(Level::Minute, 0)]);
        let first = minute.all(|slot| slot == 0);
        assert_eq!((first.good, first.bad, first.sum), (2, 1, 4_000));
        // Exact to 0.1 %.
        assert!(first.max().is_some_and(|max| (3_000..=3_003).contains(&max)), "{first:?}");
        // After 2 hours minutes are forgotten, after 2 days hours; but nothing before it was kept.
        assert_eq!(again.tidy(at(3 * 3_600)), [(Level::Minute, 16)]);
        assert_eq!(again.changes().len(), Level::ALL.len());
        assert_eq!(again.tidy(at(3 * 3_600)), [(Level::Minute, 0)]);
        assert_eq!((count(&again, Level::Minute), count(&again, Level::Hour)), (0, 4));
    }
}
