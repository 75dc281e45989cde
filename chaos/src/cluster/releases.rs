//! Two releases in one cluster, there and back, and the end of the upgrade.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Context as _;
use rand::{rngs::StdRng, seq::IndexedRandom as _};
use testkit::{Cluster, wait_until};

use super::load::Load;

/// How long a node of an older release may take to learn that it is not listened to.
const REFUSED_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Which nodes run which release. All begin with the one before.
pub(super) struct Releases {
    previous: PathBuf,
    upgraded: BTreeSet<usize>,
}

impl Releases {
    pub(super) fn new(previous: PathBuf) -> Self {
        Self { previous, upgraded: BTreeSet::new() }
    }

    /// Starts any node with the release that it does not run.
    pub(super) async fn switch(
        &mut self,
        cluster: &mut Cluster,
        random: &mut StdRng,
        load: &Load,
    ) -> anyhow::Result<()> {
        let node = *cluster.members().choose(random).context("no node")?;
        let upgrade = !self.upgraded.contains(&node);
        self.start(cluster, node, upgrade, load).await
    }

    async fn start(
        &mut self,
        cluster: &mut Cluster,
        node: usize,
        upgrade: bool,
        load: &Load,
    ) -> anyhow::Result<()> {
        load.leave(cluster, node).await;
        let code = cluster.stop(node).await?;
        anyhow::ensure!(code == Some(0), "a drained node ended with {code:?}");
        cluster.set_program(node, (!upgrade).then(|| self.previous.clone()));
        cluster.restart(node).await?;
        load.enter(cluster, node);
        if upgrade {
            self.upgraded.insert(node);
        } else {
            self.upgraded.remove(&node);
        }
        cluster.until_whole().await
    }

    /// Upgrades all, finalizes, and sees to it that neither comes too early and none goes back.
    pub(super) async fn finalize(mut self, cluster: &mut Cluster, load: &Load) -> anyhow::Result<()> {
        let members = cluster.members();
        let (first, last) = (members[0], *members.last().context("no node")?);
        self.start(cluster, first, true, load).await?;
        self.start(cluster, last, false, load).await?;
        match cluster.finalize(first).await {
            Ok(level) => {
                anyhow::bail!("level {level} was finalized while node {last} ran the release before")
            }
            Err(error) => anyhow::ensure!(error.to_string().contains("older release"), "{error:#}"),
        }
        for node in &members {
            if !self.upgraded.contains(node) {
                self.start(cluster, *node, true, load).await?;
            }
        }
        let level = cluster.finalize(first).await?;
        anyhow::ensure!(level > 1, "level {level} is in force after the upgrade");
        // Whoever goes back now is not listened to, and says so.
        load.leave(cluster, last).await;
        cluster.stop(last).await?;
        cluster.set_program(last, Some(self.previous.clone()));
        cluster.spawn(last)?;
        wait_until("the release before to be refused", REFUSED_TIMEOUT, async || {
            (cluster.count_in_logs("runs an older release") > 0).then_some(())
        })
        .await?;
        cluster.kill(last)?;
        cluster.set_program(last, None);
        cluster.restart(last).await?;
        load.enter(cluster, last);
        cluster.until_whole().await
    }
}
