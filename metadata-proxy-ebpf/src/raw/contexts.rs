//! The contexts of the connect, getpeername and lookup hooks.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    programs::{SkLookupContext, SockAddrContext},
};
use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6};

use super::frame::words;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
/// Bytes of an `SO_MARK`.
const MARK_LEN: i32 = 4;

/// What the connect and getpeername hooks read and write.
pub(crate) trait SockAddr {
    /// The IPv4 address, network order.
    fn address_v4(&self) -> u32;
    /// Replaces the IPv4 address.
    fn set_address_v4(&self, address: u32);
    /// The IPv6 address, words in network order.
    fn address_v6(&self) -> [u32; 4];
    /// Replaces the IPv6 address.
    fn set_address_v6(&self, address: [u32; 4]);
    /// The port, host order.
    fn port(&self) -> u16;
    /// Replaces the port, host order.
    fn set_port(&self, port: u16);
    /// Whether the socket is TCP.
    fn is_tcp(&self) -> bool;
    /// Cookie of the namespace the socket lives in.
    fn netns_cookie(&self) -> u64;
    /// Sets the socket's mark; false when the kernel refuses.
    fn set_mark(&self, mark: u32) -> bool;
}

impl SockAddr for SockAddrContext {
    #[inline(always)]
    fn address_v4(&self) -> u32 {
        // SAFETY: the context is valid for the whole call, and this field may be read.
        unsafe { (*self.sock_addr).user_ip4 }
    }

    #[inline(always)]
    fn set_address_v4(&self, address: u32) {
        // SAFETY: the context is valid, and this field may be written.
        unsafe { (*self.sock_addr).user_ip4 = address }
    }

    #[inline(always)]
    fn address_v6(&self) -> [u32; 4] {
        // One word at a time: the kernel allows no wider access to this field.
        // SAFETY: the context is valid for the whole call, and this field may be read.
        unsafe {
            let ip = &raw const (*self.sock_addr).user_ip6;
            let ip = ip.cast::<u32>();
            [
                ip.read_volatile(),
                ip.add(1).read_volatile(),
                ip.add(2).read_volatile(),
                ip.add(3).read_volatile(),
            ]
        }
    }

    #[inline(always)]
    fn set_address_v6(&self, address: [u32; 4]) {
        // SAFETY: the context is valid, and this field may be written.
        unsafe {
            let ip = &raw mut (*self.sock_addr).user_ip6;
            let ip = ip.cast::<u32>();
            ip.write_volatile(address[0]);
            ip.add(1).write_volatile(address[1]);
            ip.add(2).write_volatile(address[2]);
            ip.add(3).write_volatile(address[3]);
        }
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // The field holds the 16-bit network-order port in its first two bytes.
        // SAFETY: the context is valid for the whole call, and this field may be read.
        let port = unsafe { (*self.sock_addr).user_port };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the port is in the low half"
        )]
        let port = port as u16;
        u16::from_be(port)
    }

    #[inline(always)]
    fn set_port(&self, port: u16) {
        // SAFETY: the context is valid, and this field may be written.
        unsafe { (*self.sock_addr).user_port = u32::from(port.to_be()) }
    }

    #[inline(always)]
    fn is_tcp(&self) -> bool {
        // SAFETY: the context is valid for the whole call, and this field may be read.
        unsafe { (*self.sock_addr).protocol == IPPROTO_TCP }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid. In this hook the cookie is that of the caller's socket.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
    }

    #[inline(always)]
    fn set_mark(&self, mut mark: u32) -> bool {
        // SAFETY: the context is valid, and the value is four bytes as SO_MARK wants.
        let result = unsafe {
            bpf_setsockopt(
                self.as_ptr(),
                SOL_SOCKET,
                SO_MARK,
                core::ptr::from_mut(&mut mark).cast(),
                MARK_LEN,
            )
        };
        result == 0
    }
}

/// What the lookup program reads.
pub(crate) trait LookupContext {
    /// Whether the lookup is for TCP.
    fn is_tcp(&self) -> bool;
    /// Whether the lookup is for IPv4.
    fn is_v4(&self) -> bool;
    /// Whether the lookup is for the metadata address and port.
    fn is_for_metadata(&self) -> bool;
}

impl LookupContext for SkLookupContext {
    #[inline(always)]
    fn is_tcp(&self) -> bool {
        // SAFETY: the context is valid for the whole call, and this field may be read.
        unsafe { (*self.lookup).protocol == IPPROTO_TCP }
    }

    #[inline(always)]
    fn is_v4(&self) -> bool {
        // SAFETY: the context is valid for the whole call, and this field may be read.
        unsafe { (*self.lookup).family == AF_INET }
    }

    #[inline(always)]
    fn is_for_metadata(&self) -> bool {
        // SAFETY: the context is valid for the whole call, and these fields may be read, a word at
        // a time.
        unsafe {
            // Unlike everything around it, this port is in host order (include/uapi/linux/bpf.h).
            if (*self.lookup).local_port != u32::from(METADATA_PORT) {
                return false;
            }
            if self.is_v4() {
                return (*self.lookup).local_ip4 == u32::from_ne_bytes(METADATA_V4);
            }
            let ip = (&raw const (*self.lookup).local_ip6).cast::<u32>();
            let sought = words(METADATA_V6);
            ip.read_volatile() == sought[0]
                && ip.add(1).read_volatile() == sought[1]
                && ip.add(2).read_volatile() == sought[2]
                && ip.add(3).read_volatile() == sought[3]
        }
    }
}
