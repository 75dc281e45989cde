//! The way of effects from the apply of a shard to whoever acts on them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ids::{Seq, SessionId};
use machine::Effect;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc};

/// Effects that may wait for the leader's engine. Beyond that it derives its work from the tables again.
const QUEUE_LEN: usize = 65_536;
/// News of sessions that a slow watcher may be behind. Beyond that it reads the session again.
const NEWS_LEN: usize = 8_192;

/// News of a session: it has events up to, not including, a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// The session.
    pub session: SessionId,
    /// The number after the last event's.
    pub next: Seq,
    /// Whether it has ended.
    pub ended: bool,
}

/// The effects of a shard. The apply hands them out; one engine at a time takes them.
#[derive(Debug, Clone)]
pub struct Effects {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sender: Mutex<Option<mpsc::Sender<Effect>>>,
    overflowed: AtomicBool,
    overflow: Notify,
    news: broadcast::Sender<Watch>,
}

impl Effects {
    pub(crate) fn new() -> Self {
        let (news, _) = broadcast::channel(NEWS_LEN);
        let inner = Inner {
            sender: Mutex::new(None),
            overflowed: AtomicBool::new(false),
            overflow: Notify::new(),
            news,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes effects from a moment on, and looks at the tables at that very moment: work is in what `look` sees, or
    /// comes through the receiver, never both. An earlier taker gets no more.
    pub fn take<R>(&self, look: impl FnOnce() -> R) -> (R, mpsc::Receiver<Effect>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let mut slot = self.inner.sender.lock();
        self.inner.overflowed.store(false, Ordering::SeqCst);
        *slot = Some(sender);
        (look(), receiver)
    }

    /// Returns when effects were lost because the queue was full: the taker has to take again, and read the tables.
    pub async fn overflowed(&self) {
        loop {
            let waiting = self.inner.overflow.notified();
            if self.inner.overflowed.load(Ordering::SeqCst) {
                return;
            }
            waiting.await;
        }
    }

    /// News of sessions, on every replica.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Watch> {
        self.inner.news.subscribe()
    }

    /// Writes a batch and hands out its effects, with nobody looking in between.
    pub(crate) fn write_and_hand_out<E>(
        &self,
        effects: Vec<Effect>,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut sender = self.inner.sender.lock();
        write()?;
        for effect in effects {
            if let Effect::Appended { session, next, ended } = effect {
                // No watcher is no error.
                let _ = self.inner.news.send(Watch { session, next, ended });
                continue;
            }
            let Some(open) = sender.as_ref() else { continue };
            match open.try_send(effect) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => *sender = None,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    *sender = None;
                    self.inner.overflowed.store(true, Ordering::SeqCst);
                    self.inner.overflow.notify_waiters();
                }
            }
        }
        Ok(())
    }
}
