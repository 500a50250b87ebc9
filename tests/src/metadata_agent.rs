//! Neutron's metadata agent as it behaves on its unix socket, quirks included.
//!
//! The quirks are those measured with the real class: one `recv(4096)` per connection, a backlog of
//! five, one request per connection, error pages with bare line feeds, silent closes.

mod answer;

use std::{
    fs,
    io::{self, Read as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, SockAddr, Socket, Type};

pub use self::answer::Answer;
pub(crate) use self::answer::reason;
use crate::wait::wait_until;

/// All that the agent ever reads of a connection.
const ONE_READ: usize = 4096;

/// The listen backlog of Python's `socketserver`.
const BACKLOG: i32 = 5;

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `HTTP/1.0` or `HTTP/1.1`.
    pub version: String,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, as much of it as arrived in the one read.
    pub body: Vec<u8>,
}

impl Request {
    /// The first value of a header, named in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(its, _)| its == name)
            .map(|(_, value)| value.as_str())
    }

    /// Parses what one read brought; `None` when the head is not complete.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ').map(str::to_owned);
        Some(Self {
            method: words.next()?,
            target: words.next()?,
            version: words.next()?,
            headers: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
            body: bytes[end + 4..].to_vec(),
        })
    }
}

type Respond = dyn Fn(&Request) -> Answer + Send + Sync;

/// How the agent is to behave.
pub struct Builder {
    workers: usize,
    delay: Duration,
    records: bool,
    respond: Box<Respond>,
}

impl Builder {
    /// Serves this many connections at once: 1 is the OVN agent, 8 an ML2/OVS agent.
    #[must_use]
    pub const fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Takes this long over every answer.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Keeps no record of what is asked.
    #[must_use]
    pub const fn forgetful(mut self) -> Self {
        self.records = false;
        self
    }

    /// Answers so, instead of telling who was said to have asked.
    #[must_use]
    pub fn respond(mut self, respond: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        self.respond = Box::new(respond);
        self
    }

    /// Listens on a unix socket at this path.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn start(self, path: &Path) -> Result<MetadataAgent> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).context("no unix socket")?;
        let address = SockAddr::unix(path).context("not a socket's path")?;
        socket
            .bind(&address)
            .with_context(|| format!("cannot bind {}", path.display()))?;
        socket.listen(BACKLOG).context("cannot listen")?;
        let shared = Arc::new(Shared {
            socket,
            stopped: AtomicBool::new(false),
            requests: Mutex::default(),
            delay: self.delay,
            records: self.records,
            respond: self.respond,
        });
        let threads = (0..self.workers)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name("metadata-agent".to_owned())
                    .spawn(move || shared.serve())
                    .context("cannot start a thread")
            })
            .collect::<Result<_>>()?;
        Ok(MetadataAgent {
            shared,
            threads,
            path: path.to_owned(),
        })
    }
}

struct Shared {
    socket: Socket,
    stopped: AtomicBool,
    requests: Mutex<Vec<Request>>,
    delay: Duration,
    records: bool,
    respond: Box<Respond>,
}

impl Shared {
    fn serve(&self) {
        while let Ok((accepted, _)) = self.socket.accept() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(accepted));
            if let Err(error) = self.serve_one(&mut stream) {
                // A client that went away is its own affair, as in the real agent.
                eprintln!("metadata agent: {error}");
            }
        }
    }

    fn serve_one(&self, stream: &mut UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut buffer = [0; ONE_READ];
        let length = stream.read(&mut buffer)?;
        let Some(request) = Request::parse(&buffer[..length]) else {
            return Ok(());
        };
        thread::sleep(self.delay);
        let answer = (self.respond)(&request);
        if self.records {
            self.requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(request.clone());
        }
        answer.write(&request, stream)
    }
}

/// A running metadata agent; when dropped, it has stopped and its socket is gone.
pub struct MetadataAgent {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    path: PathBuf,
}

impl MetadataAgent {
    /// Begins an agent of one worker that answers at once and tells who was said to have asked:
    /// `<tag name>=<id> from=<X-Forwarded-For>`.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            workers: 1,
            delay: Duration::ZERO,
            records: true,
            respond: Box::new(who_asked),
        }
    }

    /// Path of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// What has been asked until now.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forgets what has been asked.
    pub fn forget(&self) {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl Drop for MetadataAgent {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Ends every accept(2) that waits, and all later ones.
        let _ = self.shared.socket.shutdown(std::net::Shutdown::Both);
        let ended = wait_until(
            "the end of the metadata agent",
            Duration::from_mins(1),
            || self.threads.iter().all(JoinHandle::is_finished),
        );
        if let Err(error) = ended {
            eprintln!("{error}");
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// The answer by default: who was said to have asked.
#[must_use]
pub fn who_asked(request: &Request) -> Answer {
    let tags: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| {
            [
                "x-neutron-router-id",
                "x-neutron-network-id",
                "x-ovn-network-id",
            ]
            .contains(&name.as_str())
        })
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let from = request.header("x-forwarded-for").unwrap_or("nobody");
    match &*tags {
        [tag] => Answer::ok(format!("{tag} from={from}")),
        _ => Answer::OwnPage {
            status: 400,
            title: "Bad Request",
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsRawFd as _};

    use super::*;

    /// Writes one thing after the other, each when the one before has been read.
    fn ask(agent: &MetadataAgent, writes: &[&[u8]]) -> String {
        let mut stream = UnixStream::connect(agent.socket()).unwrap();
        for bytes in writes {
            // The agent may have closed after its one read: that is what some tests are about.
            let _ = stream.write_all(bytes);
            wait_until("a read", Duration::from_secs(5), || unread(&stream) == 0).unwrap();
        }
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// How much of what was written the other side has not read.
    fn unread(stream: &UnixStream) -> i32 {
        let mut bytes = 0;
        // SAFETY: the descriptor is open, and this request writes one int to where it is told.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        // An error: the other side has closed, and will read nothing more.
        if result == 0 { bytes } else { 0 }
    }

    fn agent() -> (tempfile::TempDir, MetadataAgent) {
        let directory = tempfile::tempdir().unwrap();
        let agent = MetadataAgent::builder()
            .start(&directory.path().join("socket"))
            .unwrap();
        (directory, agent)
    }

    const HEAD: &[u8] =
        b"POST / HTTP/1.1\r\nX-OVN-Network-ID: n\r\nX-Forwarded-For: 10.0.0.5\r\n\r\n";

    #[test]
    fn one_request_is_answered_and_recorded() {
        let (_directory, agent) = agent();
        let answer = ask(&agent, &[HEAD]);
        assert!(
            answer.ends_with("\r\n\r\nx-ovn-network-id=n from=10.0.0.5"),
            "{answer}"
        );
        assert_eq!(
            agent.requests()[0].header("x-forwarded-for"),
            Some("10.0.0.5")
        );
    }

    #[test]
    fn a_head_in_two_writes_gets_no_answer() {
        let (_directory, agent) = agent();
        assert_eq!(ask(&agent, &[&HEAD[..20], &HEAD[20..]]), "");
        assert_eq!(agent.requests(), []);
    }

    #[test]
    fn a_body_in_a_second_write_is_lost() {
        let (_directory, agent) = agent();
        ask(&agent, &[HEAD, b"body"]);
        assert_eq!(agent.requests()[0].body, b"");
    }

    #[test]
    fn what_lies_beyond_one_read_does_not_exist() {
        let (_directory, agent) = agent();
        let mut bytes = HEAD.to_vec();
        bytes.resize(ONE_READ + 100, b'x');
        ask(&agent, &[&bytes]);
        assert_eq!(agent.requests()[0].body.len(), ONE_READ - HEAD.len());
    }

    #[test]
    fn a_full_backlog_refuses_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let agent = MetadataAgent::builder().workers(0).start(&path).unwrap();
        let address = SockAddr::unix(&path).unwrap();
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&address).map(|()| socket)
        };
        // The kernel lets one more in than the backlog says.
        let waiting: Vec<_> = (0..=BACKLOG).map(|_| connect().unwrap()).collect();
        let refused = connect().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop((waiting, agent));
    }

    #[test]
    fn the_socket_is_gone_after_drop() {
        let (_directory, agent) = agent();
        let path = agent.socket().to_owned();
        drop(agent);
        assert!(!path.exists());
    }
}
