//! Questions and answers over one stream: sent in order, answered in any. What waits to be sent goes out as one
//! message, so that the heartbeats of all shards that are due together cost one packet.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream;
use parking_lot::Mutex;
use proto::peer::{Request, Requests, request, response};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::Instant,
};
use tonic::Code;

use super::{
    header,
    links::{Client, Identified, Peer, Refusal, Refusals},
};

/// Questions that may wait to be sent. More are refused.
const QUEUE_LEN: usize = 16_384;
/// Questions of one message.
const MESSAGE_LEN: usize = 512;
/// A stream on which nothing was heard for this long, though something was asked, is given up.
const SILENCE_MAX: Duration = Duration::from_millis(700);

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// It was not sent.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The connection broke after it was sent.
    #[error("the connection broke before the answer came")]
    Broken,
    /// No answer came in time.
    #[error("no answer came in time")]
    Timeout,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<response::Body>>>>;

/// A stream of questions to one peer. It opens when it is used, and again after it broke.
pub(crate) struct Lane {
    what: &'static str,
    me: Arc<Identified>,
    peer: Arc<Peer>,
    runtime: Handle,
    refused: Refusals,
    open: Mutex<Option<Open>>,
    last_id: AtomicU64,
}

struct Open {
    questions: mpsc::Sender<Request>,
    waiting: Waiting,
    heard: Arc<Mutex<Instant>>,
    task: AbortHandle,
}

impl Lane {
    pub(crate) fn new(
        what: &'static str,
        me: Arc<Identified>,
        peer: Arc<Peer>,
        runtime: Handle,
        refused: Refusals,
    ) -> Self {
        Self { what, me, peer, runtime, refused, open: Mutex::default(), last_id: AtomicU64::new(0) }
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn call(
        &self,
        shard: u16,
        body: request::Body,
        timeout: Duration,
    ) -> Result<response::Body, CallError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        let (waiting, heard) = {
            let mut slot = self.open.lock();
            if slot.as_ref().is_none_or(|open| open.task.is_finished()) {
                *slot = Some(self.open());
            }
            let Some(open) = slot.as_ref() else { return Err(CallError::Broken) };
            open.waiting.lock().insert(id, reply);
            let question = Request { id, shard: u32::from(shard), body: Some(body) };
            if open.questions.try_send(question).is_err() {
                open.waiting.lock().remove(&id);
                return Err(CallError::NotSent("too much waits to be sent, or the peer is away".into()));
            }
            (Arc::clone(&open.waiting), Arc::clone(&open.heard))
        };
        let asked = Instant::now();
        // A question of someone who stopped waiting is forgotten.
        let forget = Forget { waiting: &waiting, id };
        let answered = tokio::time::timeout(timeout, answer).await;
        drop(forget);
        match answered {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(_)) => Err(CallError::Broken),
            Err(_) => {
                let since = (*heard.lock()).max(asked);
                if since.elapsed() >= SILENCE_MAX || heard.lock().elapsed() >= SILENCE_MAX {
                    self.give_up(&waiting);
                }
                Err(CallError::Timeout)
            }
        }
    }

    /// Closes the stream, unless another has taken its place.
    fn give_up(&self, waiting: &Waiting) {
        let mut slot = self.open.lock();
        if slot.as_ref().is_some_and(|open| Arc::ptr_eq(&open.waiting, waiting))
            && let Some(open) = slot.take()
        {
            tracing::debug!(lane = self.what, peer = %self.peer.id, "the peer is silent; connecting anew");
            open.task.abort();
            open.waiting.lock().clear();
        }
    }

    fn open(&self) -> Open {
        let (questions, receiver) = mpsc::channel(QUEUE_LEN);
        let (waiting, heard) = (Waiting::default(), Arc::new(Mutex::new(Instant::now())));
        let run = run(
            Arc::clone(&self.me),
            Arc::clone(&self.peer),
            receiver,
            Arc::clone(&waiting),
            Arc::clone(&heard),
            Arc::clone(&self.refused),
        );
        let (what, peer, left) = (self.what, self.peer.id, Arc::clone(&waiting));
        let refused = Arc::clone(&self.refused);
        let task = self.runtime.spawn(async move {
            if let Err(error) = run.await {
                if error.code() == Code::AlreadyExists {
                    let reason = error.message().to_owned();
                    let outdated = error.metadata().contains_key(header::OUTDATED);
                    let refusal = Refusal { reason: reason.clone(), outdated };
                    if refused.lock().insert(peer, refusal).is_none() {
                        tracing::error!(%peer, reason, "a peer does not listen to this process");
                    }
                }
                tracing::debug!(lane = what, %peer, error = %error.message(), "the peer is away");
            }
            // Whoever waits is told that no answer comes.
            left.lock().clear();
        });
        Open { questions, waiting, heard, task: task.abort_handle() }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(open) = self.open.lock().take() {
            open.task.abort();
        }
    }
}

struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

async fn run(
    me: Arc<Identified>,
    peer: Arc<Peer>,
    questions: mpsc::Receiver<Request>,
    waiting: Waiting,
    heard: Arc<Mutex<Instant>>,
    refused: Refusals,
) -> Result<(), tonic::Status> {
    let mut client: Client = peer.connect().await?;
    let messages = stream::unfold(questions, |mut questions| async move {
        let mut requests = Vec::new();
        (questions.recv_many(&mut requests, MESSAGE_LEN).await > 0)
            .then_some((Requests { requests }, questions))
    });
    let mut answers = client.lane(me.request(peer.id, messages)).await?.into_inner();
    refused.lock().remove(&peer.id);
    while let Some(message) = answers.message().await? {
        *heard.lock() = Instant::now();
        for answer in message.responses {
            let asker = waiting.lock().remove(&answer.id);
            if let (Some(asker), Some(body)) = (asker, answer.body) {
                // Whoever asked may be gone.
                let _ = asker.send(body);
            }
        }
    }
    Ok(())
}
