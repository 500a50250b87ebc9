//! A guest that writes bytes as it likes and reads answers byte by byte: for what no HTTP client
//! would send, and for load without a process per request.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// Where guests find the metadata service.
pub const METADATA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);

/// An answer as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The version in the status line.
    pub version: String,
    /// The status.
    pub status: u16,
    /// The words after the status.
    pub reason: String,
    /// The headers in their order, names as they came.
    pub headers: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// How its end was told.
    pub framing: Framing,
    /// Whether all of it came.
    pub is_whole: bool,
}

impl Answer {
    /// The first value of a header, whatever its case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(its, _)| its.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether the connection may carry another request.
    #[must_use]
    pub fn keeps(&self) -> bool {
        let says = |word: &str| {
            self.header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case(word))
        };
        self.framing != Framing::UntilClose
            && !says("close")
            && (self.version == "HTTP/1.1" || says("keep-alive"))
    }
}

/// How the end of an answer's body is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    #[default]
    Empty,
    /// `Content-Length`.
    Length,
    /// Chunks.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

/// What reading brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A whole answer, an interim one too.
    Answer(Answer),
    /// An answer, or something else, that is cut off by the end of the connection.
    Cut(Answer),
    /// The connection was closed in order, with nothing before.
    Closed,
    /// The connection was reset, with nothing before.
    Reset,
    /// Something that is no HTTP answer, then the end of the connection.
    NotHttp(Vec<u8>),
    /// Nothing more until the deadline.
    Nothing,
}

/// A guest's connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    inbox: Vec<u8>,
}

impl Connection {
    /// Connects from the namespace of the calling thread, and from `source` if one is given.
    ///
    /// # Errors
    /// Refused, or not within the time.
    pub fn open(source: Option<Ipv4Addr>, within: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = source {
            // The port is chosen at connect, so that many addresses share the range.
            set_bind_address_no_port(&socket)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&METADATA.into(), within)?;
        Ok(Self {
            stream: socket.into(),
            inbox: Vec::new(),
        })
    }

    /// Writes.
    ///
    /// # Errors
    /// The other end has closed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Whether the other end has closed, or sent what nobody asked for, as clients look before they
    /// use a connection again.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return true;
        }
        let peeked = self.stream.peek(&mut [0]);
        let is_quiet = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).is_err() || !is_quiet
    }

    /// Reads one answer to a request with this method.
    ///
    /// # Errors
    /// The socket cannot be read for a reason that is not the other end's.
    pub fn answer(&mut self, method: &str, deadline: Instant) -> Result<Read> {
        let mut end = None;
        loop {
            match parse(&self.inbox, method, end.is_some()) {
                Parsed::Whole(answer, length) => {
                    self.inbox.drain(..length);
                    return Ok(Read::Answer(answer));
                }
                Parsed::NotHttp if end.is_some() => {
                    return Ok(Read::NotHttp(std::mem::take(&mut self.inbox)));
                }
                Parsed::More(answer) => match end {
                    Some(_) if !self.inbox.is_empty() => {
                        self.inbox.clear();
                        return Ok(Read::Cut(answer));
                    }
                    Some(End::Closed) => return Ok(Read::Closed),
                    Some(End::Reset) => return Ok(Read::Reset),
                    None => {}
                },
                Parsed::NotHttp => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Read::Nothing);
            }
            self.stream
                .set_read_timeout(Some(left))
                .context("no timeout for reading")?;
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => end = Some(End::Closed),
                Ok(length) => self.inbox.extend_from_slice(&buffer[..length]),
                Err(error) => match error.kind() {
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                        end = Some(End::Reset);
                    }
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Ok(Read::Nothing);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error).context("cannot read from the service"),
                },
            }
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Closed,
    Reset,
}

fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that outlives the call, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(4),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

enum Parsed {
    /// An answer, and how many bytes it took.
    Whole(Answer, usize),
    /// As much of an answer as there is.
    More(Answer),
    NotHttp,
}

/// Parses one answer off the front of `bytes`. `is_all`: nothing more will come.
fn parse(bytes: &[u8], method: &str, is_all: bool) -> Parsed {
    let begins = b"HTTP/";
    let known = bytes.len().min(begins.len());
    if bytes[..known] != begins[..known] {
        return Parsed::NotHttp;
    }
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return Parsed::More(Answer::default());
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().splitn(3, ' ');
    let mut answer = Answer {
        version: words.next().unwrap_or_default().to_owned(),
        status: words
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_default(),
        reason: words.next().unwrap_or_default().to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect(),
        ..Answer::default()
    };
    let body = &bytes[end + 4..];
    answer.framing = framing(&answer, method);
    let taken = match answer.framing {
        Framing::Empty => Some(0),
        Framing::Length => {
            let length: usize = answer
                .header("content-length")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0);
            answer.body = body[..length.min(body.len())].to_vec();
            (body.len() >= length).then_some(length)
        }
        Framing::Chunked => {
            let (decoded, taken) = dechunk(body);
            answer.body = decoded;
            taken
        }
        Framing::UntilClose => {
            answer.body = body.to_vec();
            is_all.then_some(body.len())
        }
    };
    match taken {
        Some(taken) => {
            answer.is_whole = true;
            Parsed::Whole(answer, end + 4 + taken)
        }
        None => Parsed::More(answer),
    }
}

fn framing(answer: &Answer, method: &str) -> Framing {
    if method == "HEAD" || matches!(answer.status, 100..=199 | 204 | 304) {
        Framing::Empty
    } else if answer.header("transfer-encoding").is_some() {
        Framing::Chunked
    } else if answer.header("content-length").is_some() {
        Framing::Length
    } else {
        Framing::UntilClose
    }
}

/// What there is of a chunked body, and how many bytes it took if it is whole.
fn dechunk(bytes: &[u8]) -> (Vec<u8>, Option<usize>) {
    let mut body = Vec::new();
    let mut at = 0;
    while let Some(line) = find(&bytes[at..], b"\r\n") {
        let text = String::from_utf8_lossy(&bytes[at..at + line]);
        let digits = text.split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(digits, 16) else {
            return (body, None);
        };
        at += line + 2;
        if size == 0 {
            // No trailer is expected from anybody here.
            return (body, (bytes.len() >= at + 2).then_some(at + 2));
        }
        if bytes.len() < at + size + 2 {
            body.extend_from_slice(&bytes[at..bytes.len().min(at + size)]);
            return (body, None);
        }
        body.extend_from_slice(&bytes[at..at + size]);
        at += size + 2;
    }
    (body, None)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8], method: &str) -> (Answer, usize) {
        match parse(bytes, method, false) {
            Parsed::Whole(answer, taken) => (answer, taken),
            _ => panic!("not whole: {:?}", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn one_answer_after_the_other_is_taken() {
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 No Content\r\n\r\n";
        let (first, taken) = whole(two, "GET");
        assert_eq!(
            (first.status, &*first.body, first.framing),
            (200, &b"hi"[..], Framing::Length)
        );
        let (second, rest) = whole(&two[taken..], "GET");
        assert_eq!((second.status, taken + rest), (204, two.len()));
    }

    #[test]
    fn chunks_are_put_together() {
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x\r\n!\r\n0\r\n\r\n";
        let (answer, taken) = whole(bytes, "GET");
        assert_eq!((&*answer.body, taken), (&b"hi!"[..], bytes.len()));
        assert!(matches!(
            parse(&bytes[..bytes.len() - 1], "GET", true),
            Parsed::More(_)
        ));
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let (answer, _) = whole(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HEAD");
        assert_eq!(answer.framing, Framing::Empty);
        assert!(answer.keeps());
    }

    #[test]
    fn without_a_length_the_end_is_the_end() {
        let bytes = b"HTTP/1.0 200 OK\r\n\r\nall";
        assert!(matches!(parse(bytes, "GET", false), Parsed::More(_)));
        let Parsed::Whole(answer, _) = parse(bytes, "GET", true) else {
            panic!()
        };
        assert_eq!(&*answer.body, b"all");
        assert!(!answer.keeps());
    }
}
