//! The listeners besides the wildcard one, and which devices they hear.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpListener},
    os::fd::AsFd,
};

use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6};
use socket2::SockRef;
use tracing::{debug, warn};

use super::{Place, PlaceError, Plan};
use crate::{
    kernel::Engine,
    listener,
    netlink::{Link, MetadataV6},
    tenants::Service,
};

/// What guests dial over IPv4.
const METADATA_SOCKET: SocketAddr = SocketAddr::new(
    IpAddr::V4(Ipv4Addr::from_octets(METADATA_V4)),
    METADATA_PORT,
);

/// Opens what listeners are missing besides the wildcard one.
pub(super) fn bind_missing(
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

impl Place {
    /// Whether the kernel finds a listener for each guest's port that is used again.
    pub(in crate::tenants) fn recycles(&self, engine: Engine) -> bool {
        match engine {
            Engine::Bind => self.bound.contains(&METADATA_SOCKET),
            Engine::Tc => self.hears_what_is_steered(),
            Engine::SkLookup => false,
        }
    }

    /// Has the listener on the IPv4 metadata address hear the devices that are steered by now, where
    /// these are others than it heard. May be called from outside the namespace.
    pub(in crate::tenants) fn hear_later_devices(&mut self, service: &Service) {
        if self.heard.is_none() || self.hears_what_is_steered() {
            return;
        }
        match service.listeners() {
            Ok(listeners) => self.hear_what_is_steered(&listeners),
            // Until the next look; guests are served by the wildcard listener.
            Err(error) => debug!(%error, "cannot tell a listener of the devices that are steered"),
        }
    }

    /// A device that has just come is not heard yet.
    fn hears_what_is_steered(&self) -> bool {
        let heard = self.heard.as_ref();
        heard.is_some_and(|heard| heard.iter().eq(self.attachments.keys()))
    }

    /// Has that of the listeners which is on the IPv4 metadata address hear only devices that are
    /// steered, if there is one.
    pub(super) fn hear_what_is_steered(&mut self, listeners: &[impl AsFd]) {
        for listener in listeners {
            let at = SockRef::from(listener).local_addr();
            if at.is_ok_and(|at| at.as_socket() == Some(METADATA_SOCKET)) {
                self.hear_only_steered(listener);
            }
        }
    }

    /// Has a listener on the metadata address hear only devices that are steered; says if it does.
    fn hear_only_steered(&mut self, listener: &impl AsFd) -> bool {
        let steered = || self.attachments.keys().copied();
        match listener::hear_only(listener, steered()) {
            Ok(()) => {
                self.heard = Some(steered().collect());
                true
            }
            Err(error) => {
                warn!(%error, "cannot keep a listener to the devices that are steered");
                false
            }
        }
    }
}
