//! The same work on Orchestra and its peers, in one run on one machine: what each did, and how they compare.
//!
//! Sessions of three steps, each durable (fsync) before the next begins, done by a worker in this process: a task over
//! gRPC for Orchestra, a handler over HTTP/2 with three `run`s for Restate. Single commits against etcd's puts. The
//! payload is a hundred bytes everywhere. Systems take turns, so that what else the machine does hits all of them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args;

use crate::{
    cluster::{INPUT, Loaded},
    drive::Driven,
    etcd::Etcd,
    line,
    restate::Restate,
};

#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    /// Restate's server: the npm package `@restatedev/restate-server` has it (`deploy/dev/peers.sh`).
    #[arg(long)]
    restate: PathBuf,
    /// Where data is written: a real file system, not one in memory.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Clients at once, besides the runs with one.
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Seconds of each load, after a second that does not count.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Turns; the median counts.
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// A Markdown file in which the text between the lines `<!-- peers -->` and `<!-- /peers -->` is replaced.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// What a system did with many clients and with one, turn by turn.
struct Measured {
    name: &'static str,
    replication: &'static str,
    work: &'static str,
    /// How many of what is counted a call is.
    steps: f64,
    many: Vec<Driven>,
    one: Vec<Driven>,
}

impl Measured {
    fn new(name: &'static str, replication: &'static str, work: &'static str, steps: f64) -> Self {
        Self { name, replication, work, steps, many: Vec::new(), one: Vec::new() }
    }

    fn rate(&self) -> f64 {
        self.steps * median(self.many.iter().map(|of| of.per_second))
    }

    fn many_ms(&self, percentile: f64) -> f64 {
        median(self.many.iter().map(|of| of.percentile_ms(percentile)))
    }

    fn one_ms(&self, percentile: f64) -> f64 {
        median(self.one.iter().map(|of| of.percentile_ms(percentile)))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A target, and whether it is met.
struct Verdict {
    what: String,
    came: String,
    met: bool,
}

fn at_least(what: &str, ratio: f64, least: f64) -> Verdict {
    Verdict {
        what: format!("{what}: at least {least} times"),
        came: format!("{ratio:.2} times"),
        met: ratio >= least,
    }
}

fn at_most(what: &str, ratio: f64, most: f64) -> Verdict {
    Verdict {
        what: format!("{what}: at most {most} times"),
        came: format!("{ratio:.2} times"),
        met: ratio <= most,
    }
}

/// Runs everything; whether all targets are met.
pub(crate) async fn run(args: PeersArgs) -> anyhow::Result<bool> {
    let PeersArgs { restate, directory, clients, seconds, turns, write } = args;
    let version = std::process::Command::new(&restate).arg("--version").output();
    let version = version.with_context(|| format!("{} does not run", restate.display()))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().replace("restate-server", "Restate");
    let mut one = Measured::new("Orchestra, one node", "none", "3 steps", 3.0);
    let mut three = Measured::new("Orchestra, three nodes", "3, majority", "3 steps", 3.0);
    let mut peer = Measured::new("Restate, one node", "none", "3 steps", 3.0);
    let mut commits = Measured::new("Orchestra, three nodes", "3, majority", "1 commit", 1.0);
    let mut puts = Measured::new("etcd, three nodes", "3, majority", "1 put", 1.0);
    for turn in 1..=turns {
        line(format!("turn {turn} of {turns}"));
        sessions(&mut one, &directory, 1, clients, seconds).await?;
        let running = Restate::start(&restate, &directory).await?;
        peer.one.push(running.sessions(1, seconds).await?);
        peer.many.push(running.sessions(clients, seconds).await?);
        drop(running);
        let loaded = sessions(&mut three, &directory, 3, clients, seconds).await?;
        commits.one.push(loaded.commits(1, seconds).await?);
        commits.many.push(loaded.commits(clients, seconds).await?);
        drop(loaded);
        let etcd = Etcd::start(&directory).await?;
        let etcd = etcd.context("etcd is not installed (Debian: etcd-server)")?;
        puts.one.push(etcd.puts(1, seconds, INPUT).await?);
        puts.many.push(etcd.puts(clients, seconds, INPUT).await?);
    }
    let verdicts = [
        at_least("one node, steps a second against Restate's", one.rate() / peer.rate(), 5.0),
        at_least("three nodes, steps a second against one node of Restate", three.rate() / peer.rate(), 2.0),
        at_most("one node, p99 against Restate's", one.many_ms(99.0) / peer.many_ms(99.0), 1.0),
        at_most("three nodes, p99 against Restate's", three.many_ms(99.0) / peer.many_ms(99.0), 1.0),
        at_most("one node, one client, p50 against Restate's", one.one_ms(50.0) / peer.one_ms(50.0), 1.0),
        at_most(
            "a commit of three nodes, one client, p50 against an etcd put's",
            commits.one_ms(50.0) / puts.one_ms(50.0),
            1.3,
        ),
    ];
    let text =
        report(&[&one, &three, &peer, &commits, &puts], &verdicts, &version, (clients, seconds, turns));
    line(&text);
    if let Some(path) = write {
        replace(&path, &text)?;
    }
    Ok(verdicts.iter().all(|verdict| verdict.met))
}

/// Sessions on a cluster of its own, which is left running.
async fn sessions(
    measured: &mut Measured,
    directory: &Path,
    nodes: usize,
    clients: usize,
    seconds: u64,
) -> anyhow::Result<Arc<Loaded>> {
    let loaded = Arc::new(Loaded::start(directory, nodes).await?);
    measured.one.push(loaded.sessions(1, seconds).await?);
    measured.many.push(loaded.sessions(clients, seconds).await?);
    Ok(loaded)
}

fn report(
    all: &[&Measured],
    verdicts: &[Verdict],
    version: &str,
    (clients, seconds, turns): (usize, u64, usize),
) -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let build = if cfg!(debug_assertions) { "a DEBUG build: figures do not count" } else { "release build" };
    let mut text = format!(
        "{cores} cores, which clients, workers and servers share; {build}; every step and commit is synced to disk before it \
         counts, everywhere; payloads of {} bytes; {version}; medians of {turns} turns of {seconds} s.\n\n",
        INPUT.len()
    );
    let _ = writeln!(
        text,
        "| system | replicas | work | {clients} clients | p50, p99 | one client: p50, p99 |\n|---|---|---|---|---|---|"
    );
    for of in all {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.0} {}/s | {:.1}, {:.1} ms | {:.2}, {:.2} ms |",
            of.name,
            of.replication,
            of.work,
            of.rate(),
            if of.steps > 1.0 { "steps" } else { "calls" },
            of.many_ms(50.0),
            of.many_ms(99.0),
            of.one_ms(50.0),
            of.one_ms(99.0)
        );
    }
    text.push_str("\n| target | came | |\n|---|---|---|\n");
    for Verdict { what, came, met } in verdicts {
        let _ = writeln!(text, "| {what} | {came} | {} |", if *met { "met" } else { "**missed**" });
    }
    text
}

/// Puts the text into a file, between its marks.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    const MARKS: (&str, &str) = ("<!-- peers -->\n", "<!-- /peers -->");
    let before = std::fs::read_to_string(path)?;
    let marks = || format!("{} has no lines {} and {}", path.display(), MARKS.0.trim(), MARKS.1);
    let (head, rest) = before.split_once(MARKS.0).with_context(marks)?;
    let (_, tail) = rest.split_once(MARKS.1).with_context(marks)?;
    std::fs::write(path, format!("{head}{}{text}{}{tail}", MARKS.0, MARKS.1))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_meets_its_target_or_not_and_takes_the_place_of_the_last() {
        for (verdict, met) in [
            (at_least("steps", 5.0, 5.0), true),
            (at_least("steps", 4.99, 5.0), false),
            (at_most("p99", 1.0, 1.0), true),
            (at_most("p99", 1.01, 1.0), false),
            // Nothing was measured.
            (at_least("steps", f64::NAN, 5.0), false),
        ] {
            assert_eq!(verdict.met, met, "{}: {}", verdict.what, verdict.came);
        }
        let temp = tempfile::tempdir().unwrap();
        let page = temp.path().join("page.md");
        std::fs::write(&page, "before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n").unwrap();
        replace(&page, "new\n").unwrap();
        let now = std::fs::read_to_string(&page).unwrap();
        assert_eq!(now, "before\n<!-- peers -->\nnew\n<!-- /peers -->\nafter\n");
        std::fs::write(&page, "nothing").unwrap();
        let refused = replace(&page, "new\n").unwrap_err();
        assert!(refused.to_string().contains("<!-- peers -->"), "{refused}");
    }
}
