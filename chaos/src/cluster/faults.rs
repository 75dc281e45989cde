//! What is done to the cluster.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use providers::simulated::{self, Outage};
use rand::{
    Rng as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde::Deserialize;
use testkit::{Cluster, wait_until};
use tokio::time::Instant;

use super::{Options, disk, judge, load::Load, network, releases::Releases};
use crate::{crash::counts, site::Shared};

/// Shards of the clusters under test.
const SHARDS: u16 = 4;
/// How long a shard that nothing was done to may be without a leader.
const LEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// A fault, or a planned change, from which the cluster must recover by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL the leader of a shard; start it again.
    KillLeader,
    /// SIGKILL a node that does not lead the shard; start it again.
    KillFollower,
    /// SIGSTOP the leader of a shard for longer than an election takes.
    PauseLeader,
    /// SIGSTOP a node that does not lead the shard.
    PauseFollower,
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
    /// A node loses its disk, while those that have what it had are away for a moment, and one that lags is there. It
    /// is taken out, and comes back with an empty disk.
    LostDisk,
    /// Cut the leader of a shard, and as many others as are no majority with it, from the rest.
    IsolateLeader,
    /// Cut the nodes into two halves.
    Halves,
    /// Two halves, and one node that reaches both.
    Bridge,
    /// The leader of a shard sends, and hears nothing.
    DeafLeader,
    /// The leader of a shard hears, and what it sends is lost.
    MuteLeader,
    /// Cut one node from the leader of a shard; both reach the others.
    CutPair,
    /// Every packet takes 20 to 90 ms, and one in 200 is lost.
    SlowNetwork,
    /// One packet in 20 is lost, some come twice, some overtake others, and links carry 4 MiB a second.
    LossyNetwork,
    /// Fill the disk of a node, and make room again.
    DiskFull,
    /// Cut the power of a node: what it has not synced is lost or torn; start it again.
    PowerCut,
    /// Cut the power of all nodes at once; start them again.
    PowerCutAll,
    /// Every sync of the leader of a shard takes 200 to 800 ms.
    SlowDisk,
    /// The wall clock of a node jumps by 10 s to 2 h, forth or back, and later back again.
    ClockJump,
    /// The vendor refuses every call, or answers none.
    VendorOutage,
    /// SIGTERM a node, and start it with the other release: the one before this one, with which all begin, or this one.
    /// In the end all run this one, and its feature level is finalized.
    OtherRelease,
}

impl Fault {
    /// Whether it is a planned change of which clients are told before: no call may fail.
    #[must_use]
    pub fn is_planned(self) -> bool {
        matches!(self, Self::Drain | Self::Transfer | Self::RollingRestart | Self::OtherRelease)
    }

    /// Whether it needs a network of its own.
    #[must_use]
    pub fn is_of_network(self) -> bool {
        (Self::IsolateLeader..=Self::LossyNetwork).contains(&self)
    }

    /// Whether it needs disks of its own.
    #[must_use]
    pub fn is_of_disk(self) -> bool {
        (Self::DiskFull..=Self::SlowDisk).contains(&self)
    }
}

/// Injects faults one after another; how often each kind was.
pub(super) async fn inject(
    cluster: &mut Cluster,
    load: &Load,
    options: &Options,
    site: &Shared,
    vendor: &simulated::Server,
) -> anyhow::Result<BTreeMap<Fault, usize>> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut fired = BTreeMap::new();
    let asked = Duration::from_secs(options.seconds);
    let until = Instant::now() + asked;
    let mut releases = site.lock().previous.clone().map(Releases::new);
    let (kinds, (least, most)) = (&options.scenario.faults, options.scenario.rest_ms);
    for number in 0.. {
        // A slow machine takes longer, and not for ever, to have as many operations as prove something.
        let over = Instant::now().checked_duration_since(until);
        let is_enough = over.is_some_and(|over| judge::has_enough(load, options) || over >= asked);
        if number >= options.faults && is_enough {
            break;
        }
        // Every kind at least once, as far as there is time.
        let fault = match kinds.get(number) {
            Some(fault) => *fault,
            None => *kinds.choose(&mut random).unwrap_or(&Fault::KillLeader),
        };
        rest(&mut random, least..most).await;
        let from = load.history.now();
        let injected = match (&mut releases, fault) {
            (Some(releases), Fault::OtherRelease) => releases.switch(cluster, &mut random, load).await,
            (_, Fault::VendorOutage) => vendor_outage(vendor, &mut random).await,
            _ => inject_one(cluster, fault, &mut random, load, site).await,
        };
        load.note(fault, from);
        injected.with_context(|| format!("{fault:?}, the fault number {}", number + 1))?;
        *fired.entry(fault).or_insert(0) += 1;
    }
    if let Some(releases) = releases {
        let from = load.history.now();
        releases.finalize(cluster, load).await.context("the end of the upgrade")?;
        load.note(Fault::OtherRelease, from);
    }
    Ok(fired)
}

/// Calls fail until the vendor is back; steps wait for it.
async fn vendor_outage(vendor: &simulated::Server, random: &mut StdRng) -> anyhow::Result<()> {
    let hit = async || counts(vendor).await.map(|counts| counts.errors + counts.hangs);
    let before = hit().await?;
    vendor.set_outage(Some(if random.random_bool(0.5) { Outage::Refuses } else { Outage::Hangs }));
    rest(random, 2_000..6_000).await;
    vendor.set_outage(None);
    anyhow::ensure!(hit().await? > before, "nobody called the vendor while it was out of order");
    Ok(())
}

pub(super) async fn rest(random: &mut StdRng, range: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(random.random_range(range))).await;
}

async fn inject_one(
    cluster: &mut Cluster,
    fault: Fault,
    random: &mut StdRng,
    load: &Load,
    site: &Shared,
) -> anyhow::Result<()> {
    let shard = random.random_range(0..SHARDS);
    let members = cluster.members();
    let leader = wait_until(&format!("a leader of shard {shard}"), LEADER_TIMEOUT, async || {
        cluster.leader(shard).await.filter(|leader| members.contains(leader))
    })
    .await?;
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
        Fault::Drain => {
            load.leave(cluster, leader).await;
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
            load.leave(cluster, follower).await;
            cluster.remove(follower).await?;
            cluster.kill(follower)?;
        }
        Fault::RollingRestart => {
            for number in members {
                load.leave(cluster, number).await;
                let code = cluster.stop(number).await?;
                anyhow::ensure!(code == Some(0), "a drained node ended with {code:?}");
                cluster.restart(number).await?;
                load.enter(cluster, number);
                cluster.until_whole().await?;
            }
        }
        Fault::LostDisk => lose_disk(cluster, leader, random, load).await?,
        Fault::KillAll => {
            for number in &members {
                cluster.kill(*number)?;
            }
            for number in &members {
                cluster.spawn(*number)?;
            }
        }
        fault if fault.is_of_disk() => disk::inject(cluster, fault, leader, random, site).await?,
        Fault::ClockJump => {
            let seconds = random.random_range(10..7_200) * if random.random_bool(0.5) { 1 } else { -1 };
            site.lock().set_clock(follower, seconds)?;
            // It has had an effect once the node knows how wrong its clock is.
            cluster.until_clock_is_off(follower, -1_000 * seconds).await?;
            rest(random, 500..3_000).await;
            site.lock().set_clock(follower, 0)?;
            cluster.until_clock_is_off(follower, 0).await?;
        }
        _ => {
            let hits = |site: &Shared| site.lock().network.as_ref().map(network::hits).unwrap_or_default();
            let before = hits(site);
            if let Some(network) = &site.lock().network {
                network::inject(network, fault, &members, leader, random);
            }
            rest(random, 1_500..5_000).await;
            if let Some(network) = &site.lock().network {
                network.switch().heal();
            }
            anyhow::ensure!(hits(site) > before, "{fault:?} hit no packet");
        }
    }
    cluster.until_whole().await
}

async fn lose_disk(
    cluster: &mut Cluster,
    leader: usize,
    random: &mut StdRng,
    load: &Load,
) -> anyhow::Result<()> {
    let members = cluster.members();
    let mut others: Vec<usize> = members.iter().copied().filter(|node| *node != leader).collect();
    others.shuffle(random);
    // These have not the last of what the rest has acknowledged.
    let lagging = others.split_off(others.len() - (members.len() - 1) / 2);
    let lost = *others.first().context("a cluster of one can not lose a disk")?;
    for node in &lagging {
        cluster.pause(*node)?;
    }
    rest(random, 500..1_500).await;
    for node in others.iter().chain([&leader]) {
        load.forget(cluster, *node);
        cluster.kill(*node)?;
    }
    for node in &lagging {
        cluster.resume(*node)?;
    }
    cluster.wipe(lost)?;
    let seeds = members.iter().filter(|node| **node != lost).map(|node| cluster.peer(*node)).collect();
    cluster.set_join(lost, seeds);
    cluster.spawn(lost)?;
    rest(random, 2_000..4_000).await;
    for node in others.iter().skip(1).chain([&leader]) {
        cluster.spawn(*node)?;
    }
    // Its old self is taken out by name, and then the new one is let in under that name.
    cluster.remove_by_name(lost).await?;
    for node in others.iter().chain([&leader]) {
        load.enter(cluster, *node);
    }
    Ok(())
}
