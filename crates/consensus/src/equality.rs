//! Replicas prove that they are equal: the leader of a shard marks a position, asks every voter for the digest of
//! its rows there, and logs what most of them had. A replica that had another stops.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use ids::{NodeId, Position, ShardId, Timestamp};
use machine::{Command, Read as _};
use proto::peer::{self, request, response};
use storage::{RowDigest, StateDb};

use crate::{Clock as _, Group, Leadership, net::Service};

/// How often the replicas of a shard that has changed are compared.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a replica may be behind.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every voter had the same.
    Equal,
    /// Some had another than others.
    Differs,
    /// Those that answered had the same, and not all did.
    Incomplete,
}

impl Verdict {
    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::Incomplete => "incomplete",
        }
    }
}

/// The digests of a shard's replicas before one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// The position.
    pub position: Position,
    /// Of the voters that answered.
    pub digests: BTreeMap<NodeId, RowDigest>,
    /// What most of all voters had, if most had the same.
    pub agreed: Option<RowDigest>,
    /// How many voters there were.
    pub voters: usize,
}

impl Comparison {
    /// What it says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.differs() {
            Verdict::Differs
        } else if self.digests.len() < self.voters {
            Verdict::Incomplete
        } else {
            Verdict::Equal
        }
    }

    /// Whether a replica that answered differs from another.
    #[must_use]
    pub fn differs(&self) -> bool {
        let mut digests = self.digests.values();
        let first = digests.next();
        digests.any(|digest| Some(digest) != first)
    }

    fn of(position: Position, digests: BTreeMap<NodeId, RowDigest>, voters: usize) -> Self {
        let mut counts: HashMap<u128, usize> = HashMap::new();
        digests.values().for_each(|digest| *counts.entry(digest.0).or_default() += 1);
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let agreed = most.filter(|(_, count)| count * 2 > voters).map(|(digest, _)| RowDigest(digest));
        Self { position, digests, agreed, voters }
    }

    /// As it is sent.
    #[must_use]
    pub fn message(&self) -> peer::Compared {
        let bytes = |digest: &RowDigest| Bytes::copy_from_slice(&digest.0.to_be_bytes());
        let digests = self.digests.iter().map(|(node, digest)| (node.0, bytes(digest)));
        let voters = u32::try_from(self.voters).unwrap_or(u32::MAX);
        peer::Compared { position: self.position.0, digests: digests.collect(), voters }
    }

    /// As it was received; `voters` is how many there are where the message does not say how many there were.
    #[must_use]
    pub fn from_message(message: peer::Compared, voters: usize) -> Self {
        let voters = usize::try_from(message.voters).ok().filter(|said| *said > 0).unwrap_or(voters);
        let digests = message.digests.into_iter();
        let read = |(node, digest): (u64, Bytes)| Some((NodeId(node), parse(&digest)?));
        Self::of(Position(message.position), digests.filter_map(read).collect(), voters)
    }
}

fn parse(digest: &[u8]) -> Option<RowDigest> {
    Some(RowDigest(u128::from_be_bytes(digest.try_into().ok()?)))
}

/// What reading a shard's rows on one node has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubReport {
    /// The shard.
    pub shard: ShardId,
    /// How many rows were read.
    pub rows: u64,
    /// What is wrong, and where.
    pub problem: Option<String>,
}

impl Group {
    /// What came of the last comparison that this node made, and when. Whoever leads compares, every 10 s while the
    /// shard changes.
    #[must_use]
    pub fn last_comparison(&self) -> Option<(Comparison, Timestamp)> {
        self.compared.lock().clone()
    }

    /// One that took longer than another that began later is older than what is known.
    fn remember(&self, comparison: &Comparison) {
        let mut last = self.compared.lock();
        if last.as_ref().is_none_or(|(last, _)| last.position <= comparison.position) {
            *last = Some((comparison.clone(), self.clock.wall()));
        }
    }

    /// Compares the replicas of the shard now, wherever it is led. `None` if its leader can not be asked.
    pub async fn compare(&self) -> Option<Comparison> {
        let leadership = *self.leadership.borrow();
        match leadership {
            Leadership::Here { .. } => self.compare_here().await,
            Leadership::Elsewhere { leader } => {
                let body = request::Body::Compare(peer::Empty {});
                let timeout = ASK_TIMEOUT * 2;
                match self.links.forward(leader?, self.shard, body, timeout).await {
                    Ok(response::Body::Compared(compared)) => {
                        Some(Comparison::from_message(compared, self.voters().len()))
                    }
                    _ => None,
                }
            }
        }
    }

    /// Why this node's replica of the shard has stopped for good, if it has.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        self.machine.broken()
    }

    fn voters(&self) -> Vec<NodeId> {
        self.members().into_iter().filter(|(_, of)| of.voter).map(|(node, _)| node).collect()
    }

    /// As [`Group::compare`], on the leader. A replica that differs from most is stopped by this.
    pub(crate) async fn compare_here(&self) -> Option<Comparison> {
        let (_, index) = self.propose_here(Command::CheckDigest { agreed: None }).await.ok()?;
        let ours = self.machine.mark(index).await?;
        let voters = self.voters();
        let asked = voters.iter().map(|node| async move {
            if *node == self.node() {
                return Some((*node, ours.digest));
            }
            let body = request::Body::DigestBefore(index);
            match self.links.forward(*node, self.shard, body, ASK_TIMEOUT).await {
                Ok(response::Body::Digest(digest)) => Some((*node, parse(&digest)?)),
                _ => None,
            }
        });
        let digests = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        let comparison = Comparison::of(ours.position, digests, voters.len());
        self.remember(&comparison);
        if comparison.differs() {
            tracing::error!(
                shard = %self.shard,
                position = %comparison.position,
                digests = ?comparison.digests,
                agreed = ?comparison.agreed,
                "replicas differ"
            );
            if let Some(agreed) = comparison.agreed {
                let agreed = Some((comparison.position, agreed.0));
                // Whoever leads next compares again.
                let _ = self.propose_here(Command::CheckDigest { agreed }).await;
            }
        }
        Some(comparison)
    }
}

/// Compares the replicas of every shard that this node leads, as long as the shard changes.
pub(crate) async fn watch(service: Arc<Service>) {
    let mut tick = tokio::time::interval(INTERVAL);
    let mut compared: BTreeMap<ShardId, Position> = BTreeMap::new();
    loop {
        tick.tick().await;
        let groups = service.groups.read().clone();
        for (shard, group) in &groups {
            let leads = matches!(*group.leadership.borrow(), Leadership::Here { .. });
            let position = group.latest().shard().position;
            if !leads || group.voters().len() < 2 || compared.get(shard) == Some(&position) {
                continue;
            }
            if let Some(comparison) = group.compare_here().await {
                service.tell(&comparison);
                compared.insert(*shard, comparison.position);
            }
        }
    }
}

impl Service {
    fn tell(&self, comparison: &Comparison) {
        // Without a majority nobody can be relied on; where none differs, too few answered to tell.
        if comparison.agreed.is_none() && !comparison.differs() {
            return;
        }
        for (node, digest) in &comparison.digests {
            self.observer.compared(*node, comparison.agreed == Some(*digest), self.clock.wall());
        }
    }
}

/// Reads every row of every shard of this node.
pub(crate) async fn scrub(state: &Arc<StateDb>, shards: Vec<ShardId>) -> Vec<ScrubReport> {
    let mut reports = Vec::new();
    for shard in shards {
        let state = Arc::clone(state);
        let scrubbed = tokio::task::spawn_blocking(move || state.scrub(shard)).await;
        let (rows, problem) = match scrubbed {
            Ok(Ok(scrubbed)) => (scrubbed.rows, None),
            Ok(Err(error)) => (0, Some(error.to_string())),
            Err(error) => (0, Some(error.to_string())),
        };
        if let Some(problem) = &problem {
            tracing::error!(%shard, problem, "stored rows are damaged; replace this node");
        }
        reports.push(ScrubReport { shard, rows, problem });
    }
    reports
}
