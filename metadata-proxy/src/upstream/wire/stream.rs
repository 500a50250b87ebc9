//! The body of an answer that is too long, or too slow, to be waited for.
//!
//! A task of its own reads it ahead of the guest, so that a guest which takes its time does not keep
//! a place with the upstream that others wait for. What is read ahead is bounded for each answer and
//! for all of an upstream's together. Where there is no room, the guest must take something first,
//! and has little time for that.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{Fault, Garbled, Rest, body::Piece};
use crate::{admission::Permit, upstream::UpstreamError};

/// What is read ahead of one guest, bytes: more than any answer of nova's has.
const AHEAD: u32 = 1 << 20;
/// What is read ahead of all guests together, bytes.
const AHEAD_OF_ALL: usize = 64 << 20;
/// How long a guest may keep the upstream waiting, all its pauses together.
const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a connection after a proper end.
pub(in super::super) trait Keep<S>: Send + Unpin + 'static {
    /// Takes a connection that may carry another request.
    fn keep(&self, stream: S);
}

/// Room for what is read ahead of all guests of an upstream.
#[derive(Clone)]
pub(in super::super) struct Room {
    bytes: Arc<Semaphore>,
    /// How long a guest for whom there is none may keep the upstream waiting.
    patience: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(AHEAD_OF_ALL, PATIENCE)
    }
}

impl Room {
    pub(super) fn of(bytes: usize, patience: Duration) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            patience,
        }
    }
}

/// Whose answer it is, and what is to be done with it.
pub(in super::super) struct Terms<K> {
    /// What becomes of the connection.
    pub(in super::super) keep: K,
    /// The place with the upstream, which is busy with this answer until it has sent all of it.
    pub(in super::super) permit: Permit,
    /// Where what is read ahead is counted.
    pub(in super::super) room: Room,
    /// The upstream's name.
    pub(in super::super) upstream: Arc<str>,
    /// Most time between any two reads.
    pub(in super::super) server: Duration,
}

/// Passes a body on as it comes.
pub(in super::super) struct Streaming {
    pieces: mpsc::UnboundedReceiver<Result<Ahead, Fault>>,
    reader: AbortHandle,
    /// What the guest has not had yet, where that is known.
    left: Option<u64>,
    is_over: bool,
    upstream: Arc<str>,
    server: Duration,
}

/// Something that was read and not taken yet; its room is free once it is taken.
struct Ahead {
    bytes: Bytes,
    _own: OwnedSemaphorePermit,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Streaming {
    pub(in super::super) fn new<S, K>(stream: S, rest: Rest, terms: Terms<K>) -> Self
    where
        S: AsyncRead + Unpin + Send + 'static,
        K: Keep<S>,
    {
        let left = rest.decoder.left();
        let left = left.map(|left| left + rest.collected.len() as u64);
        let (give, pieces) = mpsc::unbounded_channel();
        let (upstream, server) = (Arc::clone(&terms.upstream), terms.server);
        let reader = Reader {
            stream,
            rest,
            give,
            own: Arc::new(Semaphore::new(AHEAD as usize)),
            patience: terms.room.patience,
            terms,
        };
        Self {
            pieces,
            reader: tokio::spawn(reader.run()).abort_handle(),
            left,
            is_over: false,
            upstream,
            server,
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let piece = ready!(self.pieces.poll_recv(cx));
        Poll::Ready(match piece {
            Some(Ok(Ahead { bytes, .. })) => {
                self.left = self
                    .left
                    .map(|left| left.saturating_sub(bytes.len() as u64));
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(fault)) => {
                self.is_over = true;
                Some(Err(fault.into_error(&self.upstream, self.server)))
            }
            None => {
                self.is_over = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Reads an answer to its end, as far ahead of the guest as there is room.
struct Reader<S, K> {
    stream: S,
    rest: Rest,
    give: mpsc::UnboundedSender<Result<Ahead, Fault>>,
    own: Arc<Semaphore>,
    /// What is left of the room's.
    patience: Duration,
    terms: Terms<K>,
}

impl<S: AsyncRead + Unpin, K: Keep<S>> Reader<S, K> {
    async fn run(mut self) {
        let outcome = self.read().await;
        let Self {
            stream,
            give,
            terms: Terms { keep, permit, .. },
            ..
        } = self;
        // The connection first: the permit says that the upstream is free for the next.
        match outcome {
            Ok(true) => keep.keep(stream),
            Ok(false) => drop(stream),
            Err(fault) => {
                drop(stream);
                // A guest that is gone needs no error.
                let _ = give.send(Err(fault));
            }
        }
        drop(permit);
    }

    /// Says whether the connection may carry another request.
    async fn read(&mut self) -> Result<bool, Fault> {
        let collected = self.rest.collected.split().freeze();
        self.pass_on(collected).await?;
        loop {
            match self.rest.decoder.next(&mut self.rest.inbox)? {
                Piece::Data(piece) => self.pass_on(piece.freeze()).await?,
                Piece::End => return Ok(self.rest.reusable && self.rest.inbox.is_empty()),
                Piece::More => {
                    self.rest.inbox.reserve(self.rest.decoder.room());
                    let read = self.stream.read_buf(&mut self.rest.inbox);
                    match timeout(self.terms.server, read).await {
                        Err(_) => return Err(Fault::TimedOut),
                        Ok(Ok(0)) if self.rest.decoder.ends_with_close() => return Ok(false),
                        Ok(Ok(0)) => return Err(Fault::Closed { began: true }),
                        Ok(Ok(_)) => {}
                        Ok(Err(source)) => {
                            return Err(Fault::Broken {
                                began: true,
                                source,
                            });
                        }
                    }
                }
            }
        }
    }

    /// Gives the guest something, once there is room for it.
    async fn pass_on(&mut self, mut bytes: Bytes) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(AHEAD as usize));
            let len = u32::try_from(piece.len()).unwrap_or(AHEAD);
            let (own, of_all) = self.room_for(len).await?;
            let ahead = Ahead {
                bytes: piece,
                _own: own,
                _of_all: of_all,
            };
            if self.give.send(Ok(ahead)).is_err() {
                return Err(Fault::Closed { began: true });
            }
        }
        Ok(())
    }

    /// Room with this answer, and with all: a guest that has taken everything gets one piece more
    /// whatever others have not taken.
    async fn room_for(
        &mut self,
        len: u32,
    ) -> Result<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>), Fault> {
        let own = self.own_room(len).await?;
        let of_all = Arc::clone(&self.terms.room.bytes).try_acquire_many_owned(len);
        if let Ok(of_all) = of_all {
            return Ok((own, Some(of_all)));
        }
        let is_all_taken = self.own_room(AHEAD - len).await?;
        drop(is_all_taken);
        Ok((own, None))
    }

    async fn own_room(&mut self, len: u32) -> Result<OwnedSemaphorePermit, Fault> {
        let since = Instant::now();
        let own = timeout(self.patience, Arc::clone(&self.own).acquire_many_owned(len)).await;
        self.patience = self.patience.saturating_sub(since.elapsed());
        match own {
            Ok(Ok(own)) => Ok(own),
            // Nobody closes it.
            Ok(Err(_)) | Err(_) => {
                Err(Garbled::from("the guest takes it so slowly that others would wait").into())
            }
        }
    }
}
