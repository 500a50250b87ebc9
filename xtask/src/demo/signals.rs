//! Signals that ask for the end, kept until there is a good moment for it.

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

/// SIGINT and SIGTERM, blocked in this thread and in all that it starts; programs get them still.
pub(super) struct Signals {
    set: SigSet,
    pending: SignalFd,
}

impl Signals {
    /// Blocks them.
    pub(super) fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().context("cannot block signals")?;
        let pending = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("cannot watch for signals")?;
        Ok(Self { set, pending })
    }

    /// Fails when one has come.
    pub(super) fn check(&self) -> Result<()> {
        if self
            .pending
            .read_signal()
            .context("cannot look for signals")?
            .is_some()
        {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Waits for one.
    pub(super) fn wait(&self) -> Result<()> {
        self.set
            .wait()
            .map(drop)
            .context("cannot wait for a signal")
    }
}
