//! One packet with its descriptors, received and sent.
//!
//! `recvmsg` by hand: what the kernel installed must be closed even when it also reports that some
//! descriptors did not fit (`MSG_CTRUNC`), and ready-made wrappers lose them then.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 4;

/// What control data is made of, so that it is aligned as its header is.
type Word = u64;

const _: () = assert!(align_of::<Word>() >= align_of::<libc::cmsghdr>());
const _: () = assert!(size_of::<RawFd>() == DESCRIPTOR as usize);

/// Whether to wait for the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// As long as the socket's own timeout says.
    Yes,
}

impl Wait {
    const fn flag(self) -> libc::c_int {
        match self {
            Self::No => libc::MSG_DONTWAIT,
            Self::Yes => 0,
        }
    }
}

/// What arrived.
#[derive(Debug)]
pub(crate) struct Packet {
    /// Bytes that were written to the buffer.
    pub(crate) length: usize,
    /// Whether the packet was longer than the buffer.
    pub(crate) truncated: bool,
    /// Descriptors that came with it.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether more descriptors came than there was room for.
    pub(crate) descriptors_lost: bool,
}

/// Receives one packet with at most `room` descriptors; a length of 0 means that the peer has closed.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    room: u32,
    wait: Wait,
) -> io::Result<Packet> {
    // SAFETY: CMSG_SPACE only computes.
    let space = unsafe { libc::CMSG_SPACE(room * DESCRIPTOR) } as usize;
    let mut control: Vec<Word> = vec![0; space.div_ceil(size_of::<Word>())];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes are a valid `msghdr`: no name, no parts, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = space as _;
    // SAFETY: the header points to the buffer and the control data, which outlive the call, and
    // gives their true lengths.
    let length = unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut header,
            libc::MSG_CMSG_CLOEXEC | wait.flag(),
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(Packet {
        length,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        descriptors: descriptors(&header),
        descriptors_lost: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Takes possession of every descriptor that a received header tells of.
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut owned = Vec::new();
    // SAFETY: `recvmsg` has filled in the header and its control data; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay within `msg_controllen`.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: a non-null pointer from the two macros points to a complete header.
        let (level, kind, length) = unsafe {
            (
                (*message).cmsg_level,
                (*message).cmsg_type,
                (*message).cmsg_len,
            )
        };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes, CMSG_DATA only adds to a valid pointer.
            let (empty, data) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_DATA(message)) };
            #[expect(clippy::unnecessary_cast, reason = "not a usize in every libc")]
            let count = (length as usize).saturating_sub(empty as usize) / size_of::<RawFd>();
            for index in 0..count {
                let mut number = [0; size_of::<RawFd>()];
                // SAFETY: the kernel wrote `count` descriptors there, aligned or not.
                unsafe {
                    let from = data.add(index * number.len());
                    ptr::copy_nonoverlapping(from, number.as_mut_ptr(), number.len());
                }
                // SAFETY: it has installed each for this process, and nobody else knows of it.
                owned.push(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) });
            }
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    owned
}

/// Sends one packet with its descriptors.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: Wait,
) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() {
        &[][..]
    } else {
        &control
    };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[io::IoSlice::new(message)],
        control,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(wait.flag()),
        None,
    )?;
    debug_assert_eq!(sent, message.len(), "a packet is sent whole or not at all");
    Ok(())
}
