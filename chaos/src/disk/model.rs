//! Files and directories in memory that remember which writes were not synced yet, and what was there before.
//!
//! What a power cut leaves of a file: everything up to its last sync, and of the writes after it some, in any order,
//! each whole or only its first sectors. A file that grew past a write that is gone has zeros there. Names are kept:
//! a journal orders changes of directories, and loses none that this model would have to guess at.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
};

use rand::{Rng as _, rngs::StdRng};

/// A write is torn only between sectors.
const SECTOR: usize = 512;
pub(super) const ROOT: u64 = 1;

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    NoSuchEntry,
    NotADirectory,
    IsADirectory,
    Exists,
    NotEmpty,
}

#[derive(Debug, Default)]
pub(super) struct File {
    data: Vec<u8>,
    unsynced: Vec<Write>,
    open: u32,
    unlinked: bool,
}

/// A write, or a new length, that a power cut may undo.
#[derive(Debug)]
struct Write {
    offset: usize,
    new: Vec<u8>,
    old: Vec<u8>,
    old_len: usize,
    /// The length that was set, if it was.
    set_len: Option<usize>,
}

impl File {
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    pub(super) fn read(&self, offset: usize, size: usize) -> &[u8] {
        let from = offset.min(self.data.len());
        &self.data[from..offset.saturating_add(size).min(self.data.len()).max(from)]
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let (old, old_len) = (self.read(offset, bytes.len()).to_vec(), self.data.len());
        self.unsynced.push(Write { offset, new: bytes.to_vec(), old, old_len, set_len: None });
        self.put(offset, bytes);
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let (old, old_len) = (self.read(len, usize::MAX - len).to_vec(), self.data.len());
        self.unsynced.push(Write { offset: len, new: Vec::new(), old, old_len, set_len: Some(len) });
        self.data.resize(len, 0);
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// What is left when the power goes; how many bytes of writes are gone.
    fn cut(&mut self, random: &mut StdRng) -> usize {
        let writes = std::mem::take(&mut self.unsynced);
        for write in writes.iter().rev() {
            self.data.resize(write.old_len, 0);
            self.put(write.offset, &write.old);
            self.data.truncate(write.old_len);
        }
        let mut lost = 0;
        for write in writes {
            // Half of them never reached the disk, some did in part.
            let kept = match random.random_range(0..4) {
                0 | 1 => 0,
                2 => write.new.len().min(SECTOR * random.random_range(0..8)),
                _ => write.new.len(),
            };
            lost += write.new.len() - kept;
            match write.set_len {
                Some(len) if random.random_bool(0.5) => self.data.resize(len, 0),
                Some(_) => {}
                None if kept > 0 => self.put(write.offset, &write.new[..kept]),
                None => {}
            }
        }
        lost
    }
}

#[derive(Debug)]
pub(super) enum Node {
    File(File),
    Directory(BTreeMap<OsString, u64>),
}

/// The file system.
#[derive(Debug)]
pub(super) struct Model {
    nodes: HashMap<u64, Node>,
    next: u64,
}

type Result<T> = std::result::Result<T, Problem>;

impl Model {
    pub(super) fn new() -> Self {
        Self { nodes: HashMap::from([(ROOT, Node::Directory(BTreeMap::new()))]), next: ROOT + 1 }
    }

    pub(super) fn node(&self, ino: u64) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(Problem::NoSuchEntry)
    }

    pub(super) fn file(&mut self, ino: u64) -> Result<&mut File> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(Problem::IsADirectory),
            None => Err(Problem::NoSuchEntry),
        }
    }

    pub(super) fn directory(&self, ino: u64) -> Result<&BTreeMap<OsString, u64>> {
        match self.node(ino)? {
            Node::Directory(entries) => Ok(entries),
            Node::File(_) => Err(Problem::NotADirectory),
        }
    }

    fn directory_mut(&mut self, ino: u64) -> Result<&mut BTreeMap<OsString, u64>> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Directory(entries)) => Ok(entries),
            Some(Node::File(_)) => Err(Problem::NotADirectory),
            None => Err(Problem::NoSuchEntry),
        }
    }

    pub(super) fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64> {
        self.directory(parent)?.get(name).copied().ok_or(Problem::NoSuchEntry)
    }

    pub(super) fn make(&mut self, parent: u64, name: &OsStr, is_directory: bool) -> Result<u64> {
        let ino = self.next;
        let entries = self.directory_mut(parent)?;
        if entries.contains_key(name) {
            return Err(Problem::Exists);
        }
        entries.insert(name.to_owned(), ino);
        self.next += 1;
        let node = if is_directory { Node::Directory(BTreeMap::new()) } else { Node::File(File::default()) };
        self.nodes.insert(ino, node);
        Ok(ino)
    }

    pub(super) fn open(&mut self, ino: u64) -> Result<()> {
        self.file(ino)?.open += 1;
        Ok(())
    }

    pub(super) fn release(&mut self, ino: u64) {
        if let Ok(file) = self.file(ino) {
            file.open = file.open.saturating_sub(1);
            if file.unlinked && file.open == 0 {
                self.nodes.remove(&ino);
            }
        }
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &OsStr) -> Result<()> {
        let ino = self.lookup(parent, name)?;
        let file = self.file(ino)?;
        file.unlinked = true;
        if file.open == 0 {
            self.nodes.remove(&ino);
        }
        self.directory_mut(parent)?.remove(name);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, parent: u64, name: &OsStr) -> Result<()> {
        let ino = self.lookup(parent, name)?;
        if !self.directory(ino)?.is_empty() {
            return Err(Problem::NotEmpty);
        }
        self.nodes.remove(&ino);
        self.directory_mut(parent)?.remove(name);
        Ok(())
    }

    pub(super) fn rename(&mut self, parent: u64, name: &OsStr, to: u64, new: &OsStr) -> Result<()> {
        let ino = self.lookup(parent, name)?;
        if let Ok(replaced) = self.lookup(to, new)
            && replaced != ino
        {
            match self.node(replaced)? {
                Node::File(_) => self.unlink(to, new)?,
                Node::Directory(_) => self.rmdir(to, new)?,
            }
        }
        self.directory_mut(parent)?.remove(name);
        self.directory_mut(to)?.insert(new.to_owned(), ino);
        Ok(())
    }

    /// The power goes; how many bytes of writes are gone.
    pub(super) fn cut(&mut self, random: &mut StdRng) -> usize {
        let mut files: Vec<(&u64, &mut Node)> = self.nodes.iter_mut().collect();
        // In the order of their numbers, so that a seed says it all.
        files.sort_by_key(|(ino, _)| **ino);
        files
            .into_iter()
            .map(|(_, node)| match node {
                Node::File(file) => file.cut(random),
                Node::Directory(_) => 0,
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn what_is_synced_stays_and_the_rest_is_any_part_of_what_was_written() {
        let (mut lost, mut kept_some) = (0, 0);
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut model = Model::new();
            let ino = model.make(ROOT, OsStr::new("a"), false).unwrap();
            let file = model.file(ino).unwrap();
            file.write(0, &[1; 3_000]);
            file.sync();
            file.write(1_000, &[2; 1_000]);
            file.write(3_000, &[3; 2_000]);
            file.set_len(4_000);
            file.write(6_000, &[4; 100]);
            lost += model.cut(&mut random);
            let data = model.file(ino).unwrap().read(0, usize::MAX).to_vec();
            // What a later write has not touched is there.
            assert!(data.len() >= 3_000, "{}", data.len());
            assert!(data[..1_000].iter().chain(&data[2_000..3_000]).all(|byte| *byte == 1));
            assert!(data[1_000..2_000].iter().all(|byte| [1, 2].contains(byte)));
            kept_some += usize::from(data[1_000..2_000].contains(&2));
            assert!(data[3_000..].iter().all(|byte| [0, 3, 4].contains(byte)));
        }
        assert!(lost > 0 && kept_some > 0 && kept_some < 200, "lost {lost}, kept {kept_some}");
    }

    #[test]
    fn names_behave_as_names_do() {
        let mut model = Model::new();
        let (a, b) = (OsStr::new("a"), OsStr::new("b"));
        let directory = model.make(ROOT, a, true).unwrap();
        let file = model.make(directory, b, false).unwrap();
        assert_eq!(model.make(directory, b, false), Err(Problem::Exists));
        assert_eq!(model.rmdir(ROOT, a), Err(Problem::NotEmpty));
        let other = model.make(ROOT, b, false).unwrap();
        model.open(other).unwrap();
        model.rename(directory, b, ROOT, b).unwrap();
        assert_eq!(model.lookup(ROOT, b), Ok(file));
        // Replaced, but open: still there for whoever holds it.
        assert!(model.file(other).is_ok());
        model.release(other);
        assert!(model.file(other).is_err());
        model.rmdir(ROOT, a).unwrap();
        assert_eq!(model.lookup(ROOT, a), Err(Problem::NoSuchEntry));
    }
}
