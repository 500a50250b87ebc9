//! Neutron's metadata agent until 2024.2: an ordinary HTTP server (eventlet's) on the same socket.
//!
//! It reads a request however it arrives, keeps connections open, has room for thousands of them,
//! and answers its own failures with 500.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    metadata_agent::{Answer, Request},
    wait::wait_until,
};

/// Neutron's option `metadata_backlog`.
const BACKLOG: i32 = 4096;
/// eventlet's longest request line, and its longest head, bytes.
const LONGEST_LINE: usize = 8192;
const LONGEST_HEAD: usize = 32768;

type Respond = dyn Fn(&Request) -> Answer + Send + Sync;

/// A running agent; when dropped, it has stopped and its socket is gone.
pub struct HttpAgent {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    path: PathBuf,
}

struct Shared {
    listener: Socket,
    stopped: AtomicBool,
    open: Mutex<HashMap<u64, UnixStream>>,
    served: Mutex<Vec<JoinHandle<()>>>,
    connections: AtomicU64,
    requests: Mutex<Vec<Request>>,
    count: AtomicU64,
    records: bool,
    respond: Box<Respond>,
}

impl HttpAgent {
    /// Listens on a unix socket at this path and answers so. With `records`, it keeps what was
    /// asked; under load that is too much.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn start(
        path: &Path,
        records: bool,
        respond: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).context("no unix socket")?;
        let address = SockAddr::unix(path).context("not a socket's path")?;
        listener
            .bind(&address)
            .with_context(|| format!("cannot bind {}", path.display()))?;
        listener.listen(BACKLOG).context("cannot listen")?;
        let shared = Arc::new(Shared {
            listener,
            stopped: AtomicBool::new(false),
            open: Mutex::default(),
            served: Mutex::default(),
            connections: AtomicU64::new(0),
            requests: Mutex::default(),
            count: AtomicU64::new(0),
            records,
            respond: Box::new(respond),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("http-agent".to_owned())
                .spawn(move || shared.accept())
                .context("cannot start a thread")?
        };
        Ok(Self {
            shared,
            accepting: Some(accepting),
            path: path.to_owned(),
        })
    }

    /// Path of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// What has been asked until now, if it records.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Forgets what has been asked.
    pub fn forget(&self) {
        lock(&self.shared.requests).clear();
    }

    /// How many requests it has answered, and over how many connections.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let shared = &self.shared;
        (
            shared.count.load(Ordering::Relaxed),
            shared.connections.load(Ordering::Relaxed),
        )
    }
}

impl Drop for HttpAgent {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Ends the accept(2) that waits, and every read.
        let _ = self.shared.listener.shutdown(std::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in lock(&self.shared.open).values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let ended = wait_until("the end of the agent", Duration::from_mins(1), || {
            lock(&self.shared.served)
                .iter()
                .all(JoinHandle::is_finished)
        });
        if let Err(error) = ended {
            eprintln!("{error}");
        }
        let _ = fs::remove_file(&self.path);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>) {
        while let Ok((accepted, _)) = self.listener.accept() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let stream = UnixStream::from(OwnedFd::from(accepted));
            let Ok(copy) = stream.try_clone() else {
                continue;
            };
            let number = self.connections.fetch_add(1, Ordering::Relaxed);
            lock(&self.open).insert(number, copy);
            let shared = Arc::clone(self);
            let serving = thread::spawn(move || {
                // A client that went away is its own affair.
                let _ = shared.serve(stream);
                lock(&shared.open).remove(&number);
            });
            let mut served = lock(&self.served);
            served.retain(|thread| !thread.is_finished());
            served.push(serving);
        }
    }

    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut inbox = Vec::new();
        loop {
            let (mut request, length) = match read_head(&mut stream, &mut inbox)? {
                Head::Whole(request, length) => (request, length),
                Head::TooLong => {
                    let page = Answer::OwnPage {
                        status: 400,
                        title: "Headers Too Large",
                    };
                    return stream.write_all(&encode(&page, "GET", false));
                }
                Head::Ended => return Ok(()),
            };
            inbox.drain(..length);
            request.body = read_body(&mut stream, &mut inbox, &request)?;
            let closes = request.version != "HTTP/1.1"
                || request
                    .header("connection")
                    .is_some_and(|value| value.eq_ignore_ascii_case("close"));
            let answer = (self.respond)(&request);
            self.count.fetch_add(1, Ordering::Relaxed);
            if self.records {
                lock(&self.requests).push(request.clone());
            }
            if matches!(answer, Answer::Raw(_) | Answer::Pieces { .. }) {
                return answer.write(&request, &mut stream);
            }
            stream.write_all(&encode(&answer, &request.method, !closes))?;
            if closes {
                return Ok(());
            }
        }
    }
}

enum Head {
    Whole(Request, usize),
    TooLong,
    Ended,
}

fn read_head(stream: &mut UnixStream, inbox: &mut Vec<u8>) -> io::Result<Head> {
    loop {
        if let Some(end) = inbox.windows(4).position(|window| window == b"\r\n\r\n") {
            let parsed = Request::parse(&inbox[..end + 4]);
            return Ok(parsed.map_or(Head::Ended, |request| Head::Whole(request, end + 4)));
        }
        let line = inbox
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(inbox.len());
        if line > LONGEST_LINE || inbox.len() > LONGEST_HEAD {
            return Ok(Head::TooLong);
        }
        if !read_more(stream, inbox)? {
            return Ok(Head::Ended);
        }
    }
}

fn read_body(
    stream: &mut UnixStream,
    inbox: &mut Vec<u8>,
    request: &Request,
) -> io::Result<Vec<u8>> {
    let is_chunked = request.header("transfer-encoding").is_some();
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let is_asked = request
        .header("expect")
        .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
    if is_asked && (is_chunked || length > 0) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if is_chunked {
        return read_chunks(stream, inbox);
    }
    while inbox.len() < length {
        if !read_more(stream, inbox)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(inbox.drain(..length).collect())
}

fn read_chunks(stream: &mut UnixStream, inbox: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = loop {
            if let Some(end) = inbox.windows(2).position(|window| window == b"\r\n") {
                break inbox.drain(..end + 2).collect::<Vec<_>>();
            }
            if !read_more(stream, inbox)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let text = String::from_utf8_lossy(&line);
        let digits = text.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        while inbox.len() < size + 2 {
            if !read_more(stream, inbox)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        body.extend(inbox.drain(..size + 2).take(size));
        if size == 0 {
            return Ok(body);
        }
    }
}

fn read_more(stream: &mut UnixStream, inbox: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let length = stream.read(&mut buffer)?;
    inbox.extend_from_slice(&buffer[..length]);
    Ok(length > 0)
}

/// The bytes on the wire.
fn encode(answer: &Answer, method: &str, keeps: bool) -> Vec<u8> {
    let (status, title, body) = match answer {
        Answer::Nova { status, body } => {
            (*status, crate::metadata_agent::reason(*status), &body[..])
        }
        Answer::OwnPage { status, title } => (*status, *title, title.as_bytes()),
        // What an exception in the application becomes; the others are written as they are.
        Answer::Silence | Answer::Raw(_) | Answer::Pieces { .. } => {
            (500, "Internal Server Error", &b""[..])
        }
    };
    let connection = if keeps { "" } else { "Connection: close\r\n" };
    let mut bytes = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: text/plain; charset=UTF-8\r\n\
         Content-Length: {}\r\n{connection}Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n",
        body.len(),
    )
    .into_bytes();
    if method != "HEAD" {
        bytes.extend_from_slice(body);
    }
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_carries_many_requests_however_they_arrive() {
        let directory = tempfile::tempdir().unwrap();
        let agent = HttpAgent::start(&directory.path().join("socket"), true, |request| {
            Answer::ok(request.body.clone())
        })
        .unwrap();
        let mut stream = UnixStream::connect(agent.socket()).unwrap();
        let two = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
                    POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                    2\r\nde\r\n0\r\n\r\n";
        for byte in two {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
        assert!(
            answer.contains("\r\n\r\nabcHTTP") && answer.ends_with("\r\n\r\nde"),
            "{answer}"
        );
        assert_eq!(agent.totals(), (2, 1));
        assert_eq!(agent.requests()[1].target, "/b");
    }

    #[test]
    fn dropped_it_is_gone_whoever_is_connected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let agent = HttpAgent::start(&path, false, |_| Answer::ok("x")).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        drop(agent);
        assert!(!path.exists());
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}
