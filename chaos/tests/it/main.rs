//! A sample of each scenario.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use chaos::{
    cluster::{self, Fault},
    crash, vendor,
};
use clap::ValueEnum as _;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_and_double_nothing() {
    let _alone = ALONE.lock().await;
    let verdict = crash::run(&crash::Options { seed: 7, kills: 20 }).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}

/// One at a time: two clusters at once are slower than two in a row.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn cluster_survives(seed: u64, nodes: usize, kinds: Vec<Fault>) {
    let _alone = ALONE.lock().await;
    let options = cluster::Options { seed, nodes, faults: kinds.len(), kinds };
    let verdict = cluster::run(&options).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_survive_every_fault() {
    cluster_survives(7, 3, Fault::value_variants().to_vec()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_survive_kills_and_pauses() {
    cluster_survives(8, 5, vec![Fault::KillLeader, Fault::PauseLeader, Fault::Drain]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_vendor_is_outlasted_and_every_fault_recorded() {
    let _alone = ALONE.lock().await;
    let verdict = vendor::run(7).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}
