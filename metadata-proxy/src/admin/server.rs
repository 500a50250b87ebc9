//! The admin socket: who may connect, and for how long.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::fs::MetadataExt as _,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, fchmod},
    },
    unistd::geteuid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Control, routes};

/// How many clients are served at once; one more is told to come back.
const MAX_CLIENTS: usize = 32;
/// How many are told at once that they are not served; one more is only closed.
const MAX_REFUSALS: usize = 8;
/// Time for a client to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole exchange. Longer than anything asked for here should take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_mins(1);
/// Time for an exchange that only ends in a refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for exchanges under way when another process has taken the socket.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 64;

/// Why the admin socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error(
        "another agent (pid {}) answers on {}: stop it, or set admin.socket to another path",
        pid.map_or_else(|| String::from("unknown"), |pid| pid.to_string()),
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that listens, if it can be told.
        pid: Option<i32>,
    },
    /// Something else is there.
    #[error(
        "{} exists and is no socket, so it is left alone: remove it, or set admin.socket to \
         another path",
        path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The admin socket, bound. The socket file goes when this is dropped.
#[derive(Debug)]
pub struct AdminServer {
    listener: StdListener,
    file: SocketFile,
    admits: fn(u32) -> bool,
    leave: CancellationToken,
}

impl AdminServer {
    /// Binds the socket with mode 0600, making its directory if it is missing and removing a file
    /// that an agent left behind which is no more.
    ///
    /// # Errors
    /// [`BindError`] if somebody answers there, something else is there, or the kernel says no.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |what| {
            move |source| BindError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(failed("make the directory of"))?;
        // Two agents that start at once must not take each other's socket for one left behind.
        let directory = File::open(parent).map_err(failed("open the directory of"))?;
        directory.lock().map_err(failed("lock the directory of"))?;
        remove_stale(path)?;

        let socket =
            Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("make a socket for"))?;
        // The file takes its mode from the socket (unix_bind in net/unix/af_unix.c), so that there
        // is no moment at which others may connect.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(io::Error::from)
            .map_err(failed("set the mode of"))?;
        let address = SockAddr::unix(path).map_err(failed("bind"))?;
        socket.bind(&address).map_err(failed("bind"))?;
        let file = SocketFile::of(path).map_err(failed("look at"))?;
        socket.listen(BACKLOG).map_err(failed("listen on"))?;
        socket.set_nonblocking(true).map_err(failed("set up"))?;
        Ok(Self {
            listener: StdListener::from(OwnedFd::from(socket)),
            file,
            admits,
            leave: CancellationToken::new(),
        })
    }

    /// Takes over a socket that is bound at `path`, from the process that listened before.
    ///
    /// # Errors
    /// There is nothing at the path.
    pub fn adopt(socket: OwnedFd, path: &Path) -> Result<Self, BindError> {
        let failed = |what| {
            move |source| BindError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let file = SocketFile::of(path).map_err(failed("look at"))?;
        let socket = Socket::from(socket);
        socket.set_nonblocking(true).map_err(failed("set up"))?;
        Ok(Self {
            listener: StdListener::from(OwnedFd::from(socket)),
            file,
            admits,
            leave: CancellationToken::new(),
        })
    }

    /// Leaves the socket's file where it is, and lets exchanges under way end, if `leave` is cancelled
    /// when serving ends: another process has the socket then.
    #[must_use]
    pub fn leaving(self, leave: CancellationToken) -> Self {
        Self { leave, ..self }
    }

    /// Where it is bound.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Answers clients until told to stop; exchanges under way then are given up.
    ///
    /// # Errors
    /// Only if the socket cannot be watched at all. What clients do is no error.
    pub async fn serve<C: Control>(
        self,
        control: Arc<C>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let Self {
            listener,
            mut file,
            admits,
            leave,
        } = self;
        let listener = UnixListener::from_std(listener)?;
        let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
        let refusal_slots = Arc::new(Semaphore::new(MAX_REFUSALS));
        let mut clients = JoinSet::new();
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                // Finished ones are taken out as they finish.
                Some(_) = clients.join_next() => continue,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely: let some go before trying again.
                        warn!(%error, "cannot accept a client on the admin socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let admitted = admit(&stream, admits).and_then(|()| {
                Arc::clone(&slots).try_acquire_owned().map_err(|_| {
                    (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "too many clients at once, try again",
                    )
                })
            });
            match admitted {
                Ok(slot) => {
                    let control = Arc::clone(&control);
                    clients.spawn(async move {
                        let answer = |request| {
                            let control = Arc::clone(&control);
                            async move { routes::answer(&*control, request).await }
                        };
                        exchange(stream, EXCHANGE_TIMEOUT, answer).await;
                        drop(slot);
                    });
                }
                Err((status, reason)) => {
                    let Ok(slot) = Arc::clone(&refusal_slots).try_acquire_owned() else {
                        continue;
                    };
                    clients.spawn(async move {
                        let answer = |_| async move { routes::error(status, reason.to_owned()) };
                        exchange(stream, REFUSAL_TIMEOUT, answer).await;
                        drop(slot);
                    });
                }
            }
        }
        if leave.is_cancelled() {
            file.inode = None;
            drop(listener);
            let ended = async { while clients.join_next().await.is_some() {} };
            let _ = timeout(LEAVING_TIMEOUT, ended).await;
        }
        // Before the clients: nobody new shall find it.
        drop(file);
        clients.shutdown().await;
        Ok(())
    }

    /// Lets another rule decide who is served.
    #[cfg(test)]
    pub(super) fn admitting(self, admits: fn(u32) -> bool) -> Self {
        Self { admits, ..self }
    }
}

impl AsFd for AdminServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Whether a user is served: root, and whom the agent runs as.
fn admits(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Whether a client is served; if not, how and why it is refused.
fn admit(stream: &UnixStream, admits: fn(u32) -> bool) -> Result<(), (StatusCode, &'static str)> {
    match stream.peer_cred() {
        Ok(peer) if admits(peer.uid()) => Ok(()),
        Ok(peer) => {
            warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "refused a client on the admin socket"
            );
            Err((
                StatusCode::FORBIDDEN,
                "only root and the agent's own user are served",
            ))
        }
        Err(error) => {
            warn!(%error, "refused a client on the admin socket: it cannot be told who it is");
            Err((StatusCode::FORBIDDEN, "it cannot be told who you are"))
        }
    }
}

/// One request and its answer. Keeping connections open would only spend slots.
async fn exchange<F, A>(stream: UnixStream, patience: Duration, answer: F)
where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(patience, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client of the admin socket went wrong"),
        Err(_) => debug!("a client of the admin socket took too long"),
    }
}

/// Removes a socket file on which nobody answers.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |what| {
        move |source| BindError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    let in_use = |pid| {
        Err(BindError::InUse {
            path: path.to_owned(),
            pid,
        })
    };
    match connect_now(path) {
        Ok(socket) => in_use(
            getsockopt(&socket, PeerCredentials)
                .ok()
                .map(|peer| peer.pid()),
        ),
        // Somebody listens, and is too busy to take one more.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => in_use(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the socket left at"))
        }
        Err(error) => Err(failed("find out who answers on")(error)),
    }
}

/// Connects without ever waiting for whoever listens; a full backlog is `WouldBlock`.
pub(crate) fn connect_now(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Our socket's file; goes when dropped, unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Nothing, if it is another's now.
    inode: Option<(u64, u64)>,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: Some(inode(path)?),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| Some(inode) == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(%error, path = %self.path.display(), "cannot remove the admin socket");
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.st_dev(), metadata.st_ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_oneself_are_served_and_nobody_else() {
        let own = geteuid().as_raw();
        assert!(admits(0) && admits(own));
        assert!(!admits(own + 1));
    }
}
