//! The connection of a hand-over, used from a thread that may wait.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, getsockopt, shutdown, socket,
    sockopt::PeerCredentials,
};
use socket2::SockRef;

use super::{DESCRIPTOR_LIMIT, MESSAGE_LIMIT, Message, MessageError};
use crate::packet::{self, Wait};

/// Why a conversation came to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other end is gone.
    #[error("the other process closed the connection")]
    Closed,
    /// The other end has gone without hearing what was said last.
    #[error("the other process did not hear the end")]
    Unheard,
    /// Nothing came in time.
    #[error("the other process did not answer in time")]
    Late,
    /// The socket failed.
    #[error("the connection to the other process failed: {0}")]
    System(#[from] io::Error),
    /// The other end said what makes no sense.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The other end will not go on.
    #[error("the other process refused: {0}")]
    Refused(String),
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Takes an open socket of type `SOCK_SEQPACKET`.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        SockRef::from(&socket).set_nonblocking(false)?;
        Ok(Self(socket))
    }

    /// Connects to a running agent; `None` if there is none.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(path: &Path) -> io::Result<Option<Self>> {
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
            Ok(()) => Ok(Some(Self(socket))),
            Err(nix::Error::ENOENT | nix::Error::ECONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until there is something to hear.
    #[cfg(test)]
    pub(super) fn wait_readable(&self, patience: Duration) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(patience).unwrap();
        assert_eq!(poll(&mut wanted, patience).unwrap(), 1);
    }

    /// Ends the conversation from another thread.
    pub fn hang_up(&self) {
        // It may be over already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// The process at the other end, and its user.
    ///
    /// # Errors
    /// What the system says.
    pub fn peer(&self) -> io::Result<(i32, u32)> {
        let peer = getsockopt(&self.0, PeerCredentials)?;
        Ok((peer.pid(), peer.uid()))
    }

    /// Says something; waits for room as long as `patience`.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), ChannelError> {
        SockRef::from(&self.0).set_write_timeout(Some(patience))?;
        let bytes = message.encode()?;
        packet::send(self.0.as_fd(), &bytes, descriptors, Wait::Yes).map_err(told)
    }

    /// Hears something.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn receive(&self, patience: Duration) -> Result<(Message, Vec<OwnedFd>), ChannelError> {
        let (bytes, descriptors) = self.receive_bytes(patience)?;
        refusal(Message::decode(&bytes)?).map(|message| (message, descriptors))
    }

    /// Hears something that comes without descriptors.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn receive_plain(&self, patience: Duration) -> Result<Message, ChannelError> {
        let (message, descriptors) = self.receive(patience)?;
        if !descriptors.is_empty() {
            return Err(MessageError::Descriptors(descriptors.len(), 0).into());
        }
        Ok(message)
    }

    /// Hears the first message of the other end.
    ///
    /// # Errors
    /// [`ChannelError`]; [`MessageError::Protocol`] if it speaks another protocol.
    pub fn receive_hello(&self, patience: Duration) -> Result<(), ChannelError> {
        let (bytes, _) = self.receive_bytes(patience)?;
        match refusal(Message::decode_first(&bytes)?)? {
            Message::Hello { .. } => Ok(()),
            _ => Err(MessageError::OutOfTurn.into()),
        }
    }

    /// Tells the other end why it ends here. Whether it still listens does not matter.
    pub fn refuse(&self, reason: &dyn std::fmt::Display) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let reason = reason.to_string().chars().take(2000).collect();
        let _ = self.send(&Message::Refused { reason }, &[], PATIENCE);
    }

    fn receive_bytes(&self, patience: Duration) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError> {
        SockRef::from(&self.0).set_read_timeout(Some(patience))?;
        let mut buffer = vec![0; MESSAGE_LIMIT];
        let packet = packet::receive(self.0.as_fd(), &mut buffer, DESCRIPTOR_LIMIT, Wait::Yes)
            .map_err(told)?;
        if packet.length == 0 {
            return Err(ChannelError::Closed);
        }
        if packet.truncated {
            return Err(MessageError::TooLong.into());
        }
        if packet.descriptors_lost {
            return Err(MessageError::TooManyDescriptors.into());
        }
        buffer.truncate(packet.length);
        Ok((buffer, packet.descriptors))
    }
}

fn refusal(message: Message) -> Result<Message, ChannelError> {
    match message {
        Message::Refused { reason } => Err(ChannelError::Refused(reason)),
        other => Ok(other),
    }
}

fn told(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ChannelError::Late,
        io::ErrorKind::BrokenPipe => ChannelError::Closed,
        io::ErrorKind::ConnectionReset => ChannelError::Unheard,
        _ => error.into(),
    }
}
