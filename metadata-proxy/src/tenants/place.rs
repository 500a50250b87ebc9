//! What we put into a tenant namespace, in which order, and how it is taken out again.
//!
//! Everything here runs inside the namespace, on the one thread that enters them. Order matters:
//! bind before attach, so that no connection is steered to nobody; detach before the listener is
//! closed. We remove only what we added.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpListener},
    os::fd::AsFd as _,
};

use litemap::LiteMap;
use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6, TenantKind};
use tracing::{debug, warn};

use super::KeptListeners;
use crate::{
    config::InterfaceGlob,
    kernel::{Attachment, Device, Engine, Kernel, KernelError, NetnsCookie, Repair},
    listener,
    netlink::{self, EventSocket, Link, MetadataV6},
    netns,
};

/// What guests dial over IPv4.
const METADATA_SOCKET: SocketAddr = SocketAddr::new(
    IpAddr::V4(Ipv4Addr::from_octets(METADATA_V4)),
    METADATA_PORT,
);

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
    /// Devices that the listener on the IPv4 metadata address hears, where `steer` is attached too.
    heard: BTreeSet<u32>,
    /// Whether a guest of this namespace may be answered at all; see [`may_forward`].
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
        heard: BTreeSet::new(),
        may_forward: false,
    };
    let finished = converge(kernel, plan, &mut place).and_then(|converged| {
        if plan.engine == Engine::Tc {
            // One that was open before: its devices may be others by now.
            for listener in &listeners[1..] {
                if listener.local_addr().is_ok_and(|at| at == METADATA_SOCKET) {
                    place.hear_only_steered(listener);
                }
            }
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

/// What [`converge`] did.
#[derive(Default)]
pub(super) struct Converged {
    /// How many things were added.
    pub(super) added: usize,
    /// What of that had been there before, and was taken away by somebody.
    pub(super) repairs: Vec<Repair>,
    /// Listeners that had to be opened.
    pub(super) listeners: Vec<TcpListener>,
}

/// Brings the namespace to what it should be: whatever is missing is added, whatever lost its
/// reason is removed. Does nothing where all is well.
pub(super) fn converge(
    kernel: &dyn Kernel,
    plan: &Plan,
    place: &mut Place,
) -> Result<Converged, PlaceError> {
    let mut converged = Converged::default();
    if netlink::add_local_route().map_err(system("cannot add the local metadata route"))? {
        converged.note(Repair::Route, place.has_route);
    }
    place.has_route = true;
    let list = || netlink::links().map_err(system("cannot list the devices"));
    let mut links = list()?;
    let added = converged.added;
    converge_addresses(plan.kind, &faced(plan, &links), place, &mut converged);
    if converged.added > added {
        // The listeners of the `bind` engine follow the addresses.
        links = list()?;
    }
    let faced = faced(plan, &links);
    place.may_forward = may_forward(plan.kind, &faced);
    if plan.engine == Engine::Tc {
        // By its name a device is detached from, and that may have changed.
        for link in &links {
            if let Some(attachment) = place.attachments.get_mut(&link.device.index) {
                attachment.device.clone_from(&link.device);
            }
        }
        converge_attachments(kernel, &faced, place, &mut converged);
    }
    converged.listeners = bind_missing(plan, &links, &faced, place)?;
    converged.added += converged.listeners.len();
    Ok(converged)
}

impl Converged {
    /// Notes something that was added, and whether that was a repair.
    fn note(&mut self, what: Repair, was_there: bool) {
        self.added += 1;
        if was_there {
            self.repairs.push(what);
        }
    }
}

/// The devices that face guests.
fn faced<'a>(plan: &Plan, links: &'a [Link]) -> Vec<&'a Link> {
    links
        .iter()
        .filter(|link| {
            plan.interfaces
                .iter()
                .any(|glob| glob.matches(&link.device.name))
        })
        .collect()
}

/// Opens what listeners are missing besides the wildcard one.
fn bind_missing(
    plan: &Plan,
    links: &[Link],
    faced: &[&Link],
    place: &mut Place,
) -> Result<Vec<TcpListener>, PlaceError> {
    // A listener of a device that is gone hears nothing more; it goes with the tenant.
    let mut listeners = Vec::new();
    for address in wanted_addresses(plan, links) {
        if !place.bound.contains(&address) {
            let listener = listener::bind_at(address)
                .map_err(|source| PlaceError::Bind { address, source })?;
            place.bound.insert(address);
            listeners.push(listener);
        }
    }
    if plan.recycles && plan.engine == Engine::Tc {
        listeners.extend(bind_recyclers(faced, place));
    }
    Ok(listeners)
}

/// Opens what listeners on the metadata addresses are missing, for devices that are steered: nobody
/// behind another device is to find one. Without them all is served too.
fn bind_recyclers(faced: &[&Link], place: &mut Place) -> Vec<TcpListener> {
    let mut listeners = Vec::new();
    let steered = faced
        .iter()
        .filter(|link| place.attachments.contains_key(&link.device.index));
    let v6: Vec<_> = steered.filter_map(|link| metadata_v6(link)).collect();
    for address in std::iter::once(METADATA_SOCKET).chain(v6) {
        if place.bound.contains(&address) {
            continue;
        }
        match listener::bind_at(address) {
            Ok(listener) if address.is_ipv6() || place.hear_only_steered(&listener) => {
                place.bound.insert(address);
                listeners.push(listener);
            }
            Ok(_) => {}
            // Of another proxy that does not share it, as a rule.
            Err(error) => debug!(%address, %error, "what is left of connections stays its minute"),
        }
    }
    listeners
}

/// Where the namespace is to have a listener besides the wildcard one: what the tenant's own
/// configuration says, and with the `bind` engine the metadata addresses themselves.
fn wanted_addresses(plan: &Plan, links: &[Link]) -> BTreeSet<SocketAddr> {
    let mut wanted: BTreeSet<SocketAddr> = plan
        .binds
        .iter()
        // The wildcard listener has its own port already.
        .filter(|(address, _)| address.port() != plan.port)
        .filter_map(|(address, interface)| scoped(*address, interface.as_deref(), links))
        .collect();
    if plan.engine == Engine::Bind {
        wanted.insert(METADATA_SOCKET);
        wanted.extend(links.iter().filter_map(metadata_v6));
    }
    wanted
}

/// The IPv6 metadata address of a device that has it, with the port.
fn metadata_v6(link: &Link) -> Option<SocketAddr> {
    let scope = link.device.index;
    (link.metadata_v6 != MetadataV6::Absent)
        .then(|| SocketAddrV6::new(METADATA_V6.into(), METADATA_PORT, 0, scope).into())
}

/// Gives a link-local address the device it is on; `None` while that device is not there.
fn scoped(address: SocketAddr, interface: Option<&str>, links: &[Link]) -> Option<SocketAddr> {
    match (address, interface) {
        (SocketAddr::V6(mut v6), Some(name)) if v6.ip().is_unicast_link_local() => {
            let link = links.iter().find(|link| link.device.name == name)?;
            v6.set_scope_id(link.device.index);
            Some(v6.into())
        }
        _ => Some(address),
    }
}

/// For a router without an addressed internal device Neutron's agent would match a guest's address
/// across the whole cloud: such a request must not be forwarded.
fn may_forward(kind: TenantKind, faced: &[&Link]) -> bool {
    match kind {
        TenantKind::Router => faced.iter().any(|link| link.is_addressed),
        TenantKind::Network | TenantKind::OvnNetwork => true,
    }
}

/// In a router the IPv6 metadata address is nobody's until we add it. Only to devices that are
/// addressed: the standby of a highly available router must not answer for its master. And not to
/// the port of a DHCP agent, where that agent adds it and settles who has it.
fn converge_addresses(
    kind: TenantKind,
    faced: &[&Link],
    place: &mut Place,
    converged: &mut Converged,
) {
    if kind != TenantKind::Router {
        place.metadata_v6 = BTreeSet::new();
        return;
    }
    place
        .metadata_v6
        .retain(|index| faced.iter().any(|link| link.device.index == *index));
    for link in faced {
        let index = link.device.index;
        if link.metadata_v6 == MetadataV6::Ours {
            place.metadata_v6.insert(index);
        }
        let is_wanted = link.is_addressed && !link.has_metadata_v4;
        let result = match (is_wanted, link.metadata_v6 != MetadataV6::Absent) {
            (true, false) => netlink::add_metadata_v6(index).map(|_| {
                let is_new = place.metadata_v6.insert(index);
                converged.note(Repair::Address, !is_new);
            }),
            (false, true) if place.metadata_v6.contains(&index) => {
                place.metadata_v6.remove(&index);
                netlink::remove_metadata_v6(index)
            }
            _ => Ok(()),
        };
        // IPv4 is served all the same: IPv6 may be switched off on the device.
        if let Err(error) = result {
            debug!(device = link.device.name, %error, "no IPv6 metadata address on this device");
        }
    }
}

fn converge_attachments(
    kernel: &dyn Kernel,
    faced: &[&Link],
    place: &mut Place,
    converged: &mut Converged,
) {
    let Place {
        cookie,
        attachments,
        refused,
        ..
    } = place;
    let gone: Vec<u32> = attachments
        .keys()
        .filter(|index| !faced.iter().any(|link| link.device.index == **index))
        .copied()
        .collect();
    for index in gone {
        // Its link went with the device, or the device has left the pattern by being renamed.
        if let Some(attachment) = attachments.remove(&index)
            && let Err(error) = kernel.detach(*cookie, &attachment)
        {
            debug!(%error, "a device left");
        }
    }
    refused.clear();
    for link in faced {
        let device = &link.device;
        if !link.is_ethernet {
            refused.insert(device.clone(), "not an Ethernet device".to_owned());
            continue;
        }
        let is_attached = attachments
            .get(&device.index)
            .is_some_and(|attachment| kernel.is_attached(attachment).unwrap_or(false));
        if is_attached {
            continue;
        }
        match kernel.attach(*cookie, device) {
            Ok(attachment) => {
                let before = attachments.insert(device.index, attachment);
                converged.note(Repair::Filter, before.is_some());
            }
            Err(error) => {
                attachments.remove(&device.index);
                refused.insert(device.clone(), error.to_string());
            }
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
    /// Whether the kernel finds a listener for each guest's port that is used again.
    pub(super) fn recycles(&self, engine: Engine) -> bool {
        match engine {
            Engine::Bind => self.bound.contains(&METADATA_SOCKET),
            // A device that came later is not heard.
            Engine::Tc => {
                !self.heard.is_empty() && self.attachments.keys().all(|it| self.heard.contains(it))
            }
            Engine::SkLookup => false,
        }
    }

    /// Has a listener on the metadata address hear only devices that are steered; says if it does.
    fn hear_only_steered(&mut self, listener: &TcpListener) -> bool {
        match listener::hear_only(listener, self.attachments.keys().copied()) {
            Ok(()) => {
                self.heard = self.attachments.keys().copied().collect();
                true
            }
            Err(error) => {
                warn!(%error, "cannot keep a listener to the devices that are steered");
                false
            }
        }
    }

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
            heard: BTreeSet::new(),
            may_forward: false,
        }
    }
}
