//! Raft's records as they are stored: openraft's types to [`proto::record::raft`] and back.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use openraft::{EntryPayload, Membership, impls::BasicNode, impls::leader_id_adv::LeaderId};
use proto::{
    envelope::{self, Kind},
    record::{Empty, raft},
};

use super::{Body, Entry, LogId, StoredMembership, Vote};

pub(super) fn log_id(id: &LogId) -> raft::LogId {
    let leader = id.committed_leader_id();
    raft::LogId { term: leader.term, node: leader.node_id, index: id.index() }
}

pub(super) fn to_log_id(id: raft::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.node }, id.index)
}

pub(super) fn seal_log_id(id: &LogId) -> Bytes {
    envelope::seal(Kind::LogId, &log_id(id))
}

pub(super) fn open_log_id(bytes: &[u8]) -> io::Result<LogId> {
    Ok(to_log_id(envelope::unseal(Kind::LogId, bytes).map_err(invalid)?))
}

pub(super) fn seal_vote(vote: &Vote) -> Bytes {
    let leader = vote.leader_id();
    let message = raft::Vote { term: leader.term, node: leader.node_id, committed: vote.is_committed() };
    envelope::seal(Kind::Vote, &message)
}

pub(super) fn open_vote(bytes: &[u8]) -> io::Result<Vote> {
    let vote: raft::Vote = envelope::unseal(Kind::Vote, bytes).map_err(invalid)?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    })
}

fn membership(of: &Membership<u64, BasicNode>) -> raft::Membership {
    raft::Membership {
        configs: of
            .get_joint_config()
            .iter()
            .map(|voters| raft::Config { voters: voters.iter().copied().collect() })
            .collect(),
        members: of
            .nodes()
            .map(|(node, at)| raft::Member { node: *node, address: at.addr.clone() })
            .collect(),
    }
}

fn to_membership(of: raft::Membership) -> io::Result<Membership<u64, BasicNode>> {
    let configs = of.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> =
        of.members.into_iter().map(|member| (member.node, BasicNode { addr: member.address })).collect();
    Membership::new(configs, nodes).map_err(invalid)
}

pub(super) fn seal_entry(entry: &Entry) -> Bytes {
    let payload = match &entry.payload {
        EntryPayload::Blank => raft::Payload::Blank(Empty {}),
        EntryPayload::Normal(body) => raft::Payload::Normal(body.0.clone()),
        EntryPayload::Membership(of) => raft::Payload::Membership(membership(of)),
    };
    let message = raft::RaftEntry { log_id: Some(log_id(&entry.log_id)), payload: Some(payload) };
    envelope::seal(Kind::RaftEntry, &message)
}

pub(super) fn open_entry(bytes: &Bytes) -> io::Result<Entry> {
    let body = envelope::open(Kind::RaftEntry, bytes).map_err(invalid)?;
    // Decoded from `Bytes`, so that the body of the entry is a slice of them and not a copy.
    let message = <raft::RaftEntry as prost::Message>::decode(bytes.slice_ref(body)).map_err(invalid)?;
    let id = message.log_id.ok_or_else(|| invalid("an entry without an id"))?;
    let payload = match message.payload.ok_or_else(|| invalid("an entry of an unknown kind"))? {
        raft::Payload::Blank(_) => EntryPayload::Blank,
        raft::Payload::Normal(body) => EntryPayload::Normal(Body(body)),
        raft::Payload::Membership(of) => EntryPayload::Membership(to_membership(of)?),
    };
    Ok(Entry { log_id: to_log_id(id), payload })
}

pub(super) fn seal_applied(id: Option<&LogId>, stored: &StoredMembership) -> Bytes {
    let message = raft::Applied {
        log_id: id.map(log_id),
        membership: Some(raft::StoredMembership {
            log_id: stored.log_id().as_ref().map(log_id),
            membership: Some(membership(stored.membership())),
        }),
    };
    envelope::seal(Kind::Applied, &message)
}

pub(super) fn open_applied(bytes: &[u8]) -> io::Result<(Option<LogId>, StoredMembership)> {
    let message: raft::Applied = envelope::unseal(Kind::Applied, bytes).map_err(invalid)?;
    let stored = message.membership.unwrap_or_default();
    // Before the first membership entry there is none, which `Membership::new` would refuse.
    let membership = match stored.membership {
        Some(of) if !of.configs.is_empty() => to_membership(of)?,
        _ => Membership::default(),
    };
    Ok((message.log_id.map(to_log_id), StoredMembership::new(stored.log_id.map(to_log_id), membership)))
}

pub(super) fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
