//! A sample of each scenario.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use chaos::{crash, vendor};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_and_double_nothing() {
    let verdict = crash::run(&crash::Options { seed: 7, kills: 20 }).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_vendor_is_outlasted_and_every_fault_recorded() {
    let verdict = vendor::run(7).await.unwrap();
    assert!(verdict.passed(), "{verdict}");
}
