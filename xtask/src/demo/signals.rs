//! Signals that ask for the end, kept until there is a good moment for it.

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

/// What asks for the end: Ctrl-C, `kill`, a terminal that is closed.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The signals, blocked in this thread and in all that it starts; programs get them still.
pub(super) struct Signals {
    set: SigSet,
    pending: SignalFd,
}

impl Signals {
    /// Blocks them.
    pub(super) fn block() -> Result<Self> {
        let set: SigSet = ENDING.into_iter().collect();
        set.thread_block().context("cannot block signals")?;
        let pending = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("cannot watch for signals")?;
        Ok(Self { set, pending })
    }

    /// Fails when one has come.
    pub(super) fn check(&self) -> Result<()> {
        let come = self.pending.read_signal();
        if come.context("cannot look for signals")?.is_some() {
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
