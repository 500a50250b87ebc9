//! Upstreams for tests: an agent with the quirks of Neutron's, and an HTTP server.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU32,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use ::http::{HeaderName, HeaderValue, Method};
use bytes::Bytes;
use metadata_proxy_common::TenantKind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use uuid::Uuid;

use crate::{
    admission::{BoundPolicy, QueueLimits},
    identity::{GuestAddress, Identity, Tenant},
    rewrite::Outgoing,
};

pub(super) const WIDE: QueueLimits = QueueLimits {
    waiting: 10_000,
    waiting_per_tenant: 10_000,
};

pub(super) fn adaptive() -> BoundPolicy {
    BoundPolicy::Adaptive {
        ceiling: NonZeroU32::new(64).unwrap(),
    }
}

pub(super) fn request(method: Method, target: &str, body: &'static [u8]) -> Outgoing {
    from(1, 1, method, target, body)
}

pub(super) fn from(
    tenant: u32,
    guest: u32,
    method: Method,
    target: &str,
    body: &'static [u8],
) -> Outgoing {
    let tenant = Tenant {
        kind: TenantKind::Router,
        id: Uuid::from_u128(tenant.into()),
    };
    Outgoing {
        identity: Identity::unproved(tenant),
        guest: GuestAddress::from(IpAddr::from(guest.to_be_bytes())),
        method,
        target: target.to_owned(),
        headers: vec![(
            HeaderName::from_static("host"),
            HeaderValue::from_static("169.254.169.254"),
        )],
        body: Bytes::from_static(body),
    }
}

/// What an upstream does about a request.
pub(super) enum Reply {
    /// Writes this and closes.
    Bytes(Vec<u8>),
    /// Closes without a byte.
    Silence,
}

/// An ordinary answer of the agent.
pub(super) fn ok(body: &str) -> Reply {
    Reply::Bytes(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

const A_MINUTE: Duration = Duration::from_mins(1);

/// An agent: a backlog of 5, one read of 4,096 bytes, one request per connection.
pub(super) struct FixtureAgent {
    path: PathBuf,
    /// Closed to stop the threads.
    stop: Option<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    pub(super) seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl FixtureAgent {
    /// Serves `threads` requests at a time, each taking `service`; 0 accepts none.
    pub(super) fn start(
        path: &Path,
        threads: usize,
        service: Duration,
        handler: impl Fn(&[u8]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let _ = std::fs::remove_file(path);
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None).unwrap();
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(5).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = UnixListener::from(OwnedFd::from(socket));
        let (stopped, stop) = nix::unistd::pipe().unwrap();
        let stopped = Arc::new(stopped);
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let handler = Arc::new(handler);
        let last_breath = Arc::new(Barrier::new(threads.max(1)));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (listener, stopped) = (listener.try_clone().unwrap(), Arc::clone(&stopped));
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                let last_breath = Arc::clone(&last_breath);
                std::thread::spawn(move || {
                    let accepting = (threads > 0).then_some(&listener);
                    let mut unanswered = None;
                    while unanswered.is_none() && !wait(&stopped, accepting, A_MINUTE) {
                        if let Some(Ok((connection, _))) = accepting.map(UnixListener::accept) {
                            unanswered = serve(connection, &stopped, service, &seen, &*handler);
                        }
                    }
                    // A process that dies closes everything at once: no thread's connection may
                    // end while another's listener is still open.
                    drop(listener);
                    last_breath.wait();
                    drop(unanswered);
                })
            })
            .collect();
        drop(listener);
        Self {
            path: path.to_owned(),
            stop: Some(stop),
            threads,
            seen,
        }
    }

    /// Ends as a killed process does: whatever is open is closed, the socket's file stays.
    pub(super) fn kill(mut self) -> Vec<Vec<u8>> {
        self.end();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    pub(super) fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn end(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for FixtureAgent {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Waits for a connection, or `limit`; true if the agent is to end.
fn wait(stopped: &OwnedFd, listener: Option<&UnixListener>, limit: Duration) -> bool {
    let stop = PollFd::new(stopped.as_fd(), PollFlags::POLLIN);
    let mut fds = vec![stop];
    fds.extend(listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
    poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap();
    fds[0].any() == Some(true)
}

/// Serves one request; gives its connection back if the agent is to end before it is answered.
fn serve(
    mut connection: UnixStream,
    stopped: &OwnedFd,
    service: Duration,
    seen: &Mutex<Vec<Vec<u8>>>,
    handler: &dyn Fn(&[u8]) -> Reply,
) -> Option<UnixStream> {
    connection.set_nonblocking(false).unwrap();
    let mut request = [0; 4096];
    let len = connection.read(&mut request).unwrap_or(0);
    if len == 0 {
        return None;
    }
    let request = &request[..len];
    seen.lock().unwrap().push(request.to_vec());
    if service > Duration::ZERO && wait(stopped, None, service) {
        return Some(connection);
    }
    if let Reply::Bytes(bytes) = handler(request) {
        let _ = connection.write_all(&bytes);
    }
    None
}

/// Is told a request, and says what to write and whether to close then.
type Handler = dyn Fn(&[u8]) -> (Vec<u8>, bool) + Send + Sync;

/// An HTTP server that keeps connections.
pub(super) struct FixtureServer {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicU32>,
    /// Connections that the client closed.
    pub(super) closed_by_client: Arc<AtomicU32>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl FixtureServer {
    pub(super) fn start(
        handler: impl Fn(&[u8]) -> (Vec<u8>, bool) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let closed_by_client = Arc::new(AtomicU32::new(0));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let handler = Arc::new(handler);
        let thread = std::thread::spawn({
            let (listener, connections) = (listener.try_clone().unwrap(), Arc::clone(&connections));
            let (open, closed_by_client) = (Arc::clone(&open), Arc::clone(&closed_by_client));
            move || {
                for connection in listener.incoming() {
                    let Ok(connection) = connection else { return };
                    connections.fetch_add(1, SeqCst);
                    open.lock().unwrap().push(connection.try_clone().unwrap());
                    let (handler, closed) = (Arc::clone(&handler), Arc::clone(&closed_by_client));
                    std::thread::spawn(move || converse(connection, &closed, &*handler));
                }
            }
        });
        Self {
            address,
            connections,
            closed_by_client,
            open,
            listener,
            thread: Some(thread),
        }
    }

    /// Closes every connection, as a server does with idle ones.
    pub(super) fn hang_up(&self) {
        for connection in self.open.lock().unwrap().drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for FixtureServer {
    fn drop(&mut self) {
        self.hang_up();
        let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn converse(mut connection: TcpStream, closed_by_client: &AtomicU32, handler: &Handler) {
    let mut inbox = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let complete = |inbox: &[u8]| {
            let end = inbox.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
            let head = String::from_utf8_lossy(&inbox[..end]).to_lowercase();
            let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
                rest.split("\r\n").next().unwrap().parse::<usize>().unwrap()
            });
            (inbox.len() >= end + length).then_some(end + length)
        };
        while complete(&inbox).is_none() {
            match connection.read(&mut buffer) {
                Ok(0) => {
                    closed_by_client.fetch_add(1, SeqCst);
                    return;
                }
                Ok(len) => inbox.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        let len = complete(&inbox).unwrap();
        let (bytes, close) = handler(&inbox[..len]);
        inbox.drain(..len);
        if connection.write_all(&bytes).is_err() || close {
            let _ = connection.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// Waits until something is so; fails after ten seconds.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(
            std::time::Instant::now() < deadline,
            "not within 10 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
