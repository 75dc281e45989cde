//! `Alert`.

use alloc::string::ToString as _;

use ids::Timestamp;

use super::{Result, check_len};
use crate::{AlertChange, AlertRow, AlertState, Key, Outcome, Row, Tables, limits};

pub(super) fn alert<T: Tables>(tables: &mut T, now: Timestamp, name: &str, change: &AlertChange) -> Result {
    check_len("alert name", name.len(), limits::NAME_BYTES_MAX)?;
    if let AlertChange::Breached { value, .. } = change {
        check_len("alert value", value.len(), limits::NAME_BYTES_MAX)?;
    }
    let key = Key::Alert(name.to_string());
    let before = match tables.get(&key) {
        Some(Row::Alert(row)) => Some(row),
        _ => None,
    };
    let after = AlertRow::after(before.as_ref(), change, now);
    if after != before {
        match after {
            Some(row) => tables.put(key, Row::Alert(row)),
            None => tables.delete(&key),
        }
    }
    Ok(Outcome::Done)
}

impl AlertRow {
    /// What becomes of an alert. Whoever looks at what is measured asks this first, so that only changes are proposed.
    #[must_use]
    pub fn after(before: Option<&Self>, change: &AlertChange, now: Timestamp) -> Option<Self> {
        let state = before.map(|row| row.state);
        match (change, before.cloned()) {
            (AlertChange::Breached { hold_ms, value }, before) => {
                let mut row = match before {
                    Some(row) if row.state != AlertState::Resolved => row,
                    _ => Self {
                        state: AlertState::Pending,
                        since: now,
                        fired_at: None,
                        resolved_at: None,
                        value: value.clone(),
                        notified: false,
                    },
                };
                let held = now.0.saturating_sub(row.since.0) >= hold_ms.saturating_mul(1_000);
                if row.state == AlertState::Pending && held {
                    row =
                        Self { state: AlertState::Firing, fired_at: Some(now), value: value.clone(), ..row };
                }
                Some(row)
            }
            (AlertChange::Fine, Some(row)) if state == Some(AlertState::Firing) => {
                Some(Self { state: AlertState::Resolved, resolved_at: Some(now), notified: false, ..row })
            }
            (AlertChange::Fine, before) => before.filter(|row| row.state == AlertState::Resolved),
            (AlertChange::Notified { state, since }, Some(row)) => {
                let meant = row.state == *state && row.since == *since;
                Some(Self { notified: row.notified || meant, ..row })
            }
            (AlertChange::Notified { .. }, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;
    use crate::{MemoryTables, Read as _};

    #[test]
    fn an_alert_waits_fires_and_ends_and_each_is_to_be_told_once() {
        let mut tables = MemoryTables::default();
        let mut row = |seconds: u64, change: AlertChange| {
            alert(&mut tables, Timestamp::from_millis(seconds * 1_000), "slow", &change).unwrap();
            match tables.get(&Key::Alert("slow".to_string())) {
                Some(Row::Alert(row)) => Some(row),
                _ => None,
            }
        };
        let breached = |value: &str| AlertChange::Breached { hold_ms: 60_000, value: value.to_string() };
        assert_eq!(row(1, AlertChange::Fine), None);
        assert_eq!(row(10, breached("a")).unwrap().state, AlertState::Pending);
        assert_eq!(row(20, AlertChange::Fine), None, "it held too short");
        row(30, breached("b"));
        let early = row(89, breached("c")).unwrap();
        assert_eq!((early.state, early.value.as_str()), (AlertState::Pending, "b"));
        let firing = row(90, breached("d")).unwrap();
        assert_eq!((firing.state, firing.value.as_str()), (AlertState::Firing, "d"));
        assert_eq!(firing.fired_at, Some(Timestamp::from_millis(90_000)));
        let told = |state, since| AlertChange::Notified { state, since };
        let of_another = row(91, told(AlertState::Firing, Timestamp(1))).unwrap();
        assert!(!of_another.notified, "that was said of an earlier alert");
        assert!(row(92, told(AlertState::Firing, firing.since)).unwrap().notified);
        assert!(row(93, breached("e")).unwrap().notified, "it still fires: nothing new");
        let resolved = row(100, AlertChange::Fine).unwrap();
        assert_eq!((resolved.state, resolved.notified), (AlertState::Resolved, false));
        assert_eq!(row(101, told(AlertState::Firing, firing.since)), Some(resolved.clone()), "too late");
        assert!(row(102, told(AlertState::Resolved, firing.since)).unwrap().notified);
        assert_eq!(row(110, AlertChange::Fine).unwrap().state, AlertState::Resolved);
        let again = row(120, breached("f")).unwrap();
        assert_eq!((again.state, again.since), (AlertState::Pending, Timestamp::from_millis(120_000)));
    }

    #[test]
    fn without_a_wait_an_alert_fires_at_once() {
        let breached = AlertChange::Breached { hold_ms: 0, value: "9".to_string() };
        let row = AlertRow::after(None, &breached, Timestamp(5)).unwrap();
        assert_eq!((row.state, row.fired_at), (AlertState::Firing, Some(Timestamp(5))));
    }
}
