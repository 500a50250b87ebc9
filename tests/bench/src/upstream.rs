//! The upstream that every proxy asks: answers at once, on a unix socket with a connection for each
//! request, as Neutron's agent, and on another and over TCP with connections that are kept.
//!
//! Its backlog is ample: who is measured is the proxy. An answer repeats who was said to have asked,
//! so that the load generator sees whether it got its own.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{MsgFlags, SockFlag, accept4, recv, send},
    },
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::load::find;

/// Threads of each server.
const THREADS: usize = 2;
const BACKLOG: i32 = 4096;
const EVENTS: usize = 256;
/// Marks the listener among the events.
const LISTENER: u64 = u64::MAX;
/// Bytes of an answer's body, if nothing else is said: the size of an instance's `meta_data.json`.
pub(crate) const BODY: usize = 1024;
/// More than anybody's `user_data`.
pub(crate) const LARGEST_BODY: usize = 1024 * 1024;
/// How long a proxy may take to make room for the rest of an answer, milliseconds.
const PATIENCE: u16 = 1000;
/// How often a thread looks whether it is to end, milliseconds.
const TICK: u16 = 100;

/// All servers; they end when this is dropped.
pub(crate) struct Upstream {
    socket: PathBuf,
    http_socket: PathBuf,
    address: SocketAddr,
    servers: Vec<Server>,
}

impl Upstream {
    /// Starts all; their answers have a body of so many bytes.
    pub(crate) fn start(directory: &Path, body: usize) -> Result<Self> {
        let socket = directory.join("metadata_proxy");
        let http_socket = directory.join("http");
        let tcp = TcpListener::bind(("127.0.0.1", 0)).context("cannot bind")?;
        let address = tcp.local_addr().context("no address")?;
        let servers = vec![
            Server::start(listen(&socket)?, Serves::One, body)?,
            Server::start(listen(&http_socket)?, Serves::Many, body)?,
            Server::start(tcp.into(), Serves::Many, body)?,
        ];
        Ok(Self {
            socket,
            http_socket,
            address,
            servers,
        })
    }

    /// Where it is as Neutron's agent.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where it is on a unix socket with connections that are kept.
    pub(crate) fn http_socket(&self) -> &Path {
        &self.http_socket
    }

    /// Where it is over TCP.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.http_socket);
    }
}

fn listen(path: &Path) -> Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).context("no unix socket")?;
    let at = SockAddr::unix(path).context("not a socket's path")?;
    socket
        .bind(&at)
        .with_context(|| format!("cannot bind {}", path.display()))?;
    socket.listen(BACKLOG).context("cannot listen")?;
    Ok(socket.into())
}

/// How many requests a connection carries.
#[derive(Clone, Copy)]
pub(crate) enum Serves {
    /// One, as Neutron's agent does.
    One,
    /// As many as come, unless the client wants no more.
    Many,
}

/// The threads of one server.
pub(crate) struct Server {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves a listening socket, with a body of so many bytes.
    pub(crate) fn start(listener: OwnedFd, serves: Serves, body: usize) -> Result<Self> {
        let listener = Arc::new(listener);
        set_nonblocking(&listener).context("cannot make a listener non-blocking")?;
        let stopped = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS)
            .map(|_| {
                let worker = Worker::new(Arc::clone(&listener), serves, body)?;
                let stopped = Arc::clone(&stopped);
                let serve = move || {
                    if let Err(error) = worker.serve(&stopped) {
                        eprintln!("the upstream failed: {error}");
                    }
                };
                thread::Builder::new()
                    .name("upstream".to_owned())
                    .spawn(serve)
                    .map_err(Into::into)
            })
            .collect::<Result<_>>()?;
        Ok(Self { stopped, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

struct Worker {
    listener: Arc<OwnedFd>,
    serves: Serves,
    body: usize,
    epoll: Epoll,
    connections: Vec<Option<OwnedFd>>,
    free: Vec<usize>,
    answer: Vec<u8>,
}

impl Worker {
    fn new(listener: Arc<OwnedFd>, serves: Serves, body: usize) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        epoll
            .add(&*listener, EpollEvent::new(flags, LISTENER))
            .context("epoll refused")?;
        Ok(Self {
            listener,
            serves,
            body,
            epoll,
            connections: Vec::new(),
            free: Vec::new(),
            answer: Vec::new(),
        })
    }

    fn serve(mut self, stopped: &AtomicBool) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while !stopped.load(Ordering::Relaxed) {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(TICK)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for event in &events[..ready] {
                match usize::try_from(event.data()) {
                    Ok(at) if event.data() != LISTENER => self.answer(at)?,
                    _ => self.accept()?,
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let accepted = match accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            // The other thread was faster, or the client has gone.
            Err(Errno::EAGAIN | Errno::ECONNABORTED) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let at = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, at as u64);
        // Most requests are there with their connection: then the kernel need watch nothing.
        self.connections[at] = Some(accepted);
        self.answer(at)?;
        if let Some(connection) = &self.connections[at] {
            self.epoll.add(connection, event)?;
        }
        Ok(())
    }

    /// Answers what is there; closes what is over.
    fn answer(&mut self, at: usize) -> io::Result<()> {
        let Some(connection) = &self.connections[at] else {
            return Ok(());
        };
        let fd = connection.as_raw_fd();
        let mut request = [0; 4096];
        let is_over = match recv(fd, &mut request, MsgFlags::empty()) {
            Err(Errno::EAGAIN) => false,
            Ok(0) | Err(Errno::ECONNRESET) => true,
            Err(errno) => return Err(errno.into()),
            Ok(length) => {
                let request = &request[..length];
                let closes = matches!(self.serves, Serves::One)
                    || find(request, b"\r\nConnection: close").is_some();
                let tells = closes && matches!(self.serves, Serves::Many);
                write_answer(request, tells, self.body, &mut self.answer);
                // A proxy that has gone is seen at the next read.
                let _ = send_all(connection, &self.answer);
                closes
            }
        };
        if is_over {
            self.connections[at] = None;
            self.free.push(at);
        }
        Ok(())
    }
}

/// What does not fit yet is waited for: the proxy reads it meanwhile.
fn send_all(connection: &OwnedFd, mut rest: &[u8]) -> nix::Result<()> {
    loop {
        match send(connection.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => rest = &rest[sent..],
            Err(Errno::EAGAIN) => {
                let mut room = [PollFd::new(connection.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut room, PATIENCE)? == 0 {
                    return Err(Errno::ETIMEDOUT);
                }
            }
            Err(errno) => return Err(errno),
        }
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// The answer to a request, its body beginning with the tenant's UUID.
///
/// Neutron's agent does not tell that it closes.
fn write_answer(request: &[u8], tells_closing: bool, body: usize, answer: &mut Vec<u8>) {
    const UUID: usize = 36;
    answer.clear();
    answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=UTF-8\r\n");
    if tells_closing {
        answer.extend_from_slice(b"Connection: close\r\n");
    }
    answer.extend_from_slice(format!("Content-Length: {body}\r\n\r\n").as_bytes());
    let end = answer.len() + body;
    if let Some(value) = tag_value(request) {
        answer.extend_from_slice(&value[..UUID.min(value.len())]);
    }
    answer.resize(end, b'.');
}

/// The value of the header that names the router. The two proxies write its name alike.
fn tag_value(request: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"Neutron-Router-ID: ";
    let lower = || find(request, b"neutron-router-id: ");
    let at = find(request, NAME).or_else(lower)? + NAME.len();
    Some(&request[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_the_tag() {
        let mut answer = Vec::new();
        let id = "0".repeat(36);
        let request = format!("GET / HTTP/1.1\r\nX-Neutron-Router-ID: {id}\r\n\r\n");
        write_answer(request.as_bytes(), false, BODY, &mut answer);
        let text = String::from_utf8(answer).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.len(), BODY);
        assert!(body.starts_with(&format!("{id}.")), "{body}");
    }

    /// More than the kernel takes at a time.
    #[test]
    fn a_large_answer_is_sent_whole() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        set_nonblocking(&ours).unwrap();
        let sent = vec![b'.'; LARGEST_BODY];
        let reader = thread::spawn(move || {
            let mut read = Vec::new();
            io::Read::read_to_end(&mut theirs, &mut read).map(|_| read)
        });
        send_all(&ours, &sent).unwrap();
        drop(ours);
        assert_eq!(reader.join().unwrap().unwrap(), sent);
    }
}
