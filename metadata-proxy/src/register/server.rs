//! Takes connections, and turns each into a lease.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Uid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    LeaseId, Listener, RegisterEvent,
    lease::{Connection, LeaseError},
};

/// How long to wait when the system has no room for another connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Clients at one time that are told why they are refused; more are just sent away.
const REFUSALS: usize = 64;

/// A place among the leases.
type Room = OwnedSemaphorePermit;

/// What a server takes on at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Leases at one time, counting connections that have not registered yet.
    pub leases: usize,
}

impl Default for Limits {
    /// Far more tenants than a node can have.
    fn default() -> Self {
        Self { leases: 16_384 }
    }
}

/// The server's side of the registration socket.
#[derive(Debug)]
pub struct Server {
    listener: AsyncFd<Listener>,
    room: Arc<Semaphore>,
    limits: Limits,
    next: u64,
}

impl Server {
    /// Makes a listening socket part of the runtime it is called in.
    ///
    /// # Errors
    ///
    /// If the runtime cannot watch it.
    pub fn new(listener: Listener, limits: Limits) -> io::Result<Self> {
        // SAFETY: a listener names the same descriptor, which it owns, for as long as it lives.
        let listener = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?;
        Ok(Self {
            listener,
            room: Arc::new(Semaphore::new(limits.leases)),
            limits,
            next: 1,
        })
    }

    /// Serves until `stop`, or until nobody takes the events any more; closes every lease then,
    /// without an event for it, and gives the socket back.
    pub async fn serve(
        mut self,
        events: mpsc::Sender<RegisterEvent>,
        stop: CancellationToken,
    ) -> Listener {
        let mut leases = JoinSet::new();
        let refusals = Arc::new(Semaphore::new(REFUSALS));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = events.closed() => break,
                accepted = self.listener.async_io(Interest::READABLE, Listener::accept) => {
                    match accepted.and_then(|socket| self.admit(socket)) {
                        Ok((connection, Ok(room))) => {
                            let events = events.clone();
                            leases.spawn(async move {
                                let lease = connection.lease;
                                let end = connection.hold(events).await;
                                drop(room);
                                (lease, end)
                            });
                        }
                        Ok((connection, Err(refusal))) => {
                            // Nobody is owed a reason at any price.
                            let Ok(room) = Arc::clone(&refusals).try_acquire_owned() else {
                                continue;
                            };
                            leases.spawn(async move {
                                let lease = connection.lease;
                                let end = connection.refuse(refusal).await;
                                drop(room);
                                (lease, Err(end))
                            });
                        }
                        Err(error) => {
                            warn!(%error, "cannot take a registration");
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
                Some(ended) = leases.join_next() => match ended {
                    Ok((lease, Ok(()))) => debug!(%lease, "lease ended"),
                    Ok((lease, Err(error @ LeaseError::Closed))) => debug!(%lease, %error),
                    Ok((lease, Err(error))) => warn!(%lease, %error, "registration refused"),
                    Err(error) => warn!(%error, "a lease ended badly"),
                },
            }
        }
        self.listener.into_inner()
    }

    /// Lets a peer in, if it may register and there is room for it.
    fn admit(&mut self, socket: OwnedFd) -> io::Result<(Connection, Result<Room, LeaseError>)> {
        let peer = getsockopt(&socket, PeerCredentials)?;
        let user = Uid::from_raw(peer.uid());
        let room = if user.is_root() || user == Uid::effective() {
            Arc::clone(&self.room)
                .try_acquire_owned()
                .map_err(|_| LeaseError::Full(self.limits.leases))
        } else {
            Err(LeaseError::User(user))
        };
        let lease = LeaseId(self.next);
        self.next += 1;
        // SAFETY: an `OwnedFd` names the same descriptor, and keeps it open, for its whole life.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        let pid = peer.pid();
        Ok((Connection { lease, socket, pid }, room))
    }
}
