//! Counts by the minute, the hour and the day.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::RangeInclusive,
};

use ids::{Date, Timestamp};
use parking_lot::Mutex;
use proto::sla as message;

use crate::{
    Cell, Indicator, Labels, Series, aliases,
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

    /// The slot of a minute.
    fn of_minute(self, minute: u64) -> u64 {
        minute / u64::from(self.seconds() / 60)
    }

    /// The minutes of a slot.
    fn minutes(self, slot: u64) -> RangeInclusive<u64> {
        let count = u64::from(self.seconds() / 60);
        slot * count..=slot * count + (count - 1)
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
    /// From the first day of the calendar's month on, in UTC.
    CalendarMonth,
}

impl Window {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Minute,
        Self::FiveMinutes,
        Self::HalfHour,
        Self::Hour,
        Self::SixHours,
        Self::Day,
        Self::ThreeDays,
        Self::Month,
        Self::CalendarMonth,
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
            Self::CalendarMonth => "month",
        }
    }

    /// The window of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|window| window.name() == name)
    }

    /// The length of its slots, and how many there are besides the current one.
    #[must_use]
    pub fn slots(self, now: Timestamp) -> (Level, u64) {
        match self {
            Self::Minute => (Level::Minute, 1),
            Self::FiveMinutes => (Level::Minute, 5),
            Self::HalfHour => (Level::Minute, 30),
            Self::Hour => (Level::Minute, 60),
            Self::SixHours => (Level::Hour, 6),
            Self::Day => (Level::Hour, 24),
            Self::ThreeDays => (Level::Day, 3),
            Self::Month => (Level::Day, 30),
            Self::CalendarMonth => (Level::Day, Date::of(now).day - 1),
        }
    }

    /// How long it is, in seconds; the month of the calendar as a whole.
    #[must_use]
    pub fn seconds(self, now: Timestamp) -> u64 {
        if self == Self::CalendarMonth {
            let Date { year, month, .. } = Date::of(now);
            let begin = |month| Date { year: year + month / 12, month: month % 12 + 1, day: 1 }.begin();
            let days = begin(month).unwrap_or_default().since(begin(month - 1).unwrap_or_default());
            return days.as_secs();
        }
        let (level, count) = self.slots(now);
        u64::from(level.seconds()) * count
    }
}

/// Counts what it is told. Cheap: one lock, one histogram. Only minutes are counted in; an hour and a day are what was
/// packed of them, and the minutes of theirs that are open.
#[derive(Debug, Default)]
pub struct Recorder {
    counted: Mutex<Counted>,
    /// Of the buckets that Prometheus sees, in microseconds.
    edges: Vec<u64>,
    /// Where everything is counted, for Prometheus; empty if that is not told.
    region: String,
}

#[derive(Debug, Default)]
struct Counted {
    ids: hashbrown::HashMap<Series, u32>,
    series: Vec<Series>,
    /// Since the process began, by series.
    totals: Vec<Totals>,
    /// The minutes that are counted in. Seldom more than three.
    open: BTreeMap<u64, Open>,
    /// What was counted in minutes that are not open any more, by the level.
    packed: [BTreeMap<u64, Vec<message::Series>>; Level::ALL.len()],
}

/// What a minute has counted since it was opened.
#[derive(Debug, Default)]
struct Open {
    /// By the ids of series.
    cells: Vec<Option<Cell>>,
    /// Whether it has changed since it was last handed out to be kept.
    changed: bool,
}

impl Recorder {
    /// One whose buckets have these edges, in microseconds and in order.
    #[must_use]
    pub fn with_edges(edges: Vec<u64>) -> Self {
        Self { counted: Mutex::default(), edges, region: String::new() }
    }

    /// One whose series tell Prometheus that they are of this region.
    #[must_use]
    pub fn in_region(self, region: impl Into<String>) -> Self {
        Self { region: region.into(), ..self }
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
        prometheus::exposition(all(), &self.edges, &self.region) + &prometheus::failures(all(), &self.region)
    }

    /// The same under the names of the systems whose work this one takes over, with so many tokens.
    #[must_use]
    pub fn aliases(&self, tokens: u64) -> String {
        let counted = self.counted.lock();
        aliases::exposition(counted.series.iter().zip(&counted.totals), tokens, &self.edges)
    }

    fn record(
        &self,
        indicator: Indicator,
        labels: Labels<'_>,
        at: Timestamp,
        count: impl FnOnce(&mut Cell),
        total: impl FnOnce(&mut Totals),
    ) {
        let mut counted = self.counted.lock();
        let id = counted.id(Key(indicator, labels)) as usize;
        total(&mut counted.totals[id]);
        let open = counted.open.entry(Level::Minute.slot(at)).or_default();
        open.changed = true;
        if open.cells.len() <= id {
            open.cells.resize(id + 1, None);
        }
        count(open.cells[id].get_or_insert_with(|| Cell::new(indicator.kind())));
    }

    /// Packs what is over, and forgets what is too old: the slots that it forgets.
    pub fn tidy(&self, now: Timestamp) -> Vec<(Level, u64)> {
        let counted = &mut *self.counted.lock();
        let late = Timestamp(now.0.saturating_sub(LATE_SECONDS * 1_000_000));
        let first_open = Level::Minute.slot(late);
        // What is not kept yet stays open until it is.
        let is_over = |minute: &u64, open: &Open| *minute < first_open && !open.changed;
        let over: Vec<u64> = counted.open.iter().filter(|of| is_over(of.0, of.1)).map(|of| *of.0).collect();
        for minute in over {
            for level in Level::ALL {
                let slot = level.of_minute(minute);
                let added = counted.value(level, slot, minute..=minute);
                counted.packed[level as usize].insert(slot, added);
            }
            counted.open.remove(&minute);
        }
        let mut gone = Vec::new();
        for (level, packed) in Level::ALL.into_iter().zip(&mut counted.packed) {
            let oldest = level.slot(now).saturating_sub(level.kept());
            // As long as something is to be added, it stays.
            let is_open = |slot: u64| counted.open.range(level.minutes(slot)).next().is_some();
            let old = packed.extract_if(..oldest, |slot, _| !is_open(*slot));
            gone.extend(old.map(|(slot, _)| (level, slot)));
        }
        gone
    }

    /// What has changed since the last call.
    pub fn changes(&self) -> Vec<message::Slot> {
        let counted = &mut *self.counted.lock();
        let mut changed = BTreeSet::new();
        for (minute, open) in counted.open.iter_mut().filter(|(_, open)| open.changed) {
            open.changed = false;
            changed.extend(Level::ALL.map(|level| (level, level.of_minute(*minute))));
        }
        changed.into_iter().map(|(level, slot)| counted.slot(level, slot)).collect()
    }

    /// What was counted before this process began. Comes before anything is counted.
    pub fn restore(&self, slots: impl IntoIterator<Item = message::Slot>) {
        let mut counted = self.counted.lock();
        for slot in slots {
            let Some(level) = Level::of_seconds(slot.seconds) else { continue };
            counted.packed[level as usize].insert(slot.number, slot.series);
        }
    }

    /// What was counted from a slot on.
    #[must_use]
    pub fn read(&self, level: Level, from: u64) -> Vec<message::Slot> {
        let counted = self.counted.lock();
        let packed = counted.packed[level as usize].range(from..).map(|of| *of.0);
        let open = counted.open.keys().map(|minute| level.of_minute(*minute)).filter(|slot| *slot >= from);
        let numbers: BTreeSet<u64> = packed.chain(open).collect();
        numbers.into_iter().map(|number| counted.slot(level, number)).collect()
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

    fn slot(&self, level: Level, number: u64) -> message::Slot {
        let series = self.value(level, number, level.minutes(number));
        message::Slot { seconds: level.seconds(), number, series }
    }

    /// What was packed of a slot, and what open minutes have counted since.
    fn value(&self, level: Level, slot: u64, minutes: RangeInclusive<u64>) -> Vec<message::Series> {
        let mut new: BTreeMap<u32, Cow<'_, Cell>> = BTreeMap::new();
        for (_, open) in self.open.range(minutes) {
            for (id, cell) in (0u32..).zip(&open.cells) {
                let Some(cell) = cell else { continue };
                match new.entry(id) {
                    Entry::Occupied(mut before) => before.get_mut().to_mut().add(cell),
                    Entry::Vacant(nothing) => {
                        nothing.insert(Cow::Borrowed(cell));
                    }
                }
            }
        }
        let packed = self.packed[level as usize].get(&slot).into_iter().flatten();
        let mut all: Vec<message::Series> = packed
            .map(|of| {
                let known = Series::decode(of).and_then(|series| self.ids.get(&series).copied());
                let added = known.and_then(|id| {
                    new.get_mut(&id)?.to_mut().add_packed(of)?;
                    Some(new.remove(&id)?.encode(&self.series[id as usize]))
                });
                added.unwrap_or_else(|| of.clone())
            })
            .collect();
        all.extend(new.iter().map(|(id, cell)| cell.encode(&self.series[*id as usize])));
        all
    }
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
        merge(vec![recorder.read(level, 0)]).all(..).count()
    }

    #[test]
    fn a_month_of_the_calendar_begins_with_its_first_day() {
        let month = |year, month, day| {
            let now = Timestamp(Date { year, month, day }.begin().unwrap().0 + 3_600_000_000);
            (Window::CalendarMonth.slots(now).1, Window::CalendarMonth.seconds(now) / 86_400)
        };
        assert_eq!((month(2028, 2, 29), month(2026, 12, 1), month(2027, 4, 7)), ((28, 29), (0, 31), (6, 30)));
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
        let first = minute.all(0..=0);
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
