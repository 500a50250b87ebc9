//! The one thread that enters other network namespaces.
//!
//! Work in a namespace is a synchronous closure that returns sockets or values; it never crosses an
//! `.await`, and no runtime worker ever changes its namespace. If the thread cannot get back to its
//! own namespace, the process aborts: everything after that would act on the wrong tenant.

use std::{
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::fstatfs,
};
use tokio::sync::oneshot;
use tracing::error;

/// Magic number of the filesystem that namespaces' files live on (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` (`ioctl_ns(2)`): which kind of namespace a file is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
/// `SIOCGSKNS` (`include/uapi/linux/sockios.h`): the namespace a socket lives in.
const SIOCGSKNS: libc::c_ulong = 0x894c;

/// Cookie of a network namespace: never reused while the kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which namespace: device and inode number of its file. Reused after the namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// Reads the identity of the namespace that a path names, without opening it.
    ///
    /// # Errors
    /// What the system says of the path.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Device and inode number, to be told to another process.
    #[must_use]
    pub const fn parts(self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// From what [`parts`](Self::parts) told.
    #[must_use]
    pub const fn from_parts(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }

    /// The inode number, as `ls -i` and `lsns` show it.
    #[must_use]
    pub const fn inode(self) -> u64 {
        self.inode
    }
}

/// Why a namespace could not be worked in.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing at the path, or it may not be opened.
    #[error("cannot open the network namespace {path}: {source}")]
    Open {
        /// Which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no namespace: what `ip netns` leaves when its mount is gone.
    #[error(
        "{path} is not a network namespace (a stale file?): remove it if nobody uses it, or mount the namespace again"
    )]
    NotANamespace {
        /// Which path.
        path: PathBuf,
    },
    /// The kernel refused to let us in.
    #[error("cannot enter the network namespace: {0} (CAP_SYS_ADMIN is needed)")]
    Enter(io::Error),
    /// The work in it panicked.
    #[error("work in the network namespace failed in an unforeseen way; see the log")]
    Panicked,
    /// The thread is gone, since the process is ending.
    #[error("the process is ending")]
    Ending,
}

/// A network namespace, held open: the kernel keeps it alive meanwhile, so hold it briefly.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace that a path names.
    ///
    /// # Errors
    /// [`NetnsError::Open`], or [`NetnsError::NotANamespace`].
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| NetnsError::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::from_fd(file.into()).ok_or_else(|| NetnsError::NotANamespace {
            path: path.to_owned(),
        })
    }

    /// Takes a file descriptor of a namespace; `None` if it is something else.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Option<Self> {
        if fstatfs(&fd).ok()?.filesystem_type().0 != NSFS_MAGIC {
            return None;
        }
        // SAFETY: the request takes no argument and only reads; the descriptor is open.
        let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return None;
        }
        let stat = nix::sys::stat::fstat(&fd).ok()?;
        let id = NetnsId {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        Some(Self { fd, id })
    }

    /// Opens the namespace that a socket lives in.
    ///
    /// # Errors
    /// What the system says; `CAP_NET_ADMIN` is needed.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Self> {
        // SAFETY: the request takes no argument and returns a new descriptor or an error.
        let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Self::from_fd(fd).ok_or_else(|| io::Error::other("the socket's namespace has no file"))
    }

    /// The namespace this thread is in.
    ///
    /// # Errors
    /// [`NetnsError::Open`].
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The file descriptor.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Which namespace it is.
    #[must_use]
    pub const fn id(&self) -> NetnsId {
        self.id
    }
}

/// Reads the cookie of the namespace a socket lives in.
///
/// # Errors
/// What the system says; kernels before 5.14 do not know the option.
pub fn cookie_of(socket: impl AsFd) -> io::Result<NetnsCookie> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the buffer is eight bytes and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(NetnsCookie(cookie))
    } else {
        Err(io::Error::last_os_error())
    }
}

type Job = Box<dyn FnOnce(&Home) + Send>;

/// Hands work to the thread that enters namespaces.
#[derive(Clone)]
pub struct NetnsThread {
    jobs: mpsc::Sender<Job>,
}

/// The namespace the thread belongs in.
struct Home(Netns);

impl NetnsThread {
    /// Starts the thread in the calling thread's namespace.
    ///
    /// # Errors
    /// When the own namespace cannot be opened or no thread can be started.
    pub fn start() -> io::Result<Self> {
        let home = Home(Netns::current().map_err(io::Error::other)?);
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                for job in inbox {
                    job(&home);
                }
            })?;
        Ok(Self { jobs })
    }

    /// Runs `work` inside `netns` and returns what it returns.
    ///
    /// # Errors
    /// [`NetnsError`] if `work` was not run to its end.
    pub async fn run<T: Send + 'static>(
        &self,
        netns: Netns,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |home| {
            let _ = reply.send(inside(&netns, home, work));
        });
        self.jobs.send(job).map_err(|_| NetnsError::Ending)?;
        answer.await.map_err(|_| NetnsError::Ending)?
    }
}

impl NetnsThread {
    /// Runs `work` inside one namespace after the other, and comes back once: cheaper than
    /// [`NetnsThread::run`] for each. What it returns is in the order of the namespaces.
    ///
    /// # Errors
    /// [`NetnsError`] if the thread is gone, or `work` panicked.
    pub async fn run_each<K: Copy + Send + 'static, T: Send + 'static>(
        &self,
        namespaces: Vec<(K, Netns)>,
        mut work: impl FnMut(K) -> T + Send + 'static,
    ) -> Result<Vec<(K, Result<T, NetnsError>)>, NetnsError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |home| {
            let each = || {
                namespaces
                    .iter()
                    .map(|(key, netns)| {
                        let entered = setns(&netns.fd, CloneFlags::CLONE_NEWNET);
                        let result = entered.map(|()| work(*key));
                        (*key, result.map_err(|e| NetnsError::Enter(e.into())))
                    })
                    .collect()
            };
            let results = catch_unwind(AssertUnwindSafe(each));
            leave(home);
            let _ = reply.send(results.map_err(|_| NetnsError::Panicked));
        });
        self.jobs.send(job).map_err(|_| NetnsError::Ending)?;
        answer.await.map_err(|_| NetnsError::Ending)?
    }
}

fn leave(home: &Home) {
    if let Err(errno) = setns(&home.0.fd, CloneFlags::CLONE_NEWNET) {
        error!(%errno, "cannot leave a tenant namespace; aborting, since nothing may act in it");
        std::process::abort();
    }
}

fn inside<T>(netns: &Netns, home: &Home, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
    setns(&netns.fd, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
    let result = catch_unwind(AssertUnwindSafe(work));
    leave(home);
    result.map_err(|_| NetnsError::Panicked)
}
