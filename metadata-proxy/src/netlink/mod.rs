//! Links, addresses and routes of the namespace the calling thread is in.
//!
//! Synchronous on purpose: it runs on the one thread that enters namespaces, between a `setns` and
//! the way back. What we add is marked as ours ([`OURS`]), so that it can be told apart and removed,
//! also after a crash.

mod events;
mod socket;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use metadata_proxy_common::{METADATA_V4, METADATA_V6};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope,
    },
    link::{LinkAttribute, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

pub use self::events::EventSocket;
use self::socket::RequestSocket;
use crate::kernel::Device;

/// The number that marks a route or address as ours: `rtm_protocol` (`ip route show proto 169`) and
/// `IFA_PROTO`. Numbers above `RTPROT_STATIC` are free for daemons (`linux/rtnetlink.h`).
pub const OURS: u8 = 169;

/// `RT_TABLE_LOCAL` (`linux/rtnetlink.h`).
const TABLE_LOCAL: u8 = 255;
/// Parent of filters on the ingress side of `clsact` (`linux/pkt_sched.h`: `TC_H_CLSACT`, `TC_H_MIN_INGRESS`).
const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// Parent of filters on the egress side of `clsact`.
const CLSACT_EGRESS: u32 = 0xffff_fff3;
/// Handle of the `clsact` queueing discipline itself.
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// Where `clsact` hangs.
const CLSACT_PARENT: u32 = 0xffff_fff1;

const METADATA_V4_ADDR: Ipv4Addr = Ipv4Addr::new(
    METADATA_V4[0],
    METADATA_V4[1],
    METADATA_V4[2],
    METADATA_V4[3],
);

/// A device with what steering needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name and index.
    pub device: Device,
    /// Whether frames on it start with an Ethernet header, as `steer` expects.
    pub is_ethernet: bool,
    /// Whether it has an address other than a link-local IPv6 one.
    pub is_addressed: bool,
    /// Whether the IPv4 metadata address is on it, as on the port of a DHCP agent.
    pub has_metadata_v4: bool,
    /// Whether the IPv6 metadata address is on it.
    pub metadata_v6: MetadataV6,
}

/// Whether the IPv6 metadata address is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataV6 {
    /// It is not.
    Absent,
    /// It is, and we added it.
    Ours,
    /// It is, and somebody else added it, or it cannot be told (before Linux 5.18).
    Theirs,
}

/// Lists the devices of this namespace, except loopback, with their addresses.
///
/// # Errors
/// What netlink says.
pub fn links() -> io::Result<Vec<Link>> {
    let mut socket = RequestSocket::open()?;
    let mut links = Vec::new();
    socket.request(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        NLM_F_REQUEST | NLM_F_DUMP,
        |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.extend(link_of(&message));
            }
        },
    )?;
    socket.request(
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        NLM_F_REQUEST | NLM_F_DUMP,
        |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && let Some(link) = links
                    .iter_mut()
                    .find(|link| link.device.index == message.header.index)
            {
                note_address(link, &message);
            }
        },
    )?;
    Ok(links)
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let name = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
    if message.header.link_layer_type == LinkLayerType::Loopback {
        return None;
    }
    Some(Link {
        device: Device {
            name,
            index: message.header.index,
        },
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_addressed: false,
        has_metadata_v4: false,
        metadata_v6: MetadataV6::Absent,
    })
}

fn note_address(link: &mut Link, message: &AddressMessage) {
    let is_ours = message.attributes.iter().any(|attribute| {
        matches!(attribute, AddressAttribute::Protocol(protocol) if u8::from(*protocol) == OURS)
    });
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(IpAddr::V6(v6)) if v6.octets() == METADATA_V6 => {
                link.metadata_v6 = if is_ours {
                    MetadataV6::Ours
                } else {
                    MetadataV6::Theirs
                };
            }
            AddressAttribute::Address(IpAddr::V6(v6)) if v6.is_unicast_link_local() => {}
            AddressAttribute::Address(address) => {
                link.is_addressed = true;
                link.has_metadata_v4 |= *address == IpAddr::V4(METADATA_V4_ADDR);
            }
            _ => {}
        }
    }
}

/// Adds `local 169.254.169.254/32 dev lo` to the local table, without which the kernel loses the
/// packets that steering assigned. Returns whether it was missing; an equal route or an address,
/// whoever made it, is left alone.
///
/// # Errors
/// What netlink says.
pub fn add_local_route() -> io::Result<bool> {
    let mut socket = RequestSocket::open()?;
    let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
    match socket.execute(RouteNetlinkMessage::NewRoute(local_route()?), flags) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the local route if it is ours; nothing happens if it is not there.
///
/// # Errors
/// What netlink says.
pub fn remove_local_route() -> io::Result<()> {
    // The protocol in the request makes the kernel delete only a route that carries it.
    let result = RequestSocket::open()?
        .execute(RouteNetlinkMessage::DelRoute(local_route()?), NLM_F_REQUEST);
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

fn local_route() -> io::Result<RouteMessage> {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 32;
    route.header.table = TABLE_LOCAL;
    route.header.protocol = RouteProtocol::Other(OURS);
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(METADATA_V4_ADDR)),
        RouteAttribute::Oif(loopback_index()?),
    ];
    Ok(route)
}

/// Adds the IPv6 metadata address to a device, without duplicate address detection: every router
/// has it on purpose. Returns whether it was missing.
///
/// # Errors
/// What netlink says; `EACCES` where IPv6 is switched off on the device.
pub fn add_metadata_v6(ifindex: u32) -> io::Result<bool> {
    let mut message = metadata_v6(ifindex);
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(
        AddressFlags::Nodad | AddressFlags::Noprefixroute,
    ));
    let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
    match RequestSocket::open()?.execute(RouteNetlinkMessage::NewAddress(message), flags) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the IPv6 metadata address from a device; nothing happens if device or address is gone.
///
/// # Errors
/// What netlink says.
pub fn remove_metadata_v6(ifindex: u32) -> io::Result<()> {
    let request = RouteNetlinkMessage::DelAddress(metadata_v6(ifindex));
    match RequestSocket::open()?.execute(request, NLM_F_REQUEST) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EADDRNOTAVAIL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn metadata_v6(ifindex: u32) -> AddressMessage {
    let address = IpAddr::V6(Ipv6Addr::from(METADATA_V6));
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.scope = AddressScope::Link;
    message.header.index = ifindex;
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Local(address),
        AddressAttribute::Protocol(AddressProtocol::from(OURS)),
    ];
    message
}

/// Whether a filter of this name is on the ingress side of a device's `clsact`.
///
/// # Errors
/// What netlink says.
pub fn has_filter(ifindex: u32, name: &str) -> io::Result<bool> {
    let mut found = false;
    each_filter(ifindex, CLSACT_INGRESS, |message| {
        found |= filter_name(message) == Some(name);
    })?;
    Ok(found)
}

/// The name a BPF filter was given when it was attached.
fn filter_name(message: &TcMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.as_str()),
                _ => None,
            }),
            _ => None,
        })
}

/// Whether nobody has a filter on either side of a device's `clsact`.
///
/// # Errors
/// What netlink says.
pub fn has_no_filters(ifindex: u32) -> io::Result<bool> {
    let mut filters = 0;
    for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
        each_filter(ifindex, parent, |_| filters += 1)?;
    }
    Ok(filters == 0)
}

fn each_filter(ifindex: u32, parent: u32, mut each: impl FnMut(&TcMessage)) -> io::Result<()> {
    let mut request = TcMessage::with_index(index_i32(ifindex)?);
    request.header.parent = TcHandle::from(parent);
    RequestSocket::open()?.request(
        RouteNetlinkMessage::GetTrafficFilter(request),
        NLM_F_REQUEST | NLM_F_DUMP,
        |message| {
            if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
                each(&message);
            }
        },
    )
}

/// Removes `clsact` from a device.
///
/// # Errors
/// What netlink says.
pub fn delete_clsact(ifindex: u32) -> io::Result<()> {
    let mut request = TcMessage::with_index(index_i32(ifindex)?);
    request.header.parent = TcHandle::from(CLSACT_PARENT);
    request.header.handle = TcHandle::from(CLSACT_HANDLE);
    request.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    RequestSocket::open()?.execute(
        RouteNetlinkMessage::DelQueueDiscipline(request),
        NLM_F_REQUEST,
    )
}

fn index_i32(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(io::Error::other)
}

fn loopback_index() -> io::Result<u32> {
    nix::net::if_::if_nametoindex("lo").map_err(Into::into)
}
