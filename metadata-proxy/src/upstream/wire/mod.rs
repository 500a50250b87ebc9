//! One HTTP/1.1 client for all network upstreams: sends an encoded request, reads its answer.
//!
//! As tolerant as haproxy is of Neutron's agent: bare LF line ends, HTTP/1.0, no `Content-Length`,
//! interim answers. As strict where tolerance would let two parties read an answer differently: a
//! body shorter than announced, lengths that contradict each other and unknown transfer codings
//! make no answer. It never retries and knows nothing of pools; what a failure means is the
//! caller's to decide.

mod body;
mod head;
mod stream;

use std::{borrow::Cow, io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::Method;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use self::body::{Decoder, Piece};
pub(super) use self::{
    head::Head,
    stream::{Keep, Room, Streaming, Terms},
};
use super::UpstreamError;

/// Longest head of an answer, bytes; also the longest trailer.
const HEAD_LIMIT: usize = 32 * 1024;
/// Answers up to this long are returned whole, bytes: nova's largest documents are below it.
const COLLECT_LIMIT: usize = 64 * 1024;
/// An answer that dribbles in is passed on after this long, whatever its length.
const COLLECT_PATIENCE: Duration = Duration::from_secs(1);
/// Room for the first read: most answers come whole in it.
const FIRST_READ: usize = 8 * 1024;
/// Least room for any other read.
const LEAST_READ: usize = 4 * 1024;

/// What is not HTTP about an answer.
#[derive(Debug)]
pub(super) struct Garbled(Cow<'static, str>);

impl From<&'static str> for Garbled {
    fn from(reason: &'static str) -> Self {
        Self(reason.into())
    }
}

/// Why an exchange has no (whole) answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The upstream closed in order, before the answer was whole.
    Closed {
        /// Whether any of an answer had come.
        began: bool,
    },
    /// The connection broke.
    Broken {
        /// Whether any of an answer had come.
        began: bool,
        /// What reading or writing said.
        source: io::Error,
    },
    /// Nothing came in time.
    TimedOut,
    /// What came is not HTTP.
    Garbled(Garbled),
}

impl From<Garbled> for Fault {
    fn from(garbled: Garbled) -> Self {
        Self::Garbled(garbled)
    }
}

impl Fault {
    /// Whether the connection ended before any byte of an answer.
    pub(super) const fn is_unanswered(&self) -> bool {
        matches!(
            self,
            Self::Closed { began: false } | Self::Broken { began: false, .. }
        )
    }

    /// Whether the upstream went away without having read the request.
    ///
    /// A unix socket that is closed while it holds unread data, or was not accepted yet, resets
    /// its peer; one that was read from gives an orderly end (measured; `unix_release_sock`).
    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Self::Broken { began: false, source }
            if matches!(source.raw_os_error(), Some(libc::ECONNRESET | libc::EPIPE)))
    }

    /// Whether the upstream went away before the answer was whole.
    pub(super) const fn is_gone(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Broken { .. })
    }

    /// What the guest is told.
    pub(super) fn into_error(self, upstream: &str, server: Duration) -> UpstreamError {
        let garbled = |reason: String| UpstreamError::Garbled {
            upstream: upstream.to_owned(),
            reason,
        };
        match self {
            Self::Closed { began: false } => garbled("it closed without a byte".to_owned()),
            Self::Closed { began: true } => garbled("it closed before the end".to_owned()),
            Self::Broken { source, .. } => garbled(source.to_string()),
            Self::TimedOut => UpstreamError::TimedOut {
                upstream: upstream.to_owned(),
                waited: server,
            },
            Self::Garbled(Garbled(reason)) => garbled(reason.into_owned()),
        }
    }
}

/// An answer's head, and as much of its body as was waited for.
pub(super) struct Received {
    pub(super) head: Head,
    pub(super) body: Body,
}

/// As much of a body as was waited for.
pub(super) enum Body {
    /// All of it.
    Whole {
        bytes: Bytes,
        /// Whether the connection may carry another request.
        reusable: bool,
    },
    /// It is long, or slow.
    Rest(Rest),
}

/// A body that is still coming.
pub(super) struct Rest {
    /// Decoded already.
    collected: BytesMut,
    /// Read already and not decoded.
    inbox: BytesMut,
    decoder: Decoder,
    /// Whether the connection may carry another request after a proper end.
    reusable: bool,
}

/// Sends what is unsent of a request and waits for its answer.
///
/// The head must be there within `server`; then `server` may pass between any two reads.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    unsent: &[u8],
    method: &Method,
    server: Duration,
) -> Result<Received, Fault> {
    let mut inbox = BytesMut::with_capacity(FIRST_READ);
    let head = timeout(server, async {
        if !unsent.is_empty() {
            let sent = stream.write_all(unsent).await;
            sent.map_err(|source| Fault::Broken {
                began: false,
                source,
            })?;
        }
        read_head(stream, &mut inbox, method).await
    });
    let mut head = head.await.map_err(|_| Fault::TimedOut)??;
    let body = collect(stream, inbox, &mut head, server).await?;
    Ok(Received { head, body })
}

async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut BytesMut,
    method: &Method,
) -> Result<Head, Fault> {
    let mut began = false;
    loop {
        let before = inbox.len();
        if let Err(fault) = read(stream, inbox, LEAST_READ, began).await {
            // A last line without an end was not parsed yet, and may be what is wrong.
            head::parse(inbox, method)?;
            return Err(fault);
        }
        began = true;
        // A head ends with a line end: without a new one, parsing again finds nothing new.
        if (before == 0 || inbox[before..].contains(&b'\n'))
            && let Some(head) = head::parse(inbox, method)?
        {
            return Ok(head);
        }
        if inbox.len() >= HEAD_LIMIT {
            return Err(Garbled::from("its head is longer than 32 KiB").into());
        }
    }
}

async fn collect<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut inbox: BytesMut,
    head: &mut Head,
    server: Duration,
) -> Result<Body, Fault> {
    let mut decoder = Decoder::of(&head.framing);
    let mut collected = BytesMut::new();
    let mut until = None;
    loop {
        match decoder.next(&mut inbox)? {
            Piece::Data(piece) if collected.is_empty() => collected = piece,
            Piece::Data(piece) => collected.extend_from_slice(&piece),
            Piece::End => {
                let reusable = head.reusable && inbox.is_empty();
                return Ok(Body::Whole {
                    bytes: collected.freeze(),
                    reusable,
                });
            }
            Piece::More => {
                let now = Instant::now();
                let until = *until.get_or_insert(now + COLLECT_PATIENCE);
                if decoder.exceeds(COLLECT_LIMIT, collected.len()) || now > until {
                    let reusable = head.reusable;
                    return Ok(Body::Rest(Rest {
                        collected,
                        inbox,
                        decoder,
                        reusable,
                    }));
                }
                let room = decoder.room();
                match timeout(server, read(stream, &mut inbox, room, true)).await {
                    Err(_) => return Err(Fault::TimedOut),
                    Ok(Err(Fault::Closed { .. })) if decoder.ends_with_close() => {
                        return Ok(Body::Whole {
                            bytes: collected.freeze(),
                            reusable: false,
                        });
                    }
                    Ok(outcome) => outcome?,
                }
            }
        }
    }
}

/// Reads once, at least one byte, into at least `room`.
async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut BytesMut,
    room: usize,
    began: bool,
) -> Result<(), Fault> {
    if inbox.capacity() == inbox.len() || inbox.capacity() - inbox.len() < room {
        inbox.reserve(room);
    }
    match stream.read_buf(inbox).await {
        Ok(0) => Err(Fault::Closed { began }),
        Ok(_) => Ok(()),
        Err(source) => Err(Fault::Broken { began, source }),
    }
}

#[cfg(test)]
mod tests;
