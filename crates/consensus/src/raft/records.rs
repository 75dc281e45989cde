//! Raft's records as they are stored: openraft's types to [`proto::record::raft`] and back.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use ids::NodeId;
use openraft::{EntryPayload, Membership, impls::leader_id_adv::LeaderId};
use proto::{
    envelope::{self, Kind},
    record::{Empty, raft},
};

use super::{Body, Entry, LogId, Member, StoredMembership, Vote};

pub(crate) fn log_id(id: &LogId) -> raft::LogId {
    let leader = id.committed_leader_id();
    raft::LogId { term: leader.term, node: leader.node_id, index: id.index() }
}

pub(crate) fn to_log_id(id: raft::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term, node_id: id.node }, id.index)
}

pub(crate) fn seal_log_id(id: &LogId) -> Bytes {
    envelope::seal(Kind::LogId, &log_id(id))
}

pub(crate) fn open_log_id(bytes: &[u8]) -> io::Result<LogId> {
    Ok(to_log_id(envelope::unseal(Kind::LogId, bytes).map_err(invalid)?))
}

pub(crate) fn vote(of: &Vote) -> raft::Vote {
    let leader = of.leader_id();
    raft::Vote { term: leader.term, node: leader.node_id, committed: of.is_committed() }
}

pub(crate) fn to_vote(of: raft::Vote) -> Vote {
    if of.committed { Vote::new_committed(of.term, of.node) } else { Vote::new(of.term, of.node) }
}

pub(crate) fn seal_vote(of: &Vote) -> Bytes {
    envelope::seal(Kind::Vote, &vote(of))
}

pub(crate) fn open_vote(bytes: &[u8]) -> io::Result<Vote> {
    Ok(to_vote(envelope::unseal(Kind::Vote, bytes).map_err(invalid)?))
}

fn membership(of: &Membership<u64, Member>) -> raft::Membership {
    raft::Membership {
        configs: of
            .get_joint_config()
            .iter()
            .map(|voters| raft::Config { voters: voters.iter().copied().collect() })
            .collect(),
        members: of.nodes().map(|(node, member)| member.to_record(NodeId(*node))).collect(),
    }
}

fn to_membership(of: raft::Membership) -> io::Result<Membership<u64, Member>> {
    let configs = of.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Member> =
        of.members.into_iter().map(|member| (member.node, Member::from_record(member))).collect();
    Membership::new(configs, nodes).map_err(invalid)
}

/// The entry as it is stored and sent. One that was read, or received, is not encoded again.
pub(crate) fn seal_entry(entry: &Entry) -> Bytes {
    if let EntryPayload::Normal(body) = &entry.payload
        && let Some(sealed) = &body.sealed
    {
        return sealed.clone();
    }
    let payload = match &entry.payload {
        EntryPayload::Blank => raft::Payload::Blank(Empty {}),
        EntryPayload::Normal(body) => raft::Payload::Normal(body.bytes.clone()),
        EntryPayload::Membership(of) => raft::Payload::Membership(membership(of)),
    };
    let message = raft::RaftEntry { log_id: Some(log_id(&entry.log_id)), payload: Some(payload) };
    envelope::seal(Kind::RaftEntry, &message)
}

pub(crate) fn open_entry(bytes: &Bytes) -> io::Result<Entry> {
    let body = envelope::open(Kind::RaftEntry, bytes).map_err(invalid)?;
    // Decoded from `Bytes`, so that the body of the entry is a slice of them and not a copy.
    let message = <raft::RaftEntry as prost::Message>::decode(bytes.slice_ref(body)).map_err(invalid)?;
    let id = message.log_id.ok_or_else(|| invalid("an entry without an id"))?;
    let payload = match message.payload.ok_or_else(|| invalid("an entry of an unknown kind"))? {
        raft::Payload::Blank(_) => EntryPayload::Blank,
        raft::Payload::Normal(body) => {
            EntryPayload::Normal(Body { bytes: body, sealed: Some(bytes.clone()) })
        }
        raft::Payload::Membership(of) => EntryPayload::Membership(to_membership(of)?),
    };
    Ok(Entry { log_id: to_log_id(id), payload })
}

pub(crate) fn seal_applied(id: Option<&LogId>, stored: &StoredMembership) -> Bytes {
    let message = raft::Applied {
        log_id: id.map(log_id),
        membership: Some(raft::StoredMembership {
            log_id: stored.log_id().as_ref().map(log_id),
            membership: Some(membership(stored.membership())),
        }),
    };
    envelope::seal(Kind::Applied, &message)
}

pub(crate) fn open_applied(bytes: &[u8]) -> io::Result<(Option<LogId>, StoredMembership)> {
    let message: raft::Applied = envelope::unseal(Kind::Applied, bytes).map_err(invalid)?;
    let stored = message.membership.unwrap_or_default();
    // Before the first membership entry there is none, which `Membership::new` would refuse.
    let membership = match stored.membership {
        Some(of) if !of.configs.is_empty() => to_membership(of)?,
        _ => Membership::default(),
    };
    Ok((message.log_id.map(to_log_id), StoredMembership::new(stored.log_id.map(to_log_id), membership)))
}

pub(crate) fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;

    /// A log and a state of an earlier release are opened: a line that changes is a format that changes.
    const BYTES: &str = include_str!("../../testdata/raft_records.txt");

    #[test]
    fn the_bytes_of_the_logs_records_are_what_they_were() {
        let mut found = String::new();
        let mut line = |what: &str, bytes: &[u8]| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            found.push_str(&format!("{what}: {hex}\n"));
        };
        let id = to_log_id(raft::LogId { term: 1, node: 2, index: 3 });
        assert_eq!(open_log_id(&seal_log_id(&id)).unwrap(), id);
        line("log id", &seal_log_id(&id));
        for (what, of) in [("vote", Vote::new(4, 5)), ("vote, committed", Vote::new_committed(4, 5))] {
            assert_eq!(open_vote(&seal_vote(&of)).unwrap(), of);
            line(what, &seal_vote(&of));
        }
        let [name, peer, http, grpc] = ["node-2", "host:7102", "http://host:7100", "http://host:7101"];
        let member = Member { name: name.into(), peer: peer.into(), http: http.into(), grpc: grpc.into() };
        let members = BTreeMap::from([(2, member.clone()), (7, member)]);
        let membership = Membership::new(vec![[2].into(), [2, 7].into()], members).unwrap();
        for (what, payload) in [
            ("entry, blank", EntryPayload::Blank),
            ("entry", EntryPayload::Normal(Body::new(Bytes::from_static(b"body")))),
            ("entry, membership", EntryPayload::Membership(membership.clone())),
        ] {
            let sealed = seal_entry(&Entry { log_id: id, payload });
            assert_eq!(seal_entry(&open_entry(&sealed).unwrap()), sealed);
            line(what, &sealed);
        }
        let stored = StoredMembership::new(Some(id), membership);
        let sealed = seal_applied(Some(&id), &stored);
        assert_eq!(open_applied(&sealed).unwrap(), (Some(id), stored));
        line("applied", &sealed);
        line("applied, nothing", &seal_applied(None, &StoredMembership::default()));
        assert_eq!(found, BYTES);
    }
}
