//! Sockets: found by their tuple, asked what they are, given a frame.

use core::{marker::PhantomData, mem, ptr::NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
        bpf_sock, bpf_sock_tuple,
    },
    helpers::generated::{
        self as helper, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    },
    programs::TcContext,
};
use metadata_proxy_common::METADATA_V6;

use super::frame::{Bytes, Ipv4Header, Ipv6Header, TcpHeader, load, words};
use crate::globals;

/// `BPF_F_CURRENT_NETNS`: the namespace of the device a frame arrived on.
const CURRENT_NETNS: u64 = (-1_i64).cast_unsigned();
/// `BPF_TCP_TIME_WAIT` of `enum tcp_state` (include/uapi/linux/bpf.h).
const TCP_TIME_WAIT: u32 = 6;
/// `BPF_TCP_LISTEN`.
const TCP_LISTEN: u32 = 10;

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
        self.state() == TCP_LISTEN
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

/// Whether something is left of a connection that had the same guest and port behind a `REDIRECT` to
/// the listener's port, which changed its destination after this program had seen it.
///
/// `REDIRECT` leads to the first address of the device; over IPv6, to the first one of the link, as
/// the metadata address is (Linux 6.7). Over IPv4 that is the one the namespace speaks to the guest
/// from; nothing is found where nothing is forwarded, as only routers redirect, or where the kernel
/// cannot say that address (before 6.7; before 6.10 nothing is in the way, see
/// [`Socket::is_in_the_way`]). Over IPv6 it is the metadata address itself, or the address that every
/// port of Neutron's has from its MAC, whichever was added last.
#[inline(always)]
pub(crate) fn is_left_of_redirected(ctx: &TcContext, tuple: &Tuple) -> bool {
    let port = globals::listener_port().to_be_bytes();
    let is_left = |tuple: &Tuple| look_up(ctx, tuple).is_some_and(|socket| !socket.is_listening());
    if !tuple.is_v4() {
        // SAFETY: the length says that the IPv6 variant was written.
        let seen = unsafe { tuple.tuple.__bindgen_anon_1.ipv6 };
        let redirected = |to| Tuple::of_words(seen.saddr, to, seen.sport.to_ne_bytes(), port);
        return is_left(&redirected(seen.daddr))
            || load(ctx, 0).is_some_and(|mac| is_left(&redirected(link_local_of(mac))));
    }
    // SAFETY: the length says that the IPv4 variant was written.
    let seen = unsafe { tuple.tuple.__bindgen_anon_1.ipv4 };
    let Some(own) = own_address_towards(ctx, seen.saddr) else {
        return false;
    };
    // SAFETY: a tuple is integers; zero is a value.
    let mut redirected: bpf_sock_tuple = unsafe { mem::zeroed() };
    redirected.__bindgen_anon_1.ipv4 =
        aya_ebpf::bindings::bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            daddr: own,
            dport: u16::from_ne_bytes(port),
            ..seen
        };
    is_left(&Tuple {
        tuple: redirected,
        len: TUPLE_V4_LEN,
    })
}

/// The address of its link that a device has from its MAC (RFC 4291, appendix A), which begins each
/// frame to it.
const fn link_local_of(mac: [u8; 6]) -> [u32; 4] {
    let m = mac;
    [
        u32::from_ne_bytes([0xfe, 0x80, 0, 0]),
        0,
        u32::from_ne_bytes([m[0] ^ 2, m[1], m[2], 0xff]),
        u32::from_ne_bytes([0xfe, m[3], m[4], m[5]]),
    ]
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
