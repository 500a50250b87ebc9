//! Listening sockets inside tenant namespaces, and what an accepted connection says of itself.
//!
//! A listener is bound to the wildcard on the port that Neutron's `REDIRECT` rule names, so that it
//! serves whether or not that rule is there. What reaches it in any other way than by steering is
//! refused by [`Caller::dialled_metadata`].

use std::{
    fs,
    future::poll_fn,
    io,
    mem::{MaybeUninit, offset_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6};
use nix::sys::utsname::uname;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, SockRef, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::coop,
};

use crate::{
    kernel::{KernelRelease, NetnsCookie},
    netns,
};

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How answers are kept from crowding the network: not by a timer for each burst of segments, as by BBR
/// where that is the system's choice, since a guest is behind a device of this node or on the next one. Every kernel
/// has it.
const CONGESTION_CONTROL: &[u8] = b"reno";
/// `SO_ORIGINAL_DST` (`linux/netfilter_ipv4.h`), and `IP6T_SO_ORIGINAL_DST`, which is the same.
const SO_ORIGINAL_DST: i32 = 80;

/// Whether this kernel has IPv6 at all.
#[must_use]
pub fn kernel_has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok()
}

/// Binds the listener of the namespace the calling thread is in: one dual-stack socket, or an IPv4
/// one on a kernel without IPv6.
///
/// # Errors
/// What the system says; `EADDRINUSE` when somebody else listens there without `SO_REUSEPORT`.
pub fn bind(port: u16) -> io::Result<TcpListener> {
    let any: IpAddr = if kernel_has_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    bind_at(SocketAddr::new(any, port))
}

/// Binds one more address in the namespace the calling thread is in.
///
/// # Errors
/// What the system says.
pub fn bind_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let SocketAddr::V6(v6) = &address {
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    // haproxy sets it too: both can be bound while a node is migrated from one to the other.
    socket.set_reuse_port(true)?;
    be_transparent(&socket)?;
    // Accepted sockets inherit it: answers are written whole.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    // Accepted sockets inherit this too, if it is said of a socket that listens: a request is
    // acknowledged by its answer, unless that takes the kernel's 40 ms. Without this the first one of
    // each connection is acknowledged by a packet of its own. haproxy does so too (`tcp-smart-accept`).
    socket.set_tcp_quickack(false)?;
    // And this.
    socket.set_tcp_congestion(CONGESTION_CONTROL)?;
    if !shared_sockets_can_be_assigned() {
        socket.set_reuse_port(false)?;
    }
    Ok(socket.into())
}

/// Has a listener, and what is accepted from it, hear only what comes in by these devices: to
/// everybody else nothing answers there.
///
/// # Errors
/// What the system says.
#[expect(
    clippy::cast_possible_truncation,
    reason = "codes have sixteen bits, their constants more"
)]
pub fn hear_only(listener: &impl AsFd, devices: impl Iterator<Item = u32>) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const DEVICE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    let step = |code, if_not, k| SockFilter::new(code, 0, if_not, k);
    let mut filter = vec![step(LOAD, 0, DEVICE)];
    for device in devices {
        filter.extend([step(IF_EQUAL, 1, device), step(RETURN, 0, u32::MAX)]);
    }
    filter.push(step(RETURN, 0, 0));
    SockRef::from(listener).attach_filter(&filter)
}

/// Before Linux 6.6 `bpf_sk_assign` refuses a socket that has `SO_REUSEPORT` (`ESOCKTNOSUPPORT`,
/// net/core/filter.c), so there the listener gives it up once it is bound: a haproxy that is bound
/// already stays, one that comes later cannot bind.
fn shared_sockets_can_be_assigned() -> bool {
    uname().is_ok_and(|uname| {
        let release = uname.release().to_string_lossy().parse::<KernelRelease>();
        release.is_ok_and(|release| release.at_least(6, 6))
    })
}

/// Makes an assignment by `steer` outlive NAT.
///
/// Wherever a namespace has a NAT rule for incoming or outgoing packets, as every router of Neutron
/// has, the kernel takes the assigned listener for an early lookup gone wrong, since it has no peer
/// whose port could be compared, and drops the assignment: the SYN is answered with a reset. It
/// spares transparent sockets (`nf_nat_ipv4_local_in` in `net/netfilter/nf_nat_proto.c`, Linux 5.14).
fn be_transparent(socket: &Socket) -> io::Result<()> {
    // One flag for both families, which IPv6 sockets take at this level too.
    match socket.set_ip_transparent_v4(true) {
        // Takes CAP_NET_ADMIN, as everything else in a tenant namespace does; without it nothing is
        // steered here.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Whether what a closing listener has not accepted goes to another one on its port (Linux 5.14).
const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Says whether a listener that closes, in the namespace the calling thread is in, leaves what it has
/// not accepted to another one on its port: haproxy's, where a node goes back to it. Returns what
/// was said before.
///
/// # Errors
/// What the system says: the kernel may be too old, or may not be told from within a container.
pub fn set_handing_over(handing_over: bool) -> io::Result<bool> {
    let was = fs::read(MIGRATE)?.starts_with(b"1");
    if was != handing_over {
        fs::write(MIGRATE, if handing_over { "1" } else { "0" })?;
    }
    Ok(was)
}

/// Reads the cookie of the namespace the calling thread is in.
///
/// # Errors
/// What the system says; kernels before 5.14 do not know cookies.
pub fn netns_cookie() -> io::Result<NetnsCookie> {
    netns::cookie_of(Socket::new(
        Domain::IPV4,
        Type::STREAM,
        Some(Protocol::TCP),
    )?)
}

/// A listener that is watched by the runtime of one thread. What it accepts is not, until it has to
/// be waited for.
pub struct Acceptor {
    watched: AsyncFd<mio::net::TcpListener>,
    /// Of those that waited when the kernel was last asked, how many were not accepted since.
    waiting: AtomicU32,
}

impl Acceptor {
    /// Watches a listener that does not block.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        let listener = mio::net::TcpListener::from_std(listener);
        // SAFETY: the listener owns its descriptor, and is not closed before it is forgotten.
        let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        Ok(Self {
            watched: watched?,
            waiting: AtomicU32::new(0),
        })
    }

    /// Waits for a connection; it does not block.
    ///
    /// Who accepts until nobody waits learns that by an accept(2) that fails, for which the kernel
    /// makes a socket and a file first, and takes them down again. Asking how many wait is cheap.
    ///
    /// # Errors
    /// What the system says.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let mut ready = self.watched.readable().await?;
            // Counted as the runtime counts its own, so that others have their turn.
            let turn = poll_fn(coop::poll_proceed).await;
            let Ok(accepted) = ready.try_io(|watched| accept(watched.get_ref())) else {
                self.waiting.store(0, Ordering::Relaxed);
                continue;
            };
            turn.made_progress();
            if accepted.is_ok() && self.was_last() {
                // Who comes from now on is told to the runtime anew.
                ready.clear_ready();
            }
            return accepted;
        }
    }

    /// Counts one that was accepted, and says if nobody waits any more. The kernel is asked again
    /// only when all that it spoke of are accepted.
    fn was_last(&self) -> bool {
        let known = self.waiting.load(Ordering::Relaxed).saturating_sub(1);
        let waiting = if known == 0 { self.backlog() } else { known };
        self.waiting.store(waiting, Ordering::Relaxed);
        waiting == 0
    }

    /// Accepts a connection that waits already, whether or not the runtime has heard of it.
    ///
    /// # Errors
    /// What the system says; `EAGAIN` if none waits.
    pub fn accept_waiting(&self) -> io::Result<(TcpStream, SocketAddr)> {
        accept(self.watched.get_ref())
    }

    /// How many connections wait to be accepted: what `TCP_INFO` of a listener says in place of
    /// unacknowledged segments (`tcp_get_info`).
    fn backlog(&self) -> u32 {
        const AT: usize = offset_of!(libc::tcp_info, tcpi_unacked) / size_of::<u32>();
        // No more of it than that: what a kernel has added since makes no difference.
        let mut info = [0_u32; AT + 1];
        let Ok(mut len) = libc::socklen_t::try_from(size_of_val(&info)) else {
            return 1;
        };
        // SAFETY: the buffer has `len` bytes.
        let result = unsafe {
            libc::getsockopt(
                self.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        // Where it is not told, the next accept(2) finds out.
        if result == 0 { info[AT] } else { 1 }
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.get_ref().as_fd()
    }
}

fn accept(listener: &mio::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept()?;
    Ok((stream.into(), peer))
}

/// What the kernel says of an accepted connection; nothing here comes from the guest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The other end.
    pub peer: SocketAddr,
    /// Our end, as the connection was accepted.
    pub local: SocketAddr,
    /// What the guest dialled, where a `REDIRECT` rule changed it.
    pub original: Option<SocketAddr>,
    /// The namespace the connection was accepted in.
    pub netns: NetnsCookie,
}

impl Caller {
    /// Asks the kernel about an accepted connection.
    ///
    /// # Errors
    /// What the system says: without these answers a connection cannot be served.
    pub fn of(stream: &impl AsFd, peer: SocketAddr, local: SocketAddr) -> io::Result<Self> {
        let peer = canonical(peer);
        let local = canonical(local);
        let netns = netns::cookie_of(stream)?;
        // Asked only where it matters: on the metadata port the local address is what was dialled.
        let original = if is_metadata(local) {
            None
        } else {
            original_destination(stream, local)
        };
        Ok(Self {
            peer,
            local,
            original,
            netns,
        })
    }

    /// Whether the connection was brought here by steering: the metadata address was dialled, where
    /// a listener of ours hears only devices that are steered, or a process of the namespace was sent
    /// here over loopback by the connect hooks.
    #[must_use]
    pub fn dialled_metadata(&self) -> bool {
        is_metadata(self.local)
            || self.original.is_some_and(is_metadata)
            || (self.local.ip().is_loopback() && self.peer.ip().is_loopback())
    }
}

/// Lets the guest use its port again at once, although this end closes first and its connection
/// lingers in `TIME_WAIT`. To be called before closing: from then on what is sent goes out by the
/// device that the connection came in by.
///
/// Since Linux 6.10 a listener that a SYN was assigned to drops it without a word while there is a
/// socket of the same addresses and ports (`reqsk_queue_hash_req`); only an ordinary look-up takes
/// one in `TIME_WAIT` out of the way. One that is bound to its device is not the same: what belongs
/// to it still reaches it, and a new connection, which is bound to none, does not meet it.
pub fn free_port(stream: &impl AsFd) {
    let fd = stream.as_fd().as_raw_fd();
    let mut device: libc::c_int = 0;
    let Ok(mut len) = libc::socklen_t::try_from(size_of::<libc::c_int>()) else {
        return;
    };
    // On an accepted socket it tells the device that the connection came in by
    // (`tcp_v6_syn_recv_sock`, for IPv4 too).
    // SAFETY: the buffer is one int and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_IPV6,
            libc::IPV6_MULTICAST_IF,
            (&raw mut device).cast(),
            &raw mut len,
        )
    };
    if result != 0 || device == 0 {
        return;
    }
    // Where this fails, the guest has to choose another port for a minute, as with other servers.
    // SAFETY: the buffer is one int and `len` says so.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const device).cast(),
            len,
        )
    };
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_metadata(address: SocketAddr) -> bool {
    address.port() == METADATA_PORT
        && match address.ip() {
            IpAddr::V4(v4) => v4.octets() == METADATA_V4,
            IpAddr::V6(v6) => v6.octets() == METADATA_V6,
        }
}

/// What was dialled before a `REDIRECT` rule changed it; `None` where no rule did.
fn original_destination(stream: &impl AsFd, local: SocketAddr) -> Option<SocketAddr> {
    let level = if local.is_ipv4() {
        libc::SOL_IP
    } else {
        libc::SOL_IPV6
    };
    let mut storage = MaybeUninit::<SockAddrStorage>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<SockAddrStorage>()).ok()?;
    // SAFETY: the buffer is as large as any socket address and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            level,
            SO_ORIGINAL_DST,
            storage.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: zeroed at first, then filled by the kernel with an address of length `len`.
    let address = unsafe { SockAddr::new(storage.assume_init(), len) };
    address.as_socket().map(canonical)
}

#[cfg(test)]
mod tests;
