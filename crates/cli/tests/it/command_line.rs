//! The command line against a node.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::fixture::Fixture;

fn run(node: &Fixture, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orchestra"))
        .args(args)
        .env("ORCHESTRA_URL", node.node.url())
        .current_dir(node.directory())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn project(node: &Fixture, name: &str, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = node.directory().join(name).join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

fn written(node: &Fixture, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![node.directory().join(name)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(node.directory().join(name)).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_works_against_a_node() {
    let node = Fixture::start("").await;
    project(&node, "one", &[("src/app.py", "print('one')"), ("README.md", "# one")]);
    project(&node, "two", &[("lib/parser.rs", "fn parse() {}"), ("Cargo.toml", "[package]")]);
    let start = |task: &str, project: &str, out: &str| {
        run(&node, &["start", task, "--workdir", project, "--out", out, "--wait", "--output", "json"])
    };
    let mut plans: Vec<Value> = Vec::new();
    for (task, project, out) in
        [("Add a health endpoint", "one", "out-one"), ("Speed up the parser", "two", "out-two")]
    {
        let output = start(task, project, out);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let session: Value = serde_json::from_slice(&output.stdout).unwrap();
        plans.push(session["output"].clone());
        assert!(!written(&node, out).is_empty());
    }
    // Another task on another project gives another plan and other files.
    assert_ne!(plans[0], plans[1]);
    assert_ne!(written(&node, "out-one"), written(&node, "out-two"));

    // Found by their label and their workflow, and not by others'.
    let labelled = run(&node, &["start", "again", "--label", "ticket=A & B", "--label", "team=core"]);
    let labelled = text(&labelled).trim().to_owned();
    let find = |args: &[&str]| {
        let output = run(&node, &[&["sessions", "list", "--output", "json"], args].concat());
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids = list["sessions"].as_array().unwrap().iter().map(|of| of["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(find(&["--label", "ticket=A & B"]), [labelled.as_str()]);
    assert_eq!(find(&["--label", "team=core", "--workflow", "code"]), [labelled.as_str()]);
    assert_eq!(find(&["--label", "team=other"]), [""; 0]);
    assert_eq!(find(&["--workflow", "another"]), [""; 0]);
    assert_eq!(find(&["--workflow", "code"]).len(), 3);
    for (labels, why) in [(["a=1", "a=2"], "given twice"), (["a=1", "=2"], "expected key=value")] {
        let refused = run(&node, &["start", "no", "--label", labels[0], "--label", labels[1]]);
        assert!(!refused.status.success() && text(&refused).contains(why), "{}", text(&refused));
    }

    let list = run(&node, &["sessions", "list", "--output", "json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let id = list["sessions"][0]["id"].as_str().unwrap().to_owned();
    for args in [
        vec!["sessions", "get", &id],
        vec!["sessions", "describe", &id],
        vec!["sessions", "events", &id],
        vec!["sessions", "list"],
        vec!["workflows", "list"],
        vec!["workflows", "show", "code"],
        vec!["cluster", "status"],
        vec!["sla", "report"],
        vec!["doctor"],
        vec!["audit", "verify"],
        vec!["completions", "bash"],
        vec!["config", "print"],
    ] {
        let output = run(&node, &args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output));
        assert!(!output.stdout.is_empty(), "{args:?}");
    }
    let exported = run(&node, &["export", &id]);
    let exported: Value = serde_json::from_slice(&exported.stdout).unwrap();
    assert_eq!(exported["events"][0]["type"], "session_started");
    let events = exported["events"].as_array().unwrap();
    let rows = run(&node, &["export", &id, "--format", "csv"]);
    let mut rows = csv::Reader::from_reader(rows.stdout.as_slice());
    assert_eq!(rows.headers().unwrap().iter().nth(5), Some("type"));
    let rows: Vec<csv::StringRecord> = rows.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.len(), events.len());
    for (row, event) in rows.iter().zip(events) {
        assert_eq!((&row[0], &row[5]), (id.as_str(), event["type"].as_str().unwrap()));
        assert_eq!(serde_json::from_str::<Value>(&row[7]).unwrap(), event["data"]);
    }
    let page = text(&run(&node, &["export", &id, "--format", "markdown"]));
    assert!(page.starts_with(&format!("## {id}\n")) && page.contains("| session_started"), "{page}");
}

#[test]
fn what_is_deployed_is_a_configuration_and_every_shell_has_completions() {
    let orchestra = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_orchestra")).args(args).output().unwrap();
        (output.status.code(), text(&output))
    };
    let deployed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/node.toml");
    assert_eq!(orchestra(&["config", "check", deployed]), (Some(0), "the configuration is valid\n".into()));
    for shell in ["bash", "zsh", "fish"] {
        let (code, script) = orchestra(&["completions", shell]);
        assert_eq!(code, Some(0), "{shell}");
        for command in ["sessions", "transfer-leader", "run-worker"] {
            assert!(script.contains(command), "{shell} does not complete {command}");
        }
    }
    let (code, said) = orchestra(&["completions", "sh"]);
    assert!(code == Some(2) && said.contains("fish"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_never_leave_their_directory() {
    let node = Fixture::start("").await;
    let files = json!([{"path": "../escaped.txt", "content": "x"}, {"path": "/tmp/escaped-absolute.txt", "content": "x"},
        {"path": "fine.txt", "content": "y"}]);
    let workflow = format!("name: evil\nsteps:\n  - id: out\n    value: '{files}'\n");
    std::fs::write(node.directory().join("evil.yaml"), workflow).unwrap();
    let output = run(&node, &["start", "--file", "evil.yaml", "--out", "out", "--wait"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("must be relative"), "{}", text(&output));
    assert_eq!(written(&node, "out"), ["fine.txt"]);
    assert!(!node.directory().join("escaped.txt").exists());
    assert!(!std::path::Path::new("/tmp/escaped-absolute.txt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_with_an_exit_code() {
    let node = Fixture::start("").await;
    std::fs::write(node.directory().join("bad.yaml"), "name: w\nsteps:\n  - {id: a, valeu: '1'}\n").unwrap();
    let output = run(&node, &["validate", "bad.yaml"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output).contains("bad.yaml:3:"), "{}", text(&output));
    let nobody = ["sessions", "list", "--url", "http://127.0.0.1:9"];
    let output = run(&node, &nobody);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("orchestra dev"), "{}", text(&output));
    assert_eq!(run(&node, &["start", "x", "--out", "y"]).status.code(), Some(2));

    // A port in use is told before any data is touched.
    let port = node.node.url().rsplit(':').next().unwrap().to_owned();
    let (http, grpc) = (format!("127.0.0.1:{port}"), testkit::free_address().unwrap().to_string());
    let output = run(&node, &["dev", "--data-dir", "other", "--http", &http, "--grpc", &grpc]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("another process listens there"), "{}", text(&output));
    assert!(!node.directory().join("other").exists());
    // A directory in use as well.
    let http = testkit::free_address().unwrap().to_string();
    let output = run(&node, &["node", "--data-dir", "data", "--http", &http, "--grpc", &grpc]);
    assert!(text(&output).contains("in use by another process"), "{}", text(&output));
}
