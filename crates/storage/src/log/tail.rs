//! The end of a shard's log in memory, decoded once: what is not on disk yet, and what is read soon after.

use std::collections::VecDeque;

use bytes::Bytes;

/// The recent entries of a shard. Entries that are not on disk yet are never dropped.
#[derive(Default)]
pub(super) struct Tail {
    pub(super) entries: VecDeque<(u64, Bytes)>,
    pub(super) bytes: usize,
    pub(super) durable: u64,
    /// What was last reported as committed, and rides with the next batch.
    pub(super) committed: Option<Bytes>,
}

impl Tail {
    pub(super) fn push(&mut self, index: u64, bytes: Bytes) {
        // An index that is there already is being replaced, with all that follow it.
        while self.entries.back().is_some_and(|(last, _)| *last >= index) {
            if let Some((_, dropped)) = self.entries.pop_back() {
                self.bytes -= dropped.len();
            }
        }
        if self.entries.back().is_some_and(|(last, _)| last + 1 != index) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += bytes.len();
        self.entries.push_back((index, bytes));
    }

    pub(super) fn shrink(&mut self, limit: usize) {
        while self.bytes > limit && self.entries.front().is_some_and(|(first, _)| *first <= self.durable) {
            if let Some((_, dropped)) = self.entries.pop_front() {
                self.bytes -= dropped.len();
            }
        }
    }

    pub(super) fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|(last, _)| *last >= from) {
            if let Some((_, dropped)) = self.entries.pop_back() {
                self.bytes -= dropped.len();
            }
        }
        self.durable = self.durable.min(from.saturating_sub(1));
    }

    pub(super) fn purge(&mut self, to: u64) {
        while self.entries.front().is_some_and(|(first, _)| *first < to) {
            if let Some((_, dropped)) = self.entries.pop_front() {
                self.bytes -= dropped.len();
            }
        }
    }
}
