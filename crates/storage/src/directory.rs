//! The data directory of a node: its lock and its identity.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ids::{NodeId, RegionId};
use proto::{
    envelope::{self, Kind},
    record::raft::NodeIdentity,
};

use crate::Error;

/// The layout of a data directory. A newer one is refused.
const LAYOUT: u32 = 1;
const LAYOUT_FILE: &str = "LAYOUT";
const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "identity";
/// How often the directory was opened.
const STARTS_FILE: &str = "starts";
/// There while the node is not a member of all shards yet.
const JOINING_FILE: &str = "joining";

/// Why the directory must not be used again, once it must not.
const CONDEMNED_FILE: &str = "condemned";

/// Whom a directory belongs to. Written once, when the directory is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// Its region.
    pub region: RegionId,
    /// How many shards the cluster has.
    pub shards: u16,
    /// Whether the node joined a cluster that was there; otherwise it founded it.
    pub joined: bool,
}

/// A data directory, locked for this process until it is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    identity: Identity,
    starts: u64,
    _lock: File,
}

impl Directory {
    /// Opens the directory, or makes it with `new` as its identity. Whether an existing identity is the right one
    /// is for the caller to say.
    ///
    /// # Errors
    ///
    /// In use by another process, condemned, foreign, newer, or refused by the system.
    pub fn open(path: &Path, new: &Identity) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let is_new = Self::check_layout(path)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(Error::Io { path: lock_path, source }),
        }
        let condemned = path.join(CONDEMNED_FILE);
        match fs::read_to_string(&condemned) {
            Ok(reason) => return Err(Error::Condemned { path: path.to_owned(), reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&condemned)(error)),
        }
        let identity_path = path.join(IDENTITY_FILE);
        let identity = if identity_path.exists() {
            read_identity(&identity_path)?
        } else if is_new {
            if new.joined {
                write_synced(&path.join(JOINING_FILE), b"")?;
            }
            write_synced(&identity_path, &seal(new))?;
            write_synced(&path.join(LAYOUT_FILE), format!("{LAYOUT}\n").as_bytes())?;
            sync_directory(path)?;
            new.clone()
        } else {
            let reason = "it has a layout file but no identity".to_owned();
            return Err(Error::Foreign { path: path.to_owned(), reason });
        };
        let starts = count_start(&path.join(STARTS_FILE))?;
        sync_directory(path)?;
        Ok(Self { path: path.to_owned(), identity, starts, _lock: lock })
    }

    /// Remembers that what a directory holds must not count any more: no process opens it again.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn condemn(path: &Path, reason: &str) -> Result<(), Error> {
        write_synced(&path.join(CONDEMNED_FILE), reason.as_bytes())?;
        sync_directory(path)
    }

    /// Makes a directory that was filled by hand a data directory, with `identity`.
    ///
    /// # Errors
    ///
    /// It is one already, or the system refuses.
    pub fn adopt(path: &Path, identity: &Identity) -> Result<(), Error> {
        let (identity_path, layout_path) = (path.join(IDENTITY_FILE), path.join(LAYOUT_FILE));
        if layout_path.exists() || identity_path.exists() {
            let reason = "it is the data directory of a node already".to_owned();
            return Err(Error::Foreign { path: path.to_owned(), reason });
        }
        write_synced(&identity_path, &seal(identity))?;
        write_synced(&layout_path, format!("{LAYOUT}\n").as_bytes())?;
        sync_directory(path)
    }

    /// Whether the directory is new. An interrupted first start is new as well.
    fn check_layout(path: &Path) -> Result<bool, Error> {
        let layout_path = path.join(LAYOUT_FILE);
        if !layout_path.exists() {
            let known = [LOCK_FILE, IDENTITY_FILE, JOINING_FILE, STARTS_FILE, "pid"];
            for entry in fs::read_dir(path).map_err(Error::io(path))? {
                let name = entry.map_err(Error::io(path))?.file_name();
                if !known.iter().any(|known| name == *known) {
                    let reason = format!("it has no {LAYOUT_FILE} file, but holds {}", name.display());
                    return Err(Error::Foreign { path: path.to_owned(), reason });
                }
            }
            return Ok(true);
        }
        let text = fs::read_to_string(&layout_path).map_err(Error::io(&layout_path))?;
        let found = text.trim().parse().map_err(|_| Error::Foreign {
            path: path.to_owned(),
            reason: format!("its {LAYOUT_FILE} file does not hold a number"),
        })?;
        if found > LAYOUT {
            return Err(Error::Newer { path: path.to_owned(), found, known: LAYOUT });
        }
        Ok(false)
    }

    /// Whether a directory has no identity yet.
    ///
    /// # Errors
    ///
    /// It is foreign, newer, or refused by the system.
    pub fn is_new(path: &Path) -> Result<bool, Error> {
        if !path.exists() {
            return Ok(true);
        }
        Ok(Self::check_layout(path)? && !path.join(IDENTITY_FILE).exists())
    }

    /// Whether the node has not become a member of all shards since the directory was made.
    #[must_use]
    pub fn is_joining(&self) -> bool {
        self.path.join(JOINING_FILE).exists()
    }

    /// Remembers that the node is a member of all shards.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn joined(&self) -> Result<(), Error> {
        let path = self.path.join(JOINING_FILE);
        fs::remove_file(&path).map_err(Error::io(&path))?;
        sync_directory(&self.path)
    }

    /// How often it was opened, with this time.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whom it belongs to.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn seal(identity: &Identity) -> Vec<u8> {
    let message = NodeIdentity {
        cluster: identity.cluster.to_be_bytes().to_vec().into(),
        node: identity.node.0,
        region: identity.region.0.into(),
        shards: identity.shards.into(),
        joined: identity.joined,
    };
    envelope::seal(Kind::NodeIdentity, &message).to_vec()
}

fn read_identity(path: &Path) -> Result<Identity, Error> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let corrupt = |reason: String| Error::corrupt(path.display().to_string(), reason);
    let message: NodeIdentity =
        envelope::unseal(Kind::NodeIdentity, &bytes).map_err(|error| corrupt(error.to_string()))?;
    let narrow =
        |number: u32| u16::try_from(number).map_err(|_| corrupt(format!("{number} is out of range")));
    Ok(Identity {
        cluster: message
            .cluster
            .as_ref()
            .try_into()
            .map(u128::from_be_bytes)
            .map_err(|_| corrupt("a cluster's id has 16 bytes".to_owned()))?,
        node: NodeId(message.node),
        region: RegionId(narrow(message.region)?),
        shards: narrow(message.shards)?,
        joined: message.joined,
    })
}

/// Counts one more, in a file that is replaced as a whole.
fn count_start(path: &Path) -> Result<u64, Error> {
    let before = match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|_| {
            Error::corrupt(path.display().to_string(), format!("{text:?} is not a number of starts"))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Error::io(path)(error)),
    };
    let (starts, fresh) = (before + 1, path.with_extension("new"));
    write_synced(&fresh, format!("{starts}\n").as_bytes())?;
    fs::rename(&fresh, path).map_err(Error::io(path))?;
    Ok(starts)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(path))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io(path))
}
