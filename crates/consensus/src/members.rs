//! The nodes of a cluster: how one joins, moves and leaves. Every shard has its own list of members; a change goes
//! through them one by one, and may be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use ids::{NodeId, RegionId, ShardId};
use openraft::{
    ChangeMembers,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use proto::{
    peer::{self, problem::Kind, request, response},
    record::raft,
};
use storage::Identity;
use tls::Tls;
use tokio::time::Instant;

use crate::{
    Group, Leadership,
    mutants::{self, Mutant},
    net,
    raft::Types,
    versions::{self, Unsupported},
};

/// How long to rest before a change is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long one shard may take for a change: a new member has to take in its state.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long ago what a node has may have been all that there was, when it becomes a voter.
const CAUGHT_UP_WITHIN: Duration = Duration::from_millis(300);
const CATCH_UP_POLL: Duration = Duration::from_millis(10);
/// How long a voter may owe an answer before it counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(10);

/// What the cluster knows of a node. Addresses are `host:port`, where the host may be a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// What people call it.
    pub name: String,
    /// Where other nodes reach it.
    pub peer: String,
    /// Where clients reach it over HTTP.
    pub http: String,
    /// Where clients reach it over gRPC.
    pub grpc: String,
}

impl Member {
    pub(crate) fn to_record(&self, node: NodeId) -> raft::Member {
        raft::Member {
            node: node.0,
            address: self.peer.clone(),
            name: self.name.clone(),
            http: self.http.clone(),
            grpc: self.grpc.clone(),
        }
    }

    pub(crate) fn from_record(record: raft::Member) -> Self {
        Self { name: record.name, peer: record.address, http: record.http, grpc: record.grpc }
    }
}

/// A node in the list of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Its names and addresses.
    pub member: Member,
    /// Whether its vote counts; otherwise it only learns.
    pub voter: bool,
    /// The index of the last entry that it is known to have. Only the leader knows.
    pub matched: Option<u64>,
}

/// A change of the members of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Becomes a learner, and once it has caught up a voter.
    Add {
        /// The node.
        node: NodeId,
        /// Its names and addresses.
        member: Member,
    },
    /// Is a member no more.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// Its names or addresses changed.
    Update {
        /// The node.
        node: NodeId,
        /// Its names and addresses.
        member: Member,
    },
}

impl Change {
    pub(crate) fn from_message(change: peer::Change) -> Option<Self> {
        use peer::change::Kind;
        Some(match change.kind? {
            Kind::Add(member) => Self::Add { node: NodeId(member.node), member: Member::from_record(member) },
            Kind::Remove(node) => Self::Remove { node: NodeId(node) },
            Kind::Update(member) => {
                Self::Update { node: NodeId(member.node), member: Member::from_record(member) }
            }
        })
    }

    fn to_message(&self) -> peer::Change {
        use peer::change::Kind;
        let kind = match self {
            Self::Add { node, member } => Kind::Add(member.to_record(*node)),
            Self::Remove { node } => Kind::Remove(node.0),
            Self::Update { node, member } => Kind::Update(member.to_record(*node)),
        };
        peer::Change { kind: Some(kind) }
    }

    fn is_done(&self, members: &BTreeMap<NodeId, Membership>) -> bool {
        match self {
            Self::Add { node, member } => {
                members.get(node).is_some_and(|of| of.voter && of.member == *member)
            }
            Self::Remove { node } => !members.contains_key(node),
            Self::Update { node, member } => members.get(node).is_none_or(|of| of.member == *member),
        }
    }
}

/// Why the members of a shard did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another node leads the shard, or none.
    #[error("another node leads the shard")]
    NotLeader,
    /// What was asked can not be.
    #[error("{0}")]
    Refused(String),
    /// The shards did not all change in time. What is done stays; the change may be repeated.
    #[error("shard {shard}: {reason}")]
    Incomplete {
        /// The shard.
        shard: ShardId,
        /// What came in the way.
        reason: String,
    },
}

/// Whether a node is a voter of every shard.
pub(crate) fn is_member(groups: &BTreeMap<ShardId, Group>, node: NodeId) -> bool {
    !groups.is_empty()
        && groups.values().all(|group| group.members().get(&node).is_some_and(|member| member.voter))
}

/// Changes the members of a shard that this node leads.
pub(crate) async fn change_here(group: &Group, change: Change) -> Result<(), ChangeError> {
    let members = group.members();
    if change.is_done(&members) {
        // The second step of a change may be missing, if something came between the two.
        let is_joint =
            group.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1;
        let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
        return if is_joint { changed(group.raft.change_membership(nobody, true).await) } else { Ok(()) };
    }
    match &change {
        Change::Add { node, member } => {
            let taken =
                members.iter().find(|(id, of)| *id != node && of.voter && of.member.name == member.name);
            if let Some((id, _)) = taken {
                return Err(ChangeError::Refused(format!(
                    "the name {} is that of node {id}: remove that node first, or choose another name",
                    member.name
                )));
            }
            if members.get(node).is_some_and(|of| of.voter) {
                let nodes = ChangeMembers::SetNodes(BTreeMap::from([(node.0, member.clone())]));
                return changed(group.raft.change_membership(nodes, true).await);
            }
            changed(group.raft.add_learner(node.0, member.clone(), true).await)?;
            caught_up(group, *node).await?;
            let voters = ChangeMembers::AddVoterIds(BTreeSet::from([node.0]));
            changed(group.raft.change_membership(voters, true).await)
        }
        Change::Remove { node } => {
            let voters = members.iter().filter(|(_, of)| of.voter).count();
            let is_voter = members.get(node).is_some_and(|of| of.voter);
            if is_voter && voters == 1 {
                let message = format!("node {node} is the only one that holds the shard");
                return Err(ChangeError::Refused(message));
            }
            if is_voter {
                let stay = members.iter().filter(|(id, of)| *id != node && of.voter).map(|(id, _)| *id);
                check_quorum(group, stay.collect()).await?;
            }
            let change = if is_voter {
                ChangeMembers::RemoveVoters(BTreeSet::from([node.0]))
            } else {
                ChangeMembers::RemoveNodes(BTreeSet::from([node.0]))
            };
            changed(group.raft.change_membership(change, false).await)
        }
        Change::Update { node, member } => {
            let nodes = ChangeMembers::SetNodes(BTreeMap::from([(node.0, member.clone())]));
            changed(group.raft.change_membership(nodes, true).await)
        }
    }
}

/// Returns when a learner is so close behind that the shard does not wait for it when it votes: when it has what there
/// was a moment ago (Raft thesis, 4.2.1). Raft itself counts entries, and takes a node for caught up that has nothing
/// yet, as long as there are few.
async fn caught_up(group: &Group, node: NodeId) -> Result<(), ChangeError> {
    loop {
        let (began, there) = (Instant::now(), group.raft.metrics().borrow_watched().last_log_index);
        loop {
            if !matches!(*group.leadership.borrow(), Leadership::Here { .. }) {
                return Err(ChangeError::NotLeader);
            }
            match group.members().get(&node) {
                Some(of) if of.matched >= there => break,
                Some(_) => {}
                None => return Err(ChangeError::Refused(format!("node {node} was removed meanwhile"))),
            }
            tokio::time::sleep(CATCH_UP_POLL).await;
        }
        if began.elapsed() <= CAUGHT_UP_WITHIN {
            return Ok(());
        }
    }
}

/// Refuses a change after which most voters would be away: it could not be decided, nor could anything after it.
/// Whoever is slow is asked again, and is not away yet.
async fn check_quorum(group: &Group, voters: Vec<NodeId>) -> Result<(), ChangeError> {
    let until = Instant::now() + AWAY_AFTER;
    let mut asked: FuturesUnordered<_> = voters
        .iter()
        .map(|node| async move {
            let ask =
                || group.links.control(*node, group.shard, request::Body::Greet(peer::Empty {}), ASK_TIMEOUT);
            while *node != group.node() && ask().await.is_err() {
                if Instant::now() >= until {
                    return false;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            true
        })
        .collect();
    let mut here = 0;
    while let Some(answered) = asked.next().await {
        here += usize::from(answered);
        if 2 * here > voters.len() {
            return Ok(());
        }
    }
    Err(ChangeError::Refused(format!(
        "of the {} voters that would be left, {here} answer: the shard could decide nothing more. Bring the others back, \
         or add a node first",
        voters.len()
    )))
}

fn changed<T>(result: Result<T, RaftError<Types, ClientWriteError<Types>>>) -> Result<(), ChangeError> {
    let error = match result {
        Ok(_) => return Ok(()),
        Err(RaftError::APIError(error)) => error,
        Err(error) => return Err(ChangeError::Refused(error.to_string())),
    };
    match error {
        ClientWriteError::ForwardToLeader(_)
        // What came of it is not known. Done again, it changes nothing.
        | ClientWriteError::LogEntryDiscarded(_)
        // Another change is under way, or came between the two steps of this one: after it.
        | ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
        )
        | ClientWriteError::PreconditionFailed(_) => Err(ChangeError::NotLeader),
        ClientWriteError::ChangeMembershipError(error) => Err(ChangeError::Refused(error.to_string())),
    }
}

/// Changes the members of every shard, each by its leader.
pub(crate) async fn change_all(
    groups: &BTreeMap<ShardId, Group>,
    change: &Change,
) -> Result<(), ChangeError> {
    for (shard, group) in groups {
        let mut reason = String::new();
        let attempts = async {
            loop {
                match change_anywhere(group, change).await {
                    Ok(()) => return Ok(()),
                    Err(ChangeError::Refused(why)) => return Err(ChangeError::Refused(why)),
                    Err(error) => reason = error.to_string(),
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        match tokio::time::timeout(CHANGE_TIMEOUT, attempts).await {
            Ok(result) => result?,
            Err(_) => return Err(ChangeError::Incomplete { shard: *shard, reason }),
        }
    }
    Ok(())
}

async fn change_anywhere(group: &Group, change: &Change) -> Result<(), ChangeError> {
    let leadership = *group.leadership.borrow();
    let leader = match leadership {
        Leadership::Here { .. } => return change_here(group, change.clone()).await,
        Leadership::Elsewhere { leader: None } => return Err(ChangeError::NotLeader),
        Leadership::Elsewhere { leader: Some(leader) } => leader,
    };
    let body = request::Body::Change(change.to_message());
    match group.links.forward(leader, group.shard, body, CHANGE_TIMEOUT).await {
        Ok(response::Body::Changed(_)) => Ok(()),
        Ok(response::Body::Problem(problem)) if problem.kind() == Kind::Refused => {
            if problem.message == ChangeError::NotLeader.to_string() {
                return Err(ChangeError::NotLeader);
            }
            Err(ChangeError::Refused(problem.message))
        }
        _ => Err(ChangeError::NotLeader),
    }
}

/// Asks around, until a member answers, which cluster this is; who the new node is in it.
///
/// # Errors
///
/// This program does not know the rules of that cluster.
pub async fn discover(seeds: &[String], tls: Option<&Tls>) -> Result<Identity, Unsupported> {
    let mut told = Instant::now() - TELL_INTERVAL;
    loop {
        let mut reasons = Vec::new();
        // All at once: those that are away cost no time.
        let asked = seeds.iter().map(|seed| async move { (seed, ask_seed(seed, tls).await) });
        let mut asked: FuturesUnordered<_> = asked.collect();
        while let Some((seed, answer)) = asked.next().await {
            match answer {
                Ok((identity, in_force)) => return versions::check(in_force).map(|()| identity),
                Err(status) => reasons.push(format!("{seed}: {}", status.message())),
            }
        }
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            tracing::info!(reasons = reasons.join("; "), "waiting for a member of the cluster to answer");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How often a node that waits says so.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

async fn ask_seed(seed: &str, tls: Option<&Tls>) -> Result<(Identity, u32), tonic::Status> {
    let ask = async {
        let mut client = net::connect(seed, tls).await?;
        client.discover(peer::DiscoverRequest {}).await.map(tonic::Response::into_inner)
    };
    let late = |_| tonic::Status::deadline_exceeded("no answer in time");
    let answer = tokio::time::timeout(ASK_TIMEOUT, ask).await.map_err(late)??;
    let malformed = || tonic::Status::data_loss("an answer that this version does not understand");
    let identity = Identity {
        cluster: u128::from_be_bytes(answer.cluster.as_ref().try_into().map_err(|_| malformed())?),
        node: new_node_id(),
        region: RegionId(u16::try_from(answer.region).map_err(|_| malformed())?),
        shards: u16::try_from(answer.shards).map_err(|_| malformed())?,
        joined: true,
    };
    Ok((identity, answer.machine_version.max(1)))
}

/// An id that no node had before: 48 random bits, so that it is a whole number in JSON as well.
#[must_use]
pub fn new_node_id() -> NodeId {
    if mutants::is_on(Mutant::ReuseNodeId) {
        // The same for every start with the same arguments, which hold the node's name.
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        std::env::args().skip_while(|argument| argument != "--name").nth(1).hash(&mut hasher);
        return NodeId(hasher.finish() >> 16);
    }
    NodeId(rand::random_range(1..1 << 48))
}

/// Asks members to make this node one, until it is.
pub(crate) async fn be_admitted(
    groups: &BTreeMap<ShardId, Group>,
    seeds: &[String],
    node: NodeId,
    member: &Member,
) {
    let mut told = None;
    while !is_member(groups, node) {
        for seed in seeds {
            if let Err(status) = ask_admission(groups, seed, node, member).await {
                let reason = format!("{seed}: {}", status.message());
                if told.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "not a member yet; asking again");
                    told = Some(reason);
                }
            }
            if is_member(groups, node) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn ask_admission(
    groups: &BTreeMap<ShardId, Group>,
    seed: &str,
    node: NodeId,
    member: &Member,
) -> Result<(), tonic::Status> {
    let Some(links) = groups.values().next().map(|group| &group.links) else { return Ok(()) };
    let ask = async {
        let mut client = net::connect(seed, links.tls()).await?;
        let found = client.discover(peer::DiscoverRequest {}).await?.into_inner();
        let request = peer::AdmitRequest { member: Some(member.to_record(node)) };
        client.admit(links.me().request(NodeId(found.node), request)).await
    };
    let late = |_| tonic::Status::deadline_exceeded("no answer in time");
    tokio::time::timeout(CHANGE_TIMEOUT, ask).await.map_err(late)?.map(|_| ())
}

impl Group {
    /// The nodes that hold the shard, as this node knows them.
    #[must_use]
    pub fn members(&self) -> BTreeMap<NodeId, Membership> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let matched = |node: u64| {
            let replication = metrics.replication.as_ref()?;
            replication.get(&node)?.as_ref().map(openraft::LogId::index)
        };
        membership
            .nodes()
            .map(|(node, member)| {
                let of = Membership {
                    member: member.clone(),
                    voter: voters.contains(node),
                    matched: matched(*node),
                };
                (NodeId(*node), of)
            })
            .collect()
    }
}
