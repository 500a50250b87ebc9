//! Tells when a name appears in a directory or leaves it.

use std::{collections::VecDeque, io, path::Path};

use inotify::{EventMask, Inotify, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

/// What a watch saw.
pub(super) enum Seen {
    /// Something about this name changed.
    Changed(String),
    /// Events were lost: only a scan tells.
    Lost,
    /// The directory is gone.
    Ended,
}

/// An inotify watch on one directory.
pub(super) struct DirectoryWatch {
    inotify: AsyncFd<Inotify>,
    seen: VecDeque<Seen>,
}

impl DirectoryWatch {
    /// Starts to watch.
    pub(super) fn start(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(dir, mask)?;
        // SAFETY: the descriptor is owned, and stays open until the `AsyncFd` is dropped.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
        Ok(Self {
            inotify,
            seen: VecDeque::new(),
        })
    }

    async fn next(&mut self) -> io::Result<Seen> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Ok(seen);
            }
            let mut ready = self.inotify.readable_mut().await?;
            let mut buffer = [0; 4096];
            match ready.get_inner_mut().read_events(&mut buffer) {
                Ok(events) => self.seen.extend(events.filter_map(|event| {
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        Some(Seen::Lost)
                    } else if event.mask.intersects(
                        EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED,
                    ) {
                        Some(Seen::Ended)
                    } else {
                        event
                            .name?
                            .to_str()
                            .map(|name| Seen::Changed(name.to_owned()))
                    }
                })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits for the next thing a watch sees; for ever where there is none.
pub(super) async fn next(watch: &mut Option<DirectoryWatch>) -> Seen {
    match watch {
        Some(watch) => watch.next().await.unwrap_or(Seen::Ended),
        None => std::future::pending().await,
    }
}
