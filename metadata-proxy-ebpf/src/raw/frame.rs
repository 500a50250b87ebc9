//! Reading a frame: headers, and how to get at them.

use aya_ebpf::programs::TcContext;

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
