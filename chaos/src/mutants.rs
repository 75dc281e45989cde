//! The test of the tests: builds that break a promise on purpose have to be found out, and the build that does not has
//! to pass where they were.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::{
    Mutant,
    cluster::{self, Fault, Options},
    scenario::Scenario,
};

/// Every promise that can be broken, and the faults under which it shows.
const MUTANTS: [(&str, &[Fault]); 9] = [
    ("skip-fsync", &[Fault::PowerCutAll, Fault::PowerCutAll, Fault::PowerCutAll]),
    ("acknowledge-early", &[Fault::KillLeader, Fault::IsolateLeader, Fault::KillAll]),
    ("apply-before-commit", &[Fault::IsolateLeader, Fault::KillLeader, Fault::IsolateLeader]),
    ("reply-before-apply", &[Fault::KillFollower, Fault::SlowNetwork, Fault::KillLeader]),
    // Answers wait on the far side of the cut, while another worker is at the task.
    ("stale-dispatch", &[Fault::CutPair; 12]),
    ("reuse-node-id", &[Fault::LostDisk, Fault::LostDisk, Fault::LostDisk]),
    ("purge-too-far", &[Fault::KillFollower, Fault::KillLeader, Fault::KillAll]),
    ("read-before-apply", &[Fault::KillFollower, Fault::SlowNetwork, Fault::KillLeader]),
    ("read-without-quorum", &[Fault::IsolateLeader, Fault::MuteLeader, Fault::IsolateLeader]),
];

/// What came of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Caught {
    /// The promise that was broken.
    pub mutant: String,
    /// The seed with which it was found out, and how long that run took; `None` if it was not.
    pub by: Option<(u64, f64)>,
    /// What gave it away.
    pub violation: String,
    /// What the build that breaks nothing did wrong with the same seed and faults; `None` if it passed.
    pub sound_build_failed: Option<String>,
}

/// Tries every mutant with some seeds, until it is caught.
///
/// # Errors
///
/// A run could not begin.
pub async fn run(
    program: PathBuf,
    first_seed: u64,
    tries: u64,
    only: &str,
    tell: impl Fn(&Caught),
) -> anyhow::Result<Vec<Caught>> {
    anyhow::ensure!(program.is_file(), "{} is not there: `make mutants` builds it", program.display());
    let mut all = Vec::new();
    for (name, faults) in MUTANTS.iter().filter(|(name, _)| name.contains(only)) {
        let mut caught = Caught {
            mutant: (*name).to_owned(),
            by: None,
            violation: String::new(),
            sound_build_failed: None,
        };
        for seed in first_seed..first_seed + tries {
            let mut scenario = Scenario::of(name, faults.to_vec());
            if *name == "stale-dispatch" {
                // About every other attempt runs out of time, so that the next one is under way for long.
                scenario.slow_task_ms = (800, 1_800);
            }
            let mut options = Options {
                scenario,
                seed,
                nodes: 3,
                faults: faults.len(),
                seconds: 0,
                mutant: Some(Mutant { program: program.clone(), name: (*name).to_owned() }),
            };
            let report = cluster::run(&options).await.with_context(|| format!("mutant {name}"))?.report;
            // That a run shows too little is no sign of a broken promise.
            if report.violations.is_empty() {
                continue;
            }
            caught.by = Some((seed, report.seconds));
            caught.violation = report.violations.first().cloned().unwrap_or_default();
            options.mutant = None;
            let sound = cluster::run(&options).await?.report;
            caught.sound_build_failed =
                (!sound.passed).then(|| sound.all_violations().cloned().collect::<Vec<_>>().join("; "));
            break;
        }
        tell(&caught);
        all.push(caught);
    }
    Ok(all)
}
