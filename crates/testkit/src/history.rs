//! What clients saw: one record an operation, with when it was called and when it returned.

use std::{io::Write as _, path::Path, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

/// What a client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Appended a value, unique in its register.
    Append(u64),
    /// Read the register.
    Read,
    /// Started a session under a key.
    Start(String),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It was done, or read this.
    Ok(Vec<u64>),
    /// It was not done, and will not be.
    Failed(String),
    /// It was done, or was not, or will be.
    Unknown(String),
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The client. It does one thing after another.
    pub client: u64,
    /// The register, or the session.
    pub on: String,
    /// What was done.
    pub action: Action,
    /// When it was called, since the history began.
    pub called: Duration,
    /// When it returned.
    pub returned: Duration,
    /// What came of it.
    pub fate: Fate,
}

/// A history. Clients share it.
#[derive(Debug)]
pub struct History {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> Self {
        Self { began: Instant::now(), operations: Mutex::default() }
    }
}

impl History {
    /// The time since it began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Records an operation that was called at `called` and has just returned.
    pub fn record(&self, client: u64, on: &str, action: Action, called: Duration, fate: Fate) {
        let returned = self.now();
        let operation = Operation { client, on: on.to_owned(), action, called, returned, fate };
        self.operations.lock().push(operation);
    }

    /// Everything so far.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().clone()
    }

    /// How many there are so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.operations.lock().len()
    }

    /// Writes it as JSON, one line an operation.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for operation in self.operations() {
            writeln!(file, "{}", to_json(&operation))?;
        }
        file.flush()
    }
}

fn to_json(operation: &Operation) -> Value {
    let (action, value) = match &operation.action {
        Action::Append(value) => ("append", json!(value)),
        Action::Read => ("read", Value::Null),
        Action::Start(key) => ("start", json!(key)),
    };
    let (fate, seen) = match &operation.fate {
        Fate::Ok(seen) => ("ok", json!(seen)),
        Fate::Failed(why) => ("failed", json!(why)),
        Fate::Unknown(why) => ("unknown", json!(why)),
    };
    json!({"client": operation.client, "on": operation.on, "action": action, "value": value, "fate": fate,
        "seen": seen, "called_s": operation.called.as_secs_f64(),
        "returned_s": operation.returned.as_secs_f64()})
}

/// Whether one register's appends and reads are linearizable, given what it holds in the end; the violations, in
/// words.
///
/// A register is a list that only grows by unique values, so the list in the end is the order in which the appends
/// happened, and a read of length *n* happened after the first *n* of them. The history is linearizable exactly if
/// this order contradicts no two operations of which one returned before the other was called.
#[must_use]
pub fn appends_are_linearizable(register: &str, operations: &[Operation], last: &[u64]) -> Vec<String> {
    let mut found = Vec::new();
    let place = |value: u64| last.iter().position(|of| *of == value);
    for (at, value) in last.iter().enumerate() {
        if place(*value) != Some(at) {
            found.push(format!("{register}: {value} is there twice"));
        }
        let appended = |of: &&Operation| of.action == Action::Append(*value);
        match operations.iter().find(appended) {
            None => found.push(format!("{register}: {value} was never appended")),
            Some(Operation { fate: Fate::Failed(why), .. }) => {
                found.push(format!("{register}: {value} is there, but its append had failed: {why}"));
            }
            Some(_) => {}
        }
    }
    // Each operation with the number of values that were there when it was done; of the same number, reads come
    // after the append.
    let mut placed: Vec<(usize, &Operation)> = Vec::new();
    for operation in operations {
        match (&operation.action, &operation.fate) {
            (Action::Append(value), fate) => match (place(*value), fate) {
                (Some(at), _) => placed.push((at + 1, operation)),
                (None, Fate::Ok(_)) => {
                    found.push(format!("{register}: {value} was acknowledged, and is lost"));
                }
                (None, _) => {}
            },
            (Action::Read, Fate::Ok(seen)) => {
                if last.get(..seen.len()) == Some(seen) {
                    placed.push((seen.len(), operation));
                } else {
                    found.push(format!("{register}: a read saw {seen:?}, which is no beginning of {last:?}"));
                }
            }
            _ => {}
        }
    }
    // An append whose fate is unknown may have been done at any time after its call.
    let returned = |of: &Operation| match of.fate {
        Fate::Ok(_) => of.returned,
        _ => Duration::MAX,
    };
    let is_append = |of: &Operation| matches!(of.action, Action::Append(_));
    placed.sort_by_key(|(number, of)| (*number, !is_append(of)));
    // From the end: the earliest return of whatever comes later in the order.
    let mut earliest: Option<(Duration, &Operation)> = None;
    let mut level = Vec::new();
    let mut level_of = (usize::MAX, true);
    for (number, operation) in placed.into_iter().rev() {
        // Reads of the same values do not order one another.
        let here = (number, is_append(operation));
        if here != level_of {
            for (at, of) in level.drain(..) {
                if earliest.is_none_or(|(before, _)| at < before) {
                    earliest = Some((at, of));
                }
            }
            level_of = here;
        }
        if let Some((at, later)) = earliest
            && at < operation.called
        {
            found.push(format!(
                "{register}: {:?} of client {} returned before {:?} of client {} was called, but comes after it",
                later.action, later.client, operation.action, operation.client
            ));
        }
        level.push((returned(operation), operation));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(action: Action, called: u64, returned: u64, fate: Fate) -> Operation {
        let (called, returned) = (Duration::from_secs(called), Duration::from_secs(returned));
        Operation { client: 0, on: "r".into(), action, called, returned, fate }
    }

    fn append(value: u64, called: u64, returned: u64) -> Operation {
        operation(Action::Append(value), called, returned, Fate::Ok(vec![]))
    }

    fn read(seen: &[u64], called: u64, returned: u64) -> Operation {
        operation(Action::Read, called, returned, Fate::Ok(seen.to_vec()))
    }

    fn violations(operations: &[Operation], last: &[u64]) -> usize {
        appends_are_linearizable("r", operations, last).len()
    }

    #[test]
    fn good_histories_pass() {
        assert_eq!(violations(&[append(1, 0, 1), append(2, 2, 3), read(&[1, 2], 4, 5)], &[1, 2]), 0);
        // Concurrent with the second append, a read may miss it, whatever returns first.
        assert_eq!(violations(&[append(1, 0, 1), append(2, 2, 9), read(&[1], 4, 5)], &[1, 2]), 0);
        assert_eq!(violations(&[append(1, 0, 9), append(2, 0, 9)], &[2, 1]), 0);
        let unknown = operation(Action::Append(3), 0, 1, Fate::Unknown("timeout".into()));
        assert_eq!(violations(&[unknown.clone(), append(1, 2, 3)], &[1, 3]), 0);
        assert_eq!(violations(&[unknown, append(1, 2, 3)], &[1]), 0);
        assert_eq!(violations(&[read(&[1], 5, 6), append(1, 0, 1), read(&[1], 7, 8)], &[1]), 0);
    }

    #[test]
    fn each_kind_of_violation_is_found() {
        assert_eq!(violations(&[append(1, 0, 1)], &[]), 1, "lost");
        assert_eq!(violations(&[append(1, 0, 1)], &[1, 1]), 1, "doubled");
        assert_eq!(violations(&[], &[1]), 1, "out of nowhere");
        let failed = operation(Action::Append(1), 0, 1, Fate::Failed("no".into()));
        assert_eq!(violations(&[failed], &[1]), 1, "failed, and there");
        assert_eq!(violations(&[append(1, 0, 1), append(2, 2, 3)], &[2, 1]), 1, "against time");
        assert_eq!(violations(&[append(1, 0, 1), read(&[], 2, 3)], &[1]), 1, "a stale read");
        let back = [append(1, 0, 9), read(&[1], 1, 2), read(&[], 3, 4)];
        assert_eq!(violations(&back, &[1]), 1, "a read that goes back");
        assert_eq!(violations(&[append(1, 5, 6), read(&[1], 1, 2)], &[1]), 1, "a read of the future");
        let other = [append(1, 0, 9), append(2, 0, 9), read(&[2], 1, 2)];
        assert_eq!(violations(&other, &[1, 2]), 1, "not a beginning");
    }
}
