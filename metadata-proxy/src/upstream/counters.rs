//! What an upstream did so far, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::UpstreamError;
use crate::admission::QueueSnapshot;

/// Why a request was attempted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryReason {
    /// The upstream's backlog was full.
    BacklogFull,
    /// Nobody listened.
    Absent,
    /// The upstream went away without having read the request.
    Unread,
    /// The upstream went away in the middle of the request, and stopped listening.
    Restarted,
    /// A kept connection had been closed meanwhile.
    Stale,
}

impl RetryReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::BacklogFull,
        Self::Absent,
        Self::Unread,
        Self::Restarted,
        Self::Stale,
    ];

    /// The name used in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BacklogFull => "backlog_full",
            Self::Absent => "absent",
            Self::Unread => "unread",
            Self::Restarted => "restarted",
            Self::Stale => "stale",
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < RetryReason::ALL.len() {
        assert!(
            RetryReason::ALL[index] as usize == index,
            "reasons must be listed in order"
        );
        index += 1;
    }
};

/// Counters of one upstream.
#[derive(Default)]
pub(super) struct Counters {
    asked: AtomicU64,
    answered: AtomicU64,
    unreachable: AtomicU64,
    timed_out: AtomicU64,
    garbled: AtomicU64,
    not_queued: AtomicU64,
    too_large: AtomicU64,
    retries: [AtomicU64; RetryReason::ALL.len()],
}

impl Counters {
    pub(super) fn retry(&self, reason: RetryReason) {
        self.retries[reason as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn outcome<T>(&self, outcome: &Result<T, UpstreamError>) {
        self.asked.fetch_add(1, Relaxed);
        let counter = match outcome {
            Ok(_) => &self.answered,
            Err(UpstreamError::Unreachable { .. }) => &self.unreachable,
            Err(UpstreamError::TimedOut { .. }) => &self.timed_out,
            Err(UpstreamError::Garbled { .. }) => &self.garbled,
            Err(UpstreamError::QueueFull { .. } | UpstreamError::QueueTimedOut { .. }) => {
                &self.not_queued
            }
            // The queue counts those who left it.
            Err(UpstreamError::GuestLeft { .. }) => return,
            Err(UpstreamError::HeadTooLarge { .. } | UpstreamError::BodyTooLarge { .. }) => {
                &self.too_large
            }
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self, queue: QueueSnapshot) -> UpstreamSnapshot {
        UpstreamSnapshot {
            queue,
            asked: self.asked.load(Relaxed),
            answered: self.answered.load(Relaxed),
            unreachable: self.unreachable.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            garbled: self.garbled.load(Relaxed),
            not_queued: self.not_queued.load(Relaxed),
            too_large: self.too_large.load(Relaxed),
            retries: RetryReason::ALL
                .map(|reason| (reason, self.retries[reason as usize].load(Relaxed))),
        }
    }
}

/// What an upstream did so far; requests that were given up by their guest are in none of the
/// outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamSnapshot {
    /// The queue in front of it.
    pub queue: QueueSnapshot,
    /// Requests that ended, one way or the other.
    pub asked: u64,
    /// Those that got an answer, whatever its status.
    pub answered: u64,
    /// Those that ended with [`UpstreamError::Unreachable`].
    pub unreachable: u64,
    /// Those that ended with [`UpstreamError::TimedOut`].
    pub timed_out: u64,
    /// Those that ended with [`UpstreamError::Garbled`].
    pub garbled: u64,
    /// Those that the queue refused or that waited too long.
    pub not_queued: u64,
    /// Those that the upstream could not have taken.
    pub too_large: u64,
    /// Attempts beyond the first, by reason.
    pub retries: [(RetryReason, u64); RetryReason::ALL.len()],
}
