//! Accepts connections of one listener, proves each, and reads its requests.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{Node, Open, guest_io::GuestIo, leaving::Watched, request};
use crate::{
    admission::ConnectionToken,
    identity::{GuestAddress, Identity, Refused},
    listener::{Acceptor, Caller},
    netns, socket,
    tenants::Service,
};

/// Pause after the system could not give us a socket, so that others can give theirs back.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// How long a listener stays open when nothing is steered to it any more: handshakes that have begun
/// are over by then, unless a segment was lost.
const HANDSHAKES: Duration = Duration::from_millis(250);
/// How long a guest that has nothing under way keeps its connection when the process ends: its next
/// request may be on the way, and would meet a closed connection.
const FAREWELL: Duration = Duration::from_millis(500);
/// hyper's smallest buffer for a request head, bytes.
const MIN_HEAD_BYTES: usize = 8192;

/// What a guest is told whose request did not come in time: hyper says nothing.
const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
    Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-cache\r\nConnection: close\r\n\
    Content-Length: 37\r\n\r\n408 the request did not come in time\n";

/// A guest whose connection was proved and admitted.
pub(super) struct Guest {
    pub(super) identity: Identity,
    pub(super) address: GuestAddress,
    pub(super) service: Arc<Service>,
    pub(super) node: Arc<Node>,
    pub(super) admitted: ConnectionToken,
    pub(super) socket: Watched,
    /// Cancelled when the connection may have to end before it is through: whoever waits looks for
    /// himself then. One thing to wait for instead of three, and none that other workers' connections
    /// wait for.
    pub(super) alarm: CancellationToken,
    /// Whether the answer being written is whole, and the last of the connection.
    pub(super) is_last: AtomicBool,
    /// Whether the guest has sent a head with a `Content-Length` and a `Transfer-Encoding`.
    pub(super) has_both_lengths: AtomicBool,
}

/// How a connection ends when the process does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It goes on.
    NotYet,
    /// The next answer says that it is the last.
    WithNextAnswer,
    /// What is under way is finished.
    Now,
}

/// Accepts connections until the tenant is gone or the process stops.
pub async fn accept(listener: Arc<Acceptor>, service: Arc<Service>, node: Arc<Node>) {
    // Held until the last connection is accepted, so that the process waits for those too.
    let _open = Open::new(&node);
    let alarm = service.gone.child_token();
    let raises_alarm = alarm.clone().drop_guard();
    let goes_on = async {
        tokio::select! {
            biased;
            () = service.gone.cancelled() => false,
            // A successor has the socket too: whoever waits in it is accepted there.
            () = node.ends.leaving.cancelled() => false,
            () = node.ends.stopping.cancelled() => true,
        }
    };
    tokio::pin!(goes_on);
    loop {
        // Who waits is accepted first, and the runtime sees to it that the others have their turn: then
        // nothing is asked of the others for each connection.
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => start(stream, peer, &alarm, &service, &node),
                // It does not listen any more: somebody has destroyed the socket (`ss --kill`).
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    service.lose_listener();
                    return;
                }
                Err(error) => pause_if_exhausted(&error, &node).await,
            },
            goes_on = &mut goes_on => {
                if goes_on {
                    break;
                }
                return;
            }
        }
    }
    drop(raises_alarm);
    // Nothing is steered here any more, but some guests are about to be connected.
    let handshakes = tokio::time::sleep(HANDSHAKES);
    tokio::pin!(handshakes);
    loop {
        tokio::select! {
            biased;
            () = service.gone.cancelled() => return,
            () = node.ends.aborting.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => start(stream, peer, &alarm, &service, &node),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                Err(error) => pause_if_exhausted(&error, &node).await,
            },
            () = &mut handshakes => break,
        }
    }
    accept_backlog(&listener, &alarm, &service, &node);
}

/// Accepts who has been told that it is connected. Asks the kernel itself: the runtime may not have
/// heard of the last ones yet, and what is left when the listener closes is reset.
fn accept_backlog(
    listener: &Acceptor,
    alarm: &CancellationToken,
    service: &Arc<Service>,
    node: &Arc<Node>,
) {
    while let Ok((stream, peer)) = listener.accept_waiting() {
        start(stream, peer, alarm, service, node);
    }
}

/// A guest that is gone already is no trouble; a lack of descriptors or memory is.
async fn pause_if_exhausted(error: &io::Error, node: &Node) {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    if error
        .raw_os_error()
        .is_some_and(|errno| exhausted.contains(&errno))
    {
        if node.metrics.accept_failed() {
            error!(%error, "cannot accept connections: raise the limit of open files (LimitNOFILE)");
        }
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    } else {
        debug!(%error, "a guest left before it was accepted");
    }
}

fn start(
    stream: TcpStream,
    peer: SocketAddr,
    alarm: &CancellationToken,
    service: &Arc<Service>,
    node: &Arc<Node>,
) {
    if let Some(probe) = node.probes.claim(service.cookie, peer) {
        // Ours, and no guest's: it is proved like one, and ends here.
        let proof = netns::cookie_of(&stream)
            .map_err(|error| Refused::Unknown(error.to_string()))
            .and_then(|netns| {
                Identity::rehearse(netns, (service.tenant, service.cookie), &*node.kernel)
            });
        return probe.answer(proof);
    }
    service.counters.connections.fetch_add(1, Ordering::Relaxed);
    match prove(&stream, peer, service, node) {
        Ok(identity) => {
            let address = GuestAddress::of_peer(peer);
            let own_cap = service.settings.load().max_connections;
            let admitted = match node.limits.connect(service.tenant, address, own_cap) {
                Ok(admitted) => admitted,
                Err(refusal) => {
                    service.counters.refused.fetch_add(1, Ordering::Relaxed);
                    node.metrics.refused(refusal.label());
                    debug!(tenant = %service.tenant, guest = %address, %refusal,
                        "connection refused");
                    return turn_away(&stream);
                }
            };
            let guest = Guest {
                identity,
                address,
                service: Arc::clone(service),
                node: Arc::clone(node),
                admitted,
                socket: Watched::new(&stream),
                alarm: alarm.clone(),
                is_last: AtomicBool::new(false),
                has_both_lengths: AtomicBool::new(false),
            };
            let open = Open::new(node);
            // Boxed, because the runtime moves what it is given, and a connection is two kilobytes.
            tokio::spawn(Box::pin(async move {
                serve(stream, guest).await;
                drop(open);
            }));
        }
        Err(refused) => {
            service.counters.refused.fetch_add(1, Ordering::Relaxed);
            node.metrics.refused(refused.label());
            warn!(tenant = %service.tenant, %peer, %refused, "connection refused");
            turn_away(&stream);
            if refused.is_of_the_map() {
                service.call();
            }
        }
    }
}

/// Has a connection that is not served end with a reset: a farewell would have to be acknowledged. Where
/// the tenant is going, its guests are steered here no more, and nobody would hear that; the kernel
/// would say farewell again and again, for a minute and a half, and keep the namespace for it.
fn turn_away(stream: &TcpStream) {
    socket::reset_on_close(stream);
}

/// Step one: who is it?
fn prove(
    stream: &TcpStream,
    peer: SocketAddr,
    service: &Service,
    node: &Node,
) -> Result<Identity, Refused> {
    let unknown = |error: io::Error| Refused::Unknown(error.to_string());
    let local = stream.local_addr().map_err(unknown)?;
    let caller = Caller::of(stream, peer, local).map_err(unknown)?;
    Identity::prove(&caller, (service.tenant, service.cookie), &*node.kernel)
}

/// Reads requests and writes answers until either side ends it.
async fn serve(stream: TcpStream, guest: Guest) {
    let service = Arc::clone(&guest.service);
    let node = Arc::clone(&guest.node);
    service.counters.open.fetch_add(1, Ordering::Relaxed);
    let settings = service.settings.load();
    // At most 100 headers, hyper's default, which needs no allocation; haproxy takes 101. Answers are
    // flushed one by one: hyper would hold back its own 400 while there is more to read.
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // Covers the wait for the next request as well, which Neutron gives the same time.
        .header_read_timeout(settings.timeouts.request_head)
        .max_buf_size(settings.head_bytes.max(MIN_HEAD_BYTES))
        // Who leaves while its request waits is noticed by that request.
        .half_close(true)
        // As everybody writes them; some guests' parsers were never tried with anything else.
        .title_case_headers(true);
    let io = TokioIo::new(GuestIo::new(
        stream,
        settings.timeouts.client,
        &guest.is_last,
        &guest.has_both_lengths,
        &node.ends.stopping,
        &service.farewells,
    ));
    drop(settings);
    let guest = &guest;
    let has_asked = AtomicBool::new(false);
    let answer = service_fn(|request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request::answer(guest, request)
    });
    let mut connection = http.serve_connection(io, answer);
    let mut ending = Ending::NotYet;
    let mut is_alarmed = false;
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut connection => break Some(ended),
            () = guest.alarm.cancelled(), if !is_alarmed => is_alarmed = true,
            () = service.gone.cancelled(), if is_alarmed => break None,
            () = node.ends.aborting.cancelled(), if is_alarmed => break None,
            () = node.ends.stopping.cancelled(), if is_alarmed && ending == Ending::NotYet => {
                ending = Ending::WithNextAnswer;
            }
            // Made when it is polled: most connections never ask for the time.
            () = async { tokio::time::sleep(FAREWELL).await }, if ending == Ending::WithNextAnswer => {
                ending = Ending::Now;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            node.metrics.connection_failed(&error);
            debug!(tenant = %service.tenant, guest = %guest.address, %error,
                "connection ended early");
            if error.is_timeout() {
                let rest = connection.into_parts();
                // Who has had an answer and asks no more is told nothing, as by haproxy.
                if !has_asked.load(Ordering::Relaxed) || !rest.read_buf.is_empty() {
                    rest.io.into_inner().write_late(REQUEST_TIMEOUT);
                }
            }
        }
        None => connection.into_parts().io.into_inner().reset(),
    }
    service.counters.open.fetch_sub(1, Ordering::Relaxed);
}
