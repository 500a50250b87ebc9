//! An HTTP server behind a TCP endpoint, over kept connections.
//!
//! When an attempt is repeated, and why that is safe:
//! - The connect was refused, for as long as configured: the request was not sent.
//! - A kept connection ended before any byte of an answer: the server had closed it meanwhile.
//!   Only idempotent methods are sent over kept connections, so this is once, on a fresh one.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    Answer, AnswerBody, RetryReason, Spent, Timeouts, UpstreamError, UpstreamSnapshot, answer,
    backoff::Backoff,
    counters::Counters,
    pool::Pool,
    turn,
    wire::{self, Body, Fault, Keep, Room, Streaming, Terms},
};
use crate::{
    admission::{BoundPolicy, Permit, Queue, QueueLimits},
    rewrite::Outgoing,
};

/// Where the server is and how its connections are kept.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Its address.
    pub endpoint: SocketAddr,
    /// How many idle connections each worker thread keeps; 0: a connection for every request.
    pub most_idle: usize,
    /// How long a connection is kept idle: shorter than the server does, or some requests must be
    /// sent twice.
    pub longest_idle: Duration,
    /// How long a refused connect is tried again; zero: not at all, as haproxy does.
    pub patience: Duration,
    /// How many requests may be with it.
    pub bound: BoundPolicy,
    /// How many may wait.
    pub waiting: QueueLimits,
}

/// An HTTP server.
pub struct Http {
    name: Arc<str>,
    endpoint: SocketAddr,
    patience: Duration,
    pool: Pool,
    queue: Arc<Queue>,
    counters: Counters,
    room: Room,
}

impl Http {
    /// Prepares to ask; connects to nothing yet.
    #[must_use]
    pub fn new(config: &HttpConfig) -> Self {
        Self {
            name: format!("http://{}", config.endpoint).into(),
            endpoint: config.endpoint,
            patience: config.patience,
            pool: Pool::new(config.most_idle, config.longest_idle),
            queue: Queue::new(config.bound, config.waiting),
            counters: Counters::default(),
            room: Room::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    pub(super) fn snapshot(&self) -> UpstreamSnapshot {
        self.counters.snapshot(self.queue.snapshot())
    }

    pub(super) async fn ask(
        &self,
        request: &Outgoing,
        timeouts: Timeouts,
        started: Instant,
        spent: &mut Spent,
        leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Answer, UpstreamError> {
        let outcome = self.asked(request, timeouts, started, spent, leaving).await;
        self.counters.outcome(&outcome);
        outcome
    }

    async fn asked(
        &self,
        request: &Outgoing,
        timeouts: Timeouts,
        started: Instant,
        spent: &mut Spent,
        leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Answer, UpstreamError> {
        let mut permit = turn(
            &self.queue,
            &self.name,
            request,
            started,
            timeouts,
            spent,
            leaving,
        )
        .await?;
        let mut message = BytesMut::with_capacity(1_024);
        request.encode("keep-alive", &mut message);
        let (method, server) = (&request.method, timeouts.server);

        let kept = if method.is_idempotent() {
            self.pool.take()
        } else {
            None
        };
        if let Some(mut stream) = kept {
            permit.opened();
            match wire::exchange(&mut stream, &message, method, server).await {
                Ok(received) => return Ok(self.answer(received, stream, permit, timeouts)),
                Err(fault) if fault.is_unanswered() => {
                    permit.closed();
                    self.count(RetryReason::Stale, spent);
                }
                Err(fault) => return Err(self.fault(fault, timeouts)),
            }
        }
        let mut stream = self.connect(started + timeouts.connect, spent).await?;
        permit.opened();
        let received = wire::exchange(&mut stream, &message, method, server).await;
        let received = received.map_err(|fault| self.fault(fault, timeouts))?;
        Ok(self.answer(received, stream, permit, timeouts))
    }

    async fn connect(
        &self,
        deadline: Instant,
        spent: &mut Spent,
    ) -> Result<TcpStream, UpstreamError> {
        let patience = deadline.min(Instant::now() + self.patience);
        let mut backoff = Backoff::for_absent();
        loop {
            let source = match timeout_at(deadline, TcpStream::connect(self.endpoint)).await {
                Ok(Ok(stream)) => match stream.set_nodelay(true) {
                    Ok(()) => return Ok(stream),
                    Err(source) => return Err(self.unreachable(source)),
                },
                Ok(Err(source)) => source,
                Err(_) => return Err(self.unreachable(io::ErrorKind::TimedOut.into())),
            };
            let refused = source.kind() == io::ErrorKind::ConnectionRefused;
            if !refused || !backoff.pause(patience).await {
                return Err(self.unreachable(source));
            }
            self.count(RetryReason::Absent, spent);
        }
    }

    fn answer(
        &self,
        received: wire::Received,
        stream: TcpStream,
        permit: Permit,
        timeouts: Timeouts,
    ) -> Answer {
        let body = match received.body {
            Body::Whole { bytes, reusable } => {
                if reusable {
                    self.pool.put(stream);
                }
                AnswerBody::Full(bytes)
            }
            Body::Rest(rest) => AnswerBody::Streaming(Box::pin(Streaming::new(
                stream,
                rest,
                Terms {
                    keep: self.pool,
                    permit,
                    room: self.room.clone(),
                    upstream: Arc::clone(&self.name),
                    server: timeouts.server,
                },
            ))),
        };
        answer(received.head, body)
    }

    fn count(&self, reason: RetryReason, spent: &mut Spent) {
        self.counters.retry(reason);
        spent.retries += 1;
    }

    fn fault(&self, fault: Fault, timeouts: Timeouts) -> UpstreamError {
        fault.into_error(&self.name, timeouts.server)
    }

    fn unreachable(&self, source: io::Error) -> UpstreamError {
        UpstreamError::Unreachable {
            upstream: self.name.to_string(),
            source,
        }
    }
}

impl Keep<TcpStream> for Pool {
    fn keep(&self, stream: TcpStream) {
        self.put(stream);
    }
}

#[cfg(test)]
mod tests;
