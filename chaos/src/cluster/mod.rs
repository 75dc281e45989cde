//! Faults on a cluster of real nodes under load, and whether its clients noticed more than they may.
//!
//! Clients append to registers and read them, and start sessions whose steps ask a vendor; every operation is one HTTP
//! call, recorded with when it was called, when it returned, and what came of it. Meanwhile one fault after another is
//! injected. In the end everything is healed, and what is there is compared with what clients were told.

mod disk;
mod faults;
mod judge;
mod load;
mod network;
mod releases;
mod watch;

use std::{
    io::Write as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use clap::ValueEnum as _;
use providers::simulated;
use sha2::Digest as _;
use testkit::{Cluster, free_address};

pub use faults::Fault;

use crate::{
    Verdict,
    crash::node_config,
    report::{self, Report},
    scenario::Scenario,
    scratch::{self, keep_if_failed},
    site::{Mutant, Needs, Shared, Site},
};
use load::{Load, Target};
use watch::Watched;

/// Sizes of clusters under test.
pub const NODES: std::ops::RangeInclusive<usize> = 3..=9;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// What happens.
    pub scenario: Scenario,
    /// Chooses the faults and their moments.
    pub seed: u64,
    /// How many nodes the cluster begins with.
    pub nodes: usize,
    /// How many faults are injected at least, one after another.
    pub faults: usize,
    /// How long faults are injected at least.
    pub seconds: u64,
    /// The build under test, if it breaks a promise on purpose.
    pub mutant: Option<Mutant>,
}

impl Options {
    /// The command that repeats a run.
    #[must_use]
    pub fn again(&self) -> String {
        let Self { scenario, seed, nodes, faults, seconds, .. } = self;
        if Scenario::load(&scenario.name).is_ok_and(|built_in| built_in.faults.len() == scenario.faults.len())
        {
            return format!("chaos run {} --seed {seed} --nodes {nodes} --seconds {seconds}", scenario.name);
        }
        let name =
            |of: &Fault| of.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let kinds: Vec<String> = scenario.faults.iter().map(name).collect();
        format!("chaos cluster --seed {seed} --nodes {nodes} --faults {faults} --kinds {}", kinds.join(","))
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    /// In words.
    pub verdict: Verdict,
    /// In numbers.
    pub report: Report,
}

/// Runs a scenario.
///
/// # Errors
///
/// The run could not begin: there is no verdict.
pub async fn run(options: &Options) -> anyhow::Result<Run> {
    anyhow::ensure!(
        NODES.contains(&options.nodes),
        "{} nodes: a run has {} to {}; with fewer, no fault may be survived",
        options.nodes,
        NODES.start(),
        NODES.end()
    );
    let temp = scratch::directory("cluster")?;
    let behaviour = simulated::Options {
        seed: options.seed,
        latency_min_ms: 2,
        latency_max_ms: 60,
        ..Default::default()
    };
    let wants = |of: fn(Fault) -> bool| options.scenario.faults.iter().any(|kind| of(*kind));
    let needs = Needs {
        network: wants(Fault::is_of_network),
        disks: wants(Fault::is_of_disk),
        clocks: wants(|kind| kind == Fault::ClockJump),
        releases: wants(|kind| kind == Fault::OtherRelease),
    };
    let site = Site::prepare(needs, options.seed, options.mutant.clone())?;
    let possible = |kind: &Fault| match kind {
        Fault::ClockJump => site.has_clocks(),
        Fault::OtherRelease => site.previous.is_some(),
        kind if kind.is_of_network() => site.network.is_some(),
        kind if kind.is_of_disk() => site.disks.is_some(),
        _ => true,
    };
    let (kinds, not_run): (Vec<Fault>, Vec<Fault>) =
        options.scenario.faults.iter().copied().partition(possible);
    anyhow::ensure!(
        not_run.is_empty() || std::env::var_os("CI").is_none(),
        "CI must be able to run {not_run:?}: it needs root, /dev/net/tun, /dev/fuse, libfaketime \
         and the release before this one"
    );
    if !not_run.is_empty() {
        // Also where a test that runs this passes.
        let _ = writeln!(std::io::stderr(), "NOT RUN, as this machine does not allow it: {not_run:?}");
    }
    anyhow::ensure!(!kinds.is_empty(), "this machine allows no fault of the scenario: {not_run:?}");
    let mut options = options.clone();
    options.scenario.faults = kinds;
    let options = &options;
    let mut address = free_address()?;
    if let Some(network) = &site.network {
        address.set_ip(network.here().into());
    }
    let vendor = simulated::serve(address, behaviour, Vec::new()).await?;
    let mut config = node_config(&[vendor.base_url()], 5_000);
    if wants(|kind| kind == Fault::VendorOutage) {
        config.push_str("circuit_rest_seconds = 1\n");
    }
    let config = site.configure(&config);
    let site = Shared::new(site);
    let hosts = Box::new(site.clone());
    let mut cluster = Cluster::start_on(hosts, temp.path(), options.nodes, &config).await?;
    let load = Arc::new(Load::begin(Target::of(&cluster), options.seed).await?);
    let _workers = Arc::clone(&load).employ(&options.scenario);
    let clients = Arc::clone(&load).run(&options.scenario);
    let watched = Arc::new(Watched::default());
    let (looked_at, noted) = (Arc::clone(&load), Arc::clone(&watched));
    let watching = tokio::spawn(async move { watch::watch(&looked_at, &noted).await });
    let injected = faults::inject(&mut cluster, &load, options, &site, &vendor).await;
    load.stop();
    for client in clients {
        client.await?;
    }
    watching.abort();
    load.history.write(&temp.path().join("history.jsonl"))?;
    let mut verdict = match injected {
        Ok(fired) => judge::judge(&cluster, &load, &vendor, options, &fired)
            .await
            .unwrap_or_else(|error| Verdict::of_violation(format!("{error:#}\n{}", cluster.log_tails()))),
        Err(error) => Verdict::of_violation(format!("{error:#}\n{}", cluster.log_tails())),
    };
    if !not_run.is_empty() {
        verdict.lines.push(format!("NOT RUN, as this machine does not allow it: {not_run:?}"));
    }
    let mut report = judge::report(&cluster, &load, options, &watched, &mut verdict);
    report.program = digest_of_program(options)?;
    report.not_run = not_run.iter().map(|fault| format!("{fault:?}")).collect();
    if !verdict.passed() {
        // Disks of a run are in its memory: what is on them is kept beside them.
        drop(cluster);
        site.lock().keep_disks(temp.path())?;
    }
    let verdict = keep_if_failed(verdict, temp);
    report.kept.clone_from(&verdict.kept);
    Ok(Run { verdict, report })
}

/// The SHA-256 of the program that the nodes of a run are.
pub(crate) fn digest_of_program(options: &Options) -> anyhow::Result<String> {
    let program = match &options.mutant {
        Some(mutant) => mutant.program.clone(),
        None => testkit::binary()?,
    };
    let digest = sha2::Sha256::digest(std::fs::read(program)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What to check, on a cluster that is there.
#[derive(Debug, Clone)]
pub struct Check {
    /// The URLs of its nodes.
    pub endpoints: Vec<String>,
    /// A token of a tenant; one that may also compare replicas has `admin = true`.
    pub token: Option<String>,
    /// Certificates to trust besides those of the system, as PEM.
    pub ca: Option<Vec<u8>>,
    /// Chooses what clients do.
    pub seed: u64,
    /// How long.
    pub seconds: u64,
}

/// Puts load on a cluster that is there, and checks what its clients saw. Faults are left to whoever runs it. Sessions
/// need no vendor and no worker; what would wait for ever is canceled in the end.
///
/// # Errors
///
/// The cluster does not answer at the beginning or the end: there is no verdict.
pub async fn check(check: &Check) -> anyhow::Result<Run> {
    anyhow::ensure!(!check.endpoints.is_empty(), "name at least one endpoint");
    let urls: Vec<String> = check.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
    let target =
        Target { urls: urls.clone(), grpc: Vec::new(), token: check.token.clone(), ca: check.ca.clone() };
    let load = Arc::new(Load::begin(target, check.seed).await?);
    let clients = Arc::clone(&load).run(&Scenario::of("check", Vec::new()));
    let watched = Arc::new(Watched::default());
    let (looked_at, noted) = (Arc::clone(&load), Arc::clone(&watched));
    let watching = tokio::spawn(async move { watch::watch(&looked_at, &noted).await });
    tokio::time::sleep(Duration::from_secs(check.seconds)).await;
    load.stop();
    for client in clients {
        client.await?;
    }
    watching.abort();
    let mut verdict = judge::judge_clients(&urls, &load).await?;
    let leaders_moved = watched.moves.load(Ordering::Relaxed);
    verdict.lines.push(format!("leaders moved {leaders_moved}"));
    load.clean_up().await?;
    let operations = load.history.operations();
    let Check { endpoints, seed, seconds, .. } = check;
    let report = Report {
        scenario: "check".to_owned(),
        seed: *seed,
        nodes: endpoints.len(),
        seconds_asked: *seconds,
        again: format!("chaos check --endpoints {} --seed {seed} --seconds {seconds}", endpoints.join(",")),
        passed: verdict.passed(),
        violations: verdict.violations.clone(),
        seconds: load.history.now().as_secs_f64(),
        operations: operations.len() as u64,
        leaders_moved,
        series: report::series(&operations),
        ..Report::default()
    };
    Ok(Run { verdict, report })
}
