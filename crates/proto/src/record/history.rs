//! What a session went through.

use std::collections::BTreeMap;

use bytes::Bytes;
use ids::{Digest, StepId};
use machine::{History, event_digest};

use super::{
    common::{labels, limits, session, step, to_labels, to_limits, to_session, to_step},
    event, missing,
};
use crate::{envelope::Error, storage};

pub(super) fn encode(history: &History) -> storage::SessionHistory {
    let mut before = Digest::default();
    let events = history.events.iter().map(|of| {
        before = event_digest(before, of);
        event::encode(of, before)
    });
    storage::SessionHistory {
        origin: session(history.origin),
        labels: labels(&history.labels),
        limits: Some(limits(&history.limits)),
        events: events.collect(),
        items: history
            .items
            .iter()
            .map(|(of, items)| storage::session_history::Items {
                step: Some(step(*of)),
                items: items.clone(),
            })
            .collect(),
    }
}

pub(super) fn decode(history: storage::SessionHistory) -> Result<History, Error> {
    let events = history.events.into_iter().map(event::decode).collect::<Result<Vec<_>, _>>()?;
    machine::chain(Digest::default(), 0, events.iter().map(|(event, digest)| (event, digest)))
        .map_err(|place| Error::Body(format!("event {place} does not follow the one before it")))?;
    let items = history
        .items
        .into_iter()
        .map(|of| Ok((to_step(of.step.ok_or_else(|| missing("a step"))?)?, of.items)));
    Ok(History {
        origin: to_session(&history.origin)?,
        labels: to_labels(history.labels),
        limits: to_limits(history.limits),
        events: events.into_iter().map(|(event, _)| event).collect(),
        items: items.collect::<Result<BTreeMap<StepId, Vec<Bytes>>, Error>>()?,
    })
}
