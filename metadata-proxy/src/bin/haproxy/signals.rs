//! Waiting for what little can happen.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use crate::report::Failure;

/// The signals that haproxy takes, as a descriptor.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A signal asks the process to end.
    Stop,
    /// There is something to read.
    Readable,
    /// The time is over.
    Elapsed,
}

impl Signals {
    /// Takes the signals instead of dying from them.
    pub(crate) fn block() -> Result<Self, Failure> {
        let mut mask = SigSet::empty();
        for signal in [
            // haproxy's hard and soft stop.
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGUSR1,
            // haproxy reloads and prints statistics; there is nothing of that here.
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR2,
        ] {
            mask.add(signal);
        }
        mask.thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map(Self)
            .map_err(|error| Failure::new(format_args!("cannot take signals: {error}")))
    }

    /// Waits for a signal, for something to read, or for the time; without end if there is none.
    pub(crate) fn wait(&self, read: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Event {
        loop {
            let also = read.unwrap_or(self.0.as_fd());
            let mut waited = [
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
                PollFd::new(also, PollFlags::POLLIN),
            ];
            let ready = poll(&mut waited, timeout(until));
            if self.asked_to_stop() {
                return Event::Stop;
            }
            let readable = ready.is_ok() && waited[1].any().unwrap_or(false);
            if read.is_some() && readable {
                return Event::Readable;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Event::Elapsed;
            }
        }
    }

    fn asked_to_stop(&self) -> bool {
        while let Ok(Some(signal)) = self.0.read_signal() {
            let stops = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1];
            if stops
                .iter()
                .any(|&stop| u32::try_from(stop as i32) == Ok(signal.ssi_signo))
            {
                return true;
            }
        }
        false
    }
}

/// Time until an instant, rounded up so that it has come when the time is over.
fn timeout(until: Option<Instant>) -> PollTimeout {
    let Some(until) = until else {
        return PollTimeout::NONE;
    };
    let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
