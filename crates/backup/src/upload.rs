//! A file on its way into a store.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use object_store::WriteMultipart;
use tokio::{fs, io::AsyncWriteExt as _};

use crate::Error;

/// Bytes after which a file in a directory is synced while it is written. All of it at once, in the end, would hold up
/// whoever waits for the same disk: the log of a node beside it.
const SYNC_BYTES: usize = 1 << 20;
/// Parts of an object that are on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// Between a file's name and a number, while it is on its way.
const STAGED: char = '#';

/// A file on its way. It is there as a whole, or not at all.
pub(crate) enum Upload {
    /// Into an object store.
    Object(WriteMultipart),
    /// Into a directory of this machine.
    File(Staged),
}

impl Upload {
    pub(crate) async fn put(&mut self, part: Bytes) -> Result<(), Error> {
        match self {
            Self::Object(upload) => {
                upload.wait_for_capacity(PARTS_AT_ONCE).await?;
                upload.put(part);
                Ok(())
            }
            Self::File(staged) => staged.put(&part).await.map_err(Error::io(staged.to.display())),
        }
    }

    pub(crate) async fn finish(self) -> Result<(), Error> {
        match self {
            Self::Object(upload) => upload.finish().await.map(drop).map_err(Error::from),
            Self::File(staged) => {
                let to = staged.to.clone();
                staged.finish().await.map_err(Error::io(to.display()))
            }
        }
    }

    pub(crate) async fn abort(self) -> Result<(), Error> {
        match self {
            Self::Object(upload) => upload.abort().await.map_err(Error::from),
            Self::File(staged) => fs::remove_file(&staged.at).await.map_err(Error::io(staged.at.display())),
        }
    }
}

/// A file beside the one that it becomes.
pub(crate) struct Staged {
    file: fs::File,
    at: PathBuf,
    to: PathBuf,
    unsynced: usize,
}

impl Staged {
    /// For a file below a directory that is there.
    pub(crate) async fn create(directory: &Path, path: &str) -> Result<Self, Error> {
        let to = directory.join(path);
        let created = async {
            let below = to.parent().unwrap_or(directory);
            fs::create_dir_all(below).await?;
            // On disk as far up as they may be new.
            for made in below.ancestors().take_while(|made| made.starts_with(directory)) {
                fs::File::open(made).await?.sync_all().await?;
            }
            // By this ending the store knows what is on its way. Two may write the same file.
            let at = PathBuf::from(format!("{}{STAGED}{}", to.display(), rand::random::<u32>()));
            let file = fs::File::create_new(&at).await?;
            io::Result::Ok(Self { file, at, to: to.clone(), unsynced: 0 })
        };
        created.await.map_err(Error::io(to.display()))
    }

    async fn put(&mut self, part: &[u8]) -> io::Result<()> {
        self.file.write_all(part).await?;
        self.unsynced += part.len();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.flush().await?;
            self.file.sync_data().await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> io::Result<()> {
        let published = self.publish().await;
        if published.is_err() {
            // The first error says more than that what was begun can not be removed.
            let _ = fs::remove_file(&self.at).await;
        }
        published
    }

    async fn publish(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        fs::rename(&self.at, &self.to).await?;
        match self.to.parent() {
            Some(below) => fs::File::open(below).await?.sync_all().await,
            None => Ok(()),
        }
    }
}

/// Removes what was on its way to a directory and was last written before a time, in seconds since 1970.
pub(crate) async fn remove_staged(directory: &Path, before: i64) -> Result<(), Error> {
    let mut below: Vec<PathBuf> = ["files", "backups"].map(|name| directory.join(name)).into();
    while let Some(path) = below.pop() {
        match remove_staged_in(&path, before, &mut below).await {
            // Nothing was ever written there, or another removes as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::io(path.display()))?,
        }
    }
    Ok(())
}

async fn remove_staged_in(path: &Path, before: i64, below: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(path).await?;
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_type().await?.is_dir() {
            below.push(entry.path());
        } else if is_staged(&entry.file_name().to_string_lossy()) && entry.metadata().await?.mtime() < before
        {
            fs::remove_file(entry.path()).await?;
        }
    }
    Ok(())
}

fn is_staged(name: &str) -> bool {
    let number = name.rsplit_once(STAGED).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}
