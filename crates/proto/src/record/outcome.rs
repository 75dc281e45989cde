//! Outcomes.

use ids::{Dispatch, Position, Seq};
use machine::{Outcome, Refusal};

use super::{
    common::{digest, session, to_digest, to_session},
    missing,
};
use crate::{
    envelope::Error,
    storage::{self, Empty, outcome::Kind, refusal},
};

pub(super) fn encode(outcome: &Outcome) -> storage::Outcome {
    let kind = match outcome {
        Outcome::Done => Kind::Done(Empty {}),
        Outcome::Started { session: id, created } => {
            Kind::Started(storage::Started { session: session(*id), created: *created })
        }
        Outcome::Fired { more } => Kind::Fired(*more),
        Outcome::Refused(refusal) => Kind::Refused(encode_refusal(refusal)),
    };
    storage::Outcome { kind: Some(kind) }
}

fn encode_refusal(refusal: &Refusal) -> storage::Refusal {
    use refusal::Kind;
    let kind = match refusal {
        Refusal::UnknownSession(id) => Kind::UnknownSession(session(*id)),
        Refusal::UnknownDefinition(hash) => Kind::UnknownDefinition(digest(*hash)),
        Refusal::InvalidDefinition => Kind::InvalidDefinition(Empty {}),
        Refusal::KeyReused(id) => Kind::KeyReused(session(*id)),
        Refusal::IdReused(id) => Kind::IdReused(session(*id)),
        Refusal::Stale { given, current } => {
            Kind::Stale(refusal::Fences { given: given.0, current: current.0 })
        }
        Refusal::WrongResolution => Kind::WrongResolution(Empty {}),
        Refusal::WrongPosition { given, expected } => {
            Kind::WrongPosition(refusal::Positions { given: given.0, expected: expected.0 })
        }
        Refusal::Ended(id) => Kind::Ended(session(*id)),
        Refusal::NotFailed(id) => Kind::NotFailed(session(*id)),
        Refusal::NotAwaitingApproval { waiting } => Kind::NotAwaitingApproval(*waiting),
        Refusal::TooLarge { what, limit } => {
            Kind::TooLarge(refusal::Limit { what: what.clone(), limit: *limit })
        }
        Refusal::SignalsFull => Kind::SignalsFull(Empty {}),
        Refusal::NotReplayable(seq) => Kind::NotReplayable(seq.0),
    };
    storage::Refusal { kind: Some(kind) }
}

pub(super) fn decode(outcome: storage::Outcome) -> Result<Outcome, Error> {
    Ok(match outcome.kind.ok_or_else(|| missing("an outcome"))? {
        Kind::Done(_) => Outcome::Done,
        Kind::Started(started) => {
            Outcome::Started { session: to_session(&started.session)?, created: started.created }
        }
        Kind::Fired(more) => Outcome::Fired { more },
        Kind::Refused(refusal) => Outcome::Refused(decode_refusal(refusal)?),
    })
}

fn decode_refusal(refusal: storage::Refusal) -> Result<Refusal, Error> {
    use refusal::Kind;
    Ok(match refusal.kind.ok_or_else(|| missing("a refusal"))? {
        Kind::UnknownSession(id) => Refusal::UnknownSession(to_session(&id)?),
        Kind::UnknownDefinition(hash) => Refusal::UnknownDefinition(to_digest(&hash)?),
        Kind::InvalidDefinition(_) => Refusal::InvalidDefinition,
        Kind::KeyReused(id) => Refusal::KeyReused(to_session(&id)?),
        Kind::IdReused(id) => Refusal::IdReused(to_session(&id)?),
        Kind::Stale(fences) => {
            Refusal::Stale { given: Dispatch(fences.given), current: Dispatch(fences.current) }
        }
        Kind::WrongResolution(_) => Refusal::WrongResolution,
        Kind::WrongPosition(positions) => Refusal::WrongPosition {
            given: Position(positions.given),
            expected: Position(positions.expected),
        },
        Kind::Ended(id) => Refusal::Ended(to_session(&id)?),
        Kind::NotFailed(id) => Refusal::NotFailed(to_session(&id)?),
        Kind::NotAwaitingApproval(waiting) => Refusal::NotAwaitingApproval { waiting },
        Kind::TooLarge(limit) => Refusal::TooLarge { what: limit.what, limit: limit.limit },
        Kind::SignalsFull(_) => Refusal::SignalsFull,
        Kind::NotReplayable(seq) => Refusal::NotReplayable(Seq(seq)),
    })
}

#[cfg(test)]
mod tests {
    use ids::{Digest, RegionId, SessionId, ShardId};

    use super::*;

    #[test]
    fn every_outcome_comes_back_as_it_was() {
        let id = SessionId::new(RegionId(1), ShardId(2), 3);
        let refusals = [
            Refusal::UnknownSession(id),
            Refusal::UnknownDefinition(Digest([7; 32])),
            Refusal::InvalidDefinition,
            Refusal::KeyReused(id),
            Refusal::IdReused(id),
            Refusal::Stale { given: Dispatch(1), current: Dispatch(0) },
            Refusal::WrongResolution,
            Refusal::WrongPosition { given: Position(9), expected: Position(8) },
            Refusal::Ended(id),
            Refusal::NotFailed(id),
            Refusal::NotAwaitingApproval { waiting: 2 },
            Refusal::TooLarge { what: "input".into(), limit: 5 },
            Refusal::SignalsFull,
            Refusal::NotReplayable(Seq(8)),
        ];
        let others =
            [Outcome::Done, Outcome::Started { session: id, created: true }, Outcome::Fired { more: true }];
        for outcome in refusals.map(Outcome::Refused).into_iter().chain(others) {
            assert_eq!(decode(encode(&outcome)).unwrap(), outcome);
        }
    }
}
