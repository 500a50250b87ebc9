//! Where both proxies' logs go: read away by a thread, as journald or a syslog daemon would read
//! them, so that writing a line costs what it costs on a node.

use std::{
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// How much of a log is kept, for when something goes wrong.
const KEPT: usize = 16 * 1024;
const TICK: Duration = Duration::from_millis(100);

/// A socket as `/dev/log`; it is read until this is dropped.
pub(crate) struct Syslog {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Syslog {
    /// Makes the socket, and reads it.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let path = directory.join("log");
        let socket = UnixDatagram::bind(&path).context("cannot bind the log's socket")?;
        socket.set_read_timeout(Some(TICK)).context("no timeout")?;
        let stopped = Arc::new(AtomicBool::new(false));
        let read = {
            let stopped = Arc::clone(&stopped);
            move || {
                let mut line = [0; 2048];
                while !stopped.load(Ordering::Relaxed) {
                    // What is said does not matter.
                    let _ = socket.recv(&mut line);
                }
            }
        };
        let reader = thread::Builder::new()
            .name("syslog".to_owned())
            .spawn(read)
            .context("cannot start a thread")?;
        Ok(Self {
            path,
            stopped,
            reader: Some(reader),
        })
    }

    /// Where the socket is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A stream as journald gives a service for its standard error.
pub(crate) struct Journal {
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Journal {
    /// Makes it, and the end that the service writes to; read until that is closed.
    pub(crate) fn start() -> Result<(Self, OwnedFd)> {
        let (mut ours, theirs) = UnixStream::pair().context("no socket pair")?;
        let kept = Arc::new(Mutex::new(Vec::new()));
        let reader = {
            let kept = Arc::clone(&kept);
            move || {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = ours.read(&mut buffer) {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend_from_slice(&buffer[..length.min(KEPT)]);
                    let surplus = kept.len().saturating_sub(KEPT);
                    kept.drain(..surplus);
                }
            }
        };
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(reader)
            .context("cannot start a thread")?;
        Ok((Self { kept }, theirs.into()))
    }

    /// The end of what was written.
    pub(crate) fn tail(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}
