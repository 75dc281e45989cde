//! Files in and out: the context that a session is given, and the results that it may write.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Bytes of all files together that a session is given.
pub(crate) const CONTEXT_BYTES_MAX: usize = 160 * 1024;
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Directories that hold what is made, not what is written.
const LEFT_OUT: [&str; 8] =
    [".git", "target", "node_modules", ".venv", "__pycache__", "dist", "build", ".orchestra"];

/// The files of a directory, and why others were left out.
pub(crate) struct Files {
    pub(crate) files: Vec<Value>,
    pub(crate) left_out: Vec<String>,
}

/// Reads the text files of a directory, in the order of their paths.
pub(crate) fn read(root: &Path) -> anyhow::Result<Files> {
    if !root.is_dir() {
        bail!("--workdir {}: not a directory", root.display());
    }
    let mut paths = Vec::new();
    collect(root, root, &mut paths)?;
    paths.sort();
    let (mut files, mut left_out, mut total) = (Vec::new(), Vec::new(), 0);
    for path in paths {
        let full = root.join(&path);
        let name = path.to_string_lossy().into_owned();
        let len = fs::metadata(&full).with_context(|| full.display().to_string())?.len();
        if len > FILE_BYTES_MAX {
            left_out.push(format!("{name}: larger than {FILE_BYTES_MAX} bytes"));
            continue;
        }
        let Ok(content) = fs::read_to_string(&full) else {
            left_out.push(format!("{name}: not text"));
            continue;
        };
        // As JSON text in the session's input, with its escapes.
        let file = json!({"path": name, "content": content});
        let bytes = file.to_string().len();
        if total + bytes > CONTEXT_BYTES_MAX {
            left_out.push(format!("{name}: over the {CONTEXT_BYTES_MAX} bytes that a session is given"));
            continue;
        }
        total += bytes;
        files.push(file);
    }
    Ok(Files { files, left_out })
}

/// Symbolic links are not followed: they may lead out of the directory, or in circles.
fn collect(root: &Path, directory: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        if kind.is_dir() && !LEFT_OUT.iter().any(|left_out| name == *left_out) {
            collect(root, &entry.path(), paths)?;
        } else if kind.is_file()
            && let Ok(path) = entry.path().strip_prefix(root)
        {
            paths.push(path.to_owned());
        }
    }
    Ok(())
}

/// Writes a result file below `root`, and nowhere else.
pub(crate) fn write(root: &Path, path: &str, content: &str) -> anyhow::Result<PathBuf> {
    let relative = checked(path)?;
    fs::create_dir_all(root).with_context(|| root.display().to_string())?;
    let mut at = root.to_owned();
    let parts: Vec<_> = relative.components().collect();
    for (place, part) in parts.iter().enumerate() {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_symlink() => {
                bail!("{path:?} is refused: {} is a symbolic link", at.display());
            }
            Ok(_) => {}
            Err(_) if place + 1 < parts.len() => {
                fs::create_dir(&at).with_context(|| at.display().to_string())?;
            }
            Err(_) => {}
        }
    }
    fs::write(&at, content).with_context(|| at.display().to_string())?;
    Ok(at)
}

/// A path that stays below its root: relative, without `..`.
fn checked(path: &str) -> anyhow::Result<PathBuf> {
    let mut checked = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => checked.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("{path:?} is refused: a result's path must be relative, without `..`");
            }
        }
    }
    if checked.as_os_str().is_empty() || path.contains('\0') {
        bail!("{path:?} is refused: not a path");
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stay_below_their_root() {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("out");
        assert_eq!(write(&out, "a/b.txt", "x").unwrap(), out.join("a/b.txt"));
        assert_eq!(write(&out, "./a/b.txt", "y").unwrap(), out.join("a/b.txt"));
        for path in ["../x", "a/../../x", "/etc/x", "", ".", "a\0b"] {
            assert!(write(&out, path, "x").is_err(), "{path:?}");
        }
        std::os::unix::fs::symlink(temp.path(), out.join("link")).unwrap();
        assert!(write(&out, "link/x", "x").is_err());
        std::os::unix::fs::symlink(temp.path().join("target"), out.join("file")).unwrap();
        assert!(write(&out, "file", "x").is_err());
        assert!(!temp.path().join("x").exists() && !temp.path().join("target").exists());
    }

    #[test]
    fn reads_text_and_says_what_it_left_out() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("src")).unwrap();
        fs::create_dir(temp.path().join("target")).unwrap();
        fs::write(temp.path().join("src/b.py"), "b").unwrap();
        fs::write(temp.path().join("a.txt"), "a").unwrap();
        fs::write(temp.path().join("target/x"), "x").unwrap();
        fs::write(temp.path().join("binary"), [0xff, 0xfe]).unwrap();
        fs::write(temp.path().join("big"), vec![b'x'; 70_000]).unwrap();
        let files = read(temp.path()).unwrap();
        let names: Vec<_> = files.files.iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(names, ["a.txt", "src/b.py"]);
        assert_eq!(files.left_out.len(), 2, "{:?}", files.left_out);
    }
}
