//! A sample of each scenario.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use chaos::{
    cluster::{self, Fault},
    crash, drill,
    scenario::Scenario,
    vendor,
};

mod command;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_and_double_nothing() {
    let _alone = ALONE.lock().await;
    let verdict = crash::run(&crash::Options { seed: 7, kills: 20 }).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}

/// One at a time: two clusters at once are slower than two in a row.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn cluster_survives(seed: u64, nodes: usize, scenario: Scenario) {
    let _alone = ALONE.lock().await;
    let faults = scenario.faults.len();
    let options = cluster::Options { scenario, seed, nodes, faults, seconds: 0, mutant: None };
    let verdict = cluster::run(&options).await.unwrap().verdict;
    assert!(verdict.passed(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_survive_every_fault() {
    cluster_survives(7, 3, Scenario::load("all").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_can_be_taken_back_until_it_is_finalized() {
    cluster_survives(9, 3, Scenario::load("upgrade").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_changes_fail_no_call() {
    let faults = vec![Fault::RollingRestart, Fault::Drain, Fault::Transfer];
    cluster_survives(10, 3, Scenario::of("planned", faults)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_fails_no_call() {
    cluster_survives(11, 3, Scenario::of("upgrade alone", vec![Fault::OtherRelease; 3])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_survive_kills_and_partitions() {
    let faults =
        vec![Fault::KillLeader, Fault::IsolateLeader, Fault::Bridge, Fault::PauseLeader, Fault::Drain];
    cluster_survives(8, 5, Scenario::of("five", faults)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cluster_is_restored_and_loses_only_what_came_after_its_backup() {
    let _alone = ALONE.lock().await;
    let options = drill::Options { seed: 3, sessions: 200, backups: 2, nodes: 3, nodes_after: 2 };
    let verdict = drill::run(&options).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_vendor_is_outlasted_and_every_fault_recorded() {
    let _alone = ALONE.lock().await;
    let verdict = vendor::run(7).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_there_is_checked() {
    let _alone = ALONE.lock().await;
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = testkit::Cluster::start(temp.path(), 3, "").await.unwrap();
    let check = cluster::Check { endpoints: cluster.urls(), token: None, ca: None, seed: 1, seconds: 6 };
    // The operator's fault.
    let fault = async {
        let leader = testkit::wait_until("a leader", std::time::Duration::from_secs(10), async || {
            cluster.leader(0).await
        });
        let leader = leader.await.unwrap();
        cluster.kill(leader).unwrap();
        cluster.restart(leader).await.unwrap();
    };
    let (verdict, ()) = tokio::join!(cluster::check(&check), fault);
    let cluster::Run { verdict, report } = verdict.unwrap();
    assert!(verdict.passed(), "{verdict}");
    report.write(temp.path()).unwrap();
    let page = std::fs::read_to_string(temp.path().join("check-3-nodes-seed-1.md")).unwrap();
    assert!(page.contains("| [check](check-3-nodes-seed-1.svg) | 3 | 1 |"), "{page}");
}
