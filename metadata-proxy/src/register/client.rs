//! The client's side of a registration, without a runtime.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::{MessageError, Reply};
use crate::packet::{self, Wait};

/// Longest reply that is read, in bytes: the longest reason, every character of it escaped.
const REPLY_LIMIT: usize = 3 * 1024;

/// A registration that was sent; dropping it ends the lease.
#[derive(Debug)]
pub struct Lease(OwnedFd);

/// Why a reply could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// There is none yet.
    #[error("there is no reply yet")]
    None,
    /// The server has closed the lease.
    #[error("the agent has closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection to the agent failed: {0}")]
    Connection(#[source] io::Error),
    /// The reply makes no sense.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Lease {
    /// Connects to the server at `path` and sends an encoded [`Request`](super::Request) together
    /// with the namespace it is for.
    ///
    /// Never waits: a server that has too many waiting already is reported as `WouldBlock`.
    ///
    /// # Errors
    ///
    /// If nobody listens there, or nobody may connect.
    pub fn request(path: &Path, request: &[u8], netns: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        packet::send(socket.as_fd(), request, &[netns], Wait::No)?;
        Ok(Self(socket))
    }

    /// Reads the next reply without waiting.
    ///
    /// # Errors
    ///
    /// If there is none, or the lease is at its end.
    pub fn reply(&self) -> Result<Reply, ReplyError> {
        let mut buffer = [0; REPLY_LIMIT];
        let packet = match packet::receive(self.0.as_fd(), &mut buffer, 0, Wait::No) {
            Ok(packet) => packet,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ReplyError::None);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ReplyError::Closed);
            }
            Err(error) => return Err(ReplyError::Connection(error)),
        };
        if packet.length == 0 {
            return Err(ReplyError::Closed);
        }
        if packet.truncated {
            return Err(MessageError::TooLong.into());
        }
        Ok(Reply::decode(&buffer[..packet.length])?)
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens the network namespace that this thread is in.
///
/// # Errors
///
/// If `/proc` is not there.
pub fn own_namespace() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}
