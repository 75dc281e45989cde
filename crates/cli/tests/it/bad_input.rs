//! Bad input: each has a clear error and loses nothing.

use providers::simulated::{Options, Rule};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fixture::Fixture;

async fn refused(node: &Fixture, body: &str, status: StatusCode, code: &str, detail: &str) {
    let answer = node.request(Method::POST, "/v1/sessions").body(body.to_owned()).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let came = answer.status();
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["status"], json!(came.as_u16()), "{problem}");
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    let shown: String = body.chars().take(200).collect();
    assert_eq!((came, &problem["code"]), (status, &json!(code)), "{shown}\n→ {problem}");
    let said = problem["detail"].as_str().unwrap();
    assert!(said.contains(detail), "{shown}\n→ {said}\nexpected {detail}");
    assert_eq!(problem["type"], json!(format!("/errors/{code}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_can_not_be_is_told_why() {
    let node = Fixture::start("").await;
    let bad = StatusCode::BAD_REQUEST;
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    let big = "x".repeat(300 * 1024);
    let many: Vec<Value> = (0..10_001).map(|i| json!({"id": format!("s{i}"), "value": "1"})).collect();
    let cases = [
        ("{", bad, "invalid_request", "EOF"),
        ("{}", bad, "invalid_request", "missing field `workflow`"),
        (r#"{"workflow": "code", "inptu": {}}"#, bad, "invalid_request", "unknown field `inptu`"),
        (r#"{"workflow": 7}"#, bad, "invalid_request", "a name or a workflow"),
        (r#"{"workflow": "nope"}"#, StatusCode::NOT_FOUND, "unknown_workflow", "nope"),
        (r#"{"workflow": "code", "durability": "geo"}"#, bad, "not_supported", "geo"),
        (r#"{"workflow": "code", "durability": "none"}"#, bad, "invalid_request", "expected local or geo"),
        (r#"{"workflow": "code", "id": "ses_x"}"#, bad, "invalid_request", "a session id must be"),
        (
            r#"{"workflow": "code", "budget": {"coins": 1}}"#,
            bad,
            "invalid_request",
            "unknown field \"coins\"",
        ),
        (
            r#"{"workflow": {"name": "w", "steps": [{"id": "a", "after": ["b"], "value": "1"}, {"id": "b", "value": "1"}]}}"#,
            unprocessable,
            "invalid_workflow",
            "wait for one another",
        ),
        (
            r#"{"workflow": {"name": "w", "steps": [{"id": "a", "value": "1", "x": 1}]}}"#,
            unprocessable,
            "invalid_workflow",
            "x",
        ),
    ];
    for (body, status, code, detail) in cases {
        refused(&node, body, status, code, detail).await;
    }
    let body = json!({"workflow": "code", "input": big}).to_string();
    refused(&node, &body, StatusCode::PAYLOAD_TOO_LARGE, "too_large", "262144").await;
    let body = json!({"workflow": "code", "input": "x".repeat(2 << 20)}).to_string();
    refused(&node, &body, StatusCode::PAYLOAD_TOO_LARGE, "too_large", "bytes").await;
    let body = json!({"workflow": {"name": "w", "steps": many}}).to_string();
    refused(&node, &body, unprocessable, "invalid_workflow", "more than 10000 steps").await;

    let request = node.request(Method::POST, "/v1/sessions").body(b"{\"workflow\": \"\xff\"}".to_vec());
    let (status, problem) = node.send(request).await;
    assert_eq!((status, &problem["code"]), (bad, &json!("invalid_request")));
    assert!(problem["detail"].as_str().unwrap().contains("not UTF-8 at byte 14"), "{problem}");

    let (status, problem) = node.get("/v1/sessions/ses_00000_00000000000000000000").await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    assert_eq!(node.get("/v1/sessions?limit=x").await.0, bad);
    assert_eq!(node.get("/v1/sessions?status=done").await.0, bad);
    assert_eq!(node.get("/v1/sessions?label=without").await.0, bad);
    assert_eq!(node.get("/v2/nothing").await.0, StatusCode::NOT_FOUND);
    let (_, page) = node.get("/errors/too_large").await;
    assert!(page.as_str().unwrap().contains("larger than its limit"), "{page}");
    // Nothing was started by any of them.
    assert_eq!(node.get("/v1/sessions").await.1["sessions"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_answer_is_asked_for_again_with_the_reason() {
    // The second question carries the reason, and with it the words that the second rule looks for.
    let rules = vec![
        Rule { contains: "could not be used".into(), reply: "{\"files\": []}".into() },
        Rule { contains: "list the files".into(), reply: "Sure! Here is your list: [".into() },
    ];
    let node = Fixture::with_vendor(Options { latency_max_ms: 1, ..Options::default() }, rules, "").await;
    let schema = json!({"type": "object", "required": ["files"]});
    let workflow = json!({"name": "w", "retry": {"max_attempts": 3, "delay": "10ms"}, "steps": [
        {"id": "a", "agent": {"role": "r", "prompt": "list the files", "output": {"schema": schema}}}]});
    let id = node.start_inline(&workflow, &json!(null)).await;
    let session = node.until(&id, &["completed", "failed"]).await;
    assert_eq!(
        (&session["status"], &session["output"]),
        (&json!("completed"), &json!({"files": []})),
        "{session}"
    );
    let (_, page) = node.get(&format!("/v1/sessions/{id}/events")).await;
    assert_eq!(page["events"][1]["data"]["error"]["code"], "malformed_output", "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_kept_or_evaluated_fails_its_step_and_nothing_else() {
    let rules = vec![
        Rule { contains: "huge".into(), reply: "x".repeat(200 << 20) },
        Rule { contains: "large".into(), reply: "x".repeat(300 << 10) },
    ];
    let node = Fixture::with_vendor(Options { latency_max_ms: 1, ..Options::default() }, rules, "").await;
    let agent = |prompt: &str| json!({"name": "w", "retry": {"max_attempts": 1}, "steps": [{"id": "a", "agent": {"role": "r", "prompt": prompt}}]});
    let growing = "{% for a in range(99999) %}{{ input.text }}{% endfor %}";
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    for (workflow, code) in [
        (agent("a huge answer"), "answer_too_large"),
        (agent("a large answer"), "output_too_large"),
        (agent(endless), "evaluation_failed"),
        (agent(growing), "evaluation_failed"),
        (agent("{{ input.nothing.here }}"), "evaluation_failed"),
        (
            json!({"name": "w", "steps": [{"id": "a", "map": {"items": "input", "steps": [{"id": "b", "value": "1"}]}}]}),
            "evaluation_failed",
        ),
    ] {
        let id = node.start_inline(&workflow, &json!({"text": "x".repeat(200_000)})).await;
        let session = node.until(&id, &["failed", "completed"]).await;
        assert_eq!(session["error"]["code"], json!(code), "{session}");
        assert!(!session["error"]["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(node.get("/health/ready").await.0, StatusCode::OK);
}
