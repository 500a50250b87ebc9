//! Tells that something changed in a namespace; what, is found out by looking.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::{Interest, unix::AsyncFd};

/// Devices that come, go, are renamed; filters and queueing disciplines; addresses; routes.
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_TC
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR;

/// Subscribed in the namespace of the thread that opened it; read from anywhere.
pub struct EventSocket(Arc<OwnedFd>);

impl EventSocket {
    /// Subscribes to changes of devices, addresses, routes and filters in this namespace.
    ///
    /// # Errors
    /// What netlink says.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // All at once: for each call the kernel goes through all subscribers of the machine, which has
        // one for each tenant (`netlink_update_listeners`).
        socket.bind(&SocketAddr::new(0, GROUPS.cast_unsigned()))?;
        socket.set_non_blocking(true)?;
        // SAFETY: the descriptor is duplicated, so that both owners close their own.
        let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// The socket itself, by which the namespace can be found again: unlike a listener it keeps no
    /// port open.
    #[must_use]
    pub fn handle(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Registers with the calling thread's runtime and calls `changed` after each burst of changes,
    /// until the socket fails or the future is dropped.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub async fn watch(self, mut changed: impl FnMut()) -> io::Result<()> {
        // SAFETY: the descriptor is owned, and stays open until the `AsyncFd` is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        loop {
            let mut ready = socket.readable().await?;
            drain(socket.get_ref());
            ready.clear_ready();
            changed();
        }
    }
}

/// Reads away whatever is there; what it says does not matter, nor that something was lost.
fn drain(socket: &OwnedFd) {
    let mut scratch = [0_u8; 512];
    loop {
        // SAFETY: the buffer is valid for its length; a datagram that does not fit is cut.
        let received = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                scratch.as_mut_ptr().cast(),
                scratch.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let overrun =
            received < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
        if received <= 0 && !overrun {
            return;
        }
    }
}
