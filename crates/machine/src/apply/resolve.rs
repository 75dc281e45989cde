//! `ResolveStep`: what came of a step's work.

use alloc::vec::Vec;

use ids::{Dispatch, StepId, Timestamp};

use super::{Result, check_len, check_value, run::Run};
use crate::{
    Effect, Failure, FailureClass, NodeKind, Outcome, OutputRef, Pause, Refusal, Resolution, ResolveStep,
    StepDetail, StepRow, StepStatus, Tables, limits,
};

pub(super) fn resolve<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    resolve: &ResolveStep,
    effects: &mut Vec<Effect>,
) -> Result {
    let ResolveStep { session, step, dispatch, started_at, resolution, report } = resolve;
    let mut run = Run::load(tables, now, *session, effects)?;
    let row = run.step(*step).ok_or(Refusal::Stale { given: *dispatch, current: Dispatch(0) })?;
    let current = if row.status == StepStatus::Ready { row.dispatch } else { Dispatch(0) };
    if current != *dispatch {
        return Err(Refusal::Stale { given: *dispatch, current });
    }
    check(&run, *step, &row, resolution)?;

    let mut row = row;
    row.started_at = Some(*started_at);
    if let Some(report) = report {
        let total = &mut run.row.spent.usage;
        total.tokens_in = total.tokens_in.saturating_add(report.usage.tokens_in);
        total.tokens_out = total.tokens_out.saturating_add(report.usage.tokens_out);
        total.cost_microusd = total.cost_microusd.saturating_add(report.usage.cost_microusd);
    }
    match resolution {
        Resolution::Completed(output) => {
            run.complete(*step, row, OutputRef::None, Some(output.clone()), report.clone());
        }
        Resolution::Failed { failure, random, pause } => {
            run.attempt_failed(*step, row, failure.clone(), *random, *pause, report.clone());
        }
        Resolution::Skipped => run.skip(*step, row),
        Resolution::Entered => {
            run.settle(*step, &mut row);
            run.enter(*step, row);
        }
        Resolution::Chosen(case) => {
            let NodeKind::Branch { cases, otherwise } = run.node(*step).kind else {
                return Err(Refusal::WrongResolution);
            };
            let block = case.map_or(otherwise, |case| cases.get(usize::from(case)).map(|case| case.block));
            run.choose(*step, row, *case, block);
        }
        Resolution::Items(items) => {
            let NodeKind::Map { block, parallel, .. } = run.node(*step).kind else {
                return Err(Refusal::WrongResolution);
            };
            run.expand(*step, row, items, block, parallel);
        }
        Resolution::Again(again) => repeat(&mut run, *step, row, *again),
    }
    run.finish();
    Ok(Outcome::Done)
}

/// Refuses what does not fit the kind of step, before anything is written.
fn check<T: Tables>(
    run: &Run<'_, T>,
    step: StepId,
    row: &StepRow,
    resolution: &Resolution,
) -> core::result::Result<(), Refusal> {
    let node = run.definition.node(step.node);
    let first = row.detail == StepDetail::None;
    let fits = match (resolution, &node.kind) {
        (Resolution::Completed(_), NodeKind::Work | NodeKind::Task { .. })
        | (Resolution::Failed { .. }, _) => true,
        (Resolution::Skipped, _) => node.conditional && first,
        (Resolution::Entered, NodeKind::Fork { .. } | NodeKind::Wait(_) | NodeKind::Loop { .. }) => {
            node.conditional && first
        }
        (Resolution::Chosen(case), NodeKind::Branch { cases, .. }) => {
            case.is_none_or(|case| usize::from(case) < cases.len())
        }
        (Resolution::Items(_), NodeKind::Map { .. }) => true,
        (Resolution::Again(_), NodeKind::Loop { .. }) => !first,
        _ => false,
    };
    if !fits {
        return Err(Refusal::WrongResolution);
    }
    match resolution {
        Resolution::Completed(output) => check_value("output", output),
        Resolution::Items(items) => {
            check_len("items", items.len(), limits::MAP_ITEMS_MAX)?;
            check_len("items", items.iter().map(|item| item.len()).sum(), limits::VALUE_BYTES_MAX)
        }
        _ => Ok(()),
    }
}

fn repeat<T: Tables>(run: &mut Run<'_, T>, step: StepId, row: StepRow, again: bool) {
    let StepDetail::Iteration { iteration, scope, .. } = row.detail else { return };
    let NodeKind::Loop { block, iterations_max, fail_when_exhausted } = run.node(step).kind else { return };
    if !again || (iteration >= iterations_max && !fail_when_exhausted) {
        run.complete(step, row, OutputRef::Scope(scope), None, None);
    } else if iteration >= iterations_max {
        let message = alloc::format!("the condition did not hold after {iterations_max} iterations");
        let failure = Failure::new(FailureClass::Permanent, "loop_exhausted", message);
        run.attempt_failed(step, row, failure, 0, Pause::default(), None);
    } else {
        run.iterate(step, row, block, iteration + 1);
    }
}
