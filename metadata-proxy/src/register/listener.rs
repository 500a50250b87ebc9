//! The registration socket's place in the file system.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};

/// Connections that may wait to be taken: after a restart every stand-in of the node comes at once.
const BACKLOG: i32 = 1024;

/// A listening registration socket; dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, if it is to be removed.
    file: Option<(u64, u64)>,
}

/// Why the registration socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Another process listens there.
    #[error("another process listens on {}; stop it first", .0.display())]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was to be done.
        action: &'static str,
        /// The file at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Listener {
    /// Listens at `path`, for its owner only, in the place of a socket whose process is gone.
    ///
    /// # Errors
    ///
    /// If another process listens there or something else is in the way.
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| ListenerError::System {
                action,
                path,
                source,
            }
        };
        make_way(path)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("create directory", directory))?;
        }
        let socket = new_socket().map_err(failed("make a socket for", path))?;
        // Under another name until nobody but the owner can connect, then in one step in place of
        // what a killed process has left.
        let mut unready = path.as_os_str().to_owned();
        unready.push(format!(".{}", std::process::id()));
        let unready = PathBuf::from(unready);
        let _ = fs::remove_file(&unready);
        UnixAddr::new(&unready)
            .and_then(|address| bind(socket.as_raw_fd(), &address))
            .map_err(io::Error::from)
            .map_err(failed("bind", &unready))?;
        let ready = fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&socket, Backlog::new(BACKLOG)?)?))
            .and_then(|()| fs::rename(&unready, path))
            .and_then(|()| fs::symlink_metadata(path));
        match ready {
            Ok(file) => Ok(Self {
                socket,
                path: path.to_owned(),
                file: Some((file.dev(), file.ino())),
            }),
            Err(error) => {
                let _ = fs::remove_file(&unready);
                Err(failed("listen on", path)(error))
            }
        }
    }

    /// Takes over a socket that listens at `path`, from the process that listened before.
    #[must_use]
    pub fn adopt(socket: OwnedFd, path: PathBuf) -> Self {
        let file = fs::symlink_metadata(&path)
            .ok()
            .map(|file| (file.dev(), file.ino()));
        Self { socket, path, file }
    }

    /// Leaves the file where it is when this is dropped, because another process has the socket.
    pub fn leave_file(&mut self) {
        self.file = None;
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a waiting connection, without waiting for one.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        let connection = accept4(
            self.socket.as_raw_fd(),
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(connection) })
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

/// Makes sure that nothing at `path` is in use.
fn make_way(path: &Path) -> Result<(), ListenerError> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ListenerError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let system = |source| ListenerError::System {
        action: "look for a process that listens on",
        path: path.to_owned(),
        source,
    };
    let probe = new_socket().map_err(system)?;
    let address = UnixAddr::new(path).map_err(|error| system(error.into()))?;
    match connect(probe.as_raw_fd(), &address) {
        // Its process is gone.
        Err(nix::Error::ECONNREFUSED | nix::Error::ENOENT) => Ok(()),
        // A full backlog, or a socket of another type: somebody is there.
        Ok(()) | Err(nix::Error::EAGAIN | nix::Error::EPROTOTYPE) => {
            Err(ListenerError::InUse(path.to_owned()))
        }
        Err(error) => Err(system(error.into())),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(file) = self.file else {
            return;
        };
        // Not if a successor has put its own in the place.
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/on/the/way/register.sock");
        let _listener = Listener::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("register.sock");
        let mut first = Listener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenerError::InUse(in_use)) if in_use == path
        ));
        first.leave_file();
        drop(first);
        assert!(path.exists());
        let second = Listener::bind(&path).unwrap();
        drop(second);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("register.sock");
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenerError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_listener_does_not_remove_its_successors_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("register.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }
}
