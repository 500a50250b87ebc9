//! One connection of a guest: connects, sends, reads, checks.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollEvent, EpollFlags},
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv,
        send, socket,
    },
};

use crate::upstream::LARGEST_BODY;

macro_rules! request {
    ($last:literal) => {
        concat!(
            "GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: 169.254.169.254\r\n",
            "User-Agent: Cloud-Init/22.4.2\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\n",
            "Connection: ",
            $last,
            "\r\n\r\n"
        )
        .as_bytes()
    };
}

/// What cloud-init sends, and then the server closes.
pub(super) const REQUEST_CLOSE: &[u8] = request!("close");
/// What cloud-init sends.
pub(super) const REQUEST_KEEP: &[u8] = request!("keep-alive");

/// Room for an answer; what is not used of it takes no memory.
const ROOM: usize = LARGEST_BODY + 16 * 1024;

/// How far a connection got.
pub(super) enum Progress {
    /// Something must happen first.
    Waits,
    /// The answer is there, after this time.
    Answered(Duration),
    /// Another request may be started.
    Idle,
}

enum State {
    Closed,
    Sending(&'static [u8]),
    Receiving,
    /// Answered; the server is to close.
    Ending,
    Idle,
}

pub(super) struct Connection {
    pub(super) target: usize,
    socket: Option<OwnedFd>,
    state: State,
    since: Instant,
    buffer: Vec<u8>,
    filled: usize,
}

impl Connection {
    pub(super) fn new(target: usize) -> Self {
        Self {
            target,
            socket: None,
            state: State::Closed,
            since: Instant::now(),
            buffer: vec![0; ROOM],
            filled: 0,
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Forgets the connection.
    pub(super) fn reset(&mut self) {
        self.socket = None;
        self.state = State::Closed;
        self.filled = 0;
    }

    /// Starts a request that was due at `due`; a new socket belongs to the thread's namespace.
    pub(super) fn start(
        &mut self,
        due: Instant,
        address: SocketAddr,
        request: &'static [u8],
        epoll: &Epoll,
        data: u64,
    ) -> io::Result<()> {
        self.since = due;
        self.filled = 0;
        self.state = State::Sending(request);
        if self.socket.is_none() {
            let opened = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                SockProtocol::Tcp,
            )?;
            match connect(opened.as_raw_fd(), &SockaddrStorage::from(address)) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            epoll.add(&opened, EpollEvent::new(flags, data))?;
            self.socket = Some(opened);
        }
        self.send().map(drop)
    }

    /// Sends what is to be sent, if it can be; true when all is sent.
    fn send(&mut self) -> io::Result<bool> {
        let (State::Sending(rest), Some(socket)) = (&self.state, &self.socket) else {
            return Ok(true);
        };
        match send(socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) if sent == rest.len() => {
                self.state = State::Receiving;
                Ok(true)
            }
            Ok(sent) => {
                self.state = State::Sending(&rest[sent..]);
                Ok(false)
            }
            // Not connected yet, on Linux: EAGAIN for a connect under way.
            Err(nix::errno::Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Goes on as far as possible.
    pub(super) fn go_on(&mut self, tag: &str, mode: super::Mode) -> io::Result<Progress> {
        if !self.send()? {
            return Ok(Progress::Waits);
        }
        match self.state {
            State::Closed | State::Idle => return Ok(Progress::Waits),
            State::Sending(_) | State::Receiving | State::Ending => {}
        }
        let Some(socket) = &self.socket else {
            return Ok(Progress::Waits);
        };
        if self.filled == ROOM {
            return Err(io::Error::other("the answer is too long"));
        }
        let room = &mut self.buffer[self.filled..];
        let received = match recv(socket.as_raw_fd(), room, MsgFlags::empty()) {
            Ok(received) => received,
            Err(nix::errno::Errno::EAGAIN) => return Ok(Progress::Waits),
            Err(errno) => return Err(errno.into()),
        };
        if received == 0 {
            if matches!(self.state, State::Ending) {
                self.reset();
                return Ok(Progress::Idle);
            }
            return Err(io::Error::other("closed before the answer was whole"));
        }
        if matches!(self.state, State::Ending) {
            return Err(io::Error::other("more than an answer"));
        }
        self.filled += received;
        if !is_whole(&self.buffer[..self.filled], tag)? {
            return Ok(Progress::Waits);
        }
        self.state = match mode {
            super::Mode::Close => State::Ending,
            super::Mode::Keep => State::Idle,
        };
        let took = self.since.elapsed();
        Ok(Progress::Answered(took))
    }

    /// Whether another request may be started on the open connection.
    pub(super) const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }
}

/// Whether an answer is whole; an error if it is not the one that was due.
fn is_whole(bytes: &[u8], tag: &str) -> io::Result<bool> {
    let Some(head) = find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
        return Ok(false);
    };
    if !bytes.starts_with(b"HTTP/1.1 200 ") {
        let line = bytes
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        return Err(io::Error::other(String::from_utf8_lossy(line).into_owned()));
    }
    let length = content_length(&bytes[..head])
        .ok_or_else(|| io::Error::other("an answer without a length"))?;
    let body = &bytes[head..];
    if body.len() < length {
        return Ok(false);
    }
    if body.len() > length || !body.starts_with(tag.as_bytes()) {
        return Err(io::Error::other(
            "an answer that was meant for somebody else",
        ));
    }
    Ok(true)
}

fn content_length(head: &[u8]) -> Option<usize> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon]
            .eq_ignore_ascii_case(b"content-length")
            .then_some(())?;
        std::str::from_utf8(&line[colon + 1..])
            .ok()?
            .trim()
            .parse()
            .ok()
    })
}

pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_last_byte_is_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde";
        assert!(!is_whole(&answer[..answer.len() - 1], "ab").unwrap());
        assert!(is_whole(answer, "ab").unwrap());
    }

    #[test]
    fn an_answer_for_another_tenant_is_an_error() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde";
        assert!(is_whole(answer, "xy").is_err());
        assert!(is_whole(b"HTTP/1.1 503 No\r\n\r\n", "").is_err());
    }
}
