//! Listening sockets that were open before this process began: handed over by its predecessor, or
//! kept by the service manager. Whoever connected meanwhile waits in them.

use std::{
    collections::HashMap,
    io,
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use socket2::SockRef;

use crate::{
    listener,
    netns::{self, NetnsCookie},
};

/// Sockets by the namespace they live in, until somebody declares that namespace.
#[derive(Debug, Default)]
pub struct KeptListeners(Mutex<HashMap<NetnsCookie, Vec<TcpListener>>>);

impl KeptListeners {
    /// Keeps a socket; what it says of itself is what counts.
    ///
    /// # Errors
    /// It is no listening TCP socket of the namespace that it should be of.
    pub fn keep(&self, socket: OwnedFd, cookie: NetnsCookie) -> io::Result<()> {
        let cannot = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let asked = SockRef::from(&socket);
        let is_tcp = asked.protocol()? == Some(socket2::Protocol::TCP);
        if !is_tcp || !asked.is_listener()? {
            return Err(cannot("it is no listening TCP socket"));
        }
        if netns::cookie_of(socket.as_fd())? != cookie {
            return Err(cannot("it lives in another namespace"));
        }
        asked.set_nonblocking(true)?;
        self.lock().entry(cookie).or_default().push(socket.into());
        Ok(())
    }

    /// Takes the sockets of the namespace that the calling thread is in, the wildcard one first;
    /// empty if that one is not among them.
    pub(super) fn take_here(&self, port: u16) -> Vec<TcpListener> {
        if self.lock().is_empty() {
            return Vec::new();
        }
        let kept = listener::netns_cookie()
            .ok()
            .and_then(|cookie| self.lock().remove(&cookie));
        let is_main = |listener: &TcpListener| {
            listener
                .local_addr()
                .is_ok_and(|at| at.ip().is_unspecified() && at.port() == port)
        };
        let (mut listeners, others): (Vec<_>, Vec<_>) =
            kept.unwrap_or_default().into_iter().partition(is_main);
        listeners.truncate(1);
        if !listeners.is_empty() {
            listeners.extend(others);
        }
        listeners
    }

    /// Closes what nobody asked for, and says of which namespaces that was.
    pub fn give_up(&self) -> Vec<NetnsCookie> {
        self.lock().drain().map(|(cookie, _)| cookie).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NetnsCookie, Vec<TcpListener>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_kept_until_its_namespace_is_declared() {
        let kept = KeptListeners::default();
        let cookie = listener::netns_cookie().unwrap();
        let main = listener::bind(0).unwrap();
        let port = main.local_addr().unwrap().port();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        kept.keep(other.into(), cookie).unwrap();
        kept.keep(main.into(), cookie).unwrap();
        let taken = kept.take_here(port);
        assert_eq!(taken.len(), 2);
        assert_eq!(taken[0].local_addr().unwrap().port(), port);
        assert!(kept.take_here(port).is_empty());
    }

    #[test]
    fn what_is_no_listener_of_that_namespace_is_not_kept() {
        let kept = KeptListeners::default();
        let cookie = listener::netns_cookie().unwrap();
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let of_another = NetnsCookie(cookie.0 + 1);
        assert!(kept.keep(listener().into(), of_another).is_err());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(kept.keep(udp.into(), cookie).is_err());
        let at = listener();
        let connected = std::net::TcpStream::connect(at.local_addr().unwrap()).unwrap();
        assert!(kept.keep(connected.into(), cookie).is_err());
        assert!(kept.give_up().is_empty());
    }
}
