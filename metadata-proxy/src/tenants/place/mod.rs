//! What we put into a tenant namespace, in which order, and how it is taken out again.
//!
//! What does not say otherwise runs inside the namespace, on the one thread that enters them. Order matters:
//! bind before attach, so that no connection is steered to nobody; detach before the listener is
//! closed. We remove only what we added.

mod converge;
mod listeners;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
};

use litemap::LiteMap;
use metadata_proxy_common::TenantKind;
use tracing::{debug, warn};

pub(super) use self::converge::{Converged, converge};
use super::KeptListeners;
use crate::{
    config::InterfaceGlob,
    kernel::{Attachment, Device, Engine, Kernel, KernelError, NetnsCookie},
    listener,
    netlink::{self, EventSocket},
    netns,
};

/// What is to be put into a namespace.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the tenant is.
    pub kind: TenantKind,
    /// Which devices guests are behind.
    pub interfaces: Vec<InterfaceGlob>,
    /// How connections are brought to the listener.
    pub engine: Engine,
    /// The listener's port.
    pub port: u16,
    /// Addresses the tenant's own configuration wants served besides.
    pub binds: Vec<(SocketAddr, Option<String>)>,
    /// Whether what is left of closed connections is to be taken out of the way by the kernel, which
    /// takes listeners on the metadata addresses themselves.
    pub recycles: bool,
    /// The agent's own namespace, which can be no tenant: its traffic would be steered.
    pub own_cookie: NetnsCookie,
}

/// Why a namespace cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It is the agent's own.
    #[error("this is the agent's own namespace, whose traffic must not be steered")]
    OwnNamespace,
    /// The listener could not be bound.
    #[error("cannot listen on {address} in the namespace: {source}")]
    Bind {
        /// On which address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Something else the system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel programs refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError::System { what, source }
}

/// What of ours is in a namespace.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) cookie: NetnsCookie,
    pub(super) attachments: LiteMap<u32, Attachment>,
    /// Devices that could not be attached to, with the reason.
    pub(super) refused: BTreeMap<Device, String>,
    metadata_v6: BTreeSet<u32>,
    /// Whether the local route was there when we left.
    has_route: bool,
    /// Whether our listener's leaving has been prepared, and is to be undone.
    hands_over: bool,
    /// Where the `bind` engine has a listener besides the wildcard one.
    bound: BTreeSet<SocketAddr>,
    /// Devices that the listener on the IPv4 metadata address hears, where it hears only some.
    heard: Option<BTreeSet<u32>>,
    /// Whether a guest of this namespace may be answered at all: not in a router without an addressed
    /// internal device.
    pub(super) may_forward: bool,
}

/// What was opened in a namespace.
pub(super) struct Opened {
    pub(super) listeners: Vec<TcpListener>,
    pub(super) events: EventSocket,
    pub(super) place: Place,
}

/// Opens everything that a tenant namespace needs, or nothing. What was kept open is not opened anew.
pub(super) fn open(
    kernel: &dyn Kernel,
    plan: &Plan,
    kept: &KeptListeners,
) -> Result<Opened, PlaceError> {
    let mut listeners = kept.take_here(plan.port);
    if listeners.is_empty() {
        let address: SocketAddr = SocketAddr::new([0, 0, 0, 0].into(), plan.port);
        let bound = listener::bind(plan.port);
        listeners.push(bound.map_err(|source| PlaceError::Bind { address, source })?);
    }
    let cookie = netns::cookie_of(&listeners[0]).map_err(system("cannot read SO_NETNS_COOKIE"))?;
    if cookie == plan.own_cookie {
        return Err(PlaceError::OwnNamespace);
    }
    // Subscribed before anything is looked at, so that no change slips between.
    let events = EventSocket::open().map_err(system("cannot subscribe to netlink events"))?;
    let mut place = Place {
        cookie,
        attachments: LiteMap::with_capacity(1),
        refused: BTreeMap::new(),
        metadata_v6: BTreeSet::new(),
        has_route: false,
        hands_over: false,
        bound: listeners[1..]
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect(),
        heard: None,
        may_forward: false,
    };
    let finished = converge(kernel, plan, &mut place).and_then(|converged| {
        if plan.engine == Engine::Tc {
            // Where one was open before, its devices may be others by now.
            place.hear_what_is_steered(&listeners[1..]);
        }
        listeners.extend(converged.listeners);
        if plan.engine == Engine::SkLookup {
            kernel.attach_lookup(cookie, listeners[0].as_fd())?;
        }
        Ok(())
    });
    match finished {
        Ok(()) => Ok(Opened {
            listeners,
            events,
            place,
        }),
        Err(error) => {
            clear(kernel, &mut place);
            Err(error)
        }
    }
}

/// Steers nothing more; what was accepted needs the rest.
pub(super) fn detach(kernel: &dyn Kernel, place: &mut Place) {
    for (_, attachment) in std::mem::take(&mut place.attachments) {
        if let Err(error) = kernel.detach(place.cookie, &attachment) {
            warn!(%error, "left steer attached");
        }
    }
}

/// Steers nothing more, and prepares the listener's closing beside another proxy that takes over;
/// what was accepted needs the rest.
pub(super) fn quiet(kernel: &dyn Kernel, place: &mut Place) {
    detach(kernel, place);
    kernel.forget(place.cookie);
    match listener::set_handing_over(true) {
        Ok(did_before) => place.hands_over = !did_before,
        // It matters only where the other proxy listens on the very same address.
        Err(error) => debug!(%error, "a listener beside ours gets nothing from it"),
    }
}

/// Takes out what is ours. What cannot be removed is logged: the namespace may be going away.
pub(super) fn clear(kernel: &dyn Kernel, place: &mut Place) {
    detach(kernel, place);
    kernel.forget(place.cookie);
    for index in std::mem::take(&mut place.metadata_v6) {
        if let Err(error) = netlink::remove_metadata_v6(index) {
            warn!(%error, ifindex = index, "left the IPv6 metadata address");
        }
    }
    if let Err(error) = netlink::remove_local_route() {
        warn!(%error, "left the local metadata route");
    }
    if std::mem::take(&mut place.hands_over)
        && let Err(error) = listener::set_handing_over(false)
    {
        warn!(%error, "left tcp_migrate_req at 1");
    }
}

impl PlaceError {
    /// There is no way into the namespace any more.
    pub(super) const fn unreachable(source: io::Error) -> Self {
        Self::System {
            what: "cannot get back into the namespace",
            source,
        }
    }
}

impl Place {
    /// Stands in while the real one is on its way through the namespace thread.
    pub(super) const fn empty() -> Self {
        Self {
            cookie: NetnsCookie(0),
            attachments: LiteMap::new(),
            refused: BTreeMap::new(),
            metadata_v6: BTreeSet::new(),
            has_route: false,
            hands_over: false,
            bound: BTreeSet::new(),
            heard: None,
            may_forward: false,
        }
    }
}
