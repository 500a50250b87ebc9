//! Notices that a guest leaves while its request waits.
//!
//! A guest that closes its connection and one that only says it will send nothing more look the
//! same until something is sent to them. So neither keeps a place in a queue, and both get the
//! answer that is under way: who half-closes and reads on is served unless the upstream is busy.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd},
};

use tokio::{io::Interest, net::TcpStream};

/// A guest's socket, to be watched by the requests that are answered on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched(RawFd);

impl Watched {
    /// Only to be used while `stream` is open.
    pub(super) fn new(stream: &impl AsFd) -> Self {
        Self(stream.as_fd().as_raw_fd())
    }

    /// Ends when the guest has closed its side, or the connection broke. Costs nothing until it is
    /// waited for, which few requests have to.
    pub(super) async fn left(self) {
        let Ok(watched) = self.registered() else {
            // Without descriptors to spare nobody is thrown out of the queue.
            return std::future::pending().await;
        };
        while let Ok(ready) = watched.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // The guest's next request, which is read when this one is answered: wait for more.
            let unread = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = watched.try_io(Interest::READABLE, unread);
        }
    }

    /// Registers a second descriptor of the socket: the parser goes on using the first undisturbed.
    fn registered(self) -> io::Result<TcpStream> {
        // SAFETY: requests are answered within the future that owns the socket, so it is open.
        let socket = unsafe { BorrowedFd::borrow_raw(self.0) };
        TcpStream::from_std(socket.try_clone_to_owned()?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (guest, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (guest.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_are_no_leaving_and_are_left_to_be_read() {
        let (mut guest, mut stream) = pair().await;
        guest.write_all(b"next").await.unwrap();
        let left = Watched::new(&stream).left();
        assert!(timeout(Duration::from_millis(50), left).await.is_err());
        let mut bytes = [0; 4];
        timeout(SOON, stream.read_exact(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&bytes, b"next");
    }

    #[tokio::test]
    async fn a_close_is_noticed_behind_unread_bytes() {
        let (mut guest, stream) = pair().await;
        let watched = Watched::new(&stream);
        let left = tokio::spawn(watched.left());
        guest.write_all(b"next").await.unwrap();
        drop(guest);
        timeout(SOON, left).await.unwrap().unwrap();
    }
}
