//! What a session went through, taken along: exported, imported, and forked at any of its events.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ids::{Seq, SessionId, ShardId, StepId};
use machine::{Command, Definition, EventData, History, Key, Outcome, Read as _, Row, limits};
use proto::record::{decode_history, encode_history};
use serde_json::{Value, json};

use super::{Result, Sessions, Started, WorkflowRef};
use crate::error::{self, ApiError};

/// The feature level at which sessions can be imported.
const SINCE_MACHINE_VERSION: u32 = 2;
/// The shape of what is exported.
pub(crate) const FORMAT: &str = "orchestra-history/1";

impl Sessions {
    /// What can be imported elsewhere.
    pub(crate) async fn export(&self, tenant: &str, id: SessionId) -> Result<Value> {
        let (history, definition) = self.history(tenant, id, None).await?;
        Ok(json!({
            "format": FORMAT,
            "session": id.to_string(),
            "workflow": definition.source,
            "history": STANDARD.encode(encode_history(&history)),
        }))
    }

    /// A session that goes on where an exported one was.
    pub(crate) async fn import(&self, tenant: &str, workflow: &str, history: &str) -> Result<Started> {
        let bytes = STANDARD.decode(history).map_err(|error| invalid(&format!("not base64: {error}")))?;
        let history = decode_history(&bytes).map_err(|error| invalid(&error.to_string()))?;
        let (_, definition) = self.definition(tenant, &WorkflowRef::Source(workflow.to_owned())).await?;
        let pinned = match history.events.first().map(|event| &event.data) {
            Some(EventData::SessionStarted { definition, .. }) => *definition,
            _ => return Err(invalid("it does not begin with a session's start")),
        };
        if pinned != definition.hash {
            let detail =
                format!("workflow: it is {}, and the session is pinned to {pinned}", definition.hash);
            return Err(ApiError::invalid(detail));
        }
        self.take_over(tenant, definition, history).await
    }

    /// A session that goes on where another one was after the event of number `at`, or where it is.
    pub(crate) async fn fork(&self, tenant: &str, id: SessionId, at: Option<Seq>) -> Result<Started> {
        let (history, definition) = self.history(tenant, id, at).await?;
        self.take_over(tenant, definition, history).await
    }

    /// What a session of the tenant went through, up to an event.
    async fn history(
        &self,
        tenant: &str,
        id: SessionId,
        until: Option<Seq>,
    ) -> Result<(History, Arc<Definition>)> {
        let group = self.group_of(id)?;
        self.read(group).await?;
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        if let Some(until) = until.filter(|until| *until >= row.next_seq) {
            let detail = format!("at: session {id} has events 0 to {}, not {}", row.next_seq.0 - 1, until.0);
            return Err(ApiError::invalid(detail));
        }
        if row.next_seq.0 > limits::IMPORT_EVENTS_MAX as u64 && until.is_none() {
            return Err(too_large(format!("{} events", row.next_seq.0)));
        }
        let rows =
            view.scan(&Key::Event(id, Seq(0)), &Key::Event(id, row.next_seq), limits::IMPORT_EVENTS_MAX + 1);
        let mut events: Vec<_> = rows
            .into_iter()
            .filter_map(|(_, row)| match row {
                Row::Event(event, _) => Some(event),
                _ => None,
            })
            .collect();
        // Before events are left out: the session's row knows what came of all.
        let limits = machine::limits_at_start(&row, &events);
        events.retain(|event| until.is_none_or(|until| event.seq <= until));
        let (from, to) =
            (Key::Item(id, StepId::default(), 0), Key::Item(id.successor(), StepId::default(), 0));
        let mut items: BTreeMap<StepId, Vec<Bytes>> = BTreeMap::new();
        for (key, row) in view.scan(&from, &to, usize::MAX) {
            if let (Key::Item(_, step, _), Row::Item(value)) = (key, row) {
                items.entry(step).or_default().push(value);
            }
        }
        view.check()?;
        Ok((History { origin: id, labels: row.labels, limits, events, items }, definition))
    }

    async fn take_over(
        &self,
        tenant: &str,
        definition: Arc<Definition>,
        mut history: History,
    ) -> Result<Started> {
        self.capacity.admit(&self.node)?;
        history.limits = self.capacity.at_most(history.limits);
        let identity = self.node.identity();
        let shard = ShardId(rand::random::<u16>() % identity.shards);
        let id = SessionId::mint(identity.region, shard, self.node.clock().wall(), rand::random());
        let group = self.group(shard)?;
        let history = Arc::new(history);
        let command = Command::ImportSession { session: id, tenant: tenant.to_owned(), history };
        let bytes = proto::record::command_len(&command);
        if bytes > limits::IMPORT_BYTES_MAX {
            return Err(too_large(format!("about {bytes} bytes")));
        }
        // The first command of a new shard brings the newest rules with it.
        self.propose(group, Command::PutDefinition(definition)).await?;
        if group.latest().shard().machine_version < SINCE_MACHINE_VERSION {
            return Err(ApiError::not_supported(
                "importing and forking sessions, before `orchestra cluster finalize`,",
            ));
        }
        let Outcome::Started { session, created } = self.propose(group, command).await? else {
            return Err(ApiError::new(error::INTERNAL, "an import had another outcome"));
        };
        let view = group.view();
        let row = view.session(session);
        let row =
            row.ok_or_else(|| ApiError::not_found(format!("session {session}: its retention is over")))?;
        let position = view.shard().position.0;
        view.check()?;
        Ok(Started { id: session, created, status: row.status, position })
    }
}

fn invalid(why: &str) -> ApiError {
    ApiError::invalid(format!("history: {why}"))
}

fn too_large(what: String) -> ApiError {
    let (events, bytes) = (limits::IMPORT_EVENTS_MAX, limits::IMPORT_BYTES_MAX);
    let detail =
        format!("the session has {what}; at most {events} events and {bytes} bytes can be taken along");
    ApiError::new(error::TOO_LARGE, detail)
}
