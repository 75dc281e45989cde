//! A file system of a few MiB, to be filled.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

/// A tmpfs that is unmounted when this is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one in a directory. `None` where that is not allowed, which is said; in CI it must be.
    ///
    /// # Panics
    ///
    /// In CI, if it is not allowed.
    #[must_use]
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        // Not by a macro, whose output the runner of tests keeps to itself where a test passes.
        let _ = writeln!(io::stderr(), "NOT RUN: a full disk needs root to mount a tmpfs");
        None
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Fills it until nothing more fits.
    ///
    /// # Errors
    ///
    /// The file can not be made.
    pub fn fill(&self) -> io::Result<()> {
        let mut file = fs::File::create(self.ballast())?;
        let block = vec![7u8; 1 << 20];
        let mut piece = block.len();
        while piece > 0 {
            if file.write_all(&block[..piece]).is_err() {
                piece /= 2;
            }
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn free(&self) -> io::Result<()> {
        fs::remove_file(self.ballast())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
