//! The state of a node at one moment, for keeping; and a new cluster that begins with it.
//!
//! A new cluster has a log of its own. It begins after index 1, which stands for what was restored: whoever joins is
//! behind it, and takes in the state.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ids::{Position, ShardId};
use machine::Read as _;
use openraft::{Membership, impls::leader_id_adv::LeaderId};
use storage::{CheckpointFile, Directory, Identity, LogDb, LogOptions, RowDigest, StateDb, StateOptions};
use tokio::sync::oneshot;

use crate::{
    Member, Node,
    raft::{LogId, StoredMembership, Vote, records},
};

/// The term and the index of the entry that stands for what was restored.
const RESTORED: u64 = 1;
/// Restored databases are read through once.
const OPTIONS: StateOptions = StateOptions { block_cache_bytes: 32 << 20, cached_rows: 16 };

/// Why there is no checkpoint, or no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A shard's leader could not be asked how far a replica has to be.
    #[error("shard {0}: its leader can not be asked what is acknowledged; try again")]
    NoLeader(ShardId),
    /// The directory or its databases.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The directory holds something.
    #[error("{0} is not empty: restore into a new directory")]
    NotEmpty(String),
    /// Something panicked.
    #[error("a task of the checkpoint panicked")]
    Panicked,
}

/// A shard in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardAt {
    /// The shard.
    pub shard: ShardId,
    /// How far it was.
    pub position: Position,
    /// The digest of its rows.
    pub digest: RowDigest,
}

/// A shard that was read through.
#[derive(Debug)]
pub struct ReadShard {
    /// What it says of itself.
    pub at: ShardAt,
    /// How many rows it has, or what is wrong with them.
    pub rows: Result<u64, storage::Error>,
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every shard.
    pub shards: Vec<ShardAt>,
    /// Every file.
    pub files: Vec<CheckpointFile>,
    /// The database that its files are of.
    pub database: String,
}

impl Node {
    /// Copies the state into a new directory on the same disk, without holding up writes. It has everything that was
    /// acknowledged before the call, on any node; each shard is as it was at one position.
    ///
    /// # Errors
    ///
    /// A leader can not be asked, or the disk refuses.
    pub async fn checkpoint(&self, to: &Path) -> Result<Checkpoint, Error> {
        for (shard, group) in self.groups() {
            group.linearize().await.map_err(|_| Error::NoLeader(*shard))?;
        }
        let (state, to) = (self.state(), to.to_owned());
        let shards = self.groups().keys().copied().collect::<Vec<_>>();
        let made = move || -> Result<Checkpoint, Error> {
            let files = state.checkpoint(&to)?;
            let copy = StateDb::open_read_only(&to, OPTIONS)?;
            let at = |shard| -> Result<ShardAt, Error> {
                Ok(ShardAt {
                    shard,
                    position: copy.view(shard).shard().position,
                    digest: copy.digest(shard)?,
                })
            };
            let shards = shards.into_iter().map(at).collect::<Result<_, _>>()?;
            Ok(Checkpoint { shards, files, database: state.database_id()? })
        };
        tokio::task::spawn_blocking(made).await.map_err(|_| Error::Panicked)?
    }
}

/// Reads every row of a copied state, shard by shard.
///
/// # Errors
///
/// It is not a state, or the disk refuses.
pub fn read_through(state: &Path, shards: u16) -> Result<Vec<ReadShard>, Error> {
    let copy = StateDb::open_read_only(state, OPTIONS)?;
    let read = |shard| -> Result<_, Error> {
        let position = copy.view(shard).shard().position;
        let at = ShardAt { shard, position, digest: copy.digest(shard)? };
        Ok(ReadShard { at, rows: copy.scrub(shard).map(|scrubbed| scrubbed.rows) })
    };
    (0..shards).map(ShardId).map(read).collect()
}

/// Makes a data directory whose node founds a new cluster with a state that `fill` puts into the directory it is given.
///
/// # Errors
///
/// The directory is not empty, what `fill` says, or the disk refuses.
pub async fn found<E: From<Error>>(
    path: &Path,
    identity: Identity,
    member: Member,
    fill: impl AsyncFnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let io = |error: std::io::Error| E::from(Error::Io(error));
    if path.exists() && path.read_dir().map_err(io)?.next().is_some() {
        return Err(Error::NotEmpty(path.display().to_string()).into());
    }
    std::fs::create_dir_all(path).map_err(io)?;
    let state = path.join("state");
    // Until it has an identity, a directory that was not filled to the end is refused as foreign.
    std::fs::create_dir(&state).map_err(io)?;
    fill(&state).await?;
    begin(path, &state, identity, member).await.map_err(E::from)
}

async fn begin(path: &Path, state: &Path, identity: Identity, member: Member) -> Result<(), Error> {
    let (node, shards) = (identity.node.0, identity.shards);
    let id = LogId::new(LeaderId { term: RESTORED, node_id: node }, RESTORED);
    let members = BTreeMap::from([(node, member)]);
    let members = Membership::new(vec![BTreeSet::from([node])], members).map_err(records::invalid)?;
    let applied = records::seal_applied(Some(&id), &StoredMembership::new(Some(id), members));
    let (state, log_path) = (state.to_owned(), path.join("log"));
    tokio::task::spawn_blocking(move || -> Result<(), Error> {
        let db = StateDb::open(&state, OPTIONS)?;
        (0..shards).map(ShardId).try_for_each(|shard| db.rebase(shard, &applied))?;
        Ok(())
    })
    .await
    .map_err(|_| Error::Panicked)??;
    let log = LogDb::open(
        &log_path,
        LogOptions { tail_bytes: 1 << 20, queue_len: 64, batch_bytes: 1 << 20, sync: true },
    )?;
    for shard in (0..shards).map(ShardId) {
        let log = log.shard(shard)?;
        let (voted, done) = oneshot::channel();
        log.save_vote(
            records::seal_vote(&Vote::new(RESTORED, node)),
            Box::new(|result| drop(voted.send(result))),
        );
        done.await.map_err(|_| Error::Panicked)??;
        let (purged, done) = oneshot::channel();
        log.purge(RESTORED + 1, records::seal_log_id(&id), Box::new(|result| drop(purged.send(result))))?;
        done.await.map_err(|_| Error::Panicked)??;
    }
    // Last: what has no identity is not a data directory.
    Directory::adopt(path, &identity)?;
    Ok(())
}
