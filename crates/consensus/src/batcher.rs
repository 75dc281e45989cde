//! Puts commands that arrive together into one entry. While one or two entries are on their way, arrivals form the
//! next; nobody waits for company.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ids::{NodeId, Position, ShardId, Timestamp};
use machine::{Command, MACHINE_VERSION, Outcome, Read as _, Refusal};
use openraft::{
    async_runtime::watch::WatchReceiver as _, errors::ClientWriteError, impls::ProgressResponder,
};
use parking_lot::Mutex;
use proto::record::Entry;
use storage::StateDb;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    Clock, Leadership, Observer, ProposeError,
    clock::{Anchor, ClusterClock, ShardClock},
    leadership,
    raft::{Body, Raft},
};

/// Entries on their way at once.
const IN_FLIGHT: u32 = 2;
/// Bytes of commands in one entry.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Commands in one entry.
const ENTRY_COMMANDS_MAX: usize = 1024;

/// How long a new leader waits for most nodes to have compared their clocks: longer than a round of greetings takes
/// that nobody answers, after which there is one more.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(3);

/// A command that waits for its entry. The answer comes with the index of the entry.
pub(crate) struct Proposal {
    pub(crate) command: Command,
    pub(crate) bytes: usize,
    pub(crate) reply: Reply,
}

impl Proposal {
    fn for_nobody(command: Command) -> Self {
        let (reply, _) = oneshot::channel();
        Self { bytes: proto::record::command_len(&command), command, reply }
    }
}

type Reply = oneshot::Sender<Result<(Outcome, u64), ProposeError>>;

/// A wish that another node lead the shard.
pub(crate) struct HandOver {
    /// Any of these, whoever has most.
    pub(crate) to: Vec<NodeId>,
    pub(crate) done: oneshot::Sender<()>,
}

pub(crate) struct Batcher {
    pub(crate) shard: ShardId,
    pub(crate) raft: Raft,
    pub(crate) state: Arc<StateDb>,
    pub(crate) clock: Arc<ClusterClock>,
    pub(crate) anchor: Option<Anchor>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) time: ShardTime,
    pub(crate) observer: Arc<dyn Observer>,
}

/// What a leader knows of its shard besides the tables: what it has proposed.
struct Term {
    term: u64,
    position: Position,
}

/// The clock of a shard on this node, in the last term in which something was proposed here.
#[derive(Clone, Default)]
pub(crate) struct ShardTime(Arc<Mutex<Option<(u64, ShardClock)>>>);

impl ShardTime {
    /// The shard's time, if it was proposed in this term.
    pub(crate) fn now(&self, term: u64, clock: &dyn Clock) -> Option<Timestamp> {
        let mut time = self.0.lock();
        let (of, shard) = time.as_mut()?;
        (*of == term).then(|| shard.now(clock))
    }

    fn start(&self, term: u64, shard: ShardClock) {
        *self.0.lock() = Some((term, shard));
    }
}

impl Batcher {
    pub(crate) async fn run(
        self,
        mut proposals: mpsc::Receiver<Proposal>,
        mut wishes: mpsc::Receiver<HandOver>,
    ) {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT as usize));
        let mut carried: VecDeque<Proposal> = VecDeque::new();
        let mut term: Option<Term> = None;
        // Set when an entry came to nothing, or may have: the positions after it are not what was counted.
        let uncertain = Arc::new(AtomicBool::new(false));
        loop {
            if let Ok(wish) = wishes.try_recv() {
                self.grant(wish, &in_flight).await;
                continue;
            }
            let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
            if carried.is_empty() {
                tokio::select! {
                    proposal = proposals.recv() => match proposal {
                        Some(proposal) => carried.push_back(proposal),
                        None => return,
                    },
                    wish = wishes.recv() => {
                        let Some(wish) = wish else { return };
                        drop(permit);
                        self.grant(wish, &in_flight).await;
                        continue;
                    }
                }
            }
            while carried.len() < ENTRY_COMMANDS_MAX
                && let Ok(proposal) = proposals.try_recv()
            {
                carried.push_back(proposal);
            }
            let leadership = *self.leadership.borrow();
            let Leadership::Here { term: now_in } = leadership else {
                let Leadership::Elsewhere { leader } = leadership else { continue };
                refuse(carried.drain(..), &ProposeError::NotLeader { leader });
                term = None;
                continue;
            };
            let counted =
                !uncertain.load(Ordering::SeqCst) && term.as_ref().is_some_and(|term| term.term == now_in);
            if !counted {
                // Entries of this term that are still on their way have positions that are not in the tables yet.
                drop(permit);
                let Ok(all) = Arc::clone(&in_flight).acquire_many_owned(IN_FLIGHT).await else {
                    return;
                };
                uncertain.store(false, Ordering::SeqCst);
                drop(all);
                term = Some(self.begin(now_in).await);
                continue;
            }
            let Some(term_state) = term.as_mut() else { continue };
            if self.propose(term_state, &mut carried, permit, Arc::clone(&uncertain)).await.is_err() {
                return;
            }
        }
    }

    /// Hands over the lead. Nothing is proposed meanwhile, so that whoever takes over can have everything.
    async fn grant(&self, wish: HandOver, in_flight: &Arc<Semaphore>) {
        let Ok(_all) = Arc::clone(in_flight).acquire_many_owned(IN_FLIGHT).await else { return };
        if wish.done.is_closed() {
            // Whoever wished it has given up.
            return;
        }
        leadership::hand_over(&self.raft, self.leadership.clone(), &wish.to).await;
        // Whoever wished may be gone.
        let _ = wish.done.send(());
    }

    async fn begin(&self, term: u64) -> Term {
        // Only the first time after the start of the node does this take longer than no time.
        let _ = tokio::time::timeout(COMPARE_TIMEOUT, self.clock.compared()).await;
        let row = self.state.latest(self.shard).shard();
        let clock: &dyn Clock = self.clock.as_ref();
        // In a cluster, what most nodes say; alone, what this node remembers.
        let remembered = || self.anchor.as_ref().map(|anchor| anchor.trusted(clock));
        let trusted = self.clock.agreed().or_else(remembered).unwrap_or_else(|| clock.wall());
        self.time.start(term, ShardClock::start(row.now, trusted, clock));
        Term { term, position: row.position }
    }

    async fn propose(
        &self,
        term: &mut Term,
        carried: &mut VecDeque<Proposal>,
        permit: OwnedSemaphorePermit,
        uncertain: Arc<AtomicBool>,
    ) -> Result<(), ()> {
        let (mut commands, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        let is_new = term.position == Position::default();
        if is_new && self.raft.metrics().borrow_watched().membership_config.voter_ids().count() == 1 {
            // A cluster that begins here: the newest rules are in force from its first entry on.
            carried.push_front(Proposal::for_nobody(Command::Finalize { machine_version: MACHINE_VERSION }));
        }
        while let Some(proposal) = carried.front() {
            if !commands.is_empty() && bytes + proposal.bytes > ENTRY_BYTES_MAX {
                break;
            }
            bytes += proposal.bytes;
            if let Some(proposal) = carried.pop_front() {
                commands.push(proposal.command);
                replies.push(proposal.reply);
            }
        }
        term.position = Position(term.position.0 + 1);
        // This term's clock was started with it.
        let now = self.time.now(term.term, self.clock.as_ref()).unwrap_or_default();
        let entry = Entry {
            incarnation: 0,
            epoch: ids::Epoch(0),
            position: term.position,
            now,
            machine_version: MACHINE_VERSION,
            commands,
        };
        let (responder, result) = ProgressResponder::complete_only();
        // In order: this returns when the entry is queued, not when it is committed.
        if self.raft.client_write_ff(Body::new(entry.encode()), Some(responder)).await.is_err() {
            for reply in replies {
                let _ = reply.send(Err(ProposeError::Stopped));
            }
            return Err(());
        }
        let (shard, observer) = (self.shard, Arc::clone(&self.observer));
        let proposed = Instant::now();
        tokio::spawn(async move {
            match result.await {
                Ok(Ok(written)) => {
                    observer.committed(shard, replies.len(), proposed.elapsed());
                    let misplaced = |outcome: &Outcome| {
                        matches!(outcome, Outcome::Refused(Refusal::WrongPosition { .. }))
                    };
                    if written.data.0.iter().any(misplaced) {
                        uncertain.store(true, Ordering::SeqCst);
                    }
                    let index = written.log_id.index();
                    answer(replies, written.data.0, index);
                }
                Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                    uncertain.store(true, Ordering::SeqCst);
                    let error = ProposeError::NotLeader { leader: to.leader_id.map(NodeId) };
                    fail(replies, &error);
                }
                Ok(Err(_)) => {
                    uncertain.store(true, Ordering::SeqCst);
                    fail(replies, &ProposeError::Unknown);
                }
                Err(_) => {
                    uncertain.store(true, Ordering::SeqCst);
                    // Also where the shard stops: others may have the entry.
                    fail(replies, &ProposeError::Unknown);
                }
            }
            drop(permit);
        });
        Ok(())
    }
}

fn answer(replies: Vec<Reply>, outcomes: Vec<Outcome>, index: u64) {
    for (reply, outcome) in replies.into_iter().zip(outcomes) {
        // Whoever asked may be gone.
        let _ = reply.send(match outcome {
            Outcome::Refused(Refusal::WrongPosition { .. }) => Err(ProposeError::Unknown),
            outcome => Ok((outcome, index)),
        });
    }
}

fn fail(replies: Vec<Reply>, error: &ProposeError) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}

fn refuse(proposals: impl Iterator<Item = Proposal>, error: &ProposeError) {
    for proposal in proposals {
        let _ = proposal.reply.send(Err(error.clone()));
    }
}
