//! Workers outside the cluster: tasks come to them, and neither their death nor a leader's costs or doubles an outcome.

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::api::{
    FromWorker, Heartbeat, Hello, Outcome, Task, ToWorker, from_worker, outcome, to_worker,
    worker_service_client::WorkerServiceClient,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::{Cluster, binary, wait_until};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::fixture::{Fixture, PATIENCE};

const IMPATIENT: &str = "worker_lease_ms = 1000\nworker_reconnect_ms = 300\n";

fn one_task() -> Value {
    json!({"name": "one", "steps": [{"id": "work", "task": {"queue": "q", "input": "input"}}]})
}

/// A worker whose every word the test chooses.
struct Raw {
    say: mpsc::Sender<FromWorker>,
    orders: Streaming<ToWorker>,
}

impl Raw {
    async fn connect(url: &str, instance: &str, in_hand: &[&str]) -> Self {
        let mut client = WorkerServiceClient::connect(url.to_owned()).await.unwrap();
        let (say, said) = mpsc::channel(16);
        let hello = Hello {
            name: format!("raw-{instance}"),
            instance: instance.into(),
            queues: vec!["q".into()],
            capacity: 1,
            in_hand: in_hand.iter().map(|id| (*id).to_owned()).collect(),
        };
        let mut raw_hello = Some(from_worker::Message::Hello(hello));
        say.send(FromWorker { message: raw_hello.take() }).await.unwrap();
        let mut orders = client.work(ReceiverStream::new(said)).await.unwrap().into_inner();
        let welcome = orders.message().await.unwrap().unwrap().message.unwrap();
        assert!(matches!(welcome, to_worker::Message::Welcome(_)), "{welcome:?}");
        Self { say, orders }
    }

    async fn next(&mut self) -> to_worker::Message {
        let next = tokio::time::timeout(PATIENCE, self.orders.message()).await;
        next.expect("an order in time").unwrap().unwrap().message.unwrap()
    }

    async fn task(&mut self) -> Task {
        match self.next().await {
            to_worker::Message::Task(task) => task,
            other => panic!("expected a task, got {other:?}"),
        }
    }

    async fn finish(&self, task: &str, output: &str) {
        let result = Some(outcome::Result::OutputJson(output.into()));
        let outcome = Outcome { task: task.into(), result };
        let message = Some(from_worker::Message::Outcome(outcome));
        self.say.send(FromWorker { message }).await.unwrap();
    }

    /// Says that it lives until the test ends.
    fn live(&self) {
        let say = self.say.clone();
        tokio::spawn(async move {
            let heartbeat = || FromWorker { message: Some(from_worker::Message::Heartbeat(Heartbeat {})) };
            while say.send(heartbeat()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
}

async fn events(node: &Fixture, id: &str) -> Vec<Value> {
    let (_, page) = node.get(&format!("/v1/sessions/{id}/events")).await;
    page["events"].as_array().unwrap().clone()
}

fn of_type<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

/// A worker process of the binary. It is killed when this is dropped.
struct WorkerProcess(Child);

impl WorkerProcess {
    fn start(endpoints: &str, queue: &str, command: &[&str]) -> Self {
        let child = Command::new(binary().unwrap())
            .args(["run-worker", "--endpoints", endpoints, "--queue", queue, "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl WorkerProcess {
    /// One whose command notes that it began, waits until it may go on, and answers with its name.
    async fn patient(node: &Fixture, name: &str) -> Self {
        let begun = node.directory().join(format!("{name}-begun"));
        let script = format!(
            "cat > /dev/null; touch {}; while [ ! -e {} ]; do sleep 0.05; done; echo '\"{name}\"'",
            begun.display(),
            Self::may_end(node, name).display()
        );
        let endpoint = format!("http://{}", node.grpc);
        let process = Self::start(&endpoint, "q", &["sh", "-c", &script]);
        let what = format!("{name} to begin");
        wait_until(&what, PATIENCE, async || begun.exists().then_some(())).await.unwrap();
        process
    }

    fn may_end(node: &Fixture, name: &str) -> std::path::PathBuf {
        node.directory().join(format!("{name}-may-end"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_worker_does_tasks_with_a_command() {
    let node = Fixture::start("").await;
    let workflow = json!({"name": "w", "steps": [
        {"id": "ok", "task": {"queue": "shell", "input": "{'n': input.n + 1}"}},
        {"id": "bad", "when": "input.n > 5", "task": {"queue": "shell", "input": "'fail'"}},
        {"id": "after", "value": "steps.ok.output.n"},
    ]});
    let id = node.start_inline(&workflow, &json!({"n": 1})).await;
    // Nobody serves the queue yet, and whoever asks is told so.
    let waits = wait_until("the task to wait", PATIENCE, async || {
        let (_, described) = node.get(&format!("/v1/sessions/{id}/describe")).await;
        let waits_for = described["coming"][0]["waits_for"].as_str()?.to_owned();
        waits_for.contains("no worker serves its queue `shell`").then_some(())
    });
    waits.await.unwrap();
    let endpoint = format!("http://{}", node.grpc);
    let script = r#"read -r input || true; case "$input" in *fail*) echo no way >&2; exit 65;; *) echo "$input";; esac"#;
    let _worker = WorkerProcess::start(&endpoint, "shell", &["sh", "-c", script]);
    let done = node.until(&id, &["completed", "failed"]).await;
    assert_eq!((&done["status"], &done["output"]), (&json!("completed"), &json!(2)), "{done}");

    let failing = node.start_inline(&workflow, &json!({"n": 6})).await;
    let failed = node.until(&failing, &["completed", "failed"]).await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["error"]["code"], "command_failed");
    assert!(failed["error"]["message"].as_str().unwrap().contains("no way"), "{failed}");
    let attempts = of_type(&events(&node, &failing).await, "step_failed").len();
    assert_eq!(attempts, 1, "exit code 65 is not tried again");

    let (_, queues) = node.get("/v1/queues").await;
    assert_eq!(
        queues["queues"][0],
        json!({"queue": "shell", "waiting": 0, "running": 0, "workers": 1, "slots": 1})
    );
    let (_, workers) = node.get("/v1/workers").await;
    assert_eq!(workers["workers"][0]["queues"], json!(["shell"]));
}

/// That of the system, to which the packages of the system belong.
const PYTHON: &str = "/usr/bin/python3";

/// The example of a worker in Python on stubs made of `/proto`: a directory with them. `None` where what makes them is
/// missing, which is said; in CI it must be there.
fn python_stubs() -> Option<tempfile::TempDir> {
    let there = |program: &str, args: &[&str]| {
        let run = Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    if !there(PYTHON, &["-c", "import grpc, google.protobuf"]) || !there("protoc", &["--version"]) {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must have gRPC for Python: `deploy/dev/setup.sh testing`"
        );
        let text = "NOT RUN: gRPC for Python is missing; `deploy/dev/setup.sh testing` installs it\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        return None;
    }
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().display();
    let made = Command::new("protoc")
        .args(["--plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin", "orchestra/v1/workers.proto"])
        .args([format!("--python_out={out}"), format!("--grpc_out={out}")])
        .arg(concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../../proto"))
        .status();
    assert!(made.unwrap().success());
    Some(temp)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_in_python_does_tasks_and_comes_back() {
    let Some(stubs) = python_stubs() else { return };
    let node = Fixture::start("").await;
    let start = || {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/python/worker.py");
        let child = Command::new(PYTHON)
            .args([example, "--queue", "q", &node.grpc.to_string()])
            .env("PYTHONPATH", stubs.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        WorkerProcess(child.unwrap())
    };
    let mut worker = start();
    for number in 0..4 {
        let id = node.start_inline(&one_task(), &json!({"n": number})).await;
        let session = node.until(&id, &["completed", "failed"]).await;
        assert_eq!(session["output"], json!({"echo": {"n": number}, "attempt": 1}), "{session}");
        if number == 1 {
            // Killed between two tasks, and another one in its place.
            drop(worker);
            worker = start();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_task_runs_again_and_its_late_answer_is_refused() {
    let node = Fixture::with_node(IMPATIENT).await;
    let url = format!("http://{}", node.grpc);
    let id = node.start_inline(&one_task(), &json!(7)).await;
    let mut first = Raw::connect(&url, "instance-1", &[]).await;
    let task = first.task().await;
    assert_eq!((task.input_json.as_str(), task.attempt, task.step.as_str()), ("7", 1, "work"));
    // Cut off in the middle, and not back in time.
    drop(first);
    let mut second = Raw::connect(&url, "instance-2", &[]).await;
    second.live();
    let again = second.task().await;
    assert_ne!(again.id, task.id);
    assert_eq!(again.idempotency_key, task.idempotency_key, "the same attempt");
    let mut late = Raw::connect(&url, "instance-1", &[&task.id]).await;
    late.finish(&task.id, "\"late\"").await;
    match late.next().await {
        to_worker::Message::Recorded(of) | to_worker::Message::Revoked(of) => assert_eq!(of, task.id),
        other => panic!("expected that the task is not its own any more, got {other:?}"),
    }
    second.finish(&again.id, "\"in time\"").await;
    let session = node.until(&id, &["completed", "failed"]).await;
    assert_eq!(session["output"], "in time");
    let events = events(&node, &id).await;
    assert_eq!(of_type(&events, "step_redispatched").len(), 1);
    let completed = of_type(&events, "step_completed");
    assert_eq!(completed.len(), 1);
    assert_eq!((&completed[0]["data"]["attempt"], &completed[0]["data"]["dispatch"]), (&json!(1), &json!(2)));
}

/// The same with whole processes, as they are run.
#[tokio::test(flavor = "multi_thread")]
async fn worker_processes_are_killed_and_paused_in_the_middle_of_a_task() {
    let node = Fixture::with_node(IMPATIENT).await;
    for (name, signal) in [("killed", Signal::KILL), ("paused", Signal::STOP)] {
        let id = node.start_inline(&one_task(), &json!(7)).await;
        let first = WorkerProcess::patient(&node, name).await;
        first.signal(signal);
        let other = format!("after-{name}");
        let second = WorkerProcess::patient(&node, &other).await;
        std::fs::write(WorkerProcess::may_end(&node, &other), "").unwrap();
        let session = node.until(&id, &["completed", "failed"]).await;
        assert_eq!(session["output"], *other, "{session}");
        drop(second);
        // The command of the first ends as well, and with it what a killed worker leaves behind.
        std::fs::write(WorkerProcess::may_end(&node, name), "").unwrap();
        if signal == Signal::STOP {
            // It has an answer, and is told that nobody wants it; the next task is its own.
            first.signal(Signal::CONT);
            let next = node.start_inline(&one_task(), &json!(8)).await;
            assert_eq!(node.until(&next, &["completed", "failed"]).await["output"], name);
        }
        let events = events(&node, &id).await;
        assert_eq!(of_type(&events, "step_redispatched").len(), 1, "{events:?}");
        let completed = of_type(&events, "step_completed");
        assert_eq!(completed.len(), 1, "{events:?}");
        assert_eq!(completed[0]["data"]["dispatch"], 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_costs_worker_after_worker_fails_its_attempt() {
    let node = Fixture::with_node(IMPATIENT).await;
    let url = format!("http://{}", node.grpc);
    let workflow = json!({"name": "poison", "steps": [{"id": "work", "retry": {"max_attempts": 1},
        "task": {"queue": "q", "input": "input"}}]});
    let id = node.start_inline(&workflow, &json!(7)).await;
    for instance in ["instance-1", "instance-2", "instance-3"] {
        let mut worker = Raw::connect(&url, instance, &[]).await;
        worker.task().await;
    }
    let session = node.until(&id, &["completed", "failed"]).await;
    assert_eq!((&session["status"], &session["error"]["code"]), (&json!("failed"), &json!("worker_lost")));
    assert_eq!(of_type(&events(&node, &id).await, "step_redispatched").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_workers_task_runs_again_elsewhere() {
    let node = Fixture::with_node(IMPATIENT).await;
    let url = format!("http://{}", node.grpc);
    let id = node.start_inline(&one_task(), &json!(7)).await;
    // It keeps its connection, and says nothing.
    let mut hung = Raw::connect(&url, "instance-1", &[]).await;
    let task = hung.task().await;
    let mut other = Raw::connect(&url, "instance-2", &[]).await;
    other.live();
    let again = other.task().await;
    hung.finish(&task.id, "\"late\"").await;
    other.finish(&again.id, "1").await;
    let session = node.until(&id, &["completed", "failed"]).await;
    assert_eq!(session["output"], 1);
    assert_eq!(of_type(&events(&node, &id).await, "step_completed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_back_in_time_keeps_its_task() {
    let node = Fixture::start("").await;
    let url = format!("http://{}", node.grpc);
    let id = node.start_inline(&one_task(), &json!(7)).await;
    let mut worker = Raw::connect(&url, "instance-1", &[]).await;
    let task = worker.task().await;
    drop(worker);
    let mut worker = Raw::connect(&url, "instance-1", &[&task.id]).await;
    worker.live();
    worker.finish(&task.id, "\"kept\"").await;
    assert_eq!(worker.next().await, to_worker::Message::Recorded(task.id.clone()));
    let session = node.until(&id, &["completed", "failed"]).await;
    assert_eq!(session["output"], "kept");
    assert!(of_type(&events(&node, &id).await, "step_redispatched").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_sessions_task_is_taken_back_and_a_timeout_ends_an_attempt() {
    let node = Fixture::start("").await;
    let url = format!("http://{}", node.grpc);
    let id = node.start_inline(&one_task(), &json!(7)).await;
    let mut worker = Raw::connect(&url, "instance-1", &[]).await;
    worker.live();
    let task = worker.task().await;
    node.post(&format!("/v1/sessions/{id}/cancel"), &json!({})).await;
    assert_eq!(worker.next().await, to_worker::Message::Revoked(task.id));
    let slow = json!({"name": "slow", "steps": [{"id": "work", "timeout": "200ms",
        "retry": {"max_attempts": 2, "delay": "1ms"}, "task": {"queue": "q"}}]});
    let id = node.start_inline(&slow, &json!(null)).await;
    let first = worker.task().await;
    assert_eq!((first.attempt, first.timeout_ms), (1, 200));
    assert_eq!(worker.next().await, to_worker::Message::Revoked(first.id));
    let second = worker.task().await;
    assert_eq!(second.attempt, 2);
    worker.finish(&second.id, "1").await;
    let session = node.until(&id, &["completed", "failed"]).await;
    assert_eq!(session["status"], "completed");
    let events = events(&node, &id).await;
    assert_eq!(of_type(&events, "step_failed")[0]["data"]["error"]["code"], "timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_worker_is_refused_with_the_reason() {
    let node = Fixture::start("").await;
    let mut client = WorkerServiceClient::connect(format!("http://{}", node.grpc)).await.unwrap();
    let good = || Hello {
        name: "w".into(),
        instance: "instance-1".into(),
        queues: vec!["q".into()],
        capacity: 1,
        in_hand: vec![],
    };
    let bad = [
        (Hello { queues: vec![], ..good() }, "1 to 64 queues"),
        (Hello { capacity: 0, ..good() }, "capacity must be 1 to 10000"),
        (Hello { instance: "i".into(), ..good() }, "8 to 64"),
        (Hello { in_hand: vec!["x".into()], ..good() }, "not the id of a task"),
        (Hello { in_hand: vec!["ses_0000z_00000000000000000000/0.0/1".into()], ..good() }, "of this cluster"),
    ];
    for (hello, reason) in bad {
        let hello = FromWorker { message: Some(from_worker::Message::Hello(hello)) };
        let refused = client.work(tokio_stream::iter([hello])).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
}

/// Workers connected to every node, whose tasks end when the test says so.
struct Gated {
    begun: Arc<AtomicU64>,
    gate: Arc<Semaphore>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Gated {
    fn start(cluster: &Cluster, capacity: u32) -> Self {
        let (begun, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let options = worker::Options {
            endpoints: cluster.members().into_iter().map(|number| cluster.grpc_url(number)).collect(),
            name: "gated".into(),
            queues: vec!["q".into()],
            capacity,
            ca: None,
            token: None,
        };
        let (count, open) = (Arc::clone(&begun), Arc::clone(&gate));
        let handler = move |task: worker::Task| {
            let (count, open) = (Arc::clone(&count), Arc::clone(&open));
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                let _open = open.acquire().await;
                Ok(task.input)
            }
        };
        tokio::spawn(worker::run(options, handler, async {
            let _ = stopped.await;
        }));
        Self { begun, gate, _stop: stop }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_in_hand_is_adopted_when_leaders_change() {
    const SESSIONS: u64 = 12;
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    let http = reqwest::Client::new();
    let start = |url: String, number: u64| {
        let body = json!({"workflow": one_task(), "input": number});
        http.post(format!("{url}/v1/sessions")).json(&body).send()
    };
    let mut ids = Vec::new();
    for number in 0..SESSIONS {
        let answer = start(cluster.url(0), number).await.unwrap();
        let started: Value = answer.json().await.unwrap();
        ids.push(started["id"].as_str().unwrap().to_owned());
    }
    let workers = Gated::start(&cluster, 64);
    let all = || {
        wait_until("all tasks to be in hand", PATIENCE, async || {
            (workers.begun.load(Ordering::SeqCst) >= SESSIONS).then_some(())
        })
    };
    all().await.unwrap();
    // Every leader goes, one after the other: by hand-over, and by kill -9.
    for shard in 0..4 {
        cluster.transfer(shard).await.unwrap();
    }
    let victim = cluster.leader(0).await.unwrap();
    cluster.kill(victim).unwrap();
    cluster.restart(victim).await.unwrap();
    cluster.until_whole().await.unwrap();
    workers.gate.add_permits(10_000);
    for (number, id) in (0u64..).zip(&ids) {
        let url = cluster.url(usize::from(victim == 0));
        let ended = wait_until("the session's end", PATIENCE, async || {
            let session: Value =
                http.get(format!("{url}/v1/sessions/{id}")).send().await.ok()?.json().await.ok()?;
            (session["status"] == "completed").then_some(session)
        });
        let session = ended.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
        assert_eq!(session["output"], number);
        let events: Value =
            http.get(format!("{url}/v1/sessions/{id}/events")).send().await.unwrap().json().await.unwrap();
        let events = events["events"].as_array().unwrap();
        assert!(of_type(events, "step_redispatched").is_empty(), "{id}: {events:?}");
        assert_eq!(of_type(events, "step_completed").len(), 1);
    }
    assert_eq!(workers.begun.load(Ordering::SeqCst), SESSIONS, "no task began twice");
}
