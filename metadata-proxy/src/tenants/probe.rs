//! Connections of our own, by which a tenant's service is proved from inside its namespace.
//!
//! A probe goes the way of a process of the namespace: from 127.0.0.1 to the metadata address, over
//! the local route, to the listener's port, into the worker's queue, through the proof of identity.
//! It ends there: nothing of it is read, forwarded or counted. What it leaves out is `steer` itself,
//! which only a frame from outside meets; that is asked of the kernel.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metadata_proxy_common::{METADATA_V4, NEUTRON_MARK};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use crate::{
    identity::Refused,
    netns::{NetnsCookie, NetnsId},
};

/// How long a probe waits for a worker: longer than one is ever busy with something else.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Why service could not be proved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The metadata address is not local in the namespace.
    #[error("the metadata address is not local in the namespace: {0}")]
    NoRoute(String),
    /// Nobody listens, or a rule of the namespace's firewall says so.
    #[error("a connection from inside the namespace to the listener is refused")]
    Refused,
    /// Nobody answers: a firewall drops, or the worker has not come to it.
    #[error("a connection from inside the namespace is not accepted")]
    Silent,
    /// It was accepted and could not be proved to be the tenant's.
    #[error("a connection from inside the namespace is not proved: {0}")]
    NotProved(String),
    /// Something of the kernel's steering cannot be put back.
    #[error("{0}")]
    Steering(String),
    /// The probe itself could not be made.
    #[error("the namespace cannot be audited: {0}")]
    NotTried(String),
}

/// What became of the probe of one namespace.
pub type Verdict = (NetnsId, Result<(), Fault>);

/// The probes that are under way.
#[derive(Default)]
pub struct Probes {
    under_way: Mutex<HashMap<(NetnsCookie, u16), Waiting>>,
}

/// A probe that a worker is to find.
pub struct Waiting {
    netns: NetnsId,
    verdicts: mpsc::UnboundedSender<Verdict>,
}

impl Waiting {
    /// Tells how the proof of the accepted connection went.
    pub fn answer(self, proof: Result<(), Refused>) {
        let verdict = proof.map_err(|refused| Fault::NotProved(refused.to_string()));
        // Nobody waits any more: it came too late.
        let _ = self.verdicts.send((self.netns, verdict));
    }
}

impl Probes {
    /// The probe that an accepted connection is, if it is one: by the namespace of the listener and
    /// the port it comes from, which is taken in that namespace while the probe is under way.
    #[must_use]
    pub fn claim(&self, cookie: NetnsCookie, peer: SocketAddr) -> Option<Waiting> {
        let is_loopback = peer.ip().to_canonical() == Ipv4Addr::LOCALHOST;
        if !is_loopback {
            return None;
        }
        self.under_way().remove(&(cookie, peer.port()))
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<(NetnsCookie, u16), Waiting>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom to probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) netns: NetnsId,
    pub(super) cookie: NetnsCookie,
    /// The listener's port.
    pub(super) port: u16,
}

/// A probe whose connection is open; closing it leaves nothing behind.
pub(super) struct Open {
    _socket: Socket,
    key: (NetnsCookie, u16),
}

/// Sends a probe off, in the namespace the calling thread is in.
///
/// # Errors
/// [`Fault`] when the connection cannot even be begun.
pub(super) fn send(
    probes: &Probes,
    target: Target,
    verdicts: &mpsc::UnboundedSender<Verdict>,
) -> Result<Open, Fault> {
    let not_tried = |error: io::Error| Fault::NotTried(error.to_string());
    let socket = prepare().map_err(not_tried)?;
    let local = socket.local_addr().map_err(not_tried)?;
    let port = local.as_socket().map_or(0, |local| local.port());
    let key = (target.cookie, port);
    // Before it is connected: the worker may be quicker than this thread.
    let waiting = Waiting {
        netns: target.netns,
        verdicts: verdicts.clone(),
    };
    probes.under_way().insert(key, waiting);
    let to = SocketAddr::new(Ipv4Addr::from(METADATA_V4).into(), target.port);
    let connected = socket.connect(&to.into());
    let fault = match &connected {
        Ok(()) => None,
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS) => None,
            Some(libc::ECONNREFUSED) => Some(Fault::Refused),
            _ => Some(Fault::NoRoute(error.to_string())),
        },
    };
    match fault {
        None => Ok(Open {
            _socket: socket,
            key,
        }),
        Some(fault) => {
            probes.under_way().remove(&key);
            Err(fault)
        }
    }
}

fn prepare() -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
    // Neutron's INPUT chain drops what reaches the listener's port without it.
    socket.set_mark(NEUTRON_MARK)?;
    // Closing resets: no TIME_WAIT, on neither side.
    socket.set_linger(Some(Duration::ZERO))?;
    // From 127.0.0.1, so that it can never leave the namespace: where the address is not local, the
    // kernel refuses such a source (`ip_route_output_key_hash_rcu`, net/ipv4/route.c).
    socket.bind(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0).into())?;
    Ok(socket)
}

/// What the probes that were sent off came to, once all are answered or have waited long enough.
pub(super) async fn verdicts(
    probes: &Probes,
    open: Vec<(NetnsId, Open)>,
    mut inbox: mpsc::UnboundedReceiver<Verdict>,
) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(open.len());
    let all = async {
        while verdicts.len() < open.len() {
            match inbox.recv().await {
                Some(verdict) => verdicts.push(verdict),
                None => break,
            }
        }
    };
    // Those that nobody answered are told apart below.
    let _ = tokio::time::timeout(PATIENCE, all).await;
    for (netns, probe) in open {
        if probes.under_way().remove(&probe.key).is_some() {
            verdicts.push((netns, Err(Fault::Silent)));
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: NetnsCookie = NetnsCookie(7);

    fn waiting(probes: &Probes, port: u16) -> mpsc::UnboundedReceiver<Verdict> {
        let (verdicts, inbox) = mpsc::unbounded_channel();
        let netns = NetnsId::of_path("/proc/self/ns/net".as_ref()).unwrap();
        let waiting = Waiting { netns, verdicts };
        probes.under_way().insert((HERE, port), waiting);
        inbox
    }

    #[test]
    fn only_the_very_connection_is_the_probe_and_only_once() {
        let probes = Probes::default();
        let mut inbox = waiting(&probes, 4000);
        let claim = |cookie, peer: &str| probes.claim(cookie, peer.parse().unwrap());
        assert!(claim(HERE, "127.0.0.1:4001").is_none());
        assert!(claim(NetnsCookie(8), "127.0.0.1:4000").is_none());
        assert!(claim(HERE, "10.0.0.5:4000").is_none());
        assert!(claim(HERE, "[::1]:4000").is_none());
        let probe = claim(HERE, "[::ffff:127.0.0.1]:4000").unwrap();
        assert!(claim(HERE, "127.0.0.1:4000").is_none());
        probe.answer(Err(Refused::NoTenant(HERE)));
        let (_, verdict) = inbox.try_recv().unwrap();
        assert!(matches!(verdict, Err(Fault::NotProved(_))), "{verdict:?}");
    }

    #[test]
    fn an_address_that_is_not_local_is_told_and_nothing_is_left() {
        let probes = Probes::default();
        let (verdicts, _inbox) = mpsc::unbounded_channel();
        let target = Target {
            netns: NetnsId::of_path("/proc/self/ns/net".as_ref()).unwrap(),
            cookie: HERE,
            port: 9697,
        };
        // Without the privilege to mark a socket nothing is tried; either way it is told.
        let sent = send(&probes, target, &verdicts).map(drop);
        assert!(
            matches!(sent, Err(Fault::NoRoute(_) | Fault::NotTried(_))),
            "{sent:?}"
        );
        assert!(probes.under_way().is_empty());
    }
}
