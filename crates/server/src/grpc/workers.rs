//! The connections of workers outside the cluster.

use std::{collections::VecDeque, pin::Pin};

use engine::workers::{Assignment, Connection, Hello, TaskId, TaskResult, ToWorker};
use futures_util::{Stream, stream};
use machine::limits;
use proto::api::{
    self, FromWorker, from_worker, outcome::Result as Reported, to_worker::Message,
    worker_service_server::WorkerService,
};
use storage::Identity;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use crate::error::{self, ApiError};

/// Tasks of one worker at once.
const CAPACITY_MAX: u32 = 10_000;
const PROGRESS_BYTES_MAX: usize = 1024;
/// Messages that are sent together at most.
const TOGETHER_MAX: usize = 256;
/// Tasks that a worker may present: those under way, and as many whose outcomes are on their way.
const IN_HAND_MAX: usize = 2 * CAPACITY_MAX as usize;

#[tonic::async_trait]
impl WorkerService for Service {
    type WorkStream = Pin<Box<dyn Stream<Item = Result<api::ToWorker, Status>> + Send>>;

    async fn work(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let tenant = self.tenant(&request)?;
        let mut incoming = request.into_inner();
        let Some(FromWorker { message: Some(from_worker::Message::Hello(hello)) }) =
            incoming.message().await?
        else {
            return Err(ApiError::invalid("a worker's first message is its hello").into());
        };
        let hello = check(tenant, hello, self.app.sessions.node().identity())?;
        let pool = self.app.sessions.workers().pool();
        let Some((connection, orders)) = pool.connect(hello) else {
            let detail = "the node is about to stop: connect to another one";
            return Err(ApiError::new(error::UNAVAILABLE, detail).into());
        };
        let ms = |span: std::time::Duration| u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
        let patience = pool.patience();
        let welcome = api::Welcome { lease_ms: ms(patience.lease), reconnect_ms: ms(patience.reconnect) };
        // The stream of orders ends when the worker's does, and the other way round.
        let (alive, ended) = mpsc::channel::<()>(1);
        tokio::spawn(listen(incoming, connection, alive, self.app.stopping.clone()));
        Ok(Response::new(Box::pin(outgoing(welcome, orders, ended))))
    }
}

fn check(tenant: String, hello: api::Hello, here: &Identity) -> Result<Hello, ApiError> {
    let name_ok = |name: &str| !name.is_empty() && name.len() <= limits::NAME_BYTES_MAX;
    if !name_ok(&hello.name) || !hello.queues.iter().all(|queue| name_ok(queue)) {
        let detail = format!("names of workers and queues have 1 to {} bytes", limits::NAME_BYTES_MAX);
        return Err(ApiError::invalid(detail));
    }
    if hello.queues.is_empty() || hello.queues.len() > 64 {
        return Err(ApiError::invalid("a worker serves 1 to 64 queues"));
    }
    if !(8..=64).contains(&hello.instance.len()) {
        return Err(ApiError::invalid("instance: expected 8 to 64 random characters, the same for one run"));
    }
    if !(1..=CAPACITY_MAX).contains(&hello.capacity) {
        return Err(ApiError::invalid(format!("capacity must be 1 to {CAPACITY_MAX}")));
    }
    if hello.in_hand.len() > IN_HAND_MAX {
        return Err(ApiError::invalid(format!("a worker has at most {IN_HAND_MAX} tasks in hand")));
    }
    let in_hand = hello.in_hand.iter().map(|id| parse(id, here)).collect::<Result<_, _>>()?;
    let api::Hello { name, instance, queues, capacity, .. } = hello;
    Ok(Hello { tenant, name, instance, queues, capacity, in_hand })
}

fn parse(id: &str, here: &Identity) -> Result<TaskId, ApiError> {
    let task: Option<TaskId> = id.parse().ok();
    // One of another cluster has no leader here that could ever answer for it.
    let is_ours = |of: &TaskId| of.session.region() == here.region && of.session.shard().0 < here.shards;
    let task = task.filter(is_ours);
    task.ok_or_else(|| ApiError::invalid(format!("{id:?} is not the id of a task of this cluster")))
}

/// Reads what a worker says, until it breaks off or the node stops.
async fn listen(
    mut incoming: Streaming<FromWorker>,
    connection: Connection,
    _alive: mpsc::Sender<()>,
    mut stopping: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let Ok(Some(message)) = message else { return };
        match message.message {
            Some(from_worker::Message::Outcome(outcome)) => {
                let Ok(id) = outcome.task.parse() else { return };
                let result = match outcome.result {
                    Some(Reported::OutputJson(output)) => TaskResult::Output(output.into()),
                    Some(Reported::Failure(of)) => {
                        TaskResult::Failed { code: of.code, message: of.message, permanent: of.permanent }
                    }
                    None => TaskResult::Failed {
                        code: "no_result".into(),
                        message: "the outcome has neither an output nor a failure".into(),
                        permanent: true,
                    },
                };
                connection.finished(id, result);
            }
            Some(from_worker::Message::Progress(progress)) => {
                let Ok(id) = progress.task.parse() else { return };
                let mut text = progress.text;
                text.truncate(text.floor_char_boundary(PROGRESS_BYTES_MAX));
                connection.progress(id, text);
            }
            Some(from_worker::Message::Leaving(_)) => connection.leaving(),
            // A second hello, or what a later version says: the worker lives.
            Some(from_worker::Message::Heartbeat(_) | from_worker::Message::Hello(_)) | None => {
                connection.heard();
            }
        }
    }
}

fn outgoing(
    welcome: api::Welcome,
    orders: mpsc::Receiver<ToWorker>,
    ended: mpsc::Receiver<()>,
) -> impl Stream<Item = Result<api::ToWorker, Status>> {
    let ready = VecDeque::from([Message::Welcome(welcome)]);
    stream::unfold((ready, orders, ended), |(mut ready, mut orders, mut ended)| async move {
        if ready.is_empty() {
            let first = tokio::select! {
                order = orders.recv() => order?,
                _ = ended.recv() => return None,
            };
            ready.push_back(to_message(first));
            // Where there is one, there are more to come from the same commit: once a batch, not once a message, others
            // have their turn, and what they say goes out in the same packet.
            tokio::task::yield_now().await;
            while ready.len() < TOGETHER_MAX
                && let Ok(order) = orders.try_recv()
            {
                ready.push_back(to_message(order));
            }
        }
        let message = ready.pop_front();
        Some((Ok(api::ToWorker { message }), (ready, orders, ended)))
    })
}

fn to_message(order: ToWorker) -> Message {
    match order {
        ToWorker::Task(assignment) => Message::Task(task(&assignment)),
        ToWorker::Recorded(id) => Message::Recorded(id.to_string()),
        ToWorker::Revoked(id) => Message::Revoked(id.to_string()),
        ToWorker::Leave => Message::Leave(api::Leave {}),
    }
}

fn task(of: &Assignment) -> api::Task {
    api::Task {
        id: of.id.to_string(),
        session: of.id.session.to_string(),
        step: of.path.clone(),
        queue: of.queue.queue.clone(),
        attempt: of.attempt,
        input_json: String::from_utf8_lossy(&of.input).into_owned(),
        idempotency_key: of.idempotency_key(),
        timeout_ms: of.timeout_ms,
        traceparent: of.traceparent.clone(),
    }
}
