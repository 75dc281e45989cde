//! Many runs: seeds against sizes of clusters. What was done already can be kept.

use std::{fs, path::PathBuf};

use crate::{
    cluster::{self, Options},
    report::{self, Report},
    scenario::Scenario,
};

/// What to run.
#[derive(Debug, Clone)]
pub struct Suite {
    /// What happens in each run.
    pub scenario: Scenario,
    /// The seeds, from the first to the last.
    pub seeds: (u64, u64),
    /// The sizes of clusters.
    pub nodes: Vec<usize>,
    /// How long faults are injected in each run, at least.
    pub seconds: u64,
    /// Where reports go.
    pub out: PathBuf,
    /// Whether runs that passed before are not repeated.
    pub resume: bool,
}

impl Suite {
    /// Runs all, whatever comes of each; the reports. `tell` is told of every run.
    ///
    /// # Errors
    ///
    /// A run could not begin, or a report can not be written.
    pub async fn run(&self, tell: impl Fn(&Report)) -> anyhow::Result<Vec<Report>> {
        let mut reports = Vec::new();
        for seed in self.seeds.0..=self.seeds.1 {
            for nodes in &self.nodes {
                let options = Options {
                    scenario: self.scenario.clone(),
                    seed,
                    nodes: *nodes,
                    faults: self.scenario.faults.len(),
                    seconds: self.seconds,
                    mutant: None,
                };
                let report = match self.done_before(&options) {
                    Some(report) => report,
                    None => cluster::run(&options).await?.report,
                };
                report.write(&self.out)?;
                tell(&report);
                reports.push(report);
                fs::write(self.out.join("report.md"), report::page(&reports))?;
            }
        }
        Ok(reports)
    }

    fn done_before(&self, options: &Options) -> Option<Report> {
        let name = format!("{}-{}-nodes-seed-{}.json", options.scenario.name, options.nodes, options.seed);
        let report: Report = serde_json::from_slice(&fs::read(self.out.join(name)).ok()?).ok()?;
        (self.resume && report.passed).then_some(report)
    }
}
