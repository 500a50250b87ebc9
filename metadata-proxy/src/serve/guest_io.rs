//! A guest's socket that gives up on a guest which takes nothing for too long, and is not closed
//! before the guest has taken what it was sent.
//!
//! Reading has timeouts of its own, in the parser and for bodies; without this one a guest that
//! never reads would keep an answer in memory for ever. A connection is over when its last byte has
//! arrived, not when the kernel has it: only then may the process end, and take the route away that
//! the guest's acknowledgements come by.

use std::{
    io::{self, IoSlice},
    net::TcpStream,
    os::fd::{AsFd as _, AsRawFd as _},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

use super::length_watch::LengthWatch;
use crate::{
    listener,
    socket::{self, LazySocket},
    tenants::Farewells,
};

/// A socket with a bound on how long a write may stand still.
pub(super) struct GuestIo<'a> {
    socket: LazySocket<TcpStream>,
    patience: Duration,
    /// Set once what is written is the last, whole answer, after which the connection ends.
    is_last: &'a AtomicBool,
    /// Set once the guest has sent a head with a `Content-Length` and a `Transfer-Encoding`.
    has_both_lengths: &'a AtomicBool,
    lengths: LengthWatch,
    /// Bytes that the kernel took.
    written: usize,
    /// Cancelled when the process is about to end.
    stopping: &'a CancellationToken,
    farewells: &'a Farewells,
    /// Whether the guest has closed its side: then it is not for us to linger.
    guest_closed: bool,
    /// Made when a write stands still for the first time: nearly no connection needs one.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Made when there is something the guest has not taken when the connection is closed.
    farewell: Option<Farewell>,
}

/// The wait for a guest that has not taken everything.
struct Farewell {
    until: Instant,
    pause: Duration,
    next_look: Pin<Box<Sleep>>,
}

/// First and longest wait between two looks at what a guest has taken: a round trip, and more.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// As much as a guest that is there takes in one round trip (ten segments, RFC 6928): it is not
/// waited for while the process goes on.
const ONE_FLIGHT: usize = 14_600;

impl<'a> GuestIo<'a> {
    /// `stream` does not block. `is_last` and `stopping` are looked at when it matters; `has_both_lengths` is set.
    pub(super) const fn new(
        stream: TcpStream,
        patience: Duration,
        is_last: &'a AtomicBool,
        has_both_lengths: &'a AtomicBool,
        stopping: &'a CancellationToken,
        farewells: &'a Farewells,
    ) -> Self {
        Self {
            socket: LazySocket::new(stream),
            patience,
            is_last,
            has_both_lengths,
            lengths: LengthWatch::new(),
            written: 0,
            stopping,
            farewells,
            guest_closed: false,
            stalled: None,
            farewell: None,
        }
    }

    /// Whether there is more than so many bytes that the guest has not taken, and still may.
    fn has_untaken(&self, negligible: usize) -> bool {
        if self.written <= negligible {
            return false;
        }
        let mut bytes: libc::c_int = 0;
        let socket = self.socket.as_fd();
        // SAFETY: the descriptor is open, and the request writes one int.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        // A connection that was reset counts what it will never send, but has no peer any more.
        result == 0
            && usize::try_from(bytes).is_ok_and(|bytes| bytes > negligible)
            && SockRef::from(&socket).peer_addr().is_ok()
    }

    /// Waits until the guest has taken everything, or patience is over.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // Asked first, since nearly every guest is through by then.
            if self.farewell.is_none() || !self.has_untaken(0) {
                return Poll::Ready(());
            }
            let Some(farewell) = &mut self.farewell else {
                return Poll::Ready(());
            };
            if Instant::now() >= farewell.until {
                return Poll::Ready(());
            }
            ready!(farewell.next_look.as_mut().poll(cx));
            farewell.pause = (farewell.pause * 2).min(LONGEST_PAUSE);
            let next = Instant::now() + farewell.pause;
            farewell.next_look.as_mut().reset(next);
        }
    }

    /// Writes last words, as many as go out at once.
    pub(super) fn write_late(&self, bytes: &[u8]) {
        // Who does not take them will not miss them.
        let _ = self.socket.try_send(bytes);
    }

    /// Closes at once, with a reset.
    pub(super) fn reset(self) {
        socket::reset_on_close(&self.socket);
    }

    /// Passes on what a write says; a write that stands still fails when patience is over.
    fn paced<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for GuestIo<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        self.guest_closed |= matches!(read, Poll::Ready(Ok(()))) && new.is_empty();
        if self.lengths.sees_both(new) {
            self.has_both_lengths.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for GuestIo<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let is_last = self.is_last.load(Ordering::Relaxed);
        let written = self.socket.poll_send(cx, bufs, is_last);
        if let Poll::Ready(Ok(written)) = written {
            self.written = self.written.saturating_add(written);
        }
        self.paced(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_none() {
            // Before the guest is told: its answer to that may be faster than we are.
            if !self.guest_closed && self.farewells.note() {
                listener::free_port(&self.socket);
            }
            let negligible = if self.stopping.is_cancelled() {
                0
            } else {
                ONE_FLIGHT
            };
            if self.has_untaken(negligible) {
                self.farewell = Some(Farewell {
                    until: Instant::now() + self.patience,
                    pause: FIRST_PAUSE,
                    next_look: Box::pin(sleep(FIRST_PAUSE)),
                });
            }
        }
        ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        self.poll_taken(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpSocket, TcpStream},
        time::timeout,
    };

    use super::*;

    /// More than the guest's side takes before it is read.
    const ANSWER: usize = 64 << 10;

    /// What a socket looks at and sets.
    #[derive(Default)]
    struct GuestState {
        is_last: AtomicBool,
        has_both_lengths: AtomicBool,
        stopping: CancellationToken,
        farewells: Farewells,
    }

    impl GuestState {
        fn io(&self, stream: TcpStream, patience: Duration) -> GuestIo<'_> {
            let Self {
                is_last,
                has_both_lengths,
                stopping,
                farewells,
            } = self;
            let stream = stream.into_std().unwrap();
            GuestIo::new(
                stream,
                patience,
                is_last,
                has_both_lengths,
                stopping,
                farewells,
            )
        }
    }

    /// A connection of loopback: the guest's end, and ours.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap());
        let (guest, accepted) = tokio::join!(guest, listener.accept());
        (guest.unwrap(), accepted.unwrap().0)
    }

    /// A connection to a guest that takes little before it reads.
    async fn to_a_slow_guest() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let guest = socket
            .connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        SockRef::from(&stream)
            .set_send_buffer_size(2 * ANSWER)
            .unwrap();
        (guest, stream)
    }

    #[tokio::test]
    async fn a_connection_is_not_over_before_the_guest_has_taken_everything() {
        let guest_state = GuestState::default();
        let (mut guest, stream) = to_a_slow_guest().await;
        let mut io = guest_state.io(stream, Duration::from_secs(30));
        io.write_all(&vec![b'x'; ANSWER]).await.unwrap();
        let mut leaving = Box::pin(io.shutdown());
        assert!(
            timeout(Duration::from_millis(50), &mut leaving)
                .await
                .is_err()
        );
        let mut taken = Vec::new();
        let (left, read) = tokio::join!(leaving, guest.read_to_end(&mut taken));
        left.unwrap();
        read.unwrap();
        assert_eq!(taken.len(), ANSWER);
    }

    #[tokio::test]
    async fn a_guest_that_takes_nothing_or_is_gone_is_not_waited_for() {
        let guest_state = GuestState::default();
        let (guest, stream) = to_a_slow_guest().await;
        let mut io = guest_state.io(stream, Duration::from_millis(50));
        io.write_all(&vec![b'x'; ANSWER]).await.unwrap();
        io.shutdown().await.unwrap();
        drop(guest);

        let (guest, stream) = to_a_slow_guest().await;
        let mut io = guest_state.io(stream, Duration::from_secs(30));
        io.write_all(&vec![b'x'; ANSWER]).await.unwrap();
        // With bytes unread, this is a reset.
        drop(guest);
        timeout(Duration::from_secs(5), io.shutdown())
            .await
            .unwrap()
            .ok();
    }

    #[tokio::test]
    async fn a_guest_that_never_reads_is_given_up_on() {
        let (guest, stream) = connected().await;
        let guest_state = GuestState::default();
        let mut io = guest_state.io(stream, Duration::from_millis(50));
        let endless = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = io.write_all(&endless).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(guest);
    }

    /// Bytes written that the kernel has not sent.
    fn unsent(socket: &impl AsFd) -> i32 {
        let mut bytes = 0;
        // SAFETY: SIOCOUTQNSD writes one int to where it is told; the descriptor is open.
        let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), 0x894b, &raw mut bytes) };
        assert_eq!(result, 0);
        bytes
    }

    #[tokio::test]
    async fn the_last_answer_is_sent_with_the_end_of_the_connection() {
        let (guest, stream) = connected().await;
        stream.set_nodelay(true).unwrap();
        let guest_state = GuestState::default();
        guest_state.is_last.store(true, Ordering::Relaxed);
        let mut io = guest_state.io(stream, Duration::from_secs(5));
        io.write_all(b"answer").await.unwrap();
        assert_eq!(unsent(&io.socket), 6);
        io.shutdown().await.unwrap();
        guest.readable().await.unwrap();
        let mut received = [0; 16];
        assert_eq!(guest.try_read(&mut received).unwrap(), 6);
        assert_eq!(guest.try_read(&mut received).unwrap(), 0);
    }
}
