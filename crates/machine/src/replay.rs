//! A session made again of its events.
//!
//! Events are what commands came to, so each tells the command that it came from; the machine is deterministic, so the
//! same commands in the same order make the same events. Whatever differs is found, event by event: what is made again
//! is what was, or is refused.

use alloc::{collections::BTreeMap, sync::Arc, vec, vec::Vec};

use ids::{Seq, SessionId, StepId, Timestamp};

use crate::{
    Approval, Command, Decision, Definition, Event, EventData, Failure, Input, Key, MemoryTables, NodeKind,
    Outcome, Pause, Read as _, Resolution, ResolveStep, Row, SessionLimits, SessionRow, StartSession,
    StepDetail, StepRow, StepStatus, Tables as _, TimerKind, Value, Wait, apply,
    apply::{end_pause, fire_one, mark_imported},
};

/// The machine did not come to the event of this number again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diverged(pub Seq);

/// The rows of a session after its events, and after what the command of the last one did besides.
///
/// `start` is the command that it began with, under the id that its rows are to have; `items` are the lists of its
/// maps, which events do not hold. Takes as long as the session's commands took the shard.
///
/// # Errors
///
/// The events are not of a session that began so, or not all from its first on.
pub fn replay(
    definition: &Arc<Definition>,
    start: StartSession,
    events: &[Event],
    items: &BTreeMap<StepId, Vec<Value>>,
) -> Result<MemoryTables, Diverged> {
    let limits = definition.limits.tightened(&start.limits);
    let mut replay = Replay { id: start.session, limits, definition, items, tables: MemoryTables::default() };
    replay.tables.put(Key::Definition(definition.hash), Row::Definition(Arc::clone(definition)));
    let first = events.first().ok_or(Diverged(Seq(0)))?;
    replay.apply(first.at, Command::StartSession(start)).ok_or(Diverged(Seq(0)))?;
    let mut made = replay.compare(events, 0)?;
    while made < events.len() {
        let event = &events[made];
        let diverged = Diverged(event.seq);
        replay.bring_about(event, &events[made + 1..]).ok_or(diverged)?;
        let now = replay.compare(events, made)?;
        if now == made {
            return Err(diverged);
        }
        made = now;
    }
    Ok(replay.tables)
}

/// What a session might spend when it began: its time began again with every retry, and its row has what came of that.
#[must_use]
pub fn limits_at_start(row: &SessionRow, events: &[Event]) -> SessionLimits {
    let (mut limits, mut ended) = (row.limits, false);
    for event in events {
        match event.data {
            // It began anew.
            EventData::SessionImported { .. } if !ended => limits = row.limits,
            EventData::SessionRetried if limits.duration_ms > 0 => {
                let spent = event.at.since(row.created_at).as_millis();
                limits.duration_ms = limits.duration_ms.saturating_sub(u64::try_from(spent).unwrap_or(0));
            }
            _ => {}
        }
        ended = event.data.ends_session() || (ended && event.data != EventData::SessionRetried);
    }
    limits
}

struct Replay<'a> {
    id: SessionId,
    /// What it might spend when it began.
    limits: SessionLimits,
    definition: &'a Definition,
    items: &'a BTreeMap<StepId, Vec<Value>>,
    tables: MemoryTables,
}

impl Replay<'_> {
    fn apply(&mut self, now: Timestamp, command: Command) -> Option<()> {
        let output = apply(&mut self.tables, &Input { now, command });
        (!matches!(output.outcome, Outcome::Refused(_))).then_some(())
    }

    /// Compares what was made since with what is to be there; how many events there are now.
    fn compare(&self, events: &[Event], from: usize) -> Result<usize, Diverged> {
        let row = self.tables.session(self.id).ok_or(Diverged(Seq(0)))?;
        let made = usize::try_from(row.next_seq.0).unwrap_or(usize::MAX);
        for event in events.iter().take(made).skip(from) {
            if self.tables.event(self.id, event.seq).as_ref() != Some(event) {
                return Err(Diverged(event.seq));
            }
        }
        Ok(made)
    }

    /// Does what an event came from. What is a consequence of an earlier one came from nothing of its own.
    fn bring_about(&mut self, event: &Event, later: &[Event]) -> Option<()> {
        let (session, now) = (self.id, event.at);
        let command = match &event.data {
            EventData::SignalReceived { name, payload, id } => {
                Command::Signal { session, name: name.clone(), payload: payload.clone(), id: *id }
            }
            EventData::ApprovalDecided { decision, value, reason, by } => {
                let decision = match (decision.as_str(), value) {
                    ("approve", None) => Decision::Approve,
                    ("edit", Some(value)) => Decision::Edit(value.clone()),
                    ("reject", None) => Decision::Reject { reason: reason.clone() },
                    _ => return None,
                };
                Command::Approve {
                    session,
                    step: event.step,
                    approval: Approval { decision, by: by.clone() },
                }
            }
            EventData::SessionCanceled { reason } => Command::Cancel { session, reason: reason.clone() },
            EventData::SessionRetried => Command::Retry { session },
            EventData::SessionImported { origin, events } => {
                let (from, effects) = ((*origin, *events), &mut Vec::new());
                return mark_imported(&mut self.tables, now, session, from, &self.limits, effects).ok();
            }
            // Its time is up.
            EventData::SessionFailed { .. } if event.step.is_none() => {
                fire_one(&mut self.tables, now, session, TimerKind::Deadline, &mut Vec::new());
                return Some(());
            }
            data => return self.bring_about_step(event, event.step?, data, later),
        };
        self.apply(now, command)
    }

    fn bring_about_step(
        &mut self,
        event: &Event,
        step: StepId,
        data: &EventData,
        later: &[Event],
    ) -> Option<()> {
        let (session, now, effects) = (self.id, event.at, &mut Vec::new());
        let status = self.row(step)?.status;
        // A wait that ended by itself, or a limit that was reached when the next attempt was due.
        if status == StepStatus::Waiting
            || (status == StepStatus::Backoff && matches!(data, EventData::SessionFailed { .. }))
        {
            fire_one(&mut self.tables, now, session, TimerKind::Step(step), effects);
            return Some(());
        }
        // That a pause was over is in no event.
        end_pause(&mut self.tables, now, (session, step), effects);
        let row = self.row(step)?;
        if let EventData::StepRedispatched { .. } = data {
            return self.apply(now, Command::Redispatch(vec![(session, step)]));
        }
        let resolve = self.resolve(event, later, &row, self.resolution(event, &row)?)?;
        self.apply(now, resolve)
    }

    fn row(&self, step: StepId) -> Option<StepRow> {
        self.tables.step(self.id, step)
    }

    fn resolve(
        &self,
        event: &Event,
        later: &[Event],
        row: &StepRow,
        resolution: Resolution,
    ) -> Option<Command> {
        let (started_at, report) = match &event.data {
            EventData::StepCompleted { started_at, report, .. }
            | EventData::StepFailed { started_at, report, .. } => (*started_at, report.clone()),
            // When its work began is in the event of its end.
            _ => {
                let ended =
                    later.iter().filter(|next| next.step == event.step).find_map(|next| match next.data {
                        EventData::StepCompleted { started_at, .. } => Some(started_at),
                        _ => None,
                    });
                (ended.unwrap_or(event.at), None)
            }
        };
        let (session, step, dispatch) = (self.id, event.step?, row.dispatch);
        Some(Command::ResolveStep(ResolveStep { session, step, dispatch, started_at, resolution, report }))
    }

    fn resolution(&self, event: &Event, row: &StepRow) -> Option<Resolution> {
        let kind = &self.definition.node(event.step?.node).kind;
        Some(match &event.data {
            EventData::StepCompleted { output: Some(output), .. } => Resolution::Completed(output.clone()),
            EventData::StepCompleted { output: None, .. } => match kind {
                NodeKind::Loop { .. } => Resolution::Again(false),
                // The signal was there before the step.
                NodeKind::Wait(Wait::Signal { .. }) => Resolution::Entered,
                _ => return None,
            },
            EventData::StepFailed { failure, retry_at, .. } => {
                self.failed(event, row, failure, *retry_at, false)?
            }
            EventData::StepDeferred { failure, until, .. } => {
                self.failed(event, row, failure, Some(*until), true)?
            }
            EventData::StepSkipped => Resolution::Skipped,
            EventData::Forked | EventData::WaitStarted { .. } => Resolution::Entered,
            // That of a loop that reached the session's limit of iterations has failed the session.
            EventData::IterationStarted { .. } | EventData::SessionFailed { .. } => {
                if !matches!(kind, NodeKind::Loop { .. }) {
                    return None;
                }
                if row.detail == StepDetail::None { Resolution::Entered } else { Resolution::Again(true) }
            }
            EventData::BranchChosen { case } => Resolution::Chosen(*case),
            EventData::MapExpanded { .. } => {
                Resolution::Items(self.items.get(&event.step?).cloned().unwrap_or_default())
            }
            _ => return None,
        })
    }

    fn failed(
        &self,
        event: &Event,
        row: &StepRow,
        failure: &Failure,
        next_at: Option<Timestamp>,
        untried: bool,
    ) -> Option<Resolution> {
        let wait_ms = next_at.map(|at| at.since(event.at).as_millis());
        let wait_ms = wait_ms.map_or(Some(0), |ms| u32::try_from(ms).ok())?;
        let retry = &self.definition.node(event.step?.node).retry;
        // The number that was drawn, or else, for one that was told to wait, the one that waits the least.
        let drawn = (0..=1000).find(|n| retry.delay_ms(row.attempt.0, *n) == u64::from(wait_ms));
        let (failure, random) = (failure.clone(), drawn.unwrap_or(0));
        Some(Resolution::Failed { failure, random, pause: Pause { wait_ms, untried } })
    }
}
