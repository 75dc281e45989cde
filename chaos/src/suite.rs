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
                    None => match cluster::run(&options).await {
                        Ok(run) => run.report,
                        Err(error) => Report::not_begun(&options, &error),
                    },
                };
                report.write(&self.out)?;
                tell(&report);
                reports.push(report);
                fs::write(self.out.join("report.md"), report::page(&reports))?;
            }
        }
        Ok(reports)
    }

    /// A report of the same run of the same program, which passed.
    fn done_before(&self, options: &Options) -> Option<Report> {
        if !self.resume {
            return None;
        }
        let name = format!("{}-{}-nodes-seed-{}.json", options.scenario.name, options.nodes, options.seed);
        let report: Report = serde_json::from_slice(&fs::read(self.out.join(name)).ok()?).ok()?;
        let program = cluster::digest_of_program(options).ok()?;
        counts_for(&report, options, &program).then_some(report)
    }
}

fn counts_for(report: &Report, options: &Options, program: &str) -> bool {
    report.passed
        && report.not_run.is_empty()
        && report.program == program
        && report.seconds_asked >= options.seconds
        && report.again == Options { seconds: report.seconds_asked, ..options.clone() }.again()
}

impl Report {
    /// Of a run that could not begin.
    fn not_begun(options: &Options, error: &anyhow::Error) -> Self {
        Self {
            scenario: options.scenario.name.clone(),
            seed: options.seed,
            nodes: options.nodes,
            seconds_asked: options.seconds,
            again: options.again(),
            violations: vec![format!("the run could not begin: {error:#}")],
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_run_of_the_same_program_is_not_repeated() {
        let options = Options {
            scenario: Scenario::load("all").unwrap(),
            seed: 3,
            nodes: 5,
            faults: 0,
            seconds: 120,
            mutant: None,
        };
        let passed = Report {
            program: "p".into(),
            seconds_asked: 120,
            again: options.again(),
            passed: true,
            ..Report::default()
        };
        assert!(counts_for(&passed, &options, "p"));
        assert!(!counts_for(&passed, &options, "another program"));
        assert!(!counts_for(&Report { seconds_asked: 10, ..passed.clone() }, &options, "p"));
        assert!(!counts_for(&Report { passed: false, ..passed.clone() }, &options, "p"));
        assert!(!counts_for(&Report { not_run: vec!["PowerCut".into()], ..passed.clone() }, &options, "p"));
        assert!(!counts_for(&passed, &Options { nodes: 3, ..options.clone() }, "p"));
        assert!(counts_for(
            &Report {
                seconds_asked: 200,
                again: Options { seconds: 200, ..options.clone() }.again(),
                ..passed
            },
            &options,
            "p"
        ));
    }
}
