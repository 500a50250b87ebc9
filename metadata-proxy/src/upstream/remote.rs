//! What every upstream outside of this process has: a name, the queue in front of it, counters, and
//! room for the long answers that guests have not taken yet.

use std::{io, pin::Pin, sync::Arc};

use tokio::{io::AsyncRead, time::Instant};

use super::{
    Answer, AnswerBody, RetryReason, Spent, Timeouts, UpstreamError, UpstreamSnapshot,
    counters::Counters,
    wire::{Body, Fault, Head, Keep, Received, Room, Streaming, Terms},
};
use crate::{
    admission::{BoundPolicy, Permit, Queue, QueueError, QueueLimits},
    rewrite::Outgoing,
};

/// An upstream, but for how it is reached.
pub(super) struct Remote {
    name: Arc<str>,
    queue: Arc<Queue>,
    counters: Counters,
    room: Room,
}

impl Remote {
    pub(super) fn new(name: String, bound: BoundPolicy, waiting: QueueLimits) -> Self {
        Self {
            name: name.into(),
            queue: Queue::new(bound, waiting),
            counters: Counters::default(),
            room: Room::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn snapshot(&self) -> UpstreamSnapshot {
        self.counters.snapshot(self.queue.snapshot())
    }

    pub(super) fn reconfigure(&self, bound: BoundPolicy, waiting: QueueLimits) {
        self.queue.reconfigure(bound, waiting);
    }

    /// Counts how a request ended.
    pub(super) fn count(&self, outcome: &Result<Answer, UpstreamError>) {
        self.counters.outcome(outcome);
    }

    /// Counts an attempt beyond the first.
    pub(super) fn retried(&self, reason: RetryReason, spent: &mut Spent) {
        self.counters.retry(reason);
        spent.retries += 1;
    }

    /// Waits for a request's turn.
    pub(super) async fn turn(
        &self,
        request: &Outgoing,
        started: Instant,
        timeouts: Timeouts,
        spent: &mut Spent,
        leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Permit, UpstreamError> {
        if let Some(permit) = self.queue.try_acquire() {
            return Ok(permit);
        }
        let tenant = request.identity.tenant();
        let deadline = started + timeouts.connect;
        let outcome = tokio::select! {
            biased;
            outcome = self.queue.acquire(tenant, request.guest, deadline) => Some(outcome),
            () = leaving => None,
        };
        spent.queued = started.elapsed();
        let Some(outcome) = outcome else {
            return Err(self.guest_left());
        };
        outcome.map_err(|error| match error {
            QueueError::Full | QueueError::TenantFull => UpstreamError::QueueFull {
                upstream: self.name.to_string(),
            },
            QueueError::TimedOut => UpstreamError::QueueTimedOut {
                upstream: self.name.to_string(),
                waited: spent.queued,
            },
        })
    }

    /// The answer that came over `stream`; what is left of it is read ahead of the guest.
    pub(super) fn answer<S, K>(
        &self,
        received: Received,
        stream: S,
        keep: K,
        permit: Permit,
        timeouts: Timeouts,
    ) -> Answer
    where
        S: AsyncRead + Unpin + Send + 'static,
        K: Keep<S>,
    {
        let body = match received.body {
            Body::Whole { bytes, reusable } => {
                // The connection first: the permit says that the upstream is free for the next.
                if reusable {
                    keep.keep(stream);
                } else {
                    drop(stream);
                }
                drop(permit);
                AnswerBody::Full(bytes)
            }
            Body::Rest(rest) => {
                let terms = Terms {
                    keep,
                    permit,
                    room: self.room.clone(),
                    upstream: Arc::clone(&self.name),
                    server: timeouts.server,
                };
                AnswerBody::Streaming(Box::pin(Streaming::new(stream, rest, terms)))
            }
        };
        with_head(received.head, body)
    }

    pub(super) fn fault(&self, fault: Fault, timeouts: Timeouts) -> UpstreamError {
        fault.into_error(&self.name, timeouts.server)
    }

    pub(super) fn unreachable(&self, source: io::Error) -> UpstreamError {
        UpstreamError::Unreachable {
            upstream: self.name.to_string(),
            source,
        }
    }

    pub(super) fn guest_left(&self) -> UpstreamError {
        UpstreamError::GuestLeft {
            upstream: self.name.to_string(),
        }
    }
}

fn with_head(head: Head, body: AnswerBody) -> Answer {
    let mut answer = Answer::new(body);
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    if let Some(reason) = head.reason {
        answer.extensions_mut().insert(reason);
    }
    answer
}
