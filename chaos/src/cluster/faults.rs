//! What is done to the cluster.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use testkit::{Cluster, SmallDisk};

use super::{Options, load::Load};

/// Shards of the clusters under test.
const SHARDS: u16 = 4;
/// The node whose disk is filled.
pub(super) const ON_SMALL_DISK: usize = 1;

/// A fault, or a planned change, from which the cluster must recover by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL the leader of a shard; start it again.
    KillLeader,
    /// SIGKILL a node that does not lead the shard; start it again.
    KillFollower,
    /// SIGSTOP the leader of a shard for longer than an election takes.
    PauseLeader,
    /// SIGSTOP a node that does not lead the shard.
    PauseFollower,
    /// Fill the disk of a node, and make room again.
    DiskFull,
    /// SIGTERM a node, which hands over what it leads; start it again.
    Drain,
    /// Hand over the lead of a shard.
    Transfer,
    /// Add a node, and take one out: the cluster keeps its size.
    Replace,
    /// SIGTERM and start every node, one after another.
    RollingRestart,
    /// SIGKILL all nodes at once; start them again.
    KillAll,
}

/// Injects faults one after another; how often each kind was.
pub(super) async fn inject(
    cluster: &mut Cluster,
    load: &Load,
    options: &Options,
    disk: Option<&SmallDisk>,
) -> anyhow::Result<BTreeMap<Fault, usize>> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut fired = BTreeMap::new();
    for number in 0..options.faults {
        // Every kind at least once, as far as there are enough of them.
        let fault = match options.kinds.get(number) {
            Some(fault) => *fault,
            None => *options.kinds.choose(&mut random).unwrap_or(&Fault::KillLeader),
        };
        let disk = disk.filter(|_| cluster.members().contains(&ON_SMALL_DISK));
        let fault = if fault == Fault::DiskFull && disk.is_none() { Fault::PauseFollower } else { fault };
        rest(&mut random, 200..1_000).await;
        load.note(&format!("{fault:?}"));
        inject_one(cluster, fault, &mut random, load, disk).await?;
        *fired.entry(fault).or_insert(0) += 1;
    }
    Ok(fired)
}

async fn rest(random: &mut StdRng, range: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(random.random_range(range))).await;
}

async fn inject_one(
    cluster: &mut Cluster,
    fault: Fault,
    random: &mut StdRng,
    load: &Load,
    disk: Option<&SmallDisk>,
) -> anyhow::Result<()> {
    let shard = random.random_range(0..SHARDS);
    let members = cluster.members();
    let leader = match cluster.leader(shard).await {
        Some(leader) => leader,
        None => members[random.random_range(0..members.len())],
    };
    let followers: Vec<usize> = members.iter().copied().filter(|number| *number != leader).collect();
    let follower = *followers.choose(random).unwrap_or(&leader);
    match fault {
        Fault::KillLeader | Fault::KillFollower => {
            let target = if fault == Fault::KillLeader { leader } else { follower };
            cluster.kill(target)?;
            rest(random, 100..3_000).await;
            cluster.restart(target).await?;
        }
        Fault::PauseLeader | Fault::PauseFollower => {
            let target = if fault == Fault::PauseLeader { leader } else { follower };
            cluster.pause(target)?;
            rest(random, 1_000..4_000).await;
            cluster.resume(target)?;
        }
        Fault::DiskFull => {
            let disk = disk.context("no node is on a small disk")?;
            disk.fill()?;
            rest(random, 1_000..4_000).await;
            disk.free()?;
            cluster.until_writable(ON_SMALL_DISK).await?;
        }
        Fault::Drain => {
            load.leave(cluster, leader);
            let code = cluster.stop(leader).await?;
            anyhow::ensure!(code == Some(0), "a drained node ended with {code:?}");
            rest(random, 100..1_000).await;
            cluster.restart(leader).await?;
            load.enter(cluster, leader);
        }
        Fault::Transfer => cluster.transfer(shard).await?,
        Fault::Replace => {
            let added = cluster.add().await?;
            load.enter(cluster, added);
            load.leave(cluster, follower);
            cluster.remove(follower).await?;
            cluster.kill(follower)?;
        }
        Fault::RollingRestart => {
            for number in members {
                load.leave(cluster, number);
                let code = cluster.stop(number).await?;
                anyhow::ensure!(code == Some(0), "a drained node ended with {code:?}");
                cluster.restart(number).await?;
                load.enter(cluster, number);
                cluster.until_whole().await?;
            }
        }
        Fault::KillAll => {
            for number in &members {
                cluster.kill(*number)?;
            }
            for number in &members {
                cluster.spawn(*number)?;
            }
        }
    }
    cluster.until_whole().await
}

/// What is left to heal: every fault heals itself, so only time.
pub(super) async fn heal(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.until_whole().await
}
