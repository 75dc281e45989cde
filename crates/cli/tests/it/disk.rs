//! A full disk: writes stop with a clear error, and go on by themselves when there is room, without restart or loss.

use std::{fs, io::Write as _, path::Path, process::Command, time::Duration};

use chaos::api::Api;
use serde_json::json;
use testkit::{NodeProcess, free_address, wait_until};

struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A file system of a few MiB. Mounting needs root; where it is missing, CI has to have it.
fn small_disk(at: &Path) -> Option<Mount> {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(at).status();
    if mounted.is_ok_and(|status| status.success()) {
        return Some(Mount(at.to_owned()));
    }
    assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
    #[expect(clippy::print_stderr, reason = "nothing is skipped in silence")]
    {
        eprintln!("NOT RUN: a full disk needs root to mount a tmpfs");
    }
    None
}

/// Fills the disk from outside the node until nothing more fits.
fn fill(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    let (mut block, mut piece) = (vec![7u8; 1 << 20], 1 << 20);
    while piece > 0 {
        if file.write_all(&block[..piece]).is_err() {
            piece /= 2;
            block.truncate(piece.max(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_writes_and_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    // Everything is on the small disk: the data, and the file that the node logs to.
    let disk = temp.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let Some(mount) = small_disk(&disk) else { return };
    let config = "[node]\nshards = 2\ndisk_free_min_mib = 1\nblock_cache_mib = 4\n[log]\nlevel = \"warn\"\n";
    let node =
        NodeProcess::start(&disk, free_address().unwrap(), free_address().unwrap(), config).await.unwrap();
    let pid = node.pid();
    let api = Api::new(&node.url()).unwrap();
    api.apply("name: w\nsteps:\n  - {id: a, value: 'input.n'}\n  - {id: b, value: 'steps.a.output'}\n")
        .await
        .unwrap();
    let mut acknowledged = Vec::new();
    for n in 0..50 {
        acknowledged.push(api.start("w", &format!("before-{n}"), &json!({"n": n})).await.unwrap());
    }
    let ballast = disk.join("ballast");
    fill(&ballast);
    // Under load until it is told; what is acknowledged meanwhile counts.
    let (mut n, mut last) = (0, String::new());
    let told = wait_until("a clear error", Duration::from_secs(60), async || {
        n += 1;
        match tokio::time::timeout(
            Duration::from_secs(2),
            api.start("w", &format!("full-{n}"), &json!({"n": n})),
        )
        .await
        {
            Ok(Ok(id)) => {
                acknowledged.push(id);
                None
            }
            Ok(Err(error)) if error.to_string().contains("writes_stopped") => Some(error.to_string()),
            other => {
                last = format!("{other:?}");
                None
            }
        }
    });
    let told =
        told.await.unwrap_or_else(|error| panic!("{error}; the last call: {last}\n{}", node.log_tail()));
    assert!(told.contains("507"), "{told}");
    assert!(api.get("/health/ready").await.unwrap_err().to_string().contains("writes:"));

    fs::remove_file(&ballast).unwrap();
    let after = wait_until("writes to go on", Duration::from_secs(60), async || {
        api.start("w", "after", &json!({"n": "after"})).await.ok()
    });
    acknowledged.push(after.await.unwrap_or_else(|error| panic!("{error}\n{}", node.log_tail())));
    assert_eq!(node.pid(), pid, "no restart");
    for id in &acknowledged {
        let ended = wait_until("its end", Duration::from_secs(60), async || {
            (api.get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
        });
        ended.await.unwrap_or_else(|error| panic!("{id}: {error}\n{}", node.log_tail()));
    }
    // And it is all there after a restart.
    node.stop(Duration::from_secs(60)).await.unwrap();
    let node =
        NodeProcess::start(&disk, free_address().unwrap(), free_address().unwrap(), config).await.unwrap();
    let api = Api::new(&node.url()).unwrap();
    for id in &acknowledged {
        assert_eq!(api.get(&format!("/v1/sessions/{id}")).await.unwrap()["status"], "completed", "{id}");
    }
    drop(node);
    drop(mount);
}
