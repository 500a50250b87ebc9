//! Everything unsafe: raw context access and raw helpers, turned into safe types.
//!
//! aya-ebpf 0.2 wraps none of the socket helpers and gives socket contexts no accessors. Nothing
//! outside this file dereferences a context or calls a helper of the kernel.

use core::{marker::PhantomData, mem, ptr::NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
        bpf_sock, bpf_sock_tuple,
    },
    helpers::generated::{
        self as helper, bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_assign, bpf_sk_release,
        bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    },
    programs::{SkLookupContext, SockAddrContext, TcContext},
};
use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6};

use crate::globals;

/// `BPF_F_CURRENT_NETNS`: the namespace of the device a frame arrived on.
const CURRENT_NETNS: u64 = (-1_i64).cast_unsigned();
/// `BPF_TCP_TIME_WAIT` of `enum tcp_state` (include/uapi/linux/bpf.h).
const TCP_TIME_WAIT: u32 = 6;
/// `BPF_TCP_LISTEN`.
const TCP_LISTEN: u32 = 10;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
/// Bytes of an `SO_MARK`.
const MARK_LEN: i32 = 4;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// IPv4 header without options (RFC 791), network order.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ipv4Header {
    pub(crate) version_and_len: u8,
    pub(crate) tos: u8,
    pub(crate) total_len: [u8; 2],
    pub(crate) id: [u8; 2],
    pub(crate) flags_and_offset: [u8; 2],
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
}

/// IPv6 header (RFC 8200), network order.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ipv6Header {
    pub(crate) version_class_label: [u8; 4],
    pub(crate) payload_len: [u8; 2],
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
}

/// TCP header without options (RFC 9293), network order.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TcpHeader {
    pub(crate) source: [u8; 2],
    pub(crate) destination: [u8; 2],
    pub(crate) sequence: [u8; 4],
    pub(crate) acknowledgement: [u8; 4],
    pub(crate) data_offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: [u8; 2],
    pub(crate) checksum: [u8; 2],
    pub(crate) urgent: [u8; 2],
}

const _: () = assert!(size_of::<Ipv4Header>() == 20 && align_of::<Ipv4Header>() == 1);
const _: () = assert!(size_of::<Ipv6Header>() == 40 && align_of::<Ipv6Header>() == 1);
const _: () = assert!(size_of::<TcpHeader>() == 20 && align_of::<TcpHeader>() == 1);

impl TcpHeader {
    /// Opens a connection.
    pub(crate) fn is_syn(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
    }

    /// May be the third step of a handshake.
    pub(crate) fn is_bare_ack(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_ACK
    }
}

/// Headers that [`load`] may read: any bytes are a value.
///
/// # Safety
/// Implemented only for types of byte arrays and bytes.
pub(crate) unsafe trait Bytes: Copy {
    /// Its length, as the kernel's helpers take it.
    #[expect(clippy::cast_possible_truncation, reason = "headers are far shorter")]
    const LEN: u32 = size_of::<Self>() as u32;
}
// SAFETY: bytes only.
unsafe impl Bytes for Ipv4Header {}
// SAFETY: bytes only.
unsafe impl Bytes for Ipv6Header {}
// SAFETY: bytes only.
unsafe impl Bytes for TcpHeader {}
// SAFETY: bytes only.
unsafe impl<const N: usize> Bytes for [u8; N] {}

/// Reads `T` at a constant or small offset: straight from the linear part of the frame, which is
/// where headers nearly always are, else by the helper that finds it in fragments.
#[inline(always)]
pub(crate) fn load<T: Bytes>(ctx: &TcContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() <= ctx.data_end() {
        // SAFETY: checked against the end of the frame; `T` is any bytes with alignment one.
        return Some(unsafe { *(start as *const T) });
    }
    ctx.load(offset).ok()
}

/// Reads `T` at an offset that depends on the frame.
#[inline(always)]
pub(crate) fn load_at<T: Bytes>(ctx: &TcContext, offset: usize) -> Option<T> {
    ctx.load(offset).ok()
}

/// Reads a big-endian number.
#[inline(always)]
pub(crate) fn load_u16(ctx: &TcContext, offset: usize) -> Option<u16> {
    load::<[u8; 2]>(ctx, offset).map(u16::from_be_bytes)
}

/// Splits an address into the words in which the kernel's contexts hold it.
pub(crate) const fn words(address: [u8; 16]) -> [u32; 4] {
    let a = address;
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// Addresses and ports of a connection, as socket lookups take them.
pub(crate) struct Tuple {
    tuple: bpf_sock_tuple,
    len: u32,
}

const TUPLE_V4_LEN: u32 = 12;
const TUPLE_V6_LEN: u32 = 36;

impl Tuple {
    /// Whether it is of an IPv4 segment.
    #[inline(always)]
    pub(crate) const fn is_v4(&self) -> bool {
        self.len == TUPLE_V4_LEN
    }

    /// Of an IPv4 segment.
    #[inline(always)]
    pub(crate) fn v4(ip: &Ipv4Header, tcp: &TcpHeader) -> Self {
        // SAFETY: a tuple is integers; zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        let ipv4 = aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: u32::from_ne_bytes(ip.source),
            daddr: u32::from_ne_bytes(ip.destination),
            sport: u16::from_ne_bytes(tcp.source),
            dport: u16::from_ne_bytes(tcp.destination),
        };
        tuple.__bindgen_anon_1.ipv4 = ipv4;
        Self {
            tuple,
            len: TUPLE_V4_LEN,
        }
    }

    /// Of an IPv6 segment.
    #[inline(always)]
    pub(crate) fn v6(ip: &Ipv6Header, tcp: &TcpHeader) -> Self {
        Self::of_words(
            words(ip.source),
            words(ip.destination),
            tcp.source,
            tcp.destination,
        )
    }

    #[inline(always)]
    fn of_words(saddr: [u32; 4], daddr: [u32; 4], sport: [u8; 2], dport: [u8; 2]) -> Self {
        // SAFETY: a tuple is integers; zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        tuple.__bindgen_anon_1.ipv6 =
            aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr,
                daddr,
                sport: u16::from_ne_bytes(sport),
                dport: u16::from_ne_bytes(dport),
            };
        Self {
            tuple,
            len: TUPLE_V6_LEN,
        }
    }
}

/// A socket found by a lookup; the reference is given back on drop, on every path.
pub(crate) struct Socket<'a> {
    sock: NonNull<bpf_sock>,
    lookup: PhantomData<&'a TcContext>,
}

impl Drop for Socket<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: this reference came from a lookup and is released once, here.
        unsafe { bpf_sk_release(self.sock.as_ptr().cast()) };
    }
}

impl Socket<'_> {
    /// Whether segments of its tuple belong to it: open or opening, neither listening nor past.
    #[inline(always)]
    pub(crate) fn is_of_a_connection(&self) -> bool {
        let state = self.state();
        state != TCP_LISTEN && state != TCP_TIME_WAIT
    }

    /// Whether it is what is left of a connection, and stands in the way of a new one: since Linux
    /// 6.10 a listener that a SYN is assigned to drops it then, without a word. One over IPv4 that
    /// is bound to its device does not (`listener::free_port` in the agent saw to that).
    #[inline(always)]
    pub(crate) fn is_in_the_way(&self, is_v4: bool) -> bool {
        // SAFETY: the reference is held, and the device may be read of every kind of socket.
        let device = unsafe { (*self.sock.as_ptr()).bound_dev_if };
        self.state() == TCP_TIME_WAIT && !(is_v4 && device != 0)
    }

    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: the reference is held, and `state` may be read of every kind of socket.
        unsafe { (*self.sock.as_ptr()).state }
    }

    /// Whether it is a listening socket.
    #[inline(always)]
    pub(crate) fn is_listening(&self) -> bool {
        // SAFETY: the reference is held, and `state` may be read of every kind of socket.
        unsafe { (*self.sock.as_ptr()).state == TCP_LISTEN }
    }

    /// Hands the frame to this socket; false when the kernel refuses.
    #[inline(always)]
    pub(crate) fn assign(&self, ctx: &TcContext) -> bool {
        // SAFETY: context and socket are valid; the kernel takes a reference of its own.
        unsafe { bpf_sk_assign(ctx.as_ptr(), self.sock.as_ptr().cast(), 0) == 0 }
    }

    /// Whether this listener would take the segment as the end of a handshake it began with a SYN
    /// cookie. `I` is the IP header, of the family the segment has.
    #[inline(always)]
    pub(crate) fn accepts_syncookie<I: Bytes>(&self, ip: &mut I, tcp: &mut TcpHeader) -> bool {
        // SAFETY: socket and headers are valid for their stated lengths; nothing is written.
        let verdict = unsafe {
            bpf_tcp_check_syncookie(
                self.sock.as_ptr().cast(),
                core::ptr::from_mut(ip).cast(),
                I::LEN,
                core::ptr::from_mut(tcp).cast(),
                TcpHeader::LEN,
            )
        };
        verdict == 0
    }
}

/// Finds the socket of a tuple in the namespace of the device the frame arrived on.
#[inline(always)]
pub(crate) fn look_up<'a>(ctx: &'a TcContext, tuple: &Tuple) -> Option<Socket<'a>> {
    // SAFETY: the tuple is valid for its length. The kernel does not write to it.
    let sock = unsafe {
        bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            core::ptr::from_ref(&tuple.tuple).cast_mut(),
            tuple.len,
            CURRENT_NETNS,
            0,
        )
    };
    NonNull::new(sock).map(|sock| Socket {
        sock,
        lookup: PhantomData,
    })
}

/// Finds what is left of a connection that had the same guest and port behind a `REDIRECT` to the
/// listener's port, which changed its destination after this program had seen it.
///
/// `REDIRECT` leads to the first address of the device. Over IPv4 that is the one the namespace speaks
/// to the guest from; nothing is found where nothing is forwarded, as only routers redirect, or
/// where the kernel cannot say that address (before 6.7; before 6.10 nothing is in the way, see
/// [`Socket::is_in_the_way`]). Over IPv6 it is the metadata address itself, which the agent has
/// added last.
#[inline(always)]
pub(crate) fn look_up_redirected<'a>(ctx: &'a TcContext, tuple: &Tuple) -> Option<Socket<'a>> {
    let port = globals::listener_port().to_be_bytes();
    if !tuple.is_v4() {
        // SAFETY: the length says that the IPv6 variant was written.
        let seen = unsafe { tuple.tuple.__bindgen_anon_1.ipv6 };
        let redirected = Tuple::of_words(seen.saddr, seen.daddr, seen.sport.to_ne_bytes(), port);
        return look_up(ctx, &redirected);
    }
    // SAFETY: the length says that the IPv4 variant was written.
    let seen = unsafe { tuple.tuple.__bindgen_anon_1.ipv4 };
    // SAFETY: a tuple is integers; zero is a value.
    let mut redirected: bpf_sock_tuple = unsafe { mem::zeroed() };
    redirected.__bindgen_anon_1.ipv4 =
        aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            daddr: own_address_towards(ctx, seen.saddr)?,
            dport: u16::from_ne_bytes(port),
            ..seen
        };
    let redirected = Tuple {
        tuple: redirected,
        len: TUPLE_V4_LEN,
    };
    look_up(ctx, &redirected)
}

/// The address this namespace speaks to a guest from, in network order.
#[inline(always)]
fn own_address_towards(ctx: &TcContext, guest: u32) -> Option<u32> {
    const FLAGS: u32 = BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC;
    const LEN: i32 = 64;
    /// `AF_INET` and `IPPROTO_TCP`, as short as they are here.
    const FAMILY: u8 = 2;
    const PROTOCOL: u8 = 6;
    const _: () = assert!(size_of::<bpf_fib_lookup>() == 64);
    // SAFETY: the parameters are integers; zero is a value.
    let mut route: bpf_fib_lookup = unsafe { mem::zeroed() };
    route.family = FAMILY;
    route.l4_protocol = PROTOCOL;
    route.__bindgen_anon_4.ipv4_dst = guest;
    // SAFETY: the context is valid for as long as the program runs; the parameters are as long as
    // said.
    let found = unsafe {
        route.ifindex = (*ctx.skb.skb).ifindex;
        helper::bpf_fib_lookup(ctx.as_ptr(), &raw mut route, LEN, FLAGS)
    };
    if found != 0 {
        return None;
    }
    // SAFETY: the lookup has written the IPv4 variant.
    Some(unsafe { route.__bindgen_anon_3.ipv4_src })
}

/// Finds the listener for a segment.
///
/// Listeners are dual-stack IPv6 sockets bound to the wildcard, so they are looked up by an IPv6
/// tuple whatever the segment's family: an IPv4-only socket on the same port, as haproxy has while
/// a node is migrated, is never found this way.
#[inline(always)]
pub(crate) fn look_up_listener<'a>(
    ctx: &'a TcContext,
    tuple: &Tuple,
    tcp: &TcpHeader,
) -> Option<Socket<'a>> {
    let port = globals::listener_port().to_be_bytes();
    let sought = if globals::listener_v4_only() {
        if tuple.len != TUPLE_V4_LEN {
            return None;
        }
        // SAFETY: the length says that the IPv4 variant was written.
        let mut sought = unsafe { tuple.tuple.__bindgen_anon_1.ipv4 };
        sought.dport = u16::from_ne_bytes(port);
        // SAFETY: a tuple is integers; zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        tuple.__bindgen_anon_1.ipv4 = sought;
        Tuple {
            tuple,
            len: TUPLE_V4_LEN,
        }
    } else {
        // The source port is kept so that a group of listeners spreads; addresses do not matter to
        // a wildcard socket. An open connection can not match: nobody is connected from `::`.
        Tuple::of_words([0; 4], words(METADATA_V6), tcp.source, port)
    };
    look_up(ctx, &sought).filter(Socket::is_listening)
}

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
