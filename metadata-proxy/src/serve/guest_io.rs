//! A guest's socket that gives up on a guest which takes nothing for too long.
//!
//! Reading has timeouts of its own, in the parser and for bodies; without this one a guest that
//! never reads would keep an answer in memory for ever.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, sendmsg};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::listener;

/// A socket with a bound on how long a write may stand still.
pub(super) struct GuestIo<'a> {
    stream: TcpStream,
    patience: Duration,
    /// Set once what is written is the last, whole answer, after which the connection ends.
    is_last: &'a AtomicBool,
    /// Whether the guest has closed its side: then it is not for us to linger.
    guest_closed: bool,
    /// Made when a write stands still for the first time: nearly no connection needs one.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<'a> GuestIo<'a> {
    pub(super) const fn new(
        stream: TcpStream,
        patience: Duration,
        is_last: &'a AtomicBool,
    ) -> Self {
        Self {
            stream,
            patience,
            is_last,
            guest_closed: false,
            stalled: None,
        }
    }

    /// Writes last words, as many as go out at once.
    pub(super) fn write_late(&self, bytes: &[u8]) {
        // Who does not take them will not miss them.
        let _ = self.stream.try_write(bytes);
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

impl GuestIo<'_> {
    /// Writes what the end of the connection follows at once: the kernel holds the last segment
    /// back until then, and sends both as one.
    fn poll_write_last(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let flags = MsgFlags::from_bits_retain(libc::MSG_MORE) | MsgFlags::MSG_NOSIGNAL;
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let send = || {
                sendmsg::<()>(self.stream.as_raw_fd(), bufs, &[], flags, None).map_err(Into::into)
            };
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncRead for GuestIo<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.guest_closed |= matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() == before;
        read
    }
}

impl AsyncWrite for GuestIo<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = if self.is_last.load(Ordering::Relaxed) {
            self.poll_write_last(cx, &[IoSlice::new(buf)])
        } else {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        };
        self.paced(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = if self.is_last.load(Ordering::Relaxed) {
            self.poll_write_last(cx, bufs)
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
        };
        self.paced(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Before the guest is told: its answer to that may be faster than we are.
        if !self.guest_closed {
            listener::free_port(&self.stream);
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_guest_that_never_reads_is_given_up_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let is_last = AtomicBool::new(false);
        let mut io = GuestIo::new(stream, Duration::from_millis(50), &is_last);
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
    fn unsent(stream: &TcpStream) -> i32 {
        let mut bytes = 0;
        // SAFETY: SIOCOUTQNSD writes one int to where it is told; the descriptor is open.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), 0x894b, &raw mut bytes) };
        assert_eq!(result, 0);
        bytes
    }

    #[tokio::test]
    async fn the_last_answer_is_sent_with_the_end_of_the_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let is_last = AtomicBool::new(true);
        let mut io = GuestIo::new(stream, Duration::from_secs(5), &is_last);
        io.write_all(b"answer").await.unwrap();
        assert_eq!(unsent(&io.stream), 6);
        io.shutdown().await.unwrap();
        guest.readable().await.unwrap();
        let mut received = [0; 16];
        assert_eq!(guest.try_read(&mut received).unwrap(), 6);
        assert_eq!(guest.try_read(&mut received).unwrap(), 0);
    }
}
