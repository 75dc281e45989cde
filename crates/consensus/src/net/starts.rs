//! Which process speaks for a node. A data directory that was copied, or brought back from an older copy, has forgotten
//! votes and entries that the node has promised to keep; two processes with one id would each vote. So every start of a
//! node has a number, kept in its directory, and a random mark, and who is asked listens to one start of a node only:
//! the latest, and never to another while that one is still connected. A process that learns that its directory is an
//! older copy condemns it: started often enough, its number would be the latest.

use std::{collections::BTreeMap, fmt, fs::File, io::Write as _, path::PathBuf, str::FromStr, sync::Arc};

use ids::NodeId;
use parking_lot::Mutex;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

use super::header;
use crate::mutants::{self, Mutant};

/// One start of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// How many there were, with this one.
    pub(crate) count: u64,
    /// Drawn at the start.
    pub(crate) mark: u64,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.count, self.mark)
    }
}

impl FromStr for Start {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, mark) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { count: count.parse()?, mark: u64::from_str_radix(mark, 16)? })
    }
}

/// The latest starts of its peers that a node has met, also before its own start. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Starts {
    latest: Arc<Mutex<BTreeMap<NodeId, Latest>>>,
    /// Where they are kept.
    file: Arc<Option<PathBuf>>,
}

#[derive(Debug)]
struct Latest {
    start: Start,
    connections: usize,
}

impl Starts {
    /// Those that are kept in a file. What can not be read is as if it were not there, and is said.
    pub(crate) fn open(file: PathBuf) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut latest = BTreeMap::new();
        for line in text.lines() {
            let met = line.split_once(' ').and_then(|(node, start)| {
                Some((NodeId(node.parse().ok()?), Latest { start: start.parse().ok()?, connections: 0 }))
            });
            match met {
                Some((node, start)) => drop(latest.insert(node, start)),
                None => tracing::warn!(line, file = %file.display(), "not a start of a node"),
            }
        }
        Self { latest: Arc::new(Mutex::new(latest)), file: Arc::new(Some(file)) }
    }

    /// Keeps what was met. Once for every start of a peer.
    fn keep(&self, latest: &BTreeMap<NodeId, Latest>) {
        let Some(file) = self.file.as_ref() else { return };
        let text: String = latest.iter().map(|(node, of)| format!("{node} {}\n", of.start)).collect();
        let fresh = file.with_extension("new");
        let written = File::create(&fresh)
            .and_then(|mut out| out.write_all(text.as_bytes()).and_then(|()| out.sync_all()))
            .and_then(|()| std::fs::rename(&fresh, file));
        if let Err(error) = written {
            tracing::warn!(%error, file = %file.display(), "the starts of peers are known until this node ends");
        }
    }

    /// Someone speaks for a node: listened to until what this returns is dropped, or refused.
    pub(crate) fn meet(&self, node: NodeId, start: Start) -> Result<Met, Status> {
        let mut latest = self.latest.lock();
        let is_new = !latest.contains_key(&node);
        let known = latest.entry(node).or_insert(Latest { start, connections: 0 });
        let mut is_later = false;
        if known.start != start && !mutants::is_on(Mutant::ReuseNodeId) {
            if known.connections > 0 {
                return Err(Status::already_exists(format!(
                    "another process runs as node {node} and is connected: this one (start {}) has a copy of its \
                     directory, or was started before the other was gone",
                    start.count
                )));
            }
            if start.count <= known.start.count {
                let message = format!(
                    "node {node} was here with start {} already, this is start {} of a copy of its directory, or of \
                     an older one: remove the node, and add it with an empty directory",
                    known.start.count, start.count
                );
                let mut metadata = MetadataMap::new();
                metadata.insert(header::OUTDATED, MetadataValue::from_static("true"));
                return Err(Status::with_metadata(Code::AlreadyExists, message, metadata));
            }
            known.start = start;
            is_later = true;
        }
        known.connections += 1;
        if is_new || is_later {
            self.keep(&latest);
        }
        Ok(Met { starts: self.clone(), node })
    }
}

/// A connection of the start of a node that is listened to.
#[derive(Debug)]
pub(crate) struct Met {
    starts: Starts,
    pub(crate) node: NodeId,
}

impl Drop for Met {
    fn drop(&mut self) {
        if let Some(known) = self.starts.latest.lock().get_mut(&self.node) {
            known.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;

    #[test]
    fn one_start_of_a_node_is_listened_to() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("met");
        let (starts, node) = (Starts::open(file.clone()), NodeId(7));
        let start = |count, mark| Start { count, mark };
        assert_eq!("3-00000000000000ff".parse::<Start>().unwrap(), start(3, 255));
        assert_eq!(start(3, 255).to_string().parse::<Start>().unwrap(), start(3, 255));
        let first = starts.meet(node, start(3, 1)).unwrap();
        let again = starts.meet(node, start(3, 1)).unwrap();
        // A copy, while the node is there: neither newer nor older ones.
        assert!(starts.meet(node, start(4, 2)).is_err());
        assert!(starts.meet(node, start(2, 2)).is_err());
        drop(first);
        assert!(starts.meet(node, start(4, 2)).is_err());
        drop(again);
        // The node is gone: only who has started since.
        assert!(starts.meet(node, start(3, 2)).is_err());
        assert!(starts.meet(node, start(2, 2)).is_err());
        drop(starts.meet(node, start(4, 2)).unwrap());
        assert!(starts.meet(node, start(3, 1)).is_err());
        assert!(starts.meet(NodeId(8), start(1, 1)).is_ok());
        // Also by a node that was started again since.
        let starts = Starts::open(file);
        assert!(starts.meet(node, start(4, 3)).is_err());
        assert!(starts.meet(node, start(4, 2)).is_ok());
        assert!(starts.meet(NodeId(8), start(2, 5)).is_ok());
    }
}
