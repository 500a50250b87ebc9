//! A guest's socket that gives up on a guest which takes nothing for too long, and is not closed
//! before the guest has taken what it was sent.
//!
//! Reading has timeouts of its own, in the parser and for bodies; without this one a guest that
//! never reads would keep an answer in memory for ever. A connection is over when its last byte has
//! arrived, not when the kernel has it: only then may the process end, and take the route away that
//! the guest's acknowledgements come by.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// A socket with a bound on how long a write may stand still.
pub(super) struct GuestIo {
    stream: TcpStream,
    patience: Duration,
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

impl GuestIo {
    pub(super) const fn new(stream: TcpStream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            stalled: None,
            farewell: None,
        }
    }

    /// Whether the guest has taken everything, or will take nothing more.
    fn is_taken(&self) -> bool {
        let mut waiting: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the request writes one int.
        let result =
            unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
        // A connection that was reset counts what it will never send, but has no peer any more.
        result != 0 || waiting == 0 || self.stream.peer_addr().is_err()
    }

    /// Waits until the guest has taken everything, or patience is over.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let is_taken = self.is_taken();
            let Some(farewell) = &mut self.farewell else {
                return Poll::Ready(());
            };
            if is_taken || Instant::now() >= farewell.until {
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
        let _ = self.stream.try_write(bytes);
    }

    /// Closes at once, whatever is under way: nothing of the connection stays, not even in the
    /// kernel, which would keep a socket, and with it its namespace, until the guest has said
    /// farewell.
    pub(super) fn reset(self) {
        // Without it the kernel closes in its own time.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
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

impl AsyncRead for GuestIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for GuestIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.paced(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.paced(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_none() && !self.is_taken() {
            self.farewell = Some(Farewell {
                until: Instant::now() + self.patience,
                pause: FIRST_PAUSE,
                next_look: Box::pin(sleep(FIRST_PAUSE)),
            });
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        self.poll_taken(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
        time::timeout,
    };

    use super::*;

    /// More than the guest's side takes before it is read.
    const ANSWER: usize = 64 << 10;

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
        let (mut guest, stream) = to_a_slow_guest().await;
        let mut io = GuestIo::new(stream, Duration::from_secs(30));
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
        let (guest, stream) = to_a_slow_guest().await;
        let mut io = GuestIo::new(stream, Duration::from_millis(50));
        io.write_all(&vec![b'x'; ANSWER]).await.unwrap();
        io.shutdown().await.unwrap();
        drop(guest);

        let (guest, stream) = to_a_slow_guest().await;
        let mut io = GuestIo::new(stream, Duration::from_secs(30));
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
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut io = GuestIo::new(stream, Duration::from_millis(50));
        let endless = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = io.write_all(&endless).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(guest);
    }
}
