//! The benches: each against its target, as the median of several runs.

use std::path::Path;

use crate::{layers, line, local};

/// Which side of the target is good.
#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

struct Bench {
    name: &'static str,
    unit: &'static str,
    target: Target,
}

pub(crate) async fn run(runs: usize, only: &str, directory: &Path) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    line(format!("{cores} cores, {} build, data below {}", build(), directory.display()));
    line(format!("{:<52} {:>12} {:>12} {:>22}  ", "bench", "target", "median", "min..max"));
    let wanted = |name: &str| name.contains(only);
    let bench =
        Bench { name: "machine apply, one core", unit: "commands/s", target: Target::AtLeast(300_000.0) };
    if wanted(bench.name) {
        bench.report((0..runs).map(|_| layers::apply()).collect());
    }
    let bench = Bench {
        name: "log writer, 16 shards, 512 B, fsync",
        unit: "entries/s",
        target: Target::AtLeast(100_000.0),
    };
    if wanted(bench.name) {
        let mut came = Vec::new();
        for _ in 0..runs {
            came.push(layers::log_writer(directory)?);
        }
        bench.report(came);
    }
    let bench = Bench {
        name: "one node, 3-step sessions, 256 clients",
        unit: "steps/s",
        target: Target::AtLeast(12_000.0),
    };
    if wanted(bench.name) {
        let mut came = Vec::new();
        for _ in 0..runs {
            came.push(local::throughput(directory, 256, 5).await?);
        }
        bench.report(came);
    }
    let bench = Bench {
        name: "one node, one client, 3 steps (4 commits), p50",
        unit: "ms",
        target: Target::AtMost(3.0),
    };
    if wanted(bench.name) {
        let mut came = Vec::new();
        for _ in 0..runs {
            came.push(local::one_client_p50(directory, 300).await?);
        }
        bench.report(came);
    }
    let bench = Bench {
        name: "restart with 100,000 sessions, to leading all shards",
        unit: "s",
        target: Target::AtMost(2.0),
    };
    if wanted(bench.name) {
        bench.report(local::restarts(directory, 100_000, runs).await?);
    }
    let bench = Bench {
        name: "bytes a step costs at 10,000 against 1,000 steps",
        unit: "ratio",
        target: Target::AtMost(1.05),
    };
    if wanted(bench.name) {
        bench.report(vec![layers::bytes_a_step(10_000) / layers::bytes_a_step(1_000)]);
    }
    Ok(())
}

fn build() -> &'static str {
    if cfg!(debug_assertions) { "DEBUG (figures do not count)" } else { "release" }
}

impl Bench {
    fn report(&self, mut came: Vec<f64>) {
        came.sort_by(f64::total_cmp);
        let (min, max) = (came[0], came[came.len() - 1]);
        let median = came[came.len() / 2];
        let (sign, target, met) = match self.target {
            Target::AtLeast(target) => (">=", target, median >= target),
            Target::AtMost(target) => ("<=", target, median <= target),
        };
        let number =
            |value: f64| if value >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") };
        line(format!(
            "{:<52} {:>12} {:>12} {:>22}  {} {}",
            self.name,
            format!("{sign} {}", number(target)),
            number(median),
            format!("{}..{}", number(min), number(max)),
            self.unit,
            if met { "met" } else { "MISSED" }
        ));
    }
}
