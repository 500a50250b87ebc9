//! A TCP segment addressed to the metadata service, parsed from a frame.
//!
//! Frames that are not Ethernet with IPv4 or IPv6, or not for the metadata address and port, are
//! [`Parsed::Other`] after as few loads as possible: they are nearly all there is.

use aya_ebpf::programs::TcContext;
use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6};

use crate::raw::{self, Ipv4Header, Ipv6Header, TcpHeader};

const ETHERNET_LEN: usize = 14;
const VLAN_TAG_LEN: usize = 4;
const MAX_VLAN_TAGS: usize = 2;
const IPV4_MIN_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Bound on the IPv6 extension headers walked; hosts send none in front of TCP.
const MAX_EXTENSION_HEADERS: usize = 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const IPV4_MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_DESTINATION: u8 = 60;

/// What a frame turned out to be.
pub(crate) enum Parsed {
    /// Not addressed to the metadata service.
    Other,
    /// A fragment addressed to the metadata address: which port it is for cannot be known.
    Fragment,
    /// Addressed to the metadata address, with headers that contradict themselves.
    Malformed,
    /// A segment for IPv4 metadata.
    V4(Ipv4Header, TcpHeader),
    /// A segment for IPv6 metadata.
    V6(Ipv6Header, TcpHeader),
}

/// Parses a frame as far as needed to know whether, and for whom, it is metadata traffic.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext) -> Parsed {
    let Some(mut ethertype) = raw::load_u16(ctx, ETHERNET_LEN - 2) else {
        return Parsed::Other;
    };
    let mut l3 = ETHERNET_LEN;
    // The kernel has taken the outer tag off a received frame; a second one is still there.
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let Some(inner) = raw::load_u16(ctx, l3 + 2) else {
            return Parsed::Other;
        };
        ethertype = inner;
        l3 += VLAN_TAG_LEN;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_v4(ctx, l3),
        ETHERTYPE_IPV6 => parse_v6(ctx, l3),
        _ => Parsed::Other,
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext, l3: usize) -> Parsed {
    let Some(ip) = raw::load::<Ipv4Header>(ctx, l3) else {
        return Parsed::Other;
    };
    if ip.destination != METADATA_V4 || ip.protocol != PROTOCOL_TCP {
        return Parsed::Other;
    }
    let header_len = usize::from(ip.version_and_len & 0x0f) * 4;
    if ip.version_and_len >> 4 != 4 || header_len < IPV4_MIN_LEN {
        return Parsed::Malformed;
    }
    if u16::from_be_bytes(ip.flags_and_offset) & IPV4_MORE_FRAGMENTS_OR_OFFSET != 0 {
        return Parsed::Fragment;
    }
    let tcp_len = usize::from(u16::from_be_bytes(ip.total_len)).wrapping_sub(header_len);
    match parse_tcp(ctx, l3 + header_len, tcp_len) {
        Tcp::Metadata(tcp) => Parsed::V4(ip, tcp),
        Tcp::OtherPort => Parsed::Other,
        Tcp::Malformed => Parsed::Malformed,
    }
}

#[inline(always)]
fn parse_v6(ctx: &TcContext, l3: usize) -> Parsed {
    let Some(ip) = raw::load::<Ipv6Header>(ctx, l3) else {
        return Parsed::Other;
    };
    if ip.destination != METADATA_V6 {
        return Parsed::Other;
    }
    if ip.version_class_label[0] >> 4 != 6 {
        return Parsed::Malformed;
    }
    let mut l4 = l3 + IPV6_LEN;
    let mut next = ip.next_header;
    let mut left = usize::from(u16::from_be_bytes(ip.payload_len));
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            EXTENSION_HOP_BY_HOP | EXTENSION_ROUTING | EXTENSION_DESTINATION => {
                let Some(extension) = raw::load_at::<[u8; 2]>(ctx, l4) else {
                    return Parsed::Malformed;
                };
                let len = (usize::from(extension[1]) + 1) * 8;
                next = extension[0];
                l4 += len;
                left = left.wrapping_sub(len);
            }
            EXTENSION_FRAGMENT => return Parsed::Fragment,
            _ => break,
        }
    }
    if next != PROTOCOL_TCP {
        return Parsed::Other;
    }
    match parse_tcp(ctx, l4, left) {
        Tcp::Metadata(tcp) => Parsed::V6(ip, tcp),
        Tcp::OtherPort => Parsed::Other,
        Tcp::Malformed => Parsed::Malformed,
    }
}

enum Tcp {
    Metadata(TcpHeader),
    OtherPort,
    Malformed,
}

/// Parses the TCP header at `l4`, of which the IP header says that `len` bytes are there.
#[inline(always)]
fn parse_tcp(ctx: &TcContext, l4: usize, len: usize) -> Tcp {
    let Some(tcp) = raw::load_at::<TcpHeader>(ctx, l4) else {
        return Tcp::Malformed;
    };
    if u16::from_be_bytes(tcp.destination) != METADATA_PORT {
        return Tcp::OtherPort;
    }
    // `len` wraps to a huge number where the IP header claims less than itself.
    let header_len = usize::from(tcp.data_offset >> 4) * 4;
    if header_len < size_of::<TcpHeader>() || len > usize::from(u16::MAX) || header_len > len {
        return Tcp::Malformed;
    }
    Tcp::Metadata(tcp)
}
