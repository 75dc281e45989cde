//! The state machine: entries applied to the state database.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::machine::{
    Command, Effect, Input, Key, MACHINE_VERSION_FIRST, Outcome, Read as _, Refusal, Row, ShardRow,
    Tables as _,
};
use futures_util::{Stream, StreamExt as _};
use ids::{Position, ShardId};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot},
};
use parking_lot::Mutex;
use proto::record;
use storage::{Exported, Import, RowDigest, StateDb};
use tokio::sync::watch;

use super::{Entry, LogId, Reply, StoredMembership, Types, records};
use crate::{
    Effects, Observer,
    mutants::{self, Mutant},
    observer::Told,
    versions,
};

/// Entries written in one batch.
const BATCH_ENTRIES: usize = 64;
/// Digests that are remembered.
const MARKS_LEN: usize = 16;
/// How long an apply rests between attempts while the disk is full.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// What a shard has applied, for whoever flushes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) id: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// The state machine of a shard.
#[derive(Debug, Clone)]
pub struct StateMachine {
    db: Arc<StateDb>,
    shard: ShardId,
    effects: Effects,
    observer: Arc<dyn Observer>,
    applied: Arc<Mutex<Applied>>,
    /// The index of the first entry that is not applied.
    next: Arc<watch::Sender<u64>>,
    /// What is known to be on disk, and so may be reported as a snapshot.
    flushed: Arc<Mutex<Applied>>,
    /// What the flush of all shards has just made durable, for the next snapshot to report without another flush.
    captured: Arc<Mutex<Option<Applied>>>,
    /// Set while the disk refuses.
    failing: Arc<Mutex<Option<String>>>,
    /// The digests before the last entries that asked for them.
    marks: Arc<Mutex<VecDeque<Mark>>>,
    /// Why this replica has stopped for good, if it has.
    broken: Arc<Mutex<Option<String>>>,
    /// Set if that is because its rows are not those of most replicas.
    differs: Arc<AtomicBool>,
}

/// The digest of the rows before an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) index: u64,
    pub(crate) position: Position,
    pub(crate) digest: RowDigest,
}

/// A snapshot.
#[derive(Debug)]
pub enum SnapshotSource {
    /// Of which only the place is kept: its bytes are read when a peer asks.
    Live {
        /// The database.
        db: Arc<StateDb>,
        /// The shard.
        shard: ShardId,
    },
    /// That came from a peer, and is written beside what is in force.
    Staged(Box<Import>),
}

impl StateMachine {
    /// Over a shard's rows, as far as they were applied.
    ///
    /// # Errors
    ///
    /// The disk refuses, or what is there is corrupt.
    pub fn open(db: Arc<StateDb>, shard: ShardId) -> io::Result<Self> {
        Self::watched(db, shard, Effects::new(), Arc::new(()))
    }

    pub(crate) fn watched(
        db: Arc<StateDb>,
        shard: ShardId,
        effects: Effects,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let applied = match db.applied(shard)? {
            Some(bytes) => {
                let (id, membership) = records::open_applied(&bytes)?;
                Applied { id, membership }
            }
            None => Applied::default(),
        };
        Ok(Self {
            db,
            shard,
            effects,
            observer,
            flushed: Arc::new(Mutex::new(applied.clone())),
            next: Arc::new(watch::Sender::new(next_index(&applied))),
            applied: Arc::new(Mutex::new(applied)),
            captured: Arc::default(),
            failing: Arc::default(),
            marks: Arc::default(),
            broken: Arc::default(),
            differs: Arc::default(),
        })
    }

    pub(crate) fn applied(&self) -> Applied {
        self.applied.lock().clone()
    }

    fn set_applied(&self, applied: Applied) {
        self.next.send_replace(next_index(&applied));
        *self.applied.lock() = applied;
    }

    /// Returns when the entry at `index` is applied.
    pub(crate) async fn applied_until(&self, index: u64) {
        // The sender lives as long as `self`.
        let _ = self.next.subscribe().wait_for(|next| *next > index).await;
    }

    /// Says that everything up to `applied`, captured before a flush, is on disk.
    pub(crate) fn flushed(&self, applied: Applied) {
        *self.flushed.lock() = applied.clone();
        *self.captured.lock() = Some(applied);
    }

    pub(crate) fn failing(&self) -> Option<String> {
        self.failing.lock().clone()
    }

    pub(crate) fn broken(&self) -> Option<String> {
        self.broken.lock().clone()
    }

    /// Why the rows of this replica must not count, if they must not.
    pub(crate) fn differs(&self) -> Option<String> {
        self.broken().filter(|_| self.differs.load(Ordering::SeqCst))
    }

    /// The digest before an entry that asked for it, once that is applied.
    pub(crate) async fn mark(&self, index: u64) -> Option<Mark> {
        self.applied_until(index).await;
        self.marks.lock().iter().find(|mark| mark.index == index).copied()
    }

    /// Notes the digest of the rows before an entry, and stops this replica if most had another before an earlier one.
    fn check_digest(&self, index: u64, entry: &record::Entry) -> io::Result<()> {
        if entry.position != Position(self.db.latest(self.shard).shard().position.0 + 1) {
            return Ok(());
        }
        // The digest is of what is written.
        self.until_written(self.db.write_out(self.shard))?;
        let mark = Mark { index, position: entry.position, digest: self.db.digest(self.shard)? };
        let mut marks = self.marks.lock();
        for command in &entry.commands {
            let Command::CheckDigest { agreed: Some((position, digest)) } = command else { continue };
            let ours = marks.iter().find(|mark| mark.position == *position);
            let Some(ours) = ours.filter(|ours| ours.digest.0 != *digest) else { continue };
            let reason = format!(
                "the rows of shard {} differ from those of most replicas: before position {position} their digest was {} \
                 here and {} there; replace this node",
                self.shard,
                ours.digest,
                RowDigest(*digest)
            );
            self.differs.store(true, Ordering::SeqCst);
            return Err(self.stop_for(reason));
        }
        if marks.len() == MARKS_LEN {
            marks.pop_front();
        }
        marks.push_back(mark);
        Ok(())
    }

    /// Stops this replica before rules come into force that it does not know.
    fn check_version(&self, entry: &record::Entry) -> io::Result<()> {
        for command in &entry.commands {
            let Command::Finalize { machine_version } = command else { continue };
            versions::check(*machine_version).map_err(|error| self.stop_for(error.to_string()))?;
        }
        Ok(())
    }

    fn stop_for(&self, reason: String) -> io::Error {
        tracing::error!(shard = %self.shard, reason, "this replica stops");
        *self.broken.lock() = Some(reason.clone());
        io::Error::new(io::ErrorKind::InvalidData, reason)
    }

    /// Applies entries in one batch; effects and replies follow when it is written.
    fn apply_batch(&self, entries: Vec<Decoded>) -> io::Result<Vec<(ApplyResponder<Types>, Reply)>> {
        self.observer.applying(self.shard);
        let mut applied = self.applied();
        let mut batch = self.db.batch(self.shard);
        let mut replies: Vec<(ApplyResponder<Types>, Reply)> = Vec::new();
        let mut effects = Vec::new();
        for Decoded { log_id, payload, responder } in entries {
            let reply = match payload {
                Payload::Blank => Reply::default(),
                Payload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(log_id), membership);
                    Reply::default()
                }
                Payload::Normal(entry) => {
                    self.check_version(&entry)?;
                    let mut asked = |effect| effects.push((log_id.committed_leader_id().term, effect));
                    apply_entry(&mut batch, self.observer.as_ref(), entry, &mut asked)
                }
            };
            applied.id = Some(log_id);
            replies.extend(responder.map(|responder| (responder, reply)));
        }
        let record = records::seal_applied(applied.id.as_ref(), &applied.membership);
        if mutants::is_on(Mutant::ReplyBeforeApply) {
            self.set_applied(applied.clone());
            for (responder, reply) in replies.drain(..) {
                responder.send(reply);
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.effects.write_and_hand_out(effects, || self.until_written(batch.commit(&record)))?;
        self.set_applied(applied);
        Ok(replies)
    }

    /// Puts a state that came in into force. A full disk is waited for: Raft would give the shard up.
    async fn put_into_force(&self, mut import: Import) -> io::Result<()> {
        loop {
            // Two flushes: not on the thread that answers heartbeats.
            let tried = tokio::task::spawn_blocking(move || {
                let installed = import.install();
                (import, installed)
            });
            let (back, installed) = tried.await.map_err(io::Error::other)?;
            import = back;
            match installed {
                Ok(()) => break,
                Err(error) if error.is_no_space() => {
                    if self.failing.lock().replace(error.to_string()).is_none() {
                        tracing::error!(shard = %self.shard, %error, "a state that came in can not be kept; it waits");
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.failing.lock().take().is_some() {
            tracing::info!(shard = %self.shard, "the state that came in is kept");
        }
        Ok(())
    }

    /// Returns when what is in force is written, if `result` says that it is not. A full disk is waited for: rows that
    /// wait in memory are bounded, and nothing is lost.
    fn until_written(&self, mut result: Result<(), storage::Error>) -> io::Result<()> {
        while let Err(error) = result {
            if !error.is_no_space() {
                return Err(error.into());
            }
            if self.failing.lock().replace(error.to_string()).is_none() {
                tracing::error!(shard = %self.shard, %error, "the state can not be written; writes wait");
            }
            // This shard can not go on; the others, and heartbeats, do.
            tokio::task::block_in_place(|| std::thread::park_timeout(RETRY_PAUSE));
            result = self.db.write_out(self.shard);
        }
        if self.failing.lock().take().is_some() {
            tracing::info!(shard = %self.shard, "the state is written again");
        }
        Ok(())
    }
}

/// An entry, read.
struct Decoded {
    log_id: LogId,
    payload: Payload,
    responder: Option<ApplyResponder<Types>>,
}

enum Payload {
    Blank,
    Normal(record::Entry),
    Membership(openraft::Membership<u64, super::Member>),
}

impl Decoded {
    fn from((Entry { log_id, payload }, responder): EntryResponder<Types>) -> io::Result<Self> {
        let payload = match payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(body) => {
                Payload::Normal(record::Entry::decode(body.bytes).map_err(records::invalid)?)
            }
            EntryPayload::Membership(membership) => Payload::Membership(membership),
        };
        Ok(Self { log_id, payload, responder })
    }

    fn asks_for_digest(&self) -> Option<&record::Entry> {
        let Payload::Normal(entry) = &self.payload else { return None };
        let asks = |command: &Command| matches!(command, Command::CheckDigest { .. });
        entry.commands.iter().any(asks).then_some(entry)
    }
}

fn apply_entry(
    batch: &mut storage::Batch<'_>,
    observer: &dyn Observer,
    entry: record::Entry,
    asked: &mut impl FnMut(Effect),
) -> Reply {
    let row = batch.shard();
    let expected = Position(row.position.0 + 1);
    if entry.position != expected {
        // Proposed by a leader whose entries before this one were lost. All replicas refuse it alike.
        let refusal = Refusal::WrongPosition { given: entry.position, expected };
        return Reply(entry.commands.iter().map(|_| Outcome::Refused(refusal.clone())).collect());
    }
    let now = entry.now.max(row.now);
    batch.put(
        Key::Shard,
        Row::Shard(ShardRow {
            position: expected,
            now,
            epoch: entry.epoch,
            machine_version: row.machine_version.max(MACHINE_VERSION_FIRST),
        }),
    );
    let outcomes = entry.commands.into_iter().map(|mut command| {
        if mutants::is_on(Mutant::StaleDispatch)
            && let Command::ResolveStep(resolve) = &mut command
            && let Some(row) = batch.step(resolve.session, resolve.step)
        {
            resolve.dispatch = row.dispatch;
        }
        let output = ::machine::apply(&mut Told { batch, observer }, &Input { now, command });
        output.effects.into_iter().for_each(&mut *asked);
        output.outcome
    });
    Reply(outcomes.collect())
}

fn next_index(applied: &Applied) -> u64 {
    applied.id.map_or(0, |id| id.index() + 1)
}

/// Writes a shard of one database beside what is in force in another.
fn copy(
    from: &StateDb,
    shard: ShardId,
    to: &Arc<StateDb>,
    as_shard: ShardId,
) -> Result<Import, storage::Error> {
    let mut import = None;
    from.export(shard, |part| {
        match (part, &mut import) {
            (Exported::Applied(applied), slot) => *slot = Some(to.import(as_shard, applied)?),
            (Exported::Rows(rows), Some(import)) => import.put(rows)?,
            (Exported::Rows(_), None) => {}
        }
        Ok::<_, storage::Error>(())
    })?;
    let nothing =
        || storage::Error::Corrupt { place: format!("shard {shard}"), reason: "it is empty".into() };
    import.ok_or_else(nothing)
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotSource;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied();
        Ok((applied.id, applied.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        // A digest is taken between batches: of all rows before its entry.
        let mut next: Option<Decoded> = None;
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH_ENTRIES {
                let decoded = match next.take() {
                    Some(decoded) => decoded,
                    None => match entries.next().await {
                        Some(entry) => Decoded::from(entry?)?,
                        None => break,
                    },
                };
                if let Some(entry) = decoded.asks_for_digest() {
                    if !batch.is_empty() {
                        next = Some(decoded);
                        break;
                    }
                    self.check_digest(decoded.log_id.index(), entry)?;
                }
                batch.push(decoded);
            }
            if batch.is_empty() {
                return Ok(());
            }
            for (responder, reply) in self.apply_batch(batch)? {
                responder.send(reply);
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotSource) -> io::Result<()> {
        let import = match snapshot {
            SnapshotSource::Staged(import) => *import,
            SnapshotSource::Live { db, shard } if Arc::ptr_eq(&db, &self.db) && shard == self.shard => {
                return Ok(());
            }
            SnapshotSource::Live { db, shard } => copy(&db, shard, &self.db, self.shard)?,
        };
        self.put_into_force(import).await?;
        let applied = Applied { id: meta.last_log_id, membership: meta.last_membership.clone() };
        *self.flushed.lock() = applied.clone();
        *self.captured.lock() = None;
        self.set_applied(applied);
        let in_force = self.db.latest(self.shard).shard().machine_version;
        versions::check(in_force).map_err(|error| self.stop_for(error.to_string()))
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::type_config::alias::SnapshotOf<Types, SnapshotSource>>> {
        let flushed = self.flushed.lock().clone();
        Ok(flushed.id.is_some().then(|| self.snapshot(flushed)))
    }
}

impl StateMachine {
    fn snapshot(&self, of: Applied) -> openraft::type_config::alias::SnapshotOf<Types, SnapshotSource> {
        Snapshot {
            meta: SnapshotMeta { last_log_id: of.id, last_membership: of.membership },
            snapshot: SnapshotSource::Live { db: Arc::clone(&self.db), shard: self.shard },
        }
    }
}

impl RaftSnapshotBuilder<Types> for StateMachine {
    type SnapshotData = SnapshotSource;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<openraft::type_config::alias::SnapshotOf<Types, SnapshotSource>> {
        if let Some(captured) = self.captured.lock().take() {
            return Ok(self.snapshot(captured));
        }
        let applied = self.applied();
        self.db.flush()?;
        *self.flushed.lock() = applied.clone();
        Ok(self.snapshot(applied))
    }
}
