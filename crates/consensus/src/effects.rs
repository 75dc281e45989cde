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
    taker: Mutex<Option<Taker>>,
    overflowed: AtomicBool,
    overflow: Notify,
    news: broadcast::Sender<Watch>,
}

/// Who takes effects, and of which term: what the entries of another leader ask for is that leader's to do.
#[derive(Debug)]
struct Taker {
    term: u64,
    effects: mpsc::Sender<Effect>,
}

impl Effects {
    pub(crate) fn new() -> Self {
        let (news, _) = broadcast::channel(NEWS_LEN);
        let inner = Inner {
            taker: Mutex::new(None),
            overflowed: AtomicBool::new(false),
            overflow: Notify::new(),
            news,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes the effects of the entries of a term from a moment on, and looks at the tables at that very moment: work
    /// is in what `look` sees, or comes through the receiver, never both. An earlier taker gets no more.
    pub fn take<R>(&self, term: u64, look: impl FnOnce() -> R) -> (R, mpsc::Receiver<Effect>) {
        let (effects, receiver) = mpsc::channel(QUEUE_LEN);
        let mut taker = self.inner.taker.lock();
        self.inner.overflowed.store(false, Ordering::SeqCst);
        *taker = Some(Taker { term, effects });
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

    /// Writes a batch and hands out its effects, each with the term of its entry, with nobody looking in between.
    pub(crate) fn write_and_hand_out<E>(
        &self,
        effects: Vec<(u64, Effect)>,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut taker = self.inner.taker.lock();
        write()?;
        for (term, effect) in effects {
            if let Effect::Appended { session, next, ended } = effect {
                // No watcher is no error.
                let _ = self.inner.news.send(Watch { session, next, ended });
                continue;
            }
            // A leader that was paused applies what its successor has proposed before it knows that there is one.
            let Some(open) = taker.as_ref().filter(|taker| taker.term == term) else { continue };
            match open.effects.try_send(effect) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => *taker = None,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    *taker = None;
                    self.inner.overflowed.store(true, Ordering::SeqCst);
                    self.inner.overflow.notify_waiters();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ids::{RegionId, ShardId, Timestamp};

    use super::*;

    #[test]
    fn what_another_leader_asked_for_is_not_done() {
        let effects = Effects::new();
        let timer = |at| Effect::Timer { at: Timestamp(at) };
        let hand_out = |all: Vec<(u64, Effect)>| {
            effects
                .write_and_hand_out(all, || Ok::<_, Infallible>(()))
                .unwrap_or_else(|never| match never {});
        };
        let mut news = effects.watch();
        let ((), mut taken) = effects.take(3, || ());
        let session = SessionId::new(RegionId(0), ShardId(0), 1);
        let appended = Effect::Appended { session, next: Seq(1), ended: false };
        hand_out(vec![(3, timer(1)), (4, timer(2)), (4, appended)]);
        assert!(matches!(taken.try_recv(), Ok(Effect::Timer { at: Timestamp(1) })));
        assert!(taken.try_recv().is_err(), "the leader of term 4 does that");
        assert!(news.try_recv().is_ok(), "news are everybody's");
    }
}
