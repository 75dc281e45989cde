//! A disk of one's own for a node, in this process: its power can be cut, and it can become slow. Mounted by FUSE.

mod model;

use std::{
    ffi::OsStr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use model::{Model, Node, Problem, ROOT};
use rand::{SeedableRng as _, rngs::StdRng};

/// What the disk says of its size.
const BLOCK: u32 = 4096;
const BLOCKS: u64 = 1 << 24;
/// Nothing is remembered by the kernel: a power cut changes what is there.
const TTL: Duration = Duration::ZERO;

/// A mounted disk. It is unmounted when this is dropped.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    random: StdRng,
    /// Unmounts.
    _session: BackgroundSession,
}

#[derive(Debug)]
struct Shared {
    model: Mutex<Model>,
    /// How long a sync takes, in milliseconds.
    sync_ms: AtomicU64,
    full: AtomicBool,
    /// Syncs that were slow, and writes that found no room.
    hits: AtomicU64,
}

impl Shared {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Mounts an empty one. `None` where that is not allowed.
    pub(crate) fn mount(at: &Path, seed: u64) -> Option<Self> {
        let shared = Arc::new(Shared {
            model: Mutex::new(Model::new()),
            sync_ms: AtomicU64::new(0),
            full: AtomicBool::new(false),
            hits: AtomicU64::new(0),
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("orchestra-chaos".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Mounted(Arc::clone(&shared)), at, &config);
        Some(Self { shared, random: StdRng::seed_from_u64(seed), _session: session.ok()? })
    }

    /// Cuts the power, while nobody has files open: what was not synced is lost, or torn. How many bytes are gone.
    pub(crate) fn cut(&mut self) -> usize {
        self.shared.model().cut(&mut self.random)
    }

    /// From now on, a sync takes this long.
    pub(crate) fn slow(&self, sync: Duration) {
        self.shared.sync_ms.store(u64::try_from(sync.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// From now on there is no room, or room again.
    pub(crate) fn fill(&self, full: bool) {
        self.shared.full.store(full, Ordering::Relaxed);
    }

    /// How many requests a slow or a full disk has hit so far.
    pub(crate) fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

struct Mounted(Arc<Shared>);

fn errno(problem: Problem) -> Errno {
    match problem {
        Problem::NoSuchEntry => Errno::ENOENT,
        Problem::NotADirectory => Errno::ENOTDIR,
        Problem::IsADirectory => Errno::EISDIR,
        Problem::Exists => Errno::EEXIST,
        Problem::NotEmpty => Errno::ENOTEMPTY,
    }
}

fn attributes(ino: u64, node: &Node) -> FileAttr {
    let (kind, size, perm, nlink) = match node {
        Node::File(file) => (FileType::RegularFile, file.len() as u64, 0o644, 1),
        Node::Directory(_) => (FileType::Directory, 0, 0o755, 2),
    };
    let time: SystemTime = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

/// An offset or a size of a file that fits into memory.
fn place(of: u64) -> usize {
    usize::try_from(of).unwrap_or(usize::MAX / 2)
}

impl Mounted {
    fn is_full(&self) -> bool {
        self.0.full.load(Ordering::Relaxed)
    }

    /// Syncs that take long must not hold up other requests.
    fn later(&self, reply: ReplyEmpty) {
        match self.0.sync_ms.load(Ordering::Relaxed) {
            0 => reply.ok(),
            ms => {
                self.0.hits.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    #[expect(clippy::disallowed_methods, reason = "being slow is what this is for")]
                    std::thread::sleep(Duration::from_millis(ms));
                    reply.ok();
                });
            }
        }
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let model = self.0.model();
        match model.lookup(parent.0, name).and_then(|ino| Ok((ino, model.node(ino)?))) {
            Ok((ino, node)) => reply.entry(&TTL, &attributes(ino, node), Generation(0)),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.model().node(ino.0) {
            Ok(node) => reply.attr(&TTL, &attributes(ino.0, node)),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut model = self.0.model();
        if let Some(size) = size {
            match model.file(ino.0) {
                Ok(file) => file.set_len(place(size)),
                Err(problem) => return reply.error(errno(problem)),
            }
        }
        match model.node(ino.0) {
            Ok(node) => reply.attr(&TTL, &attributes(ino.0, node)),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let mut model = self.0.model();
        match model.make(parent.0, name, true).and_then(|ino| Ok((ino, model.node(ino)?))) {
            Ok((ino, node)) => reply.entry(&TTL, &attributes(ino, node), Generation(0)),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.0.model().unlink(parent.0, name) {
            Ok(()) => reply.ok(),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.0.model().rmdir(parent.0, name) {
            Ok(()) => reply.ok(),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        match self.0.model().rename(parent.0, name, to.0, new) {
            Ok(()) => reply.ok(),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        // Whoever asks makes a copy instead.
        reply.error(Errno::EXDEV);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.model().open(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut model = self.0.model();
        let made = model.make(parent.0, name, false);
        let opened = made.and_then(|ino| model.open(ino).map(|()| ino));
        match opened.and_then(|ino| Ok((ino, model.node(ino)?))) {
            Ok((ino, node)) => {
                let attributes = attributes(ino, node);
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.model().file(ino.0) {
            Ok(file) => reply.data(file.read(place(offset), size as usize)),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.model().file(ino.0) {
            // What is there may be written over.
            Ok(file) if self.is_full() && place(offset) + data.len() > file.len() => {
                self.0.hits.fetch_add(1, Ordering::Relaxed);
                reply.error(Errno::ENOSPC)
            }
            Ok(file) => {
                file.write(place(offset), data);
                reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
            }
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing syncs nothing.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.model().release(ino.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.model().file(ino.0).map(model::File::sync) {
            Ok(()) => self.later(reply),
            Err(problem) => reply.error(errno(problem)),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.later(reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let model = self.0.model();
        let entries = match model.directory(ino.0) {
            Ok(entries) => entries,
            Err(problem) => return reply.error(errno(problem)),
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ROOT)];
        let all = dots.into_iter().chain(entries.iter().map(|(name, ino)| (name.as_os_str(), *ino)));
        for (number, (name, ino)) in (0u64..).zip(all).skip(place(offset)) {
            let kind = match model.node(ino) {
                Ok(Node::Directory(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), number + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let free = if self.is_full() { 0 } else { BLOCKS };
        reply.statfs(BLOCKS, free, free, 1 << 20, 1 << 20, BLOCK, 255, BLOCK);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        // There is always room.
        reply.error(Errno::EOPNOTSUPP);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use std::{fs, io::Write as _};

    use super::*;

    #[test]
    fn a_power_cut_takes_what_was_not_synced() {
        let temp = tempfile::tempdir().unwrap();
        let Some(mut disk) = Disk::mount(temp.path(), 1) else {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to mount by FUSE");
            let _ = std::io::stderr().write_all(b"NOT RUN: a power cut needs root and /dev/fuse\n");
            return;
        };
        let path = temp.path().join("directory/file");
        fs::create_dir(temp.path().join("directory")).unwrap();
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        file.sync_all().unwrap();
        for _ in 0..20 {
            file.write_all(&[2; 10_000]).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap().len(), 210_000);
        drop(file);
        assert!(disk.cut() > 0);
        let left = fs::read(&path).unwrap();
        assert!(left.len() >= 10_000 && left[..10_000].iter().all(|byte| *byte == 1), "{}", left.len());
        assert!(left[10_000..].iter().filter(|byte| **byte == 2).count() < 200_000);
        disk.fill(true);
        assert!(fs::write(temp.path().join("more"), "more").is_err());
        assert_eq!(disk.hits(), 1);
        fs::remove_file(temp.path().join("more")).unwrap();
        disk.fill(false);
        disk.slow(Duration::from_millis(20));
        fs::File::open(&path).unwrap().sync_all().unwrap();
        assert_eq!(disk.hits(), 2);
        disk.slow(Duration::ZERO);
        fs::rename(&path, temp.path().join("other")).unwrap();
        fs::remove_dir(temp.path().join("directory")).unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}
