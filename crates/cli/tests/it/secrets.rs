//! Secrets go in by every door, and come out of none.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{body::Bytes, http::StatusCode};
use serde_json::json;

use crate::fixture::Fixture;

const CANARIES: [&str; 6] = [
    "canary-key-in-env-4711",
    "canary-key-in-file-4712",
    "canary-in-url-4713",
    "canary-token-4714-0123456789",
    // `user:canary-in-url-4713`, as it is sent.
    "dXNlcjpjYW5hcnktaW4tdXJsLTQ3MTM=",
    "canary-in-other-urls-4715",
];

/// A vendor that refuses, and echoes what it was sent.
async fn echoing_vendor() -> SocketAddr {
    let echo = |headers: axum::http::HeaderMap, uri: axum::http::Uri| async move {
        (
            StatusCode::BAD_REQUEST,
            format!("{{\"error\": {{\"message\": \"you sent {headers:?} to {uri}\"}}}}"),
        )
    };
    serve(axum::Router::new().fallback(echo)).await
}

/// A receiver of traces; where it is, and what it got: paths and bodies.
async fn receiver() -> (SocketAddr, Arc<Mutex<Vec<(String, Bytes)>>>) {
    let got: Arc<Mutex<Vec<(String, Bytes)>>> = Arc::default();
    let heard = Arc::clone(&got);
    let take = move |uri: axum::http::Uri, body: Bytes| async move {
        heard.lock().unwrap().push((uri.to_string(), body));
    };
    (serve(axum::Router::new().fallback(take)).await, got)
}

async fn serve(routes: axum::Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn grep(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            grep(&path, found);
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_default();
        for canary in CANARIES {
            if contains(&bytes, canary) {
                found.push(format!("{canary} in {}", path.display()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn canary_secrets_stay_secret() {
    let vendor = echoing_vendor().await;
    let secrets = tempfile::tempdir().unwrap();
    let key_file = secrets.path().join("key");
    fs::write(&key_file, format!("{}\n", CANARIES[1])).unwrap();
    // After the sections of the fixture: its role table is extended under another role.
    let mut extra = String::from("[[tokens]]\ntenant = \"t\"\ntoken_env = \"CANARY_TOKEN\"\n");
    for (name, wire, variable) in
        [("byenv", "openai", "CANARY_KEY"), ("byfile", "anthropic", "CANARY_KEY_IN_FILE")]
    {
        extra.push_str(&format!(
            "[providers.{name}]\nwire = \"{wire}\"\nbase_url = \"http://user:{}@{vendor}/v1/\"\napi_key_env = \"{variable}\"\n",
            CANARIES[2]
        ));
    }
    let (collector, traces) = receiver().await;
    // Nobody listens at the webhook's.
    extra.push_str(&format!(
        "[traces]\notlp = \"http://{collector}/x?key={key}\"\n[alerts.webhook]\nurl = \"http://127.0.0.1:9/x?key={key}\"\n",
        key = CANARIES[5]
    ));
    let env = [
        ("CANARY_KEY".to_owned(), CANARIES[0].to_owned()),
        ("CANARY_KEY_IN_FILE_FILE".to_owned(), key_file.display().to_string()),
        ("CANARY_TOKEN".to_owned(), CANARIES[3].to_owned()),
        ("ORCHESTRA_LOG".to_owned(), "debug".to_owned()),
    ];
    let mut node = Fixture::with_table("roles", "echo = [\"byenv/m\", \"byfile/m\"]\n", &extra, &env).await;
    node.set_token(Some(CANARIES[3]));
    let workflow = json!({"name": "w", "retry": {"max_attempts": 1}, "steps": [
        {"id": "a", "agent": {"role": "echo", "prompt": "p"}}]});
    let id = node.start_inline(&workflow, &json!(null)).await;
    let session = node.until(&id, &["failed"]).await;
    let message = session["error"]["message"].as_str().unwrap();
    assert!(message.contains("you sent") && message.contains("[redacted]"), "{message}");

    let mut seen = session.to_string();
    for path in
        [format!("/v1/sessions/{id}/events"), format!("/v1/sessions/{id}/describe"), "/v1/cluster".into()]
    {
        seen.push_str(&node.get(&path).await.1.to_string());
    }
    seen.push_str(
        &node.request(reqwest::Method::GET, "/metrics").send().await.unwrap().text().await.unwrap(),
    );
    let config = node.directory().join("config.toml");
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_orchestra"))
        .args(["config".as_ref(), "print".as_ref(), config.as_os_str()])
        .envs(env.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    seen.push_str(&String::from_utf8_lossy(&printed.stdout));
    for canary in CANARIES {
        assert!(!seen.contains(canary), "{canary} is in what the node answers");
    }
    // On disk: the log at level debug and all data. The configuration itself holds the URL, as its owner wrote it.
    let directory = node.directory().to_owned();
    let Fixture { node, temp, .. } = node;
    assert_eq!(node.stop(std::time::Duration::from_secs(60)).await.unwrap(), Some(0));
    fs::remove_file(&config).unwrap();
    let mut found = Vec::new();
    grep(&directory, &mut found);
    // A node that stops tells the rest of its traces. They have the code of the failure, and not its message.
    let traces = traces.lock().unwrap();
    let told = |text: &str| traces.iter().any(|(_, body)| contains(body, text));
    let code = session["error"]["code"].as_str().unwrap();
    assert!(told(&id) && told(code) && told("byenv"), "{id} {code} in {} messages", traces.len());
    for (path, _) in traces.iter() {
        assert_eq!(*path, format!("/x/v1/traces?key={}", CANARIES[5]), "only where they are to go");
    }
    found.extend(CANARIES.iter().filter(|canary| told(canary)).map(|canary| format!("{canary} in a trace")));
    assert!(found.is_empty(), "{found:?}");
    drop(temp);
}
