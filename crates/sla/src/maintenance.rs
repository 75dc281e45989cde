//! Announced maintenance: nodes that do not answer meanwhile do not count against the uptime.

use std::fmt;

use ids::{Date, Timestamp};
use serde::{Deserialize, Serialize};
use toml::value::{Datetime, Offset};

use crate::Error;

const DAY: u64 = 86_400;
const WEEK: u64 = 7 * DAY;
/// 1970 began on a Thursday: so many seconds from the Monday of its week on.
const FIRST: u64 = 3 * DAY;

/// A time that was announced, in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    reason: String,
    when: When,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    Once {
        from: Timestamp,
        until: Timestamp,
    },
    /// Seconds from Monday's begin on, and how long.
    Weekly {
        day: Weekday,
        at: u64,
        seconds: u64,
    },
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "they say what they are")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// As it is written: `from` and `until` (times of day with their offset from UTC), or `weekly`, `at` (a time of day in
/// UTC) and `minutes` (1 to 10,080).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// What for: reports show it.
    pub reason: String,
    /// Once, from when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Datetime>,
    /// Once, until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Datetime>,
    /// Every week on this day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<Weekday>,
    /// Every week at this time of day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Datetime>,
    /// Every week for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minutes: Option<u64>,
}

impl Written {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// What is wrong, and what instead.
    pub fn parse(&self) -> Result<Maintenance, Error> {
        let fail = |problem: &str| Error::Form(format!("sla.maintenance {:?}: {problem}", self.reason));
        let when = match (self.from, self.until, self.weekly, self.at, self.minutes) {
            (Some(from), Some(until), None, None, None) => {
                let expected = "expected a time with its offset, such as 2026-12-01T02:00:00Z";
                let from = moment(from).ok_or_else(|| fail(&format!("from = {from}: {expected}")))?;
                let until = moment(until).ok_or_else(|| fail(&format!("until = {until}: {expected}")))?;
                if from >= until {
                    return Err(fail("it ends before it begins"));
                }
                When::Once { from, until }
            }
            (None, None, Some(day), Some(at), Some(minutes)) => {
                let time = at.time.filter(|_| at.date.is_none() && at.offset.is_none());
                let time = time.ok_or_else(|| {
                    fail(&format!("at = {at}: expected a time of day in UTC, such as 02:00:00"))
                })?;
                if !(1..=WEEK / 60).contains(&minutes) {
                    return Err(fail(&format!("minutes = {minutes}: expected 1 to {}", WEEK / 60)));
                }
                let at = u64::from(time.hour) * 3600 + u64::from(time.minute) * 60 + second(time);
                When::Weekly { day, at, seconds: minutes * 60 }
            }
            _ => return Err(fail("expected from and until, or weekly, at and minutes")),
        };
        Ok(Maintenance { reason: self.reason.clone(), when })
    }
}

fn second(time: toml::value::Time) -> u64 {
    time.second.map_or(0, u64::from)
}

fn moment(of: Datetime) -> Option<Timestamp> {
    let (date, time) = (of.date?, of.time?);
    let day = Date { year: date.year.into(), month: date.month.into(), day: date.day.into() }.begin()?;
    let ahead_minutes = match of.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let seconds = u64::from(time.hour) * 3600 + u64::from(time.minute) * 60 + second(time);
    let local = day.0.checked_add(seconds * 1_000_000)?;
    local.checked_add_signed(-ahead_minutes * 60_000_000).map(Timestamp)
}

impl Maintenance {
    /// Whether a moment belongs to it.
    #[must_use]
    pub fn covers(&self, at: Timestamp) -> bool {
        match self.when {
            When::Once { from, until } => (from..until).contains(&at),
            When::Weekly { day, at: begin, seconds } => {
                let of_week = (at.0 / 1_000_000 + FIRST) % WEEK;
                let begin = day as u64 * DAY + begin;
                // It may go on into the next week.
                (of_week + WEEK - begin) % WEEK < seconds
            }
        }
    }
}

impl fmt::Display for Maintenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.when {
            When::Once { from, until } => write!(f, "{}: {from} to {until}", self.reason),
            When::Weekly { day, at, seconds } => {
                let (hour, minute) = (at / 3600, at / 60 % 60);
                write!(f, "{}: {day:?}, {hour:02}:{minute:02} UTC, {} min", self.reason, seconds / 60)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;

    fn parse(text: &str) -> Result<Maintenance, Error> {
        toml::from_str::<Written>(&format!("reason = \"r\"\n{text}")).unwrap().parse()
    }

    /// Sunday the 22nd of November 2026, so many seconds after midnight.
    fn sunday(seconds: u64) -> Timestamp {
        Timestamp(Date { year: 2026, month: 11, day: 22 }.begin().unwrap().0 + seconds * 1_000_000)
    }

    #[test]
    fn a_moment_is_in_it_or_not() {
        let once = parse("from = 2026-11-22T02:00:00+01:00\nuntil = 2026-11-22T02:00:00Z").unwrap();
        let seconds = [3_599, 3_600, 7_199, 7_200];
        assert_eq!(seconds.map(|of| once.covers(sunday(of))), [false, true, true, false]);
        // Two hours, of which one is on Monday.
        let weekly = parse("weekly = \"sunday\"\nat = 23:00:00\nminutes = 120").unwrap();
        let seconds = [82_799, 82_800, 89_999, 90_000];
        assert_eq!(seconds.map(|of| weekly.covers(sunday(of))), [false, true, true, false]);
        assert!(weekly.covers(sunday(82_800 + 52 * 604_800)));
        assert_eq!(weekly.to_string(), "r: Sunday, 23:00 UTC, 120 min");
    }

    #[test]
    fn what_is_no_time_is_refused_with_what_instead() {
        for (text, part) in [
            ("", "expected from and until, or weekly"),
            ("from = 2026-11-22T02:00:00Z", "expected from and until, or weekly"),
            ("from = 2026-11-22T02:00:00\nuntil = 2026-11-22T03:00:00Z", "with its offset"),
            ("from = 2026-11-22T03:00:00Z\nuntil = 2026-11-22T03:00:00Z", "ends before it begins"),
            ("weekly = \"sunday\"\nat = 2026-11-22\nminutes = 1", "a time of day in UTC"),
            ("weekly = \"sunday\"\nat = 01:00:00\nminutes = 0", "1 to 10080"),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
