//! What is left of a run: JSON for programs, a picture of faults against throughput and latency, and a page about many.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use testkit::{
    history::{Fate, Operation},
    plot::{Chart, Line, Picture, Span},
};

/// A fault, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Injected {
    /// What was done.
    pub fault: String,
    /// When it began, in seconds since the run did.
    pub from_s: f64,
    /// When it was over, or healed.
    pub to_s: f64,
}

/// One second of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Operations that returned well.
    pub ok: u64,
    /// Operations that did not.
    pub other: u64,
    /// The median of their times, in milliseconds.
    pub p50_ms: f64,
    /// The longest of their times, in milliseconds.
    pub max_ms: f64,
}

/// What a run was, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// How many nodes the cluster began with.
    pub nodes: usize,
    /// The change that was put into the build on purpose, if one was.
    pub mutant: Option<String>,
    /// The SHA-256 of the program of its nodes.
    pub program: String,
    /// How long faults were to be injected at least, in seconds.
    pub seconds_asked: u64,
    /// The command that repeats it.
    pub again: String,
    /// Whether nothing was found that must not be, and the run shows something.
    pub passed: bool,
    /// What was.
    pub violations: Vec<String>,
    /// Why the run shows too little, if it does: faults that hit nobody, too few operations.
    pub proves_little: Vec<String>,
    /// Faults of the scenario that this machine does not allow.
    pub not_run: Vec<String>,
    /// Where data, logs and history of a run that failed are kept.
    pub kept: Option<PathBuf>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Operations of clients.
    pub operations: u64,
    /// The share of them that overlapped with a fault.
    pub during_faults: f64,
    /// How often a shard had another leader than before.
    pub leaders_moved: u64,
    /// How often a node took in the state of a shard.
    pub snapshots: u64,
    /// What was done.
    pub faults: Vec<Injected>,
    /// Second by second.
    pub series: Vec<Second>,
}

/// Operations by the second in which they returned.
pub(crate) fn series(operations: &[Operation]) -> Vec<Second> {
    let mut times: Vec<Vec<f64>> = Vec::new();
    let mut seconds: Vec<Second> = Vec::new();
    for operation in operations {
        let at = usize::try_from(operation.returned.as_secs()).unwrap_or_default();
        if seconds.len() <= at {
            seconds.resize(at + 1, Second::default());
            times.resize(at + 1, Vec::new());
        }
        match operation.fate {
            Fate::Ok(_) => seconds[at].ok += 1,
            _ => seconds[at].other += 1,
        }
        times[at].push((operation.returned - operation.called).as_secs_f64() * 1000.0);
    }
    for (second, mut times) in seconds.iter_mut().zip(times) {
        times.sort_by(f64::total_cmp);
        second.p50_ms = times.get(times.len() / 2).copied().unwrap_or_default();
        second.max_ms = times.last().copied().unwrap_or_default();
    }
    seconds
}

/// The share of operations that overlapped with a fault.
pub(crate) fn share_during(operations: &[Operation], faults: &[Injected]) -> f64 {
    let overlaps = |of: &&Operation| {
        let (called, returned) = (of.called.as_secs_f64(), of.returned.as_secs_f64());
        faults.iter().any(|fault| called <= fault.to_s && returned >= fault.from_s)
    };
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let share = operations.iter().filter(overlaps).count() as f64 / operations.len().max(1) as f64;
    share
}

impl Report {
    /// All that is wrong with the run.
    pub fn all_violations(&self) -> impl Iterator<Item = &String> {
        self.violations.iter().chain(&self.proves_little)
    }

    /// The name of its files, without an ending.
    #[must_use]
    pub fn stem(&self) -> String {
        let mutant = self.mutant.as_ref().map(|mutant| format!("-{mutant}")).unwrap_or_default();
        format!("{}-{}-nodes-seed-{}{mutant}", self.scenario, self.nodes, self.seed)
    }

    /// Writes JSON, a picture and a page into a directory.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)?;
        let stem = directory.join(self.stem());
        fs::write(stem.with_extension("json"), serde_json::to_vec_pretty(self)?)?;
        fs::write(stem.with_extension("svg"), self.svg())?;
        fs::write(stem.with_extension("md"), page(std::slice::from_ref(self)))?;
        Ok(())
    }

    /// Faults against throughput and latency, as SVG.
    #[must_use]
    pub fn svg(&self) -> String {
        let line = |color: &'static str, pick: fn(&Second) -> f64| Line {
            color,
            points: (0u32..).zip(&self.series).map(|(at, of)| (f64::from(at) + 0.5, pick(of))).collect(),
        };
        #[expect(clippy::cast_precision_loss, reason = "counts of one second")]
        let rates = vec![line("#284", |of| of.ok as f64), line("#c82", |of| of.other as f64)];
        let times = vec![line("#284", |of| of.p50_ms), line("#c82", |of| of.max_ms)];
        let verdict = if self.passed { "passed" } else { "FAILED" };
        let span = |of: &Injected| Span { label: of.fault.clone(), from: of.from_s, to: of.to_s };
        let picture = Picture {
            title: format!("{} nodes, scenario {}, seed {}: {verdict}", self.nodes, self.scenario, self.seed),
            seconds: self.seconds,
            spans: self.faults.iter().map(span).collect(),
            charts: vec![
                Chart { title: "operations a second".to_owned(), lines: rates },
                Chart { title: "ms: median, longest".to_owned(), lines: times },
            ],
        };
        picture.svg()
    }
}

/// A page about many runs, in Markdown.
#[must_use]
pub fn page(reports: &[Report]) -> String {
    let failed = reports.iter().filter(|report| !report.passed).count();
    let mut page = format!(
        "# Chaos: {} runs, {failed} failed\n\n| scenario | nodes | seed | seconds | operations | during faults | faults | leaders \
         moved | verdict |\n|---|---|---|---|---|---|---|---|---|\n",
        reports.len()
    );
    for report in reports {
        let verdict = if report.passed { "passed" } else { "**FAILED**" };
        let _ = writeln!(
            page,
            "| [{}]({}.svg) | {} | {} | {:.0} | {} | {:.0} % | {} | {} | {verdict} |",
            report.scenario,
            report.stem(),
            report.nodes,
            report.seed,
            report.seconds,
            report.operations,
            100.0 * report.during_faults,
            report.faults.len(),
            report.leaders_moved,
        );
    }
    for report in reports.iter().filter(|report| !report.passed) {
        let _ = writeln!(page, "\n## {}\n", report.stem());
        for violation in report.all_violations().take(20) {
            let _ = writeln!(page, "- {violation}");
        }
        let _ = writeln!(page, "\nAgain: `{}`", report.again);
        if let Some(kept) = &report.kept {
            let _ = writeln!(page, "\nData, logs and history: `{}`", kept.display());
        }
    }
    let mut not_run: Vec<&str> = reports.iter().flat_map(|of| &of.not_run).map(String::as_str).collect();
    not_run.sort_unstable();
    not_run.dedup();
    if !not_run.is_empty() {
        let _ = writeln!(page, "\n**Not run**, as the machine does not allow it: {}", not_run.join(", "));
    }
    page
}
