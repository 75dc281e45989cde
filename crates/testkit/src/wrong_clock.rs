//! Processes whose wall clock is wrong, by `libfaketime`.

use std::{io::Write as _, path::Path};

const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The environment of a process whose wall clock is off by so much (`"+3600s"`), while its steady clocks are right.
/// `None` where the library is missing, which is said; in CI it must be there.
///
/// # Panics
///
/// In CI, if the library is missing.
#[must_use]
pub fn wrong_clock(offset: &str) -> Option<Vec<(String, String)>> {
    let libraries =
        [format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH), "/usr/lib".into(), "/usr/lib64".into()];
    let found =
        libraries.iter().map(|directory| Path::new(directory).join(LIBRARY)).find(|path| path.is_file());
    let Some(library) = found else {
        assert!(std::env::var_os("CI").is_none(), "CI must have libfaketime");
        // Not by a macro, whose output the runner of tests keeps to itself where a test passes.
        let _ = writeln!(
            std::io::stderr(),
            "NOT RUN: a wrong clock needs libfaketime (deploy/dev/setup.sh testing)"
        );
        return None;
    };
    let set = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", offset.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    Some(set.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
