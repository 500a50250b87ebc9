//! An HTTP server behind a TCP endpoint or a unix socket, over kept connections.
//!
//! When an attempt is repeated, and why that is safe:
//! - The connect was refused, for as long as configured: the request was not sent.
//! - A unix socket's backlog is full, until the deadline: the same.
//! - A kept connection ended before any byte of an answer: the server had closed it meanwhile.
//!   Only idempotent methods are sent over kept connections, so this is once, on a fresh one.

use std::{fmt, io, net::SocketAddr, os::fd::OwnedFd, path::PathBuf, pin::Pin, time::Duration};

use bytes::BytesMut;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};

use super::{
    Answer, RetryReason, Spent, Timeouts, UpstreamError,
    backoff::Backoff,
    pool::Pool,
    remote::Remote,
    wire::{self, Keep},
};
use crate::{
    admission::{BoundPolicy, QueueLimits},
    rewrite::Outgoing,
    socket::LazySocket,
};

/// Where an HTTP server is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where the server is and how its connections are kept.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where it is.
    pub endpoint: Endpoint,
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
    pub(super) remote: Remote,
    endpoint: Endpoint,
    patience: Duration,
    pool: Pool,
}

impl Http {
    /// Prepares to ask; connects to nothing yet.
    #[must_use]
    pub fn new(config: HttpConfig) -> Self {
        Self {
            remote: Remote::new(config.endpoint.to_string(), config.bound, config.waiting),
            endpoint: config.endpoint,
            patience: config.patience,
            pool: Pool::new(config.most_idle, config.longest_idle),
        }
    }

    pub(super) async fn ask(
        &self,
        request: &Outgoing,
        timeouts: Timeouts,
        started: Instant,
        spent: &mut Spent,
        leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Answer, UpstreamError> {
        let remote = &self.remote;
        let turn = remote.turn(request, started, timeouts, spent, leaving);
        let mut permit = turn.await?;
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
                Ok(received) => {
                    return Ok(remote.answer(received, stream, self.pool, permit, timeouts));
                }
                Err(fault) if fault.is_unanswered() => {
                    permit.closed();
                    remote.retried(RetryReason::Stale, spent);
                }
                Err(fault) => return Err(remote.fault(fault, timeouts)),
            }
        }
        let mut stream = self.connect(started + timeouts.connect, spent).await?;
        permit.opened();
        let received = wire::exchange(&mut stream, &message, method, server).await;
        let received = received.map_err(|fault| remote.fault(fault, timeouts))?;
        Ok(remote.answer(received, stream, self.pool, permit, timeouts))
    }

    async fn connect(&self, deadline: Instant, spent: &mut Spent) -> Result<Stream, UpstreamError> {
        let patience = deadline.min(Instant::now() + self.patience);
        let mut absent = Backoff::for_absent();
        let mut full = Backoff::for_full_backlog();
        loop {
            let source = match timeout_at(deadline, self.endpoint.connect()).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => source,
                Err(_) => return Err(self.remote.unreachable(io::ErrorKind::TimedOut.into())),
            };
            let (reason, goes_on) = match source.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                    (RetryReason::Absent, absent.pause(patience).await)
                }
                io::ErrorKind::WouldBlock => (RetryReason::BacklogFull, full.pause(deadline).await),
                _ => return Err(self.remote.unreachable(source)),
            };
            if !goes_on {
                return Err(self.remote.unreachable(source));
            }
            self.remote.retried(reason, spent);
        }
    }
}

/// A connection to the server.
pub(super) type Stream = LazySocket<OwnedFd>;

impl Endpoint {
    async fn connect(&self) -> io::Result<Stream> {
        let socket: OwnedFd = match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                stream.into_std()?.into()
            }
            Self::Unix(path) => UnixStream::connect(path).await?.into_std()?.into(),
        };
        Ok(LazySocket::new(socket))
    }
}

impl Keep<Stream> for Pool {
    fn keep(&self, stream: Stream) {
        self.put(stream);
    }
}

#[cfg(test)]
mod tests;
