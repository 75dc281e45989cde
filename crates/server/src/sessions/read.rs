//! Reading sessions.

use engine::{Running, values::Values};
use ids::{Digest, Seq, SessionId, StepId};
use machine::{
    Definition, Event, EventData, Key, OutputRef, Read, Row, SessionStatus, StepRow, StepStatus, limits,
};
use serde_json::{Value, json};

use super::{
    EVENTS_PAGE_MAX, Events, Filter, Result, Sessions, pending,
    show::{event_json, failure_of, kind, summary, waits_for},
};
use crate::error::{self, ApiError};

/// Steps that one answer shows.
pub(super) const STEPS_MAX: usize = 1_000;
/// Sessions of one page.
const SESSIONS_PAGE_MAX: usize = 500;
/// Rows looked at for one page of a filtered list.
const LIST_ROWS_MAX: usize = 10_000;

/// Where a session stands in a list: by its age, the newest first.
type Place = (u64, SessionId);

/// What one shard has for a page.
struct Looked<T> {
    /// In order: one more than a page, or all that was looked at.
    found: Vec<(Place, T)>,
    /// The last row that was looked at, if there may be more.
    until: Option<Place>,
}

/// A page of what all shards have, and the place after which the next one begins, if there may be one.
fn page<T>(shards: Vec<Looked<T>>, limit: usize) -> (Vec<T>, Option<Place>) {
    // Where the first shard stopped that has more: what others have after that comes with a later page.
    let until = shards.iter().filter_map(|shard| shard.until).min();
    let mut found: Vec<(Place, T)> = shards.into_iter().flat_map(|shard| shard.found).collect();
    found.retain(|(place, _)| until.is_none_or(|until| *place <= until));
    found.sort_by_key(|(place, _)| *place);
    let mut next = until;
    if found.len() > limit {
        found.truncate(limit);
        next = found.last().map(|(place, _)| *place);
    }
    (found.into_iter().map(|(_, of)| of).collect(), next)
}

impl Sessions {
    /// A session with its steps and its output.
    pub(crate) async fn get(&self, tenant: &str, id: SessionId, stale: bool) -> Result<Value> {
        let group = self.group_of(id)?;
        if !stale {
            self.read(group).await?;
        }
        let running = self.running(id).await;
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let mut session = summary(id, &row);
        let unavailable = |error: engine::values::Error| json!({"unavailable": error.to_string()});
        session.insert("input".into(), values.input().unwrap_or_else(unavailable));
        let output = match row.status {
            SessionStatus::Completed => values.session_output().unwrap_or_else(unavailable),
            _ => Value::Null,
        };
        session.insert("output".into(), output);
        let (steps, more) = steps(&view, id, &definition, &running);
        session.insert("steps".into(), steps.into());
        session.insert("steps_truncated".into(), more.into());
        view.check()?;
        Ok(Value::Object(session))
    }

    /// The output of a session that has completed, and belongs to whoever asks.
    pub(crate) fn output(&self, id: SessionId) -> Result<Value> {
        // An ended session's rows change no more: there is no need for those of one moment, which are written first.
        let view = self.group_of(id)?.latest();
        let row = view.session(id).ok_or_else(|| ApiError::not_found(format!("session {id}")))?;
        let definition = view.definition(row.definition);
        let definition =
            definition.ok_or_else(|| ApiError::new(error::INTERNAL, "the definition is missing"))?;
        let output = Values::new(&view, id, &definition).session_output();
        view.check()?;
        output.map_err(|reason| ApiError::new(error::INTERNAL, format!("the output: {reason}")))
    }

    /// The tenant's sessions, newest first.
    pub(crate) async fn list(
        &self,
        tenant: &str,
        limit: usize,
        cursor: Option<&str>,
        filter: &Filter,
    ) -> Result<Value> {
        let limit = limit.clamp(1, SESSIONS_PAGE_MAX);
        let after = cursor.map(parse_cursor).transpose()?;
        // Without a filter, every row counts.
        let rows_max = if filter.is_empty() { limit + 2 } else { LIST_ROWS_MAX };
        let mut looked = Vec::new();
        for group in self.node.groups().values() {
            self.read(group).await?;
            let view = group.view();
            let (from_age, from_id) = after.unwrap_or_default();
            let from = Key::ByTenant(tenant.into(), from_age, from_id);
            let to = Key::ByTenant(format!("{tenant}\0"), 0, SessionId::default());
            let keys = view.scan(&from, &to, rows_max);
            let until = match keys.last() {
                Some((Key::ByTenant(_, age, id), _)) if keys.len() == rows_max => Some((*age, *id)),
                _ => None,
            };
            let mut found = Vec::new();
            for (key, _) in keys {
                let Key::ByTenant(_, age, id) = key else { continue };
                if after.is_some() && (age, id) <= (from_age, from_id) {
                    continue;
                }
                let Some(row) = view.session(id) else { continue };
                if filter.takes(&row) {
                    found.push(((age, id), Value::Object(summary(id, &row))));
                }
                if found.len() > limit {
                    break;
                }
            }
            view.check()?;
            looked.push(Looked { found, until });
        }
        let (sessions, next) = page(looked, limit);
        let next = next.map(|(age, id)| format!("{age}.{id}"));
        Ok(json!({"sessions": sessions, "next_cursor": next}))
    }

    /// Events from a number on.
    pub(crate) async fn events(
        &self,
        tenant: &str,
        id: SessionId,
        from: Seq,
        limit: usize,
        linearizable: bool,
    ) -> Result<Events> {
        let group = self.group_of(id)?;
        if linearizable {
            self.read(group).await?;
        }
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let to = Key::Event(id, row.next_seq);
        let rows = view.scan(&Key::Event(id, from), &to, limit.clamp(1, EVENTS_PAGE_MAX));
        let mut events = Vec::with_capacity(rows.len());
        let mut next = from;
        for (_, row) in rows {
            let Row::Event(event, digest) = row else { continue };
            next = Seq(event.seq.0 + 1);
            let path = event.step.map(|step| values.path(step));
            events.push(event_json(&event, digest, path));
        }
        view.check()?;
        Ok(Events { events, next, ended: row.status.is_ended() && next >= row.next_seq })
    }

    /// Checks the hash chain over a session's events.
    pub(crate) async fn audit(&self, tenant: &str, id: SessionId) -> Result<Value> {
        let group = self.group_of(id)?;
        self.read(group).await?;
        let view = group.view();
        let (row, _) = self.owned(&view, tenant, id)?;
        let (mut at, mut digest) = (0u64, Digest::default());
        let mut broken = None;
        while at < row.next_seq.0 && broken.is_none() {
            let rows = view.scan(&Key::Event(id, Seq(at)), &Key::Event(id, row.next_seq), 1_000);
            let events: Vec<_> = rows
                .iter()
                .filter_map(|(_, row)| match row {
                    Row::Event(event, digest) => Some((event, digest)),
                    _ => None,
                })
                .collect();
            match machine::chain(digest, at, events.iter().copied()) {
                Ok(last) if !events.is_empty() => {
                    digest = last;
                    at += events.len() as u64;
                }
                Ok(_) => broken = Some(at),
                Err(place) => broken = Some(at + place),
            }
        }
        if let Err(error) = view.check() {
            return Ok(json!({"id": id.to_string(), "intact": false, "events": at, "first_broken_seq": at,
                "reason": error.to_string()}));
        }
        let intact = broken.is_none() && digest == row.head;
        let first_broken = broken.or_else(|| (!intact).then_some(at));
        Ok(json!({"id": id.to_string(), "intact": intact, "events": at, "head": row.head.to_string(),
            "first_broken_seq": first_broken}))
    }

    /// Why a session is not moving.
    pub(crate) async fn describe(&self, tenant: &str, id: SessionId) -> Result<Value> {
        let group = self.group_of(id)?;
        self.read(group).await?;
        let running = self.running(id).await;
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let mut coming = Vec::new();
        for step in pending(&view, id) {
            let Some(step_row) = view.step(id, step) else { continue };
            let at_work = running.iter().find(|running| running.step == step);
            let waits_for = match step_row.status {
                StepStatus::Ready => match at_work.map(|of| (of.started_at, of.detail.as_str())) {
                    Some((None, detail)) if !detail.is_empty() => detail.to_owned(),
                    Some((Some(at), detail)) if !detail.is_empty() => format!("{detail}, since {at}"),
                    Some((Some(at), _)) => format!("its work, under way since {at}"),
                    Some((None, _)) => "its turn: the node is at its limit of work".to_owned(),
                    None => "the leader to start its work".to_owned(),
                },
                StepStatus::Backoff => {
                    format!(
                        "its next attempt, at {}",
                        step_row.timer.map(|at| at.to_string()).unwrap_or_default()
                    )
                }
                _ => waits_for(&definition, step, step_row.timer),
            };
            coming.push(json!({
                "step": values.path(step),
                "ref": step.to_string(),
                "status": step_row.status.name(),
                "attempt": step_row.attempt.0,
                "waits_for": waits_for,
                "last_error": step_row.failed.and_then(|seq| failure_of(&view, id, seq)),
            }));
        }
        let mut json = summary(id, &row);
        json.insert("coming".into(), coming.into());
        let breakers = self.router.status().into_iter().map(|provider| {
            json!({"provider": provider.name, "circuit": provider.breaker.name(), "in_flight": provider.in_flight})
        });
        json.insert("providers".into(), breakers.collect::<Vec<_>>().into());
        json.insert("writes_stopped".into(), self.status().writes_stopped.into());
        view.check()?;
        Ok(Value::Object(json))
    }
}

fn steps(
    view: &impl Read,
    id: SessionId,
    definition: &Definition,
    running: &[Running],
) -> (Vec<Value>, bool) {
    let values = Values::new(view, id, definition);
    let from = Key::Step(id, StepId::default());
    let to = Key::Step(id.successor(), StepId::default());
    let rows = view.scan(&from, &to, STEPS_MAX + 1);
    let more = rows.len() > STEPS_MAX;
    let steps = rows.into_iter().take(STEPS_MAX).filter_map(|(key, row)| match (key, row) {
        (Key::Step(_, step), Row::Step(row)) => {
            Some(step_json(view, &values, id, definition, running, step, &row))
        }
        _ => None,
    });
    (steps.collect(), more)
}

fn step_json<R: Read>(
    view: &R,
    values: &Values<'_, R>,
    id: SessionId,
    definition: &Definition,
    running: &[Running],
    step: StepId,
    row: &StepRow,
) -> Value {
    let at_work = running.iter().find(|running| running.step == step && running.dispatch == row.dispatch);
    let started_at = row.started_at.or_else(|| at_work.and_then(|running| running.started_at));
    let before = definition.nodes.get(usize::from(step.node)).map(|node| node.after.as_slice());
    let before = before.unwrap_or_default().iter().map(|node| values.path(StepId::new(step.scope, *node)));
    let parent = view.scope(id, step.scope).and_then(|scope| scope.parent);
    let mut json = json!({
        "id": values.path(step),
        "ref": step.to_string(),
        "after": before.collect::<Vec<_>>(),
        "inside": parent.map(|parent| values.path(parent)),
        "kind": kind(definition, step),
        "status": row.status.name(),
        "attempt": row.attempt.0,
        "dispatch": row.dispatch.0,
        "ready_at": row.ready_at.to_string(),
        "started_at": started_at.map(|at| at.to_string()),
        "ended_at": row.ended_at.map(|at| at.to_string()),
    });
    if let OutputRef::Event(seq) = row.output
        && let Some(Event { data: EventData::StepCompleted { report: Some(report), .. }, .. }) =
            view.event(id, seq)
    {
        json["provider"] = report.provider.into();
        json["model"] = report.model.into();
        json["usage"] = json!({"tokens_in": report.usage.tokens_in, "tokens_out": report.usage.tokens_out});
        json["cost_microusd"] = report.usage.cost_microusd.into();
        json["simulated"] = report.simulated.into();
    }
    if let Some(failure) = row.failed.and_then(|seq| failure_of(view, id, seq)) {
        json["error"] = failure;
    }
    json
}

fn parse_cursor(cursor: &str) -> Result<(u64, SessionId)> {
    let parsed = cursor.split_once('.').and_then(|(age, id)| Some((age.parse().ok()?, id.parse().ok()?)));
    parsed.ok_or_else(|| ApiError::invalid("cursor: expected a `next_cursor` of an earlier answer"))
}

const _: () = assert!(STEPS_MAX <= limits::NODES_MAX, "an answer shows a part of the largest session");

#[cfg(test)]
mod tests {
    use ids::{RegionId, ShardId};

    use super::*;

    /// Every third session is wanted; a shard looks at five rows a page.
    #[test]
    fn pages_of_a_rare_status_hold_every_session_once() {
        let rows: Vec<(u64, Place)> = (0..200u64)
            .map(|number| {
                let shard = u16::try_from(number * number % 3).unwrap_or(0);
                (number, (number / 4, SessionId::new(RegionId(0), ShardId(shard), number.into())))
            })
            .collect();
        let wanted = |number: &u64| number % 17 == 3 || (100..110).contains(number);
        for limit in [1, 3, 50] {
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let shard = |shard: u16| {
                    let of_shard = rows.iter().filter(|(_, place)| place.1.shard() == ShardId(shard));
                    let looked: Vec<_> = of_shard
                        .filter(|(_, place)| after.is_none_or(|after| *place > after))
                        .take(5)
                        .collect();
                    let until = (looked.len() == 5).then(|| looked.last().map(|(_, place)| *place)).flatten();
                    let found = looked.into_iter().filter(|(number, _)| wanted(number));
                    Looked {
                        found: found.map(|(number, place)| (*place, *number)).take(limit + 1).collect(),
                        until,
                    }
                };
                let (found, next) = page((0..3).map(shard).collect(), limit);
                assert!(found.len() <= limit);
                listed.extend(found);
                let Some(next) = next else { break };
                assert!(after.is_none_or(|after| next > after), "no page ends where it began");
                after = Some(next);
            }
            let mut all: Vec<u64> = rows.iter().map(|(number, _)| *number).filter(wanted).collect();
            listed.sort_unstable();
            all.sort_unstable();
            assert_eq!(listed, all, "pages of {limit}");
        }
    }
}
