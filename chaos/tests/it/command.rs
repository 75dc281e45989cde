//! The program `chaos` as operators run it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use testkit::{NodeProcess, NodeSpec, binary, free_address, wait_until};

use crate::ALONE;

const PATIENCE: Duration = Duration::from_secs(60);

fn chaos() -> Command {
    Command::new(env!("CARGO_BIN_EXE_chaos"))
}

fn mounts_below(directory: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places.filter(|place| Path::new(place).starts_with(directory)).count()
}

/// Processes with this text in their command line.
fn processes_of(text: &str) -> usize {
    let mut count = 0;
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        count += usize::from(String::from_utf8_lossy(&line).contains(text));
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_told_to_stop_leaves_nothing() {
    let _alone = ALONE.lock().await;
    let temp = tempfile::tempdir().unwrap();
    let name = temp.path().to_str().unwrap();
    // The power of disks can be cut where file systems can be mounted; nodes and directories there are everywhere.
    let mut run = chaos();
    run.args("cluster --seed 5 --nodes 3 --faults 100 --kinds power-cut,kill-leader".split(' '));
    let mut run = run.env("TMPDIR", temp.path()).stdout(Stdio::null()).spawn().unwrap();
    let under_way =
        wait_until("three nodes", PATIENCE, async || (processes_of(name) == 3).then_some(())).await;
    let mounted = mounts_below(temp.path());
    let id = rustix::process::Pid::from_raw(run.id().cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let ended = wait_until("its end", PATIENCE, async || run.try_wait().ok()?).await;
    // Whatever is found below, it is gone.
    let _ = run.kill();
    under_way.unwrap();
    assert_eq!(ended.unwrap().code(), Some(143));
    assert!(mounted == 3 || std::env::var_os("CI").is_none(), "{mounted} of three disks were mounted");
    assert_eq!(mounts_below(temp.path()), 0, "a mount is left");
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    // They die with it, or a moment after.
    wait_until("the end of its nodes", PATIENCE, async || (processes_of(name) == 0).then_some(()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_certificates_of_its_own_is_checked() {
    let _alone = ALONE.lock().await;
    let temp = tempfile::tempdir().unwrap();
    let certs = temp.path().join("certs");
    let made = Command::new(binary().unwrap())
        .args(["certs", "dev", "--host", "127.0.0.1", "--out"])
        .arg(&certs)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = |name: &str| certs.join(name);
    let node = NodeSpec {
        directory: temp.path().join("node"),
        http: free_address().unwrap(),
        grpc: free_address().unwrap(),
        peer: free_address().unwrap(),
        command: Vec::new(),
        program: None,
        name: "node".into(),
        join: Vec::new(),
        config: format!(
            "[tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n",
            file("node.pem"),
            file("node.key"),
            file("ca.pem")
        ),
        env: Vec::new(),
    };
    let _node = NodeProcess::spawn(&node).unwrap();
    let url = format!("https://{}", node.http);
    let ca = reqwest::Certificate::from_pem_bundle(&std::fs::read(file("ca.pem")).unwrap()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only(ca).build().unwrap();
    let ready = format!("{url}/health/ready");
    wait_until("the node to be ready", PATIENCE, async || {
        http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()).then_some(())
    })
    .await
    .unwrap();

    let check = |more: &[&str]| {
        let mut check = chaos();
        check.args(["check", "--endpoints", &url, "--seconds", "3"]).args(more);
        check
    };
    let (ca, out) = (file("ca.pem"), temp.path().join("report"));
    let trusting = check(&["--ca", ca.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let stranger = check(&[]);
    // Away from the threads that these tests run on.
    let (trusting, stranger) = tokio::task::spawn_blocking(|| {
        let [mut trusting, mut stranger] = [trusting, stranger];
        (trusting.output().unwrap(), stranger.output().unwrap())
    })
    .await
    .unwrap();
    assert!(trusting.status.success(), "{trusting:?}");
    assert!(out.join("check-1-nodes-seed-1.svg").is_file());
    assert!(!stranger.status.success(), "without its authority, the node is not trusted: {stranger:?}");
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(said.contains(&url), "it names whom it could not ask: {said}");
}
