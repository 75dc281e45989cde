//! `cluster`: faults on a cluster of real nodes under load, and whether its clients noticed more than they may.
//!
//! Clients append to registers and read them, and start sessions whose steps ask a vendor; every operation is one HTTP
//! call, recorded with when it was called, when it returned, and what came of it. Meanwhile one fault after another is
//! injected. In the end everything is healed, and what is there is compared with what clients were told.

mod disk;
mod faults;
mod judge;
mod load;
mod network;
mod watch;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use providers::simulated;
use testkit::{Cluster, free_address};

pub use faults::Fault;

use crate::{
    Verdict,
    crash::{keep_if_failed, node_config},
    site::{Needs, Shared, Site},
};
use load::Load;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Chooses the faults and their moments.
    pub seed: u64,
    /// How many nodes the cluster begins with.
    pub nodes: usize,
    /// How many faults are injected, one after another.
    pub faults: usize,
    /// The kinds of fault to choose from.
    pub kinds: Vec<Fault>,
}

/// Runs the scenario.
///
/// # Errors
///
/// The scenario itself failed: there is no verdict.
pub async fn run(options: &Options) -> anyhow::Result<Verdict> {
    let temp = tempfile::Builder::new().prefix("orchestra-cluster-").tempdir()?;
    let behaviour = simulated::Options {
        seed: options.seed,
        latency_min_ms: 2,
        latency_max_ms: 60,
        ..Default::default()
    };
    let wants = |of: fn(Fault) -> bool| options.kinds.iter().any(|kind| of(*kind));
    let needs = Needs {
        network: wants(Fault::is_of_network),
        disks: wants(Fault::is_of_disk),
        clocks: wants(|kind| kind == Fault::ClockJump),
    };
    let site = Site::prepare(needs, options.seed)?;
    let possible = |kind: &Fault| match kind {
        Fault::ClockJump => site.has_clocks(),
        kind if kind.is_of_network() => site.network.is_some(),
        kind if kind.is_of_disk() => site.disks.is_some(),
        _ => true,
    };
    let (kinds, not_run): (Vec<Fault>, Vec<Fault>) = options.kinds.iter().copied().partition(possible);
    anyhow::ensure!(
        not_run.is_empty() || std::env::var_os("CI").is_none(),
        "CI must be able to run {not_run:?}: it needs root, /dev/net/tun, /dev/fuse and libfaketime"
    );
    let options = &Options { kinds, ..options.clone() };
    let mut address = free_address()?;
    if let Some(network) = &site.network {
        address.set_ip(network.here().into());
    }
    let vendor = simulated::serve(address, behaviour, Vec::new()).await?;
    let config = site.configure(&node_config(&[vendor.base_url()], 5_000));
    let site = Shared::new(site);
    let hosts = Box::new(site.clone());
    let mut cluster = Cluster::start_on(hosts, temp.path(), options.nodes, &config).await?;
    let load = Arc::new(Load::begin(&cluster, options.seed).await?);
    let _workers = Arc::clone(&load).employ();
    let clients = Arc::clone(&load).run();

    let looks = Arc::new(AtomicU64::new(0));
    let (watched, counted) = (Arc::clone(&load), Arc::clone(&looks));
    let watching = tokio::spawn(async move { watch::watch(&watched, &counted).await });
    let injected = faults::inject(&mut cluster, &load, options, &site).await;
    let healed = match &injected {
        Ok(_) => faults::heal(&mut cluster).await,
        Err(_) => Ok(()),
    };
    watching.abort();
    load.stop();
    for client in clients {
        client.await?;
    }
    let history = temp.path().join("history.jsonl");
    load.history.write(&history)?;
    let fired = match (injected, healed) {
        (Ok(fired), Ok(())) => fired,
        (Err(error), _) | (_, Err(error)) => {
            let kept = temp.keep();
            let tails = cluster.log_tails();
            return Err(error.context(format!("seed {}, kept {}\n{tails}", options.seed, kept.display())));
        }
    };
    let looked = looks.load(Ordering::Relaxed);
    anyhow::ensure!(looked > 10, "the nodes were looked at {looked} times only");
    let verdict = judge::judge(&cluster, &load, &vendor, options, &fired).await;
    let mut verdict = verdict.with_context(|| cluster.log_tails())?;
    if !not_run.is_empty() {
        verdict.lines.push(format!("NOT RUN, as this machine does not allow it: {not_run:?}"));
    }
    Ok(keep_if_failed(verdict, temp))
}
