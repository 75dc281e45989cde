//! The benches: each against its target, as the median of several runs.

use std::{path::Path, sync::Arc};

use crate::{cluster, etcd, layers, levels, line, local};

/// Which side of the target is good.
#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// A peer's figure: there to be compared with.
    Beside,
}

struct Bench<'a> {
    name: &'a str,
    unit: &'static str,
    target: Target,
}

pub(crate) async fn run(runs: usize, only: &str, directory: &Path, kills: usize) -> anyhow::Result<()> {
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
    let bench = Bench { name: "recording an indicator, one core", unit: "ns", target: Target::AtMost(100.0) };
    if wanted(bench.name) {
        bench.report((0..runs).map(|_| levels::record()).collect());
    }
    let bench = Bench {
        name: "a report of 30 days of three nodes, 100 series",
        unit: "ms",
        target: Target::AtMost(200.0),
    };
    if wanted(bench.name) {
        bench.report((0..runs).map(|_| levels::report()).collect());
    }
    let bench = Bench {
        name: "one node, 3-step sessions, 256 clients",
        unit: "steps/s",
        target: Target::AtLeast(12_000.0),
    };
    if wanted(bench.name) {
        let mut came = Vec::new();
        for _ in 0..runs {
            came.push(local::throughput(directory, (256, 5), Arc::new(())).await?);
        }
        bench.report(came);
    }
    let bench = Bench {
        name: "the same, measured against not measured",
        unit: "ratio",
        target: Target::AtLeast(0.95),
    };
    if wanted(bench.name) {
        let mut came = Vec::new();
        for _ in 0..runs {
            let without = local::throughput(directory, (256, 5), Arc::new(())).await?;
            let measured = local::throughput(directory, (256, 5), Arc::new(levels::Measures::new())).await?;
            came.push(measured / without);
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
    observed(runs, only, directory).await?;
    with_workers(runs, only, directory, (1, "one node", 12_000.0, 3.0)).await?;
    with_workers(runs, only, directory, (3, "three nodes", 5_000.0, 6.0)).await?;
    beside(runs, only, directory).await?;
    leaders_go(only, directory, kills).await
}

/// What it costs to tell all there is.
async fn observed(runs: usize, only: &str, directory: &Path) -> anyhow::Result<()> {
    for (name, share) in [
        ("one node, telling all against telling nothing", 1.0),
        ("one node, telling all, traces of a tenth, against nothing", 0.1),
    ] {
        let bench = Bench { name, unit: "ratio", target: Target::AtLeast(0.95) };
        if !name.contains(only) {
            continue;
        }
        let mut came = Vec::new();
        for _ in 0..runs {
            came.push(cluster::observed(directory, share).await?);
        }
        bench.report(came);
    }
    Ok(())
}

/// Real processes, and a worker over gRPC on every node.
async fn with_workers(
    runs: usize,
    only: &str,
    directory: &Path,
    (nodes, title, steps, p50): (usize, &str, f64, f64),
) -> anyhow::Result<()> {
    let throughput = Bench {
        name: &format!("{title}, 3 worker tasks, 256 clients, gRPC"),
        unit: "steps/s",
        target: Target::AtLeast(steps),
    };
    let latency = Bench {
        name: &format!("{title}, one client, 3 worker tasks, p50"),
        unit: "ms",
        target: Target::AtMost(p50),
    };
    let commits = Bench {
        name: &format!("{title}, single commits, 256 clients, gRPC"),
        unit: "commits/s",
        target: Target::AtLeast(9_000.0),
    };
    let dispatch = Bench {
        name: &format!("{title}, start to first task at 70 % of peak, p99"),
        unit: "ms",
        target: Target::AtMost(50.0),
    };
    if dispatch.name.contains(only) {
        let mut came = Vec::new();
        for _ in 0..runs {
            came.push(cluster::dispatch_p99(directory, nodes, 0.7).await?);
        }
        dispatch.report(came);
    }
    if ![&throughput, &latency, &commits].iter().any(|bench| bench.name.contains(only)) {
        return Ok(());
    }
    let loaded = Arc::new(cluster::Loaded::start(directory, nodes).await?);
    let (mut steps, mut p50, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        if latency.name.contains(only) {
            p50.push(loaded.sessions(1, 3).await?.percentile_ms(50.0));
        }
        if throughput.name.contains(only) {
            steps.push(3.0 * loaded.sessions(256, 5).await?.per_second);
        }
        if commits.name.contains(only) {
            single.push(loaded.commits(256, 5).await?.per_second);
        }
    }
    for (bench, came) in [(throughput, steps), (latency, p50), (commits, single)] {
        if !came.is_empty() {
            bench.report(came);
        }
    }
    Ok(())
}

/// The peer, on the same machine in the same run.
async fn beside(runs: usize, only: &str, directory: &Path) -> anyhow::Result<()> {
    let name = "etcd: three nodes, single puts, 256 clients, gRPC";
    if !name.contains(only) {
        return Ok(());
    }
    let Some(etcd) = etcd::Etcd::start(directory).await? else {
        line(format!("{name:<52} NOT RUN: etcd is not installed (Debian: etcd-server)"));
        return Ok(());
    };
    let mut came = Vec::new();
    for _ in 0..runs {
        came.push(etcd.puts(256, 5, cluster::INPUT).await?.per_second);
    }
    Bench { name, unit: "puts/s", target: Target::Beside }.report(came);
    Ok(())
}

async fn leaders_go(only: &str, directory: &Path, kills: usize) -> anyhow::Result<()> {
    let median = Bench {
        name: "three nodes, leader killed, to the next commit",
        unit: "s",
        target: Target::AtMost(1.0),
    };
    if median.name.contains(only) {
        let mut came = cluster::failovers(directory, kills).await?;
        median.report(came.clone());
        came.sort_by(f64::total_cmp);
        let p99 = Bench { name: "three nodes, leader killed, p99", unit: "s", target: Target::AtMost(1.5) };
        p99.report(vec![came[(came.len() * 99).div_ceil(100) - 1]]);
    }
    let planned = Bench {
        name: "three nodes, lead handed over, longest commit",
        unit: "ms",
        target: Target::AtMost(100.0),
    };
    if planned.name.contains(only) {
        planned.report(cluster::transfers(directory, 40).await?);
    }
    Ok(())
}

fn build() -> &'static str {
    if cfg!(debug_assertions) { "DEBUG (figures do not count)" } else { "release" }
}

impl Bench<'_> {
    fn report(&self, mut came: Vec<f64>) {
        came.sort_by(f64::total_cmp);
        let (min, max) = (came[0], came[came.len() - 1]);
        let median = came[came.len() / 2];
        let number =
            |value: f64| if value >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") };
        let (target, met) = match self.target {
            Target::AtLeast(target) => (format!(">= {}", number(target)), Some(median >= target)),
            Target::AtMost(target) => (format!("<= {}", number(target)), Some(median <= target)),
            Target::Beside => ("-".to_owned(), None),
        };
        line(format!(
            "{:<52} {target:>12} {:>12} {:>22}  {} {}",
            self.name,
            number(median),
            format!("{}..{}", number(min), number(max)),
            self.unit,
            match met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            }
        ));
    }
}
