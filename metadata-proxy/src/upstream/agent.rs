//! Neutron's metadata agent behind its unix socket.
//!
//! One request per connection, head and body in one write of at most what the agent reads at once
//! (neutron-contract, quirks 1 and 4); never pooled. Agents up to 2024.2 are ordinary HTTP servers
//! and are served the same way.
//!
//! When an attempt is repeated, and why that is safe:
//! - The agent's backlog is full, or nobody listens: the request was not sent.
//! - The connection is reset, or broken while sending: the kernel says so only if the agent closed
//!   without having read the request (measured: what a killed agent had in its backlog is reset,
//!   what it had read ends in order). Any method, a few times: an agent that resets everything must
//!   not be asked for ever.
//! - The connection ended, in order, before the answer was whole. That is also how the agent
//!   answers when nova said something it did not expect, so it is repeated once only, for methods
//!   without effects, and only if nobody listens on the socket any more.

use std::{io, os::unix::fs::MetadataExt as _, path::PathBuf, pin::Pin, time::Duration};

use bytes::BytesMut;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{Instant, sleep};

use super::{
    Answer, RetryReason, Spent, Timeouts, UpstreamError,
    backoff::Backoff,
    remote::Remote,
    wire::{self, Fault, Keep},
};
use crate::{
    admission::{BoundPolicy, Permit, QueueLimits},
    rewrite::Outgoing,
    socket::LazySocket,
};

/// Where the agent is and what it takes.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Its unix socket.
    pub path: PathBuf,
    /// Longest request it reads whole, head and body, bytes: 4,096 for agents since 2025.1.
    pub max_request_bytes: usize,
    /// How many requests may be with it.
    pub bound: BoundPolicy,
    /// How many may wait.
    pub waiting: QueueLimits,
}

/// Neutron's metadata agent.
pub struct Agent {
    pub(super) remote: Remote,
    path: PathBuf,
    address: SockAddr,
    max_request_bytes: usize,
}

/// How often a request may be sent again that the agent went away from without reading it.
const MOST_UNREAD: u32 = 3;
/// When to look, after the end of a connection, whether the agent is gone: its exit closes both,
/// in any order, and may be interrupted by others' work.
const LAST_BREATH: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(4),
    Duration::from_millis(16),
];

/// One connect and one write.
enum Attempt {
    /// Sent, so many bytes of it (all, as a rule).
    Sent(LazySocket<Socket>, usize),
    Failed(RetryReason, io::Error),
}

/// What one request has been through.
struct Course {
    deadline: Instant,
    full: Backoff,
    absent: Backoff,
    unread: u32,
    restarted: bool,
}

impl Agent {
    /// Prepares to ask; connects to nothing yet.
    ///
    /// # Errors
    /// If the path cannot be a unix socket's (longer than 107 bytes, or with a NUL byte).
    pub fn new(config: AgentConfig) -> io::Result<Self> {
        let name = config.path.display().to_string();
        Ok(Self {
            remote: Remote::new(name, config.bound, config.waiting),
            address: SockAddr::unix(&config.path)?,
            path: config.path,
            max_request_bytes: config.max_request_bytes,
        })
    }

    pub(super) async fn ask(
        &self,
        request: &Outgoing,
        timeouts: Timeouts,
        started: Instant,
        spent: &mut Spent,
        mut leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Answer, UpstreamError> {
        let message = self.message(request)?;
        let leaves = leaving.as_mut();
        let turn = self.remote.turn(request, started, timeouts, spent, leaves);
        let mut permit = turn.await?;
        let mut course = Course {
            deadline: started + timeouts.connect,
            full: Backoff::for_full_backlog(),
            absent: Backoff::for_absent(),
            unread: 0,
            restarted: false,
        };
        loop {
            let (mut stream, written) = self
                .send(&message, &mut permit, &mut course, spent, leaving.as_mut())
                .await?;
            let unsent = &message[written..];
            match wire::exchange(&mut stream, unsent, &request.method, timeouts.server).await {
                Ok(received) => {
                    let remote = &self.remote;
                    return Ok(remote.answer(received, stream, Never, permit, timeouts));
                }
                Err(fault) => {
                    drop(stream);
                    permit.closed();
                    let Some(reason) = self.repeat(&fault, request, &mut course).await else {
                        return Err(self.remote.fault(fault, timeouts));
                    };
                    self.remote.retried(reason, spent);
                    // The agent gets the time to come back that it gets for any other request.
                    course.deadline = Instant::now() + timeouts.connect;
                }
            }
        }
    }

    /// Encodes a request, if the agent can read it.
    fn message(&self, request: &Outgoing) -> Result<BytesMut, UpstreamError> {
        let mut message = BytesMut::with_capacity(1_024);
        request.encode("close", &mut message);
        let limit = self.max_request_bytes;
        let head = message.len() - request.body.len();
        if head > limit {
            return Err(UpstreamError::HeadTooLarge { len: head, limit });
        }
        if message.len() > limit {
            return Err(UpstreamError::BodyTooLarge {
                len: request.body.len(),
                limit: limit - head,
            });
        }
        Ok(message)
    }

    /// Connects and writes, again and again until the deadline where that can help.
    async fn send(
        &self,
        message: &[u8],
        permit: &mut Permit,
        course: &mut Course,
        spent: &mut Spent,
        mut leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(LazySocket<Socket>, usize), UpstreamError> {
        loop {
            let (reason, source) = match self.attempt(message, permit) {
                Ok(Attempt::Sent(stream, written)) => return Ok((stream, written)),
                Ok(Attempt::Failed(reason, source)) => (reason, source),
                Err(source) => return Err(self.unreachable(source)),
            };
            let deadline = course.deadline;
            let pause = async {
                match reason {
                    RetryReason::BacklogFull => match course.full.next(deadline) {
                        Some(next) => {
                            permit.refused(next).await;
                            true
                        }
                        None => false,
                    },
                    RetryReason::Unread if course.unread >= MOST_UNREAD => false,
                    _ => course.absent.pause(deadline).await,
                }
            };
            let goes_on = tokio::select! {
                biased;
                goes_on = pause => goes_on,
                () = leaving.as_mut() => {
                    return Err(self.remote.guest_left());
                }
            };
            if !goes_on {
                return Err(self.unreachable(source));
            }
            if reason == RetryReason::Unread {
                course.unread += 1;
            }
            self.remote.retried(reason, spent);
        }
    }

    /// Connects and writes once. Neither waits: a unix socket connects at once or not at all, and
    /// an empty one takes the whole message.
    fn attempt(&self, message: &[u8], permit: &mut Permit) -> io::Result<Attempt> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        if let Err(error) = socket.connect(&self.address) {
            return match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(Attempt::Failed(RetryReason::BacklogFull, error)),
                Some(libc::ECONNREFUSED | libc::ENOENT) => {
                    Ok(Attempt::Failed(RetryReason::Absent, error))
                }
                _ => Err(error),
            };
        }
        permit.opened();
        match socket.send_with_flags(message, libc::MSG_NOSIGNAL) {
            Ok(written) => Ok(Attempt::Sent(LazySocket::awaited(socket)?, written)),
            Err(error) => {
                permit.closed();
                match error.raw_os_error() {
                    Some(libc::EPIPE | libc::ECONNRESET) => {
                        Ok(Attempt::Failed(RetryReason::Unread, error))
                    }
                    _ => Err(error),
                }
            }
        }
    }

    /// Whether a request may be sent again after `fault`, and why; waits as long as that takes.
    async fn repeat(
        &self,
        fault: &Fault,
        request: &Outgoing,
        course: &mut Course,
    ) -> Option<RetryReason> {
        if fault.is_unread() && course.unread < MOST_UNREAD {
            course.unread += 1;
            return Some(RetryReason::Unread);
        }
        if fault.is_gone() && request.method.is_safe() && !course.restarted && self.is_gone().await
        {
            course.restarted = true;
            return Some(RetryReason::Restarted);
        }
        None
    }

    /// Whether nobody listens on the socket.
    async fn is_gone(&self) -> bool {
        for pause in LAST_BREATH {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            if self.is_absent() {
                return true;
            }
        }
        false
    }

    /// Asks the kernel who listens, without the agent noticing: a socket of another type is refused
    /// with `EPROTOTYPE` if somebody does.
    fn is_absent(&self) -> bool {
        let probe = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)
            .and_then(|probe| probe.connect(&self.address));
        probe.is_err_and(|error| {
            matches!(
                error.raw_os_error(),
                Some(libc::ECONNREFUSED | libc::ENOENT)
            )
        })
    }

    fn unreachable(&self, source: io::Error) -> UpstreamError {
        let source = if source.kind() == io::ErrorKind::PermissionDenied {
            self.explain_denial(&source)
        } else {
            source
        };
        self.remote.unreachable(source)
    }

    /// Says whose the socket is: its mode lets only its owner, or root, connect (quirk 9).
    fn explain_denial(&self, source: &io::Error) -> io::Error {
        let socket = match std::fs::metadata(&self.path) {
            Ok(meta) => format!(
                "it belongs to user {} and group {} with mode {:04o}",
                meta.uid(),
                meta.gid(),
                meta.mode() & 0o7777
            ),
            Err(error) => format!("and it cannot be looked at: {error}"),
        };
        let us = nix::unistd::geteuid();
        let text = format!("{source}: {socket}, this process runs as user {us}; run it as either");
        io::Error::new(source.kind(), text)
    }
}

/// The agent's connections carry one request.
struct Never;

impl Keep<LazySocket<Socket>> for Never {
    fn keep(&self, _: LazySocket<Socket>) {}
}

#[cfg(test)]
mod tests;
