//! TLS: between nodes both ends show a certificate, clients see the node's, and certificates are read again.

use std::{path::Path, process::Command, time::Duration};

use proto::api::{self, session_service_client::SessionServiceClient};
use serde_json::{Value, json};
use testkit::{NodeProcess, NodeSpec, binary, free_address, wait_until};
use tls::{DevCertificates, dev_certificates};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::fixture::PATIENCE;

const DAY: Duration = Duration::from_secs(86_400);

fn certificates(directory: &Path) -> DevCertificates {
    dev_certificates(directory, &["localhost".into(), "127.0.0.1".into()], DAY).unwrap()
}

fn client(ca: &Path) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem_bundle(&std::fs::read(ca).unwrap()).unwrap();
    reqwest::Client::builder().tls_certs_only(ca).timeout(Duration::from_secs(5)).build().unwrap()
}

fn spec(directory: &Path, name: &str, join: Vec<String>, of: &DevCertificates) -> NodeSpec {
    NodeSpec {
        directory: directory.join(name),
        http: free_address().unwrap(),
        grpc: free_address().unwrap(),
        peer: free_address().unwrap(),
        command: Vec::new(),
        program: None,
        name: name.into(),
        join,
        config: format!("[tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n", of.cert, of.key, of.ca),
        env: Vec::new(),
    }
}

async fn until_ready(http: &reqwest::Client, spec: &NodeSpec) {
    let url = format!("https://{}/health/ready", spec.http);
    let ready = wait_until("the node to be ready", PATIENCE, async || {
        http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()).then_some(())
    });
    ready.await.unwrap();
}

async fn status(http: &reqwest::Client, url: &str) -> Option<Value> {
    http.get(format!("{url}/v1/cluster")).send().await.ok()?.json().await.ok()
}

/// Returns when every shard has three voters; the state of the cluster.
async fn until_whole(http: &reqwest::Client, url: &str) -> Value {
    let whole = wait_until("three voters of every shard", PATIENCE, async || {
        let status = status(http, url).await?;
        let whole = |shard: &Value| shard["voters"].as_array().is_some_and(|voters| voters.len() == 3);
        status["shards"].as_object()?.values().all(whole).then_some(status)
    });
    whole.await.unwrap()
}

fn orchestra(args: &[&str]) -> (bool, String) {
    let output = Command::new(binary().unwrap()).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), format!("{out}{err}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_clients_talk_over_tls_and_strangers_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let ours = certificates(&temp.path().join("ours"));
    let http = client(&ours.ca);
    let first = spec(temp.path(), "node-0", vec![], &ours);
    let _first = NodeProcess::spawn(&first).unwrap();
    until_ready(&http, &first).await;
    let join = vec![first.peer.to_string()];
    let second = spec(temp.path(), "node-1", join.clone(), &ours);
    let mut third = spec(temp.path(), "node-2", join.clone(), &ours);
    third.config.push_str("[limits]\nper_address_per_minute = 2\n");
    let _others = [&second, &third].map(|spec| NodeProcess::spawn(spec).unwrap());
    let url = format!("https://{}", first.http);
    until_whole(&http, &url).await;

    // Somebody else's certificate does not make a node.
    let theirs = certificates(&temp.path().join("theirs"));
    let stranger = spec(temp.path(), "stranger", join.clone(), &theirs);
    let _stranger = NodeProcess::spawn(&stranger).unwrap();
    // Nor does none: what a node asks first is answered to nobody who shows no certificate.
    let mut naked = spec(temp.path(), "naked", join, &ours);
    naked.config = String::new();
    let _naked = NodeProcess::spawn(&naked).unwrap();
    let log = |name: &str| std::fs::read_to_string(temp.path().join(name).join("log")).unwrap_or_default();
    let refused = wait_until("the strangers to wait in vain", PATIENCE, async || {
        let waits = |name: &str| log(name).contains("waiting for a member of the cluster to answer");
        (waits("stranger") && waits("naked")).then_some(())
    });
    refused.await.unwrap();
    assert_eq!(status(&http, &url).await.unwrap()["nodes"].as_array().unwrap().len(), 3);

    // The command line and a worker, with the authority's certificate and without.
    let ca = ours.ca.to_str().unwrap();
    let workflow = temp.path().join("w.yaml");
    std::fs::write(&workflow, "name: w\nsteps:\n  - {id: a, task: {queue: q, input: input}}\n").unwrap();
    let (done, said) =
        orchestra(&["workflows", "apply", workflow.to_str().unwrap(), "--url", &url, "--ca", ca]);
    assert!(done, "{said}");
    let (done, said) = orchestra(&["workflows", "list", "--url", &url]);
    assert!(!done, "without the authority: {said}");
    let plain = format!("http://{}", first.http);
    assert!(reqwest::get(format!("{plain}/health")).await.is_err(), "nothing is answered in the clear");
    let worker = Command::new(binary().unwrap())
        .args(["run-worker", "--endpoints", &format!("https://{}", second.grpc), "--ca", ca])
        .args(["--queue", "q", "--", "cat"])
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut worker = worker.unwrap();
    let body = json!({"workflow": "w", "input": {"n": 3}});
    let started = http.post(format!("https://{}/v1/sessions", third.http)).json(&body).send().await.unwrap();
    let started: Value = started.json().await.unwrap();
    let session = format!("{url}/v1/sessions/{}", started["id"].as_str().unwrap());
    let ended = wait_until("the session's end", PATIENCE, async || {
        let session: Value = http.get(&session).send().await.ok()?.json().await.ok()?;
        (session["status"] == "completed").then_some(session)
    });
    assert_eq!(ended.await.unwrap()["output"], json!({"n": 3}));
    worker.kill().unwrap();
    worker.wait().unwrap();
    // An address is known behind TLS, and has one bucket over HTTP, as above, and gRPC.
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(&ours.ca).unwrap()));
    let channel = Channel::from_shared(format!("https://{}", third.grpc)).unwrap().tls_config(tls).unwrap();
    let mut grpc = SessionServiceClient::new(channel.connect().await.unwrap());
    let mut refused = None;
    // More than the bucket holds when it is full.
    for _ in 0..3 {
        refused = refused.or(grpc.list_workflows(api::ListWorkflowsRequest::default()).await.err());
    }
    assert_eq!(refused.unwrap().metadata().get("orchestra-code").unwrap(), "rate_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_when_they_change() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("certs");
    let before = certificates(&place);
    let old = client(&before.ca);
    let node = spec(temp.path(), "node-0", vec![], &before);
    let _node = NodeProcess::spawn(&node).unwrap();
    until_ready(&old, &node).await;
    let after = certificates(&place);
    // A client that trusts the new authority only.
    until_ready(&client(&after.ca), &node).await;
    // What can not be loaded changes nothing.
    std::fs::write(&after.cert, "nonsense").unwrap();
    let log = temp.path().join("node-0/log");
    let warned = wait_until("the node to say that it does not use it", PATIENCE, async || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("changed certificates are not used yet").then_some(())
    });
    warned.await.unwrap();
    until_ready(&client(&after.ca), &node).await;
}

/// The authority of a running cluster is changed in the two steps that docs/operations.md has: first it is trusted
/// beside the old one, then it signs. Nodes are reached by a name, which their certificates are for.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_changes_its_authority_while_it_runs() {
    let temp = tempfile::tempdir().unwrap();
    let shared = certificates(&temp.path().join("shared"));
    let next = certificates(&temp.path().join("next"));
    let named = |name: &str, join: Vec<String>| {
        let mut spec = spec(temp.path(), name, join, &shared);
        spec.config += "[node]\nadvertise = \"localhost\"\nshards = 3\n";
        spec
    };
    let first = named("node-0", vec![]);
    let founder = NodeProcess::spawn(&first).unwrap();
    let old = client(&shared.ca);
    until_ready(&old, &first).await;
    let join = vec![format!("localhost:{}", first.peer.port())];
    let others = ["node-1", "node-2"].map(|name| named(name, join.clone()));
    let mut running = others.each_ref().map(|spec| Some(NodeProcess::spawn(spec).unwrap()));
    let url = |spec: &NodeSpec| format!("https://localhost:{}", spec.http.port());
    let whole = until_whole(&old, &url(&first)).await;
    for node in whole["nodes"].as_array().unwrap() {
        assert!(node["peer"].as_str().unwrap().starts_with("localhost:"), "{node}");
    }

    let loaded = async |times: usize| {
        let loaded = wait_until("all nodes to load their certificates again", PATIENCE, async || {
            let has = |name: &&str| {
                let log = std::fs::read_to_string(temp.path().join(name).join("log")).unwrap_or_default();
                log.matches("certificates are loaded again").count() >= times
            };
            ["node-0", "node-1", "node-2"].iter().all(has).then_some(())
        });
        loaded.await.unwrap();
    };
    let read = |path: &Path| std::fs::read(path).unwrap();
    std::fs::write(&shared.ca, [read(&shared.ca), read(&next.ca)].concat()).unwrap();
    loaded(1).await;
    // Files change one after the other, and a node may look in between: it goes on with what it has.
    std::fs::copy(&next.key, &shared.key).unwrap();
    std::fs::copy(&next.cert, &shared.cert).unwrap();
    loaded(2).await;

    // Each of the others is started again, and with that all of its connections are made anew.
    let new = client(&next.ca);
    for (spec, process) in others.iter().zip(&mut running) {
        process.take().unwrap().kill().unwrap();
        *process = Some(NodeProcess::spawn(spec).unwrap());
        until_ready(&new, spec).await;
    }
    founder.kill().unwrap();
    // Two of three: a commit is one of both, over connections of the new authority only.
    let workflow = json!({"name": "w", "steps": [{"id": "a", "value": "1"}]});
    let done = wait_until("a session on those that are left", PATIENCE, async || {
        let started = new.post(format!("{}/v1/sessions?wait_ms=20000", url(&others[0])));
        let answer = started.json(&json!({"workflow": workflow})).send().await.ok()?;
        let session: Value = answer.json().await.ok()?;
        (session["status"] == "completed").then_some(())
    });
    done.await.unwrap();
}

#[test]
fn certs_dev_makes_what_a_node_takes_and_bad_files_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("certs");
    let (done, said) = orchestra(&["certs", "dev", "--out", out.to_str().unwrap(), "--host", "node.example"]);
    assert!(done && said.contains("node.example") && said.contains("[tls]"), "{said}");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(out.join("node.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the key is its owner's alone");
    let files = tls::Files { cert: out.join("node.pem"), key: out.join("node.key"), ca: out.join("ca.pem") };
    tls::Tls::load(files.clone()).unwrap();
    let load = |files| tls::Tls::load(files).unwrap_err().to_string();
    let missing = load(tls::Files { cert: out.join("absent.pem"), ..files.clone() });
    assert!(missing.contains("absent.pem"), "{missing}");
    let swapped = load(tls::Files { key: out.join("node.pem"), ..files.clone() });
    assert!(swapped.contains("not a private key"), "{swapped}");
    let empty = out.join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let none = load(tls::Files { ca: empty, ..files });
    assert!(none.contains("no certificate"), "{none}");
}
