//! openraft's requests and answers as messages, and back.

use std::io;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use proto::peer;

use crate::raft::{
    Entry, Types,
    records::{invalid, log_id, open_entry, seal_entry, to_log_id, to_vote, vote},
};

pub(crate) fn append_request(of: AppendEntriesRequest<Types>) -> peer::AppendRequest {
    peer::AppendRequest {
        vote: Some(vote(&of.vote)),
        previous: of.prev_log_id.as_ref().map(log_id),
        entries: of.entries.iter().map(seal_entry).collect(),
        committed: of.leader_commit.as_ref().map(log_id),
    }
}

pub(crate) fn to_append_request(of: peer::AppendRequest) -> io::Result<AppendEntriesRequest<Types>> {
    let prev_log_id = of.previous.map(to_log_id);
    let entries: Vec<Entry> = of.entries.iter().map(open_entry).collect::<io::Result<_>>()?;
    // Raft takes it for granted. A hole in the log would be applied as if nothing had been in it.
    for (entry, index) in entries.iter().zip(prev_log_id.map_or(0, |previous| previous.index() + 1)..) {
        if entry.log_id.index() != index {
            let problem = format!("entry {} came where {index} was due", entry.log_id.index());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
    }
    Ok(AppendEntriesRequest {
        vote: required("a vote", of.vote.map(to_vote))?,
        prev_log_id,
        entries,
        leader_commit: of.committed.map(to_log_id),
    })
}

pub(crate) fn heartbeat(of: &AppendEntriesRequest<Types>) -> peer::Heartbeat {
    peer::Heartbeat {
        vote: Some(vote(&of.vote)),
        previous: of.prev_log_id.as_ref().map(log_id),
        committed: of.leader_commit.as_ref().map(log_id),
    }
}

pub(crate) fn to_heartbeat(of: peer::Heartbeat) -> io::Result<AppendEntriesRequest<Types>> {
    Ok(AppendEntriesRequest {
        vote: required("a vote", of.vote.map(to_vote))?,
        prev_log_id: of.previous.map(to_log_id),
        entries: Vec::new(),
        leader_commit: of.committed.map(to_log_id),
    })
}

pub(crate) fn append_response(of: &StreamAppendResult<Types>) -> peer::AppendResponse {
    use peer::append_response::Result as Message;
    let result = match of {
        Ok(last) => Message::Ok(peer::Flushed { last: last.as_ref().map(log_id) }),
        Err(StreamAppendError::Conflict(at)) => Message::Conflict(log_id(at)),
        Err(StreamAppendError::HigherVote(higher)) => Message::HigherVote(vote(higher)),
    };
    peer::AppendResponse { result: Some(result) }
}

/// What came of a heartbeat, whose `previous` a conflict is about.
pub(crate) fn heartbeat_response(
    of: AppendEntriesResponse<Types>,
    request: &AppendEntriesRequest<Types>,
) -> peer::AppendResponse {
    let result = match (of, request.prev_log_id) {
        (AppendEntriesResponse::Success, last) => Ok(last),
        (AppendEntriesResponse::PartialSuccess(last), _) => Ok(last),
        (AppendEntriesResponse::Conflict, Some(at)) => Err(StreamAppendError::Conflict(at)),
        // Nothing is before the beginning, so nothing conflicts with it.
        (AppendEntriesResponse::Conflict, None) => Ok(None),
        (AppendEntriesResponse::HigherVote(higher), _) => Err(StreamAppendError::HigherVote(higher)),
    };
    append_response(&result)
}

pub(crate) fn to_append_response(of: peer::AppendResponse) -> io::Result<StreamAppendResult<Types>> {
    use peer::append_response::Result as Message;
    Ok(match required("a result", of.result)? {
        Message::Ok(flushed) => Ok(flushed.last.map(to_log_id)),
        Message::Conflict(at) => Err(StreamAppendError::Conflict(to_log_id(at))),
        Message::HigherVote(higher) => Err(StreamAppendError::HigherVote(to_vote(higher))),
    })
}

pub(crate) fn ballot(of: &VoteRequest<Types>) -> peer::Ballot {
    peer::Ballot {
        vote: Some(vote(&of.vote)),
        last: of.last_log_id.as_ref().map(log_id),
        transfer: of.leadership_transfer,
    }
}

pub(crate) fn to_ballot(of: peer::Ballot) -> io::Result<VoteRequest<Types>> {
    let mut request = VoteRequest::new(required("a vote", of.vote.map(to_vote))?, of.last.map(to_log_id));
    request.leadership_transfer = of.transfer;
    Ok(request)
}

pub(crate) fn voted(of: &VoteResponse<Types>) -> peer::Voted {
    peer::Voted {
        vote: Some(vote(&of.vote)),
        granted: of.vote_granted,
        last: of.last_log_id.as_ref().map(log_id),
    }
}

pub(crate) fn to_voted(of: peer::Voted) -> io::Result<VoteResponse<Types>> {
    let vote = required("a vote", of.vote.map(to_vote))?;
    Ok(VoteResponse::new(vote, of.last.map(to_log_id), of.granted))
}

pub(crate) fn transfer(of: &TransferLeaderRequest<Types>) -> peer::Transfer {
    peer::Transfer {
        from: Some(vote(of.from_leader())),
        to: *of.to_node_id(),
        last: of.last_log_id().map(log_id),
    }
}

pub(crate) fn to_transfer(of: peer::Transfer) -> io::Result<TransferLeaderRequest<Types>> {
    let from = required("a vote", of.from.map(to_vote))?;
    Ok(TransferLeaderRequest::new(from, of.to, of.last.map(to_log_id)))
}

pub(crate) fn required<T>(what: &str, value: Option<T>) -> io::Result<T> {
    value.ok_or_else(|| invalid(format!("{what} is missing, or of a kind that this version does not know")))
}

#[cfg(test)]
mod tests {
    use openraft::{EntryPayload, entry::RaftEntry as _, vote::leader_id_adv::LeaderId};

    use super::*;
    use crate::raft::LogId;

    #[test]
    fn entries_with_a_hole_are_refused() {
        let id = |index| LogId::new(LeaderId { term: 1, node_id: 7 }, index);
        let request = |previous: Option<u64>, indexes: &[u64]| {
            let entry = |index: &u64| seal_entry(&Entry::new(id(*index), EntryPayload::Blank));
            to_append_request(peer::AppendRequest {
                vote: Some(vote(&openraft::vote::Vote::new(1, 7))),
                previous: previous.map(|index| log_id(&id(index))),
                entries: indexes.iter().map(entry).collect(),
                committed: None,
            })
        };
        assert!(request(Some(4), &[5, 6, 7]).is_ok());
        assert!(request(None, &[0, 1]).is_ok());
        assert!(request(Some(4), &[]).is_ok());
        for (previous, indexes) in [(Some(4), &[6, 7][..]), (Some(4), &[5, 7]), (None, &[1])] {
            let error = request(previous, indexes).unwrap_err();
            assert!(error.to_string().contains("was due"), "{error}");
        }
    }
}
