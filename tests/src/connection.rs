//! A guest's connection, byte by byte: for what curl would never send, and for when it matters
//! which connection is which.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    curl::Reply,
    netns::Netns,
    subnet::{GUEST_DEVICE, Guest},
};

/// The metadata service over IPv4.
pub const METADATA_V4_SOCKET: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);

const METADATA_V6_IP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
const METADATA_PORT: u16 = 80;

/// How long anything may take before a test gives up, on slow and busy machines.
const PATIENCE: Duration = Duration::from_secs(15);

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    /// Connects from inside a namespace.
    ///
    /// # Errors
    /// What connecting said.
    pub fn open(netns: &Netns, to: SocketAddr) -> Result<Self> {
        Self::with(netns, to, |_| Ok(()))
    }

    /// Connects from inside a namespace, from a port of the caller's choice.
    ///
    /// # Errors
    /// The port is taken, or what connecting said.
    pub fn open_from(netns: &Netns, port: u16, to: SocketAddr) -> Result<Self> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
        };
        Self::with(netns, to, move |socket| {
            // A port may be in TIME_WAIT from an earlier try.
            socket.set_reuse_address(true)?;
            socket.bind(&any.into())
        })
    }

    /// Connects from inside a namespace, with a socket that was prepared for it.
    ///
    /// # Errors
    /// What preparing or connecting said.
    pub fn with(
        netns: &Netns,
        to: SocketAddr,
        prepare: impl FnOnce(&Socket) -> io::Result<()> + Send,
    ) -> Result<Self> {
        let stream: TcpStream = netns.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
                .context("no socket")?;
            prepare(&socket).context("cannot prepare the socket")?;
            match socket.connect_timeout(&to.into(), PATIENCE) {
                // It was there, and is closed before this end has noticed: who reads is told so.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                connected => connected.with_context(|| format!("cannot connect to {to}"))?,
            }
            Ok(socket.into())
        })?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("no timeout")?;
        stream
            .set_write_timeout(Some(PATIENCE))
            .context("no timeout")?;
        stream.set_nodelay(true).context("no TCP_NODELAY")?;
        Ok(Self {
            stream,
            unread: Vec::new(),
        })
    }

    /// Connects a guest to the metadata service over IPv4.
    ///
    /// # Errors
    /// What connecting said.
    pub fn v4(guest: &Guest) -> Result<Self> {
        Self::open(&guest.netns, METADATA_V4_SOCKET.into())
    }

    /// Connects a guest to the metadata service over IPv6.
    ///
    /// # Errors
    /// What connecting said.
    pub fn v6(guest: &Guest) -> Result<Self> {
        Self::open(&guest.netns, metadata_v6(&guest.netns)?)
    }

    /// Our end.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream.local_addr().context("no local address")
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The other side takes none.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).context("cannot send")
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish_sending(&self) -> Result<()> {
        self.stream
            .shutdown(Shutdown::Write)
            .context("cannot shut down")
    }

    /// Sends a `GET` that keeps the connection, and reads the answer.
    ///
    /// # Errors
    /// There is no answer.
    pub fn get(&mut self, target: &str) -> Result<Reply> {
        self.send(format!(
            "GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
        ))?;
        self.answer()
    }

    /// Reads one answer, past interim ones, as far as it says that it goes.
    ///
    /// # Errors
    /// It is cut, or nothing comes.
    pub fn answer(&mut self) -> Result<Reply> {
        loop {
            let reply = self.head()?;
            if reply.status >= 200 {
                return self.body(reply);
            }
        }
    }

    /// Reads the head of one answer, which is all there is to a `HEAD` or an interim answer.
    ///
    /// # Errors
    /// It is cut, or nothing comes.
    pub fn head(&mut self) -> Result<Reply> {
        let end = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if !self.read_more()? {
                bail!("closed before a head was whole: {:?}", self.text());
            }
        };
        let rest = self.unread.split_off(end + 4);
        let head = String::from_utf8_lossy(&self.unread).into_owned();
        self.unread = rest;
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .with_context(|| format!("no status line: {head:?}"))?;
        Ok(Reply {
            exit: 0,
            status,
            headers: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
            body: Vec::new(),
            error: String::new(),
        })
    }

    fn body(&mut self, mut reply: Reply) -> Result<Reply> {
        match reply.header("content-length") {
            Some(length) => {
                let length: usize = length.parse().context("a length that is no number")?;
                while self.unread.len() < length {
                    if !self.read_more()? {
                        bail!("closed before a body was whole: {:?}", self.text());
                    }
                }
                let rest = self.unread.split_off(length);
                reply.body = std::mem::replace(&mut self.unread, rest);
            }
            None if reply.header("transfer-encoding").is_some() => {
                bail!("a chunked answer, which no upstream here gives")
            }
            None => reply.body = self.rest()?,
        }
        Ok(reply)
    }

    /// Reads until the other side closes; a reset counts as closing.
    ///
    /// # Errors
    /// It stays open.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        while self.read_more()? {}
        Ok(std::mem::take(&mut self.unread))
    }

    fn read_more(&mut self) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.unread.extend_from_slice(&buffer[..length]);
                Ok(true)
            }
            Err(error) if is_closed(&error) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("after {:?}", self.text())),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }
}

/// Whether the other side has closed with a reset, be it that this was told before.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// The metadata service over IPv6, as a guest's namespace sees it.
///
/// # Errors
/// The guest has no device.
pub fn metadata_v6(guest: &Netns) -> Result<SocketAddr> {
    let scope = guest.run(|| if_nametoindex(GUEST_DEVICE).context("no device"))?;
    Ok(SocketAddrV6::new(METADATA_V6_IP, METADATA_PORT, 0, scope).into())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
