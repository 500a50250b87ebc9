//! What a node has: asked for, never tried out on anything that stays.

use std::{io, path::Path};

use nix::sys::resource::{Resource, getrlimit};

use crate::{
    cli::privileges::Capabilities,
    kernel::{EngineFacts, GracePeriods, Mounts, Probe},
};

/// Everything `check` knows about a node that does not depend on the configuration.
#[derive(Clone, Debug)]
pub(super) struct NodeFacts {
    pub(super) engine: EngineFacts,
    pub(super) capabilities: Capabilities,
    pub(super) mounts: Mounts,
    pub(super) ipv6: bool,
    /// Hard limit of open files.
    pub(super) open_files: u64,
    pub(super) inotify: Probe,
    /// Whether grace periods can be made short.
    pub(super) short_grace_periods: Probe,
}

impl NodeFacts {
    pub(super) fn ask() -> io::Result<Self> {
        let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let inotify = match inotify::Inotify::init() {
            Ok(_) => Probe::Yes,
            Err(error) => Probe::No(error.to_string()),
        };
        Ok(Self {
            engine: EngineFacts::ask()?,
            capabilities: Capabilities::effective()?,
            mounts: Mounts::of_this_process()?,
            ipv6: Path::new("/proc/net/if_inet6").exists(),
            open_files: hard,
            inotify,
            short_grace_periods: GracePeriods::probe(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_node_can_be_asked() {
        let facts = NodeFacts::ask().unwrap();
        assert!(facts.open_files > 0);
        // What the test is run on decides, but old kernels must say no and new ones yes.
        let modern = facts.engine.kernel.at_least(5, 14);
        assert_eq!(facts.engine.netns_cookie == Probe::Yes, modern);
    }
}
