//! What is done to the disks of nodes.

use std::time::Duration;

use anyhow::Context as _;
use rand::{Rng as _, rngs::StdRng};
use testkit::Cluster;

use super::{Fault, faults::rest};
use crate::{disk::Disk, site::Shared};

fn with<T>(site: &Shared, node: usize, act: impl FnOnce(&mut Disk) -> T) -> anyhow::Result<T> {
    let mut site = site.lock();
    let disk = site.disks.as_mut().and_then(|disks| disks.get_mut(&node));
    Ok(act(disk.with_context(|| format!("node {node} has no disk of its own"))?))
}

pub(super) async fn inject(
    cluster: &mut Cluster,
    fault: Fault,
    leader: usize,
    random: &mut StdRng,
    site: &Shared,
) -> anyhow::Result<()> {
    let members = cluster.members();
    let any = members[random.random_range(0..members.len())];
    match fault {
        Fault::DiskFull => {
            let before = with(site, any, |disk| disk.hits())?;
            with(site, any, |disk| disk.fill(true))?;
            rest(random, 1_000..4_000).await;
            with(site, any, |disk| disk.fill(false))?;
            let hits = with(site, any, |disk| disk.hits())? - before;
            anyhow::ensure!(hits > 0, "nothing was written while the disk of node {any} was full");
            cluster.until_writable(any).await
        }
        Fault::PowerCut => {
            cluster.kill(any)?;
            with(site, any, Disk::cut)?;
            rest(random, 100..2_000).await;
            cluster.restart(any).await
        }
        Fault::PowerCutAll => {
            for node in &members {
                cluster.kill(*node)?;
            }
            let mut lost = 0;
            for node in &members {
                lost += with(site, *node, Disk::cut)?;
            }
            anyhow::ensure!(
                lost > 0,
                "the power was cut, and nothing was lost: everything is synced at once?"
            );
            for node in &members {
                cluster.spawn(*node)?;
            }
            Ok(())
        }
        _ => {
            let sync = Duration::from_millis(random.random_range(200..800));
            let before = with(site, leader, |disk| disk.hits())?;
            with(site, leader, |disk| disk.slow(sync))?;
            rest(random, 2_000..5_000).await;
            with(site, leader, |disk| disk.slow(Duration::ZERO))?;
            let hits = with(site, leader, |disk| disk.hits())? - before;
            anyhow::ensure!(hits > 0, "nothing was synced while the disk of node {leader} was slow");
            Ok(())
        }
    }
}
