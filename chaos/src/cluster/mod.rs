//! `cluster`: faults on a cluster of real nodes under load, and whether its clients noticed more than they may.
//!
//! Clients append to registers and read them, and start sessions whose steps ask a vendor; every operation is one HTTP
//! call, recorded with when it was called, when it returned, and what came of it. Meanwhile one fault after another is
//! injected. In the end everything is healed, and what is there is compared with what clients were told.

mod faults;
mod judge;
mod load;
mod watch;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use providers::simulated;
use testkit::{Cluster, SmallDisk, free_address};

pub use faults::Fault;

use crate::{Verdict, crash::keep_if_failed, crash::node_config};
use load::Load;

/// Enough for everything that a run stores.
const SMALL_DISK_MIB: u32 = 1024;

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
    let vendor = simulated::serve(free_address()?, behaviour, Vec::new()).await?;
    let config = node_config(&[vendor.base_url()], 5_000);
    let on_small_disk = temp.path().join(format!("node-{}/data", faults::ON_SMALL_DISK));
    std::fs::create_dir_all(&on_small_disk)?;
    let wanted = options.kinds.contains(&Fault::DiskFull);
    let disk = wanted.then(|| SmallDisk::mount(&on_small_disk, SMALL_DISK_MIB)).flatten();
    let mut cluster = Cluster::start(temp.path(), options.nodes, &config).await?;
    let load = Arc::new(Load::begin(&cluster, options.seed).await?);
    let _workers = Arc::clone(&load).employ();
    let clients = Arc::clone(&load).run();

    let looks = Arc::new(AtomicU64::new(0));
    let (watched, counted) = (Arc::clone(&load), Arc::clone(&looks));
    let watching = tokio::spawn(async move { watch::watch(&watched, &counted).await });
    let injected = faults::inject(&mut cluster, &load, options, disk.as_ref()).await;
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
    let verdict = judge::judge(&cluster, &load, &vendor, options, &fired, disk.is_some()).await;
    let verdict = verdict.with_context(|| cluster.log_tails())?;
    Ok(keep_if_failed(verdict, temp))
}
