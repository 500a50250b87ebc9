//! One connection, from its first message to its end.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    sys::statfs::{FsType, fstatfs},
    unistd::Uid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    time::timeout,
};

use super::{Client, MESSAGE_LIMIT, MessageError, Reply, Request};
use crate::{
    identity::Tenant,
    neutron::TenantSettings,
    packet::{self, Wait},
};

/// How long a client may take to send its one message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// How long a client that is refused anyhow may take.
const REFUSED_MESSAGE: Duration = Duration::from_secs(1);

/// Descriptors for which a packet is given room. One is asked for; room for more lets a wrong
/// number be told apart from a wrong message.
const ROOM: u32 = 4;

/// A registration for as long as it lasts; never used twice in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub(super) u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a server has to tell.
#[derive(Debug)]
pub enum RegisterEvent {
    /// A client wants a tenant served.
    Started(Box<Registration>),
    /// A client that had started is gone, or was sent away; comes once for each `Started`.
    Ended(LeaseId),
}

/// A client's wish to have a tenant served.
#[derive(Debug)]
pub struct Registration {
    /// Names this registration until its end.
    pub lease: LeaseId,
    /// Whose guests are to be served.
    pub tenant: Tenant,
    /// The tenant's network namespace.
    pub netns: OwnedFd,
    /// How they are to be served.
    pub settings: TenantSettings,
    /// Who asks.
    pub client: Client,
    /// The client's process as the kernel numbers it for us; 0 if it is in a pid namespace that
    /// we cannot see.
    pub pid: i32,
    /// For telling the client what became of it.
    pub reply: ReplyHandle,
}

/// Tells a client what became of its registration.
///
/// A client whose first verdict is `failed` goes away. One that was served before stays, and waits
/// to hear `serving` again. Dropping the handle closes the connection: a client that was served
/// before then registers anew, after a while.
#[derive(Debug)]
pub struct ReplyHandle(watch::Sender<Option<Reply>>);

impl ReplyHandle {
    /// Tells that the tenant's guests are served now.
    pub fn serving(&self) {
        self.0.send_replace(Some(Reply::Serving));
    }

    /// Tells that the tenant's guests are not served, or no longer.
    pub fn failed(&self, reason: impl fmt::Display) {
        self.0.send_replace(Some(Reply::Failed {
            reason: reason.to_string(),
        }));
    }
}

/// Why a lease came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    #[error("no message came within {} s", FIRST_MESSAGE.as_secs())]
    Silent,
    #[error("the agent has {0} leases already, its limit")]
    Full(usize),
    #[error("user {0} may not register tenants; only root and the agent's own user may")]
    User(Uid),
    #[error("the connection closed before a message came")]
    Closed,
    #[error("the connection failed: {0}")]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// An accepted connection.
pub(super) struct Connection {
    pub(super) lease: LeaseId,
    pub(super) socket: AsyncFd<OwnedFd>,
    pub(super) pid: i32,
}

impl Connection {
    /// Serves the connection until its end.
    pub(super) async fn hold(self, events: mpsc::Sender<RegisterEvent>) -> Result<(), LeaseError> {
        let first = timeout(FIRST_MESSAGE, self.first()).await;
        let (request, netns) = match first.unwrap_or(Err(LeaseError::Silent)) {
            Ok(first) => first,
            Err(error) => {
                self.tell(&error);
                return Err(error);
            }
        };
        self.send(&Reply::Accepted)?;
        let (reply, verdicts) = watch::channel(None);
        let lease = self.lease;
        let started = RegisterEvent::Started(Box::new(Registration {
            lease,
            tenant: request.tenant,
            netns,
            settings: request.settings,
            client: request.client,
            pid: self.pid,
            reply: ReplyHandle(reply),
        }));
        if events.send(started).await.is_err() {
            return Ok(());
        }
        let end = self.relay(verdicts).await;
        // Closed first: whoever hears of the end may count on the client's having heard too.
        drop(self);
        let _ = events.send(RegisterEvent::Ended(lease)).await;
        end
    }

    /// Tells the client that it will not be served, and why.
    pub(super) async fn refuse(self, refusal: LeaseError) -> LeaseError {
        // A message that is left unread at the close would take the reply with it (unix(7),
        // ECONNRESET).
        let _ = timeout(REFUSED_MESSAGE, self.first()).await;
        self.tell(&refusal);
        refusal
    }

    /// Tells the client of an error. Whether or not it still listens, there is nobody else to tell.
    fn tell(&self, error: &LeaseError) {
        let _ = self.send(&Reply::Failed {
            reason: error.to_string(),
        });
    }

    /// Passes verdicts on until either side closes.
    async fn relay(&self, mut verdicts: watch::Receiver<Option<Reply>>) -> Result<(), LeaseError> {
        loop {
            tokio::select! {
                verdict = verdicts.changed() => {
                    // An unseen verdict comes before the news that the handle was dropped.
                    if verdict.is_err() {
                        return Ok(());
                    }
                    let reply = verdicts.borrow_and_update().clone();
                    if let Some(reply) = reply {
                        self.send(&reply)?;
                    }
                }
                ended = self.ended() => return ended,
            }
        }
    }

    /// Waits for the client to close; there is nothing else that it may do.
    async fn ended(&self) -> Result<(), LeaseError> {
        let mut byte = [0; 1];
        let packet = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                packet::receive(socket.as_fd(), &mut byte, 0, Wait::No)
            })
            .await;
        match packet {
            Ok(packet) if packet.length == 0 => Ok(()),
            Ok(_) => Err(MessageError::Value("second one is not part of the protocol").into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the client's one message.
    async fn first(&self) -> Result<(Request, OwnedFd), LeaseError> {
        self.socket
            .async_io(Interest::READABLE, |socket| {
                // Made and given back within one poll: however many clients wait, no more of these
                // exist than threads.
                let mut buffer = vec![0; MESSAGE_LIMIT];
                let packet = packet::receive(socket.as_fd(), &mut buffer, ROOM, Wait::No)?;
                buffer.truncate(packet.length);
                Ok(read(packet, &buffer))
            })
            .await?
    }

    /// Sends a reply; a client that does not take its few replies is as good as gone.
    fn send(&self, reply: &Reply) -> io::Result<()> {
        packet::send(
            self.socket.get_ref().as_fd(),
            &reply.encode(),
            &[],
            Wait::No,
        )
    }
}

fn read(packet: packet::Packet, message: &[u8]) -> Result<(Request, OwnedFd), LeaseError> {
    if packet.length == 0 {
        return Err(LeaseError::Closed);
    }
    if packet.truncated {
        return Err(MessageError::TooLong.into());
    }
    let request = Request::decode(message)?;
    let count = packet.descriptors.len();
    let [netns] = <[OwnedFd; 1]>::try_from(packet.descriptors)
        .map_err(|_| MessageError::Descriptors(count + usize::from(packet.descriptors_lost)))?;
    if packet.descriptors_lost {
        return Err(MessageError::Descriptors(count + 1).into());
    }
    if !is_network_namespace(&netns) {
        return Err(MessageError::NotANamespace.into());
    }
    Ok((request, netns))
}

/// Whether a descriptor is an open network namespace.
fn is_network_namespace(descriptor: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;

    // First, so that nothing but a namespace ever gets the ioctl.
    let on_nsfs = fstatfs(descriptor)
        .is_ok_and(|system| system.filesystem_type() == FsType(libc::NSFS_MAGIC as _));
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory.
    on_nsfs
        && unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::NS_GET_NSTYPE as _) }
            == libc::CLONE_NEWNET
}
