//! Data directories of released versions. Every later version opens them, and their sessions go on.

use std::{path::Path, process::Command};

use serde_json::{Value, json};
use testkit::{NodeProcess, free_address, wait_until};

use crate::fixture::PATIENCE;

/// Written by version 0.1.0: one session completed and one waiting in flushed state, a third only in the log of a node
/// that was killed.
const VERSIONS: [&str; 1] = ["data-0.1.0.tar.gz"];

#[tokio::test(flavor = "multi_thread")]
async fn data_of_every_version_opens_and_goes_on() {
    for version in VERSIONS {
        let temp = tempfile::tempdir().unwrap();
        let archive =
            Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("tests/fixtures").join(version);
        let unpacked =
            Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(temp.path()).status().unwrap();
        assert!(unpacked.success(), "{version}");
        let (http, grpc) = (free_address().unwrap(), free_address().unwrap());
        let node = NodeProcess::start(temp.path(), http, grpc, "[log]\nlevel = \"warn\"\n").await.unwrap();
        let client = reqwest::Client::new();
        let get = async |path: String| -> Value {
            client.get(format!("{}{path}", node.url())).send().await.unwrap().json().await.unwrap()
        };
        let sessions = get("/v1/sessions".into()).await["sessions"].as_array().unwrap().clone();
        let statuses: Vec<_> = sessions.iter().map(|session| session["status"].as_str().unwrap()).collect();
        assert_eq!(statuses, ["waiting", "completed", "waiting"], "{version}");
        for session in &sessions {
            let id = session["id"].as_str().unwrap();
            if session["status"] == "waiting" {
                let url = format!("{}/v1/sessions/{id}/signal", node.url());
                let signal =
                    client.post(url).json(&json!({"name": "go", "payload": 1})).send().await.unwrap();
                assert!(signal.status().is_success(), "{version}");
            }
            let session = wait_until("the session's end", PATIENCE, async || {
                let session = get(format!("/v1/sessions/{id}")).await;
                (session["status"] == "completed").then_some(session)
            });
            let session = session.await.unwrap();
            let n = session["input"]["n"].as_i64().unwrap();
            assert_eq!(session["output"], json!([2 + n, 4 + n]), "{version}: {session}");
            assert_eq!(get(format!("/v1/sessions/{id}/audit")).await["intact"], true, "{version}");
        }
    }
}
