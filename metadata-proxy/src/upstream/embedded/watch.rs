//! Notices that the file, or a file it names, has changed.
//!
//! It is the directories that are watched: a watch on a file stays with the old one when an editor
//! renames a new one over it. Which name an event carries is not looked at (it may be that of a
//! symbolic link on the way): whatever happens there, the contents are compared.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inotify::{EventMask, Inotify, WatchMask};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Embedded, Looked};

/// The files are read when nothing has happened for this long ...
const QUIET: Duration = Duration::from_millis(100);
/// ... or when something has happened all through this.
const BUSY: Duration = Duration::from_secs(1);
/// The files are compared this often even if no event came: some file systems raise none.
const UNTOLD: Duration = Duration::from_secs(10);
/// How long to wait before watching again what could not be watched.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn forever(embedded: Arc<Embedded>) {
    let mut failing = false;
    loop {
        match until_moved(&embedded).await {
            Ok(()) => failing = false,
            Err(error) => {
                // Once, not every second.
                if !failing {
                    let path = embedded.path.display();
                    tracing::warn!(%path, %error, "cannot watch the instances, will look again");
                }
                failing = true;
                look(&embedded).await;
                sleep(RETRY).await;
            }
        }
    }
}

/// Watches until other directories are to be watched, or the ones that are have gone.
async fn until_moved(embedded: &Arc<Embedded>) -> io::Result<()> {
    let directories = embedded.directories();
    let mut inotify = watch(&directories, super::source::directory_of(&embedded.path))?;
    loop {
        // First of all: what changed before the watch began raised no event.
        look(embedded).await;
        if embedded.directories() != directories {
            return Ok(());
        }
        let Ok(event) = timeout(UNTOLD, next(&mut inotify)).await else {
            continue;
        };
        let mut event = event?;
        let busy = Instant::now() + BUSY;
        while event == Event::Change {
            let quiet = busy.min(Instant::now() + QUIET);
            let Ok(next) = timeout_at(quiet, next(&mut inotify)).await else {
                break;
            };
            event = next?;
        }
        if event == Event::Gone {
            return Ok(());
        }
    }
}

fn watch(directories: &BTreeSet<PathBuf>, main: &Path) -> io::Result<AsyncFd<Inotify>> {
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    for directory in directories {
        // A directory named in the file may be missing, as the file's report tells; without the
        // file's own nothing can be noticed.
        match watches.add(directory, mask) {
            Err(error) if directory == main => return Err(error),
            _ => {}
        }
    }
    // SAFETY: the descriptor is `inotify`'s own: it stays open, and stays the one `as_raw_fd` gives,
    // until `AsyncFd` drops it.
    let registered = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
    Ok(registered?)
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Something in a directory is not as it was.
    Change,
    /// A directory is not what it was.
    Gone,
}

/// Waits for events, and takes all that are there.
async fn next(inotify: &mut AsyncFd<Inotify>) -> io::Result<Event> {
    let mut buffer = [0; 4096];
    loop {
        let mut ready = inotify.readable_mut().await?;
        let read = ready.try_io(|inotify| {
            let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED;
            let mut events = inotify.get_mut().read_events(&mut buffer)?;
            let is_gone = events.any(|event| event.mask.intersects(gone));
            Ok(if is_gone { Event::Gone } else { Event::Change })
        });
        if let Ok(event) = read {
            return event;
        }
    }
}

/// Compares, and serves what is new.
async fn look(embedded: &Arc<Embedded>) {
    let looking = embedded.clone();
    // Disks may be slow, and a large file takes its time to be rendered.
    let looked = tokio::task::spawn_blocking(move || looking.look()).await;
    let path = embedded.path.display();
    match looked {
        Ok(Looked::Unchanged) => {}
        Ok(Looked::Changed(Ok(()))) => {
            let served = embedded.served.load();
            let (tenants, instances) = (served.tenants, served.owners.len());
            tracing::info!(%path, tenants, instances, "serving the instances as they are now");
        }
        Ok(Looked::Changed(Err(error))) => {
            tracing::error!(%path, "serving the instances as they were, because: {error}");
        }
        Err(error) => tracing::error!(%path, %error, "reading the instances failed"),
    }
}
