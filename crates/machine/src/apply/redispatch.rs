//! `Redispatch`: a new leader raises the fence of work that may have been lost, before it sends the work out again.

use alloc::vec::Vec;

use ids::{Dispatch, SessionId, StepId, Timestamp};

use super::{Result, check_len, run::Run};
use crate::{Effect, EventData, Outcome, StepStatus, Tables, limits};

pub(super) fn redispatch<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    steps: &[(SessionId, StepId)],
    effects: &mut Vec<Effect>,
) -> Result {
    check_len("steps", steps.len(), limits::REDISPATCH_PER_COMMAND)?;
    for &(session, step) in steps {
        // A step that ended in the meantime needs no work.
        let Ok(mut run) = Run::load(tables, now, session, effects) else { continue };
        let Some(mut row) = run.step(step).filter(|row| row.status == StepStatus::Ready) else { continue };
        row.dispatch = Dispatch(row.dispatch.0 + 1);
        run.event(Some(step), EventData::StepRedispatched { dispatch: row.dispatch });
        run.row.active -= 1; // It is counted again by `send_out`.
        run.send_out(step, row);
        run.finish();
    }
    Ok(Outcome::Done)
}
