//! Sessions as JSON.

use bytes::Bytes;
use ids::{Digest, Seq, SessionId, StepId, Timestamp};
use machine::{Definition, Durability, Event, EventData, NodeKind, Read, SessionRow, Wait, WorkflowRow};
use serde_json::{Map, Value, json};

pub(super) fn waits_for(definition: &Definition, step: StepId, until: Option<Timestamp>) -> String {
    let what = match definition.nodes.get(usize::from(step.node)).map(|node| &node.kind) {
        Some(NodeKind::Wait(Wait::Signal { name, .. })) => format!("signal `{name}`"),
        Some(NodeKind::Wait(Wait::Approval { .. })) => "an approval".to_owned(),
        _ => "its timer".to_owned(),
    };
    until.map_or_else(|| what.clone(), |until| format!("{what}, until {until}"))
}

pub(super) fn failure_of(view: &impl Read, id: SessionId, seq: Seq) -> Option<Value> {
    match view.event(id, seq)?.data {
        EventData::StepFailed { failure, .. } | EventData::StepDeferred { failure, .. } => {
            Some(failure_json(&failure))
        }
        _ => None,
    }
}

pub(super) fn kind(definition: &Definition, step: StepId) -> &'static str {
    let Some(node) = definition.nodes.get(usize::from(step.node)) else { return "unknown" };
    match &node.kind {
        NodeKind::Work if node.spec.contains("\"agent\"") => "agent",
        NodeKind::Work => "value",
        NodeKind::Task { .. } => "task",
        NodeKind::Branch { .. } => "branch",
        NodeKind::Fork { .. } => "fork",
        NodeKind::Map { .. } => "map",
        NodeKind::Loop { .. } => "loop",
        NodeKind::Wait(_) => "wait",
    }
}

pub(super) fn workflow_json(name: &str, row: &WorkflowRow) -> Value {
    json!({"name": name, "definition": row.definition.to_string(), "version": row.version,
        "applied_at": row.applied_at.to_string()})
}

pub(super) fn summary(id: SessionId, row: &SessionRow) -> Map<String, Value> {
    let usage = &row.spent.usage;
    let labels: Map<String, Value> =
        row.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let json = json!({
        "id": id.to_string(),
        "status": row.status.name(),
        "workflow": row.workflow,
        "definition": row.definition.to_string(),
        "durability": match row.durability { Durability::Local => "local", Durability::Geo => "geo" },
        "created_at": row.created_at.to_string(),
        "updated_at": row.updated_at.to_string(),
        "ended_at": row.ended_at.map(|at| at.to_string()),
        "labels": labels,
        "events": row.next_seq.0,
        "usage": {"steps": row.spent.steps, "tokens_in": usage.tokens_in, "tokens_out": usage.tokens_out,
            "cost_microusd": usage.cost_microusd},
        "error": row.error.as_ref().map(|error| failure_json(&error.failure)),
    });
    match json {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

pub(super) fn failure_json(failure: &machine::Failure) -> Value {
    let class = match failure.class {
        machine::FailureClass::Transient => "transient",
        machine::FailureClass::Permanent => "permanent",
        machine::FailureClass::Limit => "limit",
    };
    json!({"class": class, "code": failure.code, "message": failure.message})
}

pub(super) fn report_json(report: &machine::Report) -> Value {
    let calls: Vec<Value> = report
        .calls
        .iter()
        .map(|call| {
            json!({"provider": call.provider, "model": call.model, "latency_ms": call.latency_ms,
                "error": call.failure.as_ref().map(failure_json)})
        })
        .collect();
    json!({"provider": report.provider, "model": report.model, "simulated": report.simulated,
        "tokens_in": report.usage.tokens_in, "tokens_out": report.usage.tokens_out,
        "cost_microusd": report.usage.cost_microusd, "calls": calls})
}

pub(super) fn event_json(event: &Event, digest: Digest, path: Option<String>) -> Value {
    let parsed = |value: &Bytes| serde_json::from_slice::<Value>(value).unwrap_or(Value::Null);
    let data = match &event.data {
        EventData::SessionStarted { tenant, workflow, definition, input } => json!({"tenant": tenant,
            "workflow": workflow, "definition": definition.to_string(), "input": parsed(input)}),
        EventData::StepCompleted { attempt, dispatch, started_at, output, report } => json!({
            "attempt": attempt.0, "dispatch": dispatch.0, "started_at": started_at.to_string(),
            "output": output.as_ref().map(parsed), "report": report.as_ref().map(report_json)}),
        EventData::StepFailed { attempt, dispatch, started_at, failure, report, retry_at } => json!({
            "attempt": attempt.0, "dispatch": dispatch.0, "started_at": started_at.to_string(),
            "error": failure_json(failure), "report": report.as_ref().map(report_json),
            "retry_at": retry_at.map(|at| at.to_string())}),
        EventData::StepDeferred { attempt, dispatch, failure, until } => json!({"attempt": attempt.0,
            "dispatch": dispatch.0, "error": failure_json(failure), "until": until.to_string()}),
        EventData::BranchChosen { case } => json!({"case": case}),
        EventData::MapExpanded { count } => json!({"count": count}),
        EventData::IterationStarted { iteration } => json!({"iteration": iteration}),
        EventData::RecoveryStarted { recovery } => json!({"recovery": recovery}),
        EventData::ItemFailed { index } => json!({"index": index}),
        EventData::WaitStarted { until } => json!({"until": until.map(|at| at.to_string())}),
        EventData::SignalReceived { name, payload, .. } => json!({"name": name, "payload": parsed(payload)}),
        EventData::ApprovalDecided { decision, value, reason, by } => {
            json!({"decision": decision, "value": value.as_ref().map(parsed), "reason": reason, "by": by})
        }
        EventData::StepRedispatched { dispatch } => json!({"dispatch": dispatch.0}),
        EventData::SessionCompleted { usage } => json!({"tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out, "cost_microusd": usage.cost_microusd}),
        EventData::SessionFailed { failure } => json!({"error": failure_json(failure)}),
        EventData::SessionCanceled { reason } => json!({"reason": reason}),
        EventData::SessionImported { origin, events } => {
            json!({"origin": origin.to_string(), "events": events})
        }
        EventData::StepSkipped | EventData::Forked | EventData::SessionRetried => json!({}),
    };
    json!({"seq": event.seq.0, "at": event.at.to_string(), "type": event.data.kind(), "step": path, "data": data,
        "hash": digest.to_string()})
}
