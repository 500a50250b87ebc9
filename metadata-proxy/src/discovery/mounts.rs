//! Tells whether anything was mounted or unmounted: what a named namespace is depends on it.

use std::{fs::File, io, os::fd::AsFd as _};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The mounts of this process's mount namespace.
pub(super) struct MountWatch(File);

impl MountWatch {
    /// Starts to watch.
    pub(super) fn start() -> io::Result<Self> {
        File::open("/proc/self/mountinfo").map(Self)
    }

    /// Whether anything was mounted or unmounted since the last time this was asked. Says so where
    /// that cannot be told.
    pub(super) fn have_changed(&self) -> bool {
        // As proc(5) has it: a change is told as an error and as something of priority, once.
        let change = PollFlags::POLLERR | PollFlags::POLLPRI;
        let mut mounts = [PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)];
        let told = poll(&mut mounts, PollTimeout::ZERO);
        told.is_err()
            || mounts[0]
                .revents()
                .is_none_or(|events| events.intersects(change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_where_nothing_is_mounted() {
        // Whoever mounts something meanwhile may spoil one look, and hardly every one.
        let watch = MountWatch::start().unwrap();
        assert!((0..100).any(|_| !watch.have_changed()));
    }
}
