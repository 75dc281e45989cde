//! Linearizable reads: how far a replica must have applied to show everything that was acknowledged.
//!
//! The leader takes the index (Raft thesis, 6.4), and then asks the others whether it still leads. openraft's own check
//! is not enough: it takes the answer to an earlier request of a stream for one to a later request that adds no entry,
//! so that a leader that was paused may count answers from before the pause, and read what a new leader has replaced
//! since. Here a question and its answer belong together.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use ids::NodeId;
use openraft::{
    async_runtime::watch::WatchReceiver as _,
    raft::{AppendEntriesRequest, linearizable_read::LinearizerOption},
};
use proto::peer::{Empty, request, response};
use tokio::sync::Mutex;

use crate::{
    Group, Leadership, ReadError,
    mutants::{self, Mutant},
    net::wire,
    raft::Vote,
};

/// How long the leader is waited for when it is asked how far to read.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the others are waited for when a leader asks whether it still leads.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);

/// Rounds of questions to the other voters. One at a time: who comes while one is under way shares the next.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    begun: AtomicU64,
    /// The last round that has ended, and the vote that nobody contradicted, if nobody did.
    ended: Mutex<(u64, Option<Vote>)>,
}

impl Group {
    /// Returns when a view taken afterwards holds everything that was acknowledged before the call, on any node.
    ///
    /// # Errors
    ///
    /// The leader can not be asked.
    pub async fn linearize(&self) -> Result<(), ReadError> {
        let leadership = *self.leadership.borrow();
        let index = match leadership {
            Leadership::Here { .. } => self.read_index().await?,
            Leadership::Elsewhere { leader } => {
                let Some(leader) = leader else { return Err(ReadError { leader }) };
                let body = request::Body::ReadIndex(Empty {});
                match self.links.forward(leader, self.shard, body, ASK_TIMEOUT).await {
                    Ok(response::Body::ReadIndex(index)) => index,
                    _ => return Err(ReadError { leader: Some(leader) }),
                }
            }
        };
        if !mutants::is_on(Mutant::ReadBeforeApply) {
            self.machine.applied_until(index).await;
        }
        Ok(())
    }

    /// How far a replica must have applied to show everything that is acknowledged now. The leader's to say.
    pub(crate) async fn read_index(&self) -> Result<u64, ReadError> {
        if mutants::is_on(Mutant::ReadWithoutQuorum) {
            return Ok(self.progress().applied.unwrap_or_default());
        }
        // The index of a leader that may have been replaced already: of no use before the round.
        let vote = self.raft.metrics().borrow_watched().vote;
        let index = match self.raft.get_read_linearizer(LinearizerOption::new(None, true)).await {
            Ok(linearizer) => linearizer.read_log_id().log_id().index(),
            Err(_) => return Err(self.no_reader().await),
        };
        // In a later term of this node, another one may have led in between.
        if self.leads_by().await == Some(vote) { Ok(index) } else { Err(self.no_reader().await) }
    }

    async fn no_reader(&self) -> ReadError {
        ReadError { leader: self.raft.current_leader().await.map(NodeId) }
    }

    /// The vote by which this node led at a moment after the call, if it did.
    async fn leads_by(&self) -> Option<Vote> {
        // A round that began before the call proves nothing to it.
        let wanted = self.rounds.begun.load(Ordering::SeqCst) + 1;
        let mut ended = self.rounds.ended.lock().await;
        if ended.0 >= wanted {
            return ended.1;
        }
        let round = self.rounds.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let vote = self.ask_voters().await;
        *ended = (round, vote);
        vote
    }

    /// Asks the other voters whether they know of a later leader, until a majority does not.
    async fn ask_voters(&self) -> Option<Vote> {
        let me = self.node();
        let (vote, quorums) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let quorums: Vec<BTreeSet<u64>> =
                metrics.membership_config.membership().get_joint_config().clone();
            (metrics.vote, quorums)
        };
        if !vote.is_committed() || vote.leader_id().node_id != me.0 {
            return None;
        }
        let mut agreed = BTreeSet::from([me.0]);
        let enough = |agreed: &BTreeSet<u64>| {
            quorums.iter().all(|voters| 2 * voters.intersection(agreed).count() > voters.len())
        };
        let others: BTreeSet<u64> = quorums.iter().flatten().copied().filter(|node| *node != me.0).collect();
        let question =
            AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let question = wire::heartbeat(&question);
        let asked = others.into_iter().map(|node| {
            let body = request::Body::Heartbeat(question);
            async move { (node, self.links.control(NodeId(node), self.shard, body, ROUND_TIMEOUT).await) }
        });
        let mut answers: FuturesUnordered<_> = asked.collect();
        while !enough(&agreed) {
            let (node, answer) = answers.next().await?;
            let Ok(response::Body::Heartbeat(answer)) = answer else { continue };
            match wire::to_append_response(answer) {
                Ok(Ok(_)) => drop(agreed.insert(node)),
                // It knows of a later leader, or of a candidate that has its vote.
                Ok(Err(_)) => return None,
                Err(_) => {}
            }
        }
        Some(vote)
    }
}
