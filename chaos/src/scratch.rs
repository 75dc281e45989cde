//! The directory of a run, in the system's directory for temporary files. Its name carries the process id of the run:
//! what one that was killed has left, mounts among it, is removed by the next. What a run has found is kept.

use std::{fs, path::Path};

use anyhow::Context as _;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use crate::Verdict;

const PREFIX: &str = "orchestra-chaos-";
/// In the directory of a run that has found something.
const FOUND: &str = "verdict.txt";

/// A directory for a run of this kind. It is removed when it is dropped.
pub(crate) fn directory(kind: &str) -> anyhow::Result<TempDir> {
    let temporary = std::env::temp_dir();
    remove_stale(&temporary).with_context(|| format!("remove what is left in {}", temporary.display()))?;
    let prefix = format!("{PREFIX}{}-{kind}-", std::process::id());
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir_in(temporary)?)
}

/// Keeps the directory of a run that has found something, with what it was.
pub(crate) fn keep_if_failed(mut verdict: Verdict, directory: TempDir) -> Verdict {
    if !verdict.passed() {
        // The verdict is told as well: a disk that is full must not hide it.
        let _ = fs::write(directory.path().join(FOUND), verdict.to_string());
        verdict.kept = Some(directory.keep());
    }
    verdict
}

fn remove_stale(temporary: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for entry in fs::read_dir(temporary)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let run =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let Some(run) = run else { continue };
        if Path::new("/proc").join(run.to_string()).exists() || path.join(FOUND).exists() {
            continue;
        }
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for place in places.filter(|place| Path::new(place).starts_with(&path)) {
            unmount(place, UnmountFlags::DETACH).with_context(|| format!("unmount {place}"))?;
        }
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;

    #[test]
    fn only_what_a_run_that_is_over_has_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: String| {
            let path = temp.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("log"), "log").unwrap();
            path
        };
        // No process has this id: it is above what the system gives.
        let over = at(format!("{PREFIX}4194305-cluster-a"));
        let found = at(format!("{PREFIX}4194305-cluster-b"));
        fs::write(found.join(FOUND), "VIOLATION").unwrap();
        let running = at(format!("{PREFIX}{}-cluster-c", std::process::id()));
        let others = at("orchestra-data".to_owned());
        remove_stale(temp.path()).unwrap();
        assert!(!over.exists());
        assert!(found.exists() && running.exists() && others.exists());
    }

    #[test]
    fn what_a_run_has_found_is_kept() {
        let verdict = Verdict { lines: Vec::new(), violations: Vec::new(), kept: None };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        assert!(keep_if_failed(verdict, directory).kept.is_none());
        assert!(!path.exists());
        let directory = tempfile::tempdir().unwrap();
        let kept = keep_if_failed(Verdict::of_violation("a session is gone".into()), directory).kept.unwrap();
        assert!(fs::read_to_string(kept.join(FOUND)).unwrap().contains("a session is gone"));
        fs::remove_dir_all(kept).unwrap();
    }
}
