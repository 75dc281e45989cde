//! The client of workers outside the cluster.
//!
//! [`run`] connects to one of the endpoints, is given the `task` steps that wait in its queues, and calls the handler
//! for each. A connection that breaks, or a node that stops, costs no work: what is in hand goes on, the worker
//! connects to the next endpoint and presents it. The protocol is in `proto/orchestra/v1/workers.proto`.
//!
//! - **Invariant:** an outcome is kept and sent again until the cluster says that it is recorded.
//! - A handler whose task is no longer wanted is dropped. What it does outside should carry the idempotency key.
//! - **Absent:** what a task means.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use proto::api::{
    FromWorker, Heartbeat, Hello, Leaving, Outcome, Progress, TaskFailure, ToWorker, from_worker, outcome,
    to_worker, worker_service_client::WorkerServiceClient,
};
use serde_json::Value;
use tokio::{sync::mpsc, task::AbortHandle, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    metadata::AsciiMetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

/// Between two attempts to connect, doubled each time in vain.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection over which nothing comes back for this long is given up.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// Messages that may wait to be sent.
const OUTGOING_LEN: usize = 1024;

/// Who a worker is, and whom it works for.
#[derive(Debug, Clone)]
pub struct Options {
    /// gRPC URLs of nodes (`http://host:port`, `https://host:port`), at least one. Any will do; with more, the
    /// worker outlives a node.
    pub endpoints: Vec<String>,
    /// What people call it, at most 128 bytes.
    pub name: String,
    /// The queues that it serves, 1 to 64.
    pub queues: Vec<String>,
    /// Tasks at once, 1 to 10,000.
    pub capacity: u32,
    /// The authority of the nodes' certificates, in PEM, for https URLs.
    pub ca: Option<Vec<u8>>,
    /// The bearer token, where the cluster asks for one.
    pub token: Option<String>,
}

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An endpoint is not a URL, or none is given.
    #[error("endpoint {endpoint:?}: expected a URL such as http://127.0.0.1:7101")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The authority's certificate.
    #[error("the authority's certificate: {0}")]
    Certificate(String),
    /// The cluster refuses the worker: its token, its name, its queues.
    #[error("the cluster refuses the worker: {0}")]
    Refused(String),
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Names this giving out.
    pub id: String,
    /// The session.
    pub session: String,
    /// The step, as events show it.
    pub step: String,
    /// The queue that it came from.
    pub queue: String,
    /// The try, 1 for the first.
    pub attempt: u32,
    /// What the workflow gives it.
    pub input: Value,
    /// What effects outside should carry: the same however often this attempt is given out.
    pub idempotency_key: String,
    /// Where the spans of the work belong: W3C Trace Context, in the trace of the session. Empty from a node of
    /// release 0.1.
    pub traceparent: String,
    /// How long the attempt may take; `None` for no limit.
    pub timeout: Option<Duration>,
    progress: mpsc::Sender<Said>,
}

impl Task {
    /// Tells people how far the task is. At most 1 KiB is kept; what can not be told now is left out.
    pub fn progress(&self, text: impl Into<String>) {
        let said = Said::Progress(Progress { task: self.id.clone(), text: text.into() });
        // Nobody waits for it.
        let _ = self.progress.try_send(said);
    }
}

/// Why a task was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs, at most 128 bytes.
    pub code: String,
    /// For people, at most 4 KiB.
    pub message: String,
    /// Whether the same again would fail again. If not, the step's `retry` decides about the next attempt.
    pub permanent: bool,
}

/// What handlers say to the connection.
#[derive(Debug)]
enum Said {
    Outcome(Outcome),
    Progress(Progress),
}

/// Works until `stop` is ready; then takes no more tasks, ends those in hand, and returns.
///
/// # Errors
///
/// The endpoints are not URLs, or the cluster refuses the worker. That no node can be reached is no error: it tries
/// again.
pub async fn run<H, F>(options: Options, handler: H, stop: impl Future<Output = ()>) -> Result<(), Error>
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    let mut endpoints = Vec::new();
    for endpoint in &options.endpoints {
        let parsed = Endpoint::from_shared(endpoint.clone());
        let mut parsed = parsed.map_err(|_| Error::Endpoint { endpoint: endpoint.clone() })?;
        if parsed.uri().scheme_str() == Some("https") {
            let ca = options.ca.as_ref().map(Certificate::from_pem);
            let tls = ca.into_iter().fold(ClientTlsConfig::new(), ClientTlsConfig::ca_certificate);
            parsed = parsed.tls_config(tls).map_err(|error| Error::Certificate(error.to_string()))?;
        }
        endpoints.push(
            parsed
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true),
        );
    }
    if endpoints.is_empty() {
        return Err(Error::Endpoint { endpoint: String::new() });
    }
    let (say, said) = mpsc::channel(options.capacity as usize + OUTGOING_LEN);
    let instance = format!("{:032x}", rand::random::<u128>());
    let worker = Worker {
        options,
        instance,
        handler: Arc::new(handler),
        running: HashMap::new(),
        unrecorded: HashMap::new(),
        say,
        said,
        leaving: false,
    };
    worker.run(&endpoints, stop).await
}

struct Worker<H> {
    options: Options,
    instance: String,
    handler: Arc<H>,
    running: HashMap<String, AbortHandle>,
    unrecorded: HashMap<String, Outcome>,
    say: mpsc::Sender<Said>,
    said: mpsc::Receiver<Said>,
    leaving: bool,
}

/// How a connection ended.
enum End {
    /// All is done.
    Done,
    /// It broke, or never was.
    Broken,
    /// The node asked to go elsewhere.
    Leave,
}

impl<H, F> Worker<H>
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    async fn run(mut self, endpoints: &[Endpoint], stop: impl Future<Output = ()>) -> Result<(), Error> {
        tokio::pin!(stop);
        let (mut pause, mut next) = (PAUSE_MIN, rand::random_range(0..endpoints.len()));
        loop {
            let began = Instant::now();
            let end = self.connection(&endpoints[next], stop.as_mut()).await?;
            next = (next + 1) % endpoints.len();
            match end {
                End::Done => return Ok(()),
                End::Leave => pause = PAUSE_MIN,
                End::Broken => {
                    if began.elapsed() > PAUSE_MAX {
                        pause = PAUSE_MIN;
                    }
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// One connection, from hello to its end.
    async fn connection(
        &mut self,
        endpoint: &Endpoint,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, Error> {
        let (send, outgoing) = mpsc::channel(OUTGOING_LEN);
        let opened = tokio::select! {
            opened = self.open(endpoint, &send, outgoing) => opened?,
            () = stop.as_mut(), if !self.leaving => {
                self.leaving = true;
                return Ok(if self.is_done() { End::Done } else { End::Broken });
            }
        };
        let Some((mut incoming, lease)) = opened else { return Ok(End::Broken) };
        for outcome in self.unrecorded.values() {
            if send.send(message(from_worker::Message::Outcome(outcome.clone()))).await.is_err() {
                return Ok(End::Broken);
            }
        }
        if self.leaving && send.send(message(from_worker::Message::Leaving(Leaving {}))).await.is_err() {
            return Ok(End::Broken);
        }
        let mut heartbeat = tokio::time::interval(lease / 4);
        let mut together = Vec::new();
        loop {
            if self.leaving && self.is_done() {
                return Ok(End::Done);
            }
            let outgoing = tokio::select! {
                order = incoming.message() => match order {
                    Ok(Some(order)) => match self.obey(order) {
                        Some(end) => return Ok(end),
                        None => continue,
                    },
                    Ok(None) | Err(_) => return Ok(End::Broken),
                },
                Some(said) = self.said.recv() => {
                    together.push(said);
                    // Other handlers may be about to end: once a batch they have their turn, and what they say goes out
                    // in the same packet.
                    tokio::task::yield_now().await;
                    while together.len() < OUTGOING_LEN
                        && let Ok(said) = self.said.try_recv()
                    {
                        together.push(said);
                    }
                    // All are kept before the first is sent: then it may break off.
                    let outgoing: Vec<_> = together.drain(..).filter_map(|said| self.say(said)).collect();
                    for said in outgoing {
                        if send.send(message(said)).await.is_err() {
                            return Ok(End::Broken);
                        }
                    }
                    continue;
                },
                _ = heartbeat.tick() => from_worker::Message::Heartbeat(Heartbeat {}),
                () = stop.as_mut(), if !self.leaving => {
                    self.leaving = true;
                    from_worker::Message::Leaving(Leaving {})
                }
            };
            if send.send(message(outgoing)).await.is_err() {
                return Ok(End::Broken);
            }
        }
    }

    /// What the cluster is to be told.
    fn say(&mut self, said: Said) -> Option<from_worker::Message> {
        match said {
            Said::Progress(progress) => Some(from_worker::Message::Progress(progress)),
            Said::Outcome(outcome) => {
                // Of a task that was revoked, nobody wants to know.
                self.running.remove(&outcome.task)?;
                self.unrecorded.insert(outcome.task.clone(), outcome.clone());
                Some(from_worker::Message::Outcome(outcome))
            }
        }
    }

    fn is_done(&self) -> bool {
        self.running.is_empty() && self.unrecorded.is_empty()
    }

    /// Connects and says hello; what comes in, and the lease.
    async fn open(
        &self,
        endpoint: &Endpoint,
        send: &mpsc::Sender<FromWorker>,
        outgoing: mpsc::Receiver<FromWorker>,
    ) -> Result<Option<(Streaming<ToWorker>, Duration)>, Error> {
        let Ok(channel) = endpoint.connect().await else { return Ok(None) };
        let in_hand: HashSet<&String> = self.running.keys().chain(self.unrecorded.keys()).collect();
        let hello = Hello {
            name: self.options.name.clone(),
            instance: self.instance.clone(),
            queues: self.options.queues.clone(),
            capacity: self.options.capacity,
            in_hand: in_hand.into_iter().cloned().collect(),
        };
        // The channel is empty.
        let _ = send.send(message(from_worker::Message::Hello(hello))).await;
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = &self.options.token {
            let value = AsciiMetadataValue::try_from(format!("Bearer {token}"));
            let value = value.map_err(|_| Error::Refused("the token is not a header's value".into()))?;
            request.metadata_mut().insert("authorization", value);
        }
        let answer = match WorkerServiceClient::new(channel).work(request).await {
            Ok(answer) => answer,
            Err(status) => {
                use tonic::Code::{InvalidArgument, PermissionDenied, Unauthenticated, Unimplemented};
                let refused = [InvalidArgument, PermissionDenied, Unauthenticated, Unimplemented];
                if refused.contains(&status.code()) {
                    return Err(Error::Refused(status.message().to_owned()));
                }
                tracing::debug!(endpoint = %endpoint.uri(), reason = status.message(), "not connected");
                return Ok(None);
            }
        };
        let mut incoming = answer.into_inner();
        match incoming.message().await {
            Ok(Some(ToWorker { message: Some(to_worker::Message::Welcome(welcome)) })) => {
                tracing::debug!(endpoint = %endpoint.uri(), "connected");
                let lease = Duration::from_millis(u64::from(welcome.lease_ms).max(100));
                Ok(Some((incoming, lease)))
            }
            _ => Ok(None),
        }
    }

    fn obey(&mut self, order: ToWorker) -> Option<End> {
        match order.message? {
            to_worker::Message::Task(task) => self.start(task),
            to_worker::Message::Recorded(id) => {
                self.unrecorded.remove(&id);
            }
            to_worker::Message::Revoked(id) => {
                self.unrecorded.remove(&id);
                if let Some(task) = self.running.remove(&id) {
                    task.abort();
                }
            }
            to_worker::Message::Leave(_) => return Some(End::Leave),
            to_worker::Message::Welcome(_) => {}
        }
        None
    }

    fn start(&mut self, task: proto::api::Task) {
        let (id, say, handler) = (task.id.clone(), self.say.clone(), Arc::clone(&self.handler));
        let task = Task {
            id: task.id,
            session: task.session,
            step: task.step,
            queue: task.queue,
            attempt: task.attempt,
            input: serde_json::from_str(&task.input_json).unwrap_or_default(),
            idempotency_key: task.idempotency_key,
            traceparent: task.traceparent,
            timeout: (task.timeout_ms > 0).then(|| Duration::from_millis(task.timeout_ms)),
            progress: self.say.clone(),
        };
        let of = id.clone();
        let work = tokio::spawn(async move {
            let worked = AssertUnwindSafe(async { handler(task).await }).catch_unwind().await;
            let failed = |failure: Failure| {
                let Failure { code, message, permanent } = failure;
                outcome::Result::Failure(TaskFailure { code, message, permanent })
            };
            let result = match worked {
                Ok(Ok(output)) => outcome::Result::OutputJson(output.to_string()),
                Ok(Err(failure)) => failed(failure),
                Err(_) => failed(Failure {
                    code: "panicked".into(),
                    message: "the worker's handler panicked".into(),
                    permanent: false,
                }),
            };
            // The worker has ended.
            let _ = say.send(Said::Outcome(Outcome { task: of, result: Some(result) })).await;
        });
        self.running.insert(id, work.abort_handle());
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
    }
}

fn message(message: from_worker::Message) -> FromWorker {
    FromWorker { message: Some(message) }
}
