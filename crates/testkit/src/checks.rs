//! Pure checkers over what a client saw of sessions. Each answers the violations it found, in words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

fn seq(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap_or(u64::MAX)
}

fn kind(event: &Value) -> &str {
    event["type"].as_str().unwrap_or_default()
}

fn step(event: &Value) -> String {
    event["step"].as_str().unwrap_or_default().to_owned()
}

/// C1: events are numbered without a gap, and their times do not go back.
#[must_use]
pub fn events_follow_one_another(id: &str, events: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for (place, event) in (0u64..).zip(events) {
        if seq(event) != place {
            found.push(format!("{id}: event {} where {place} belongs", seq(event)));
        }
    }
    for pair in events.windows(2) {
        if pair[1]["at"].as_str() < pair[0]["at"].as_str() {
            found.push(format!("{id}: time goes back at event {}", seq(&pair[1])));
        }
    }
    found
}

/// C6: no event has a time outside the run, in RFC 3339 with microseconds: a wrong clock of one node becomes nobody
/// else's.
#[must_use]
pub fn times_are_within(id: &str, events: &[Value], from: &str, to: &str) -> Vec<String> {
    let is_outside = |event: &&Value| event["at"].as_str().is_none_or(|at| at < from || at > to);
    let outside = events.iter().find(is_outside);
    let found = |event: &Value| {
        format!("{id}: event {} is of {}, and the run was from {from} to {to}", seq(event), event["at"])
    };
    outside.map(found).into_iter().collect()
}

/// C2: every step has one outcome, and no event of a step follows it.
#[must_use]
pub fn one_outcome_a_step(id: &str, events: &[Value]) -> Vec<String> {
    let mut ended = BTreeSet::new();
    let mut found = Vec::new();
    for event in events.iter().filter(|event| !step(event).is_empty()) {
        let ends = matches!(kind(event), "step_completed" | "step_skipped");
        let of = step(event);
        if ended.contains(&of) {
            found.push(format!("{id}: {of}: {} after its outcome", kind(event)));
        }
        if ends {
            ended.insert(of);
        }
    }
    found
}

/// C3: the dispatch of a step's outcomes and redispatches only rises.
#[must_use]
pub fn dispatches_rise(id: &str, events: &[Value]) -> Vec<String> {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        let Some(dispatch) = event["data"]["dispatch"].as_u64() else { continue };
        let before = last.insert(step(event), dispatch).unwrap_or(0);
        let rises = if kind(event) == "step_redispatched" { dispatch > before } else { dispatch >= before };
        if !rises {
            found.push(format!("{id}: {}: dispatch {dispatch} after {before}", step(event)));
        }
    }
    found
}

/// C5: a step that answers with the id of its task (`session/step/dispatch`) has the answer of the dispatch that
/// counts.
#[must_use]
pub fn outcomes_are_of_their_dispatch(id: &str, events: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for event in events.iter().filter(|event| kind(event) == "step_completed") {
        let Some(task) = event["data"]["output"].as_str().filter(|output| output.starts_with(id)) else {
            continue;
        };
        let (by, counts) = (task.rsplit('/').next().unwrap_or_default(), &event["data"]["dispatch"]);
        if counts.as_u64().map(|dispatch| dispatch.to_string()).as_deref() != Some(by) {
            found.push(format!("{id}: {}: the answer of dispatch {by} counts for {counts}", step(event)));
        }
    }
    found
}

/// C4: a session that has ended ended once, and last.
#[must_use]
pub fn ends_once(id: &str, events: &[Value]) -> Vec<String> {
    let ends =
        |event: &Value| matches!(kind(event), "session_completed" | "session_failed" | "session_canceled");
    let count = events.iter().filter(|event| ends(event)).count();
    let last_ends = events.last().is_some_and(ends);
    if count == 1 && last_ends {
        Vec::new()
    } else {
        vec![format!("{id}: {count} ends, the last event is one: {last_ends}")]
    }
}

/// How many calls of providers the events record, and how many pieces of work were sent out again.
#[must_use]
pub fn calls_and_redispatches(events: &[Value]) -> (u64, u64) {
    let mut counts = (0, 0);
    for event in events {
        match kind(event) {
            "step_redispatched" => counts.1 += 1,
            _ => {
                counts.0 += event["data"]["report"]["calls"].as_array().map_or(0, |calls| calls.len() as u64)
            }
        }
    }
    counts
}

/// Provider errors that the events record, by code.
#[must_use]
pub fn call_errors(events: &[Value]) -> BTreeMap<String, u64> {
    let mut errors = BTreeMap::new();
    for call in events.iter().filter_map(|event| event["data"]["report"]["calls"].as_array()).flatten() {
        if let Some(code) = call["error"]["code"].as_str() {
            *errors.entry(code.to_owned()).or_insert(0) += 1;
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(seq: u64, kind: &str, step: &str, dispatch: u64) -> Value {
        json!({"seq": seq, "at": format!("{seq:04}"), "type": kind, "step": step, "data": {"dispatch": dispatch}})
    }

    #[test]
    fn each_checker_finds_its_violation_and_nothing_in_a_good_history() {
        let good = [
            event(0, "step_redispatched", "a", 2),
            event(1, "step_completed", "a", 2),
            json!({"seq": 2, "at": "0002", "type": "session_completed", "data": {}}),
        ];
        let all = |events: &[Value]| {
            [
                events_follow_one_another("s", events),
                one_outcome_a_step("s", events),
                dispatches_rise("s", events),
                ends_once("s", events),
            ]
            .map(|found| found.len())
        };
        assert_eq!(all(&good), [0, 0, 0, 0]);
        let twice = [event(0, "step_completed", "a", 1), event(1, "step_completed", "a", 1), good[2].clone()];
        assert_eq!(all(&twice), [0, 1, 0, 0]);
        let stale =
            [event(0, "step_redispatched", "a", 3), event(1, "step_completed", "a", 2), good[2].clone()];
        assert_eq!(all(&stale), [0, 0, 1, 0]);
        let of = |by: &str| {
            let mut event = event(1, "step_completed", "a", 2);
            event["data"]["output"] = json!(format!("s/0.1/{by}"));
            outcomes_are_of_their_dispatch("s", &[event])
        };
        assert_eq!((of("2").len(), of("1").len()), (0, 1));
        let gap = [good[0].clone(), good[2].clone()];
        assert_eq!(all(&gap), [1, 0, 0, 0]);
        let within = |from: &str, to: &str| times_are_within("s", &good[2..], from, to).len();
        assert_eq!((within("0001", "0003"), within("0003", "0004"), within("0000", "0001")), (0, 1, 1));
        assert_eq!(all(&good[..2]), [0, 0, 0, 1]);
    }
}
