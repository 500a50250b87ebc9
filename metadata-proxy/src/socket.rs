//! A socket which the runtime watches only from the moment it has to be waited for, and only for
//! what is waited for.
//!
//! Many a request is there when its connection is accepted, and nearly every message is taken at
//! once: then the kernel need not be told to watch the socket, nor to stop watching it, and says
//! nothing that nobody waits for.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, sendmsg};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    task::coop,
};

/// A connected stream socket that belongs to one task at a time: what it waits for is told to that
/// task only.
pub(crate) struct LazySocket<S> {
    /// The runtime's registration of `socket`, and what for. Dropped before it.
    watch: Option<(AsyncFd<RawFd>, Interest)>,
    socket: S,
}

impl<S: AsFd> LazySocket<S> {
    /// Takes a socket that does not block.
    pub(crate) const fn new(socket: S) -> Self {
        Self {
            watch: None,
            socket,
        }
    }

    /// Takes a socket that does not block, and whose peer is not known to have sent anything yet:
    /// it is not read from before it has.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn awaited(socket: S) -> io::Result<Self> {
        let mut lazy = Self::new(socket);
        lazy.watch(Interest::READABLE)?;
        Ok(lazy)
    }

    /// Sends what finds room, once there is some. What is `last` is followed by the end of the
    /// connection at once: the kernel holds the last segment back until then, and sends both as one.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        self.poll(cx, Interest::WRITABLE, wanted, |socket| {
            send(socket, bufs, last)
        })
    }

    /// Sends as much as finds room now.
    ///
    /// # Errors
    /// What the system says; `EAGAIN` if there is no room.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        send(&self.socket, &[IoSlice::new(bytes)], false)
    }

    /// Whether the peer has said nothing that was not read, and has not closed. A system call only if
    /// the runtime has been told of something, or watches nothing; what was said is lost.
    pub(crate) fn is_quiet(&self) -> bool {
        let look = |socket: &S| SockRef::from(socket).recv(&mut [MaybeUninit::uninit()]);
        let said = match &self.watch {
            Some((watch, interest)) if interest.is_readable() => {
                watch.try_io(Interest::READABLE, |_| look(&self.socket))
            }
            _ => look(&self.socket),
        };
        said.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Tells the peer that nothing more is sent; one that is gone need not be told.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        match SockRef::from(&self.socket).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }

    /// Tries something, again and again until it does not have to wait. Less than is `wanted` says
    /// that there is no more at the moment: the next try waits without asking.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        interest: Interest,
        wanted: usize,
        mut attempt: impl FnMut(&S) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if !self.is_watched_for(interest) {
            // Counted as the runtime counts its own, so that others have their turn.
            let turn = ready!(coop::poll_proceed(cx));
            match attempt(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.watch(interest)? {
                        // Who waited for something else waits for it here from now on.
                        cx.waker().wake_by_ref();
                    }
                }
                done => {
                    turn.made_progress();
                    return Poll::Ready(done);
                }
            }
        }
        let Self {
            watch: Some((watch, _)),
            socket,
        } = self
        else {
            // It is watched by now.
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        loop {
            let mut ready = ready!(if interest.is_readable() {
                watch.poll_read_ready(cx)
            } else {
                watch.poll_write_ready(cx)
            })?;
            match ready.try_io(|_| attempt(socket)) {
                Ok(done) => {
                    if matches!(done, Ok(count) if 0 < count && count < wanted) {
                        ready.clear_ready();
                    }
                    return Poll::Ready(done);
                }
                Err(_would_block) => {}
            }
        }
    }

    fn is_watched_for(&self, interest: Interest) -> bool {
        self.watch.as_ref().is_some_and(|(_, watched)| {
            (watched.is_readable() || !interest.is_readable())
                && (watched.is_writable() || !interest.is_writable())
        })
    }

    /// Has the socket watched, for what it was watched for before too; says if it was.
    fn watch(&mut self, interest: Interest) -> io::Result<bool> {
        // The kernel takes a socket once.
        let before = self.watch.take().map(|(_, before)| before);
        let interest = before.map_or(interest, |before| before | interest);
        let socket = self.socket.as_fd().as_raw_fd();
        // SAFETY: the socket is dropped after its registration, and nothing else closes it.
        let watch = unsafe { AsyncFd::register_with_interest(socket, interest) };
        self.watch = Some((watch?, interest));
        Ok(before.is_some())
    }
}

impl<S: AsFd + Unpin> AsyncRead for LazySocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: nothing is written to it but by the kernel, so what is initialised stays so.
        let room = unsafe { buf.unfilled_mut() };
        let wanted = room.len();
        let receive = |socket: &S| SockRef::from(socket).recv(room);
        let received = ready!(self.poll(cx, Interest::READABLE, wanted, receive))?;
        // SAFETY: the kernel has written so many bytes.
        unsafe { buf.assume_init(received) };
        buf.advance(received);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsFd + Unpin> AsyncWrite for LazySocket<S> {
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
        self.poll_send(cx, bufs, false)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is the kernel's.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown())
    }
}

impl<S: AsFd> AsFd for LazySocket<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has a connection end with a reset as soon as it is closed, whatever is under way: nothing of it stays, not
/// even in the kernel, which would keep a socket, and with it its namespace, until the peer has said
/// farewell.
pub(crate) fn reset_on_close(socket: &impl AsFd) {
    // Without it the kernel closes in its own time.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

fn send(socket: &impl AsFd, bufs: &[IoSlice<'_>], last: bool) -> io::Result<usize> {
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    if last {
        flags |= MsgFlags::from_bits_retain(libc::MSG_MORE);
    }
    sendmsg::<()>(socket.as_fd().as_raw_fd(), bufs, &[], flags, None).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// A connection of loopback: the peer's end, and ours.
    async fn connected() -> (tokio::net::TcpStream, LazySocket<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (peer, accepted) = tokio::join!(peer, listener.accept());
        let ours = accepted.unwrap().0.into_std().unwrap();
        (peer.unwrap(), LazySocket::new(ours))
    }

    #[tokio::test]
    async fn what_need_not_be_waited_for_is_not_watched() {
        let (mut peer, mut ours) = connected().await;
        peer.write_all(b"request").await.unwrap();
        let mut request = [0; 7];
        // Loopback has delivered it by the time it is written.
        ours.read_exact(&mut request).await.unwrap();
        ours.write_all(b"answer").await.unwrap();
        assert!(ours.watch.is_none());
        let mut answer = [0; 6];
        peer.read_exact(&mut answer).await.unwrap();
        assert_eq!((&request, &answer), (b"request", b"answer"));
    }

    #[tokio::test]
    async fn what_is_not_there_yet_is_waited_for_again_and_again() {
        let (mut peer, mut ours) = connected().await;
        for word in [b"one", b"two"] {
            let mut room = [0; 16];
            assert!(
                timeout(Duration::from_millis(20), ours.read(&mut room))
                    .await
                    .is_err()
            );
            peer.write_all(word).await.unwrap();
            let read = timeout(SOON, ours.read(&mut room)).await.unwrap().unwrap();
            assert_eq!(&room[..read], word);
        }
        peer.write_all(b"end").await.unwrap();
        drop(peer);
        let mut rest = Vec::new();
        timeout(SOON, ours.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest, b"end");
    }

    #[tokio::test]
    async fn both_ways_are_waited_for_at_once() {
        const LONG: usize = 8 << 20;
        let (peer, ours) = connected().await;
        let echo = tokio::spawn(async move {
            let (mut from, mut to) = peer.into_split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        });
        let (mut from, mut to) = tokio::io::split(ours);
        let message: Vec<u8> = (0..LONG).map(|at| at.to_le_bytes()[1]).collect();
        let mut echoed = Vec::with_capacity(LONG);
        let send = async {
            to.write_all(&message).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let both = async { tokio::join!(from.read_to_end(&mut echoed), send) };
        let (read, ()) = timeout(SOON, both).await.unwrap();
        assert_eq!(read.unwrap(), LONG);
        assert!(echoed == message);
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_and_no_wait() {
        let (peer, mut ours) = connected().await;
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        let read = timeout(SOON, ours.read(&mut [0; 4])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        ours.shutdown().unwrap();
    }
}
