//! Alerts: what becomes of them, and their rows.

use ids::Timestamp;
use machine::{AlertChange, AlertRow, AlertState};

use crate::{
    envelope::Error,
    storage::{self, Empty, alert},
};

pub(super) fn encode_change(change: &AlertChange) -> alert::Change {
    match change {
        AlertChange::Breached { hold_ms, value } => {
            alert::Change::Breached(alert::Breached { hold_ms: *hold_ms, value: value.clone() })
        }
        AlertChange::Fine => alert::Change::Fine(Empty {}),
        AlertChange::Notified { state: of, since } => {
            alert::Change::Notified(alert::Notified { state: state(*of), since: since.0 })
        }
    }
}

pub(super) fn decode_change(change: alert::Change) -> Result<AlertChange, Error> {
    Ok(match change {
        alert::Change::Breached(of) => AlertChange::Breached { hold_ms: of.hold_ms, value: of.value },
        alert::Change::Fine(_) => AlertChange::Fine,
        alert::Change::Notified(of) => {
            AlertChange::Notified { state: to_state(of.state)?, since: Timestamp(of.since) }
        }
    })
}

pub(super) fn encode_row(row: &AlertRow) -> storage::AlertRow {
    storage::AlertRow {
        state: state(row.state),
        since: row.since.0,
        fired_at: row.fired_at.map(|at| at.0),
        resolved_at: row.resolved_at.map(|at| at.0),
        value: row.value.clone(),
        notified: row.notified,
    }
}

pub(super) fn decode_row(row: storage::AlertRow) -> Result<AlertRow, Error> {
    Ok(AlertRow {
        state: to_state(row.state)?,
        since: Timestamp(row.since),
        fired_at: row.fired_at.map(Timestamp),
        resolved_at: row.resolved_at.map(Timestamp),
        value: row.value,
        notified: row.notified,
    })
}

fn state(of: AlertState) -> u32 {
    match of {
        AlertState::Pending => 0,
        AlertState::Firing => 1,
        AlertState::Resolved => 2,
    }
}

fn to_state(number: u32) -> Result<AlertState, Error> {
    match number {
        0 => Ok(AlertState::Pending),
        1 => Ok(AlertState::Firing),
        2 => Ok(AlertState::Resolved),
        _ => Err(Error::Body(format!("{number} is no state of an alert"))),
    }
}
