//! When requests are due: one after the other as fast as they are answered, or at a fixed rate
//! whether they are answered or not.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

/// When requests are due.
pub(super) enum Arrivals {
    /// Whenever a connection is free.
    Closed,
    /// At a fixed rate; one that finds no free connection waits, and its waiting counts.
    Open {
        /// When the next is due.
        next: Instant,
        /// Time between two.
        gap: Duration,
    },
}

impl Arrivals {
    pub(super) fn new(rate: Option<f64>) -> Self {
        match rate {
            None => Self::Closed,
            Some(rate) => Self::Open {
                next: Instant::now(),
                gap: Duration::from_secs_f64(1.0 / rate),
            },
        }
    }

    /// When the next request was due, if it is due by now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Closed => Some(Instant::now()),
            Self::Open { next, .. } => (*next <= now).then_some(*next),
        }
    }

    /// The next request has been started.
    pub(super) fn taken(&mut self) {
        if let Self::Open { next, gap } = self {
            *next += *gap;
        }
    }

    /// How long to wait for events at most.
    pub(super) fn wait(&self, now: Instant, is_free: bool) -> Duration {
        match self {
            Self::Open { next, .. } if is_free => next.saturating_duration_since(now),
            Self::Open { .. } | Self::Closed => Duration::from_millis(100),
        }
    }
}

/// Asks the kernel to wake this thread when it said, not up to 50 µs later.
pub(super) fn sharpen_timers() {
    // SAFETY: the call takes integers only, and changes nothing but the calling thread's slack.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0, 0, 0) };
}

/// Waits for events with the precision that a rate needs.
pub(super) fn wait(epoll: &Epoll, events: &mut [EpollEvent], wait: Duration) -> io::Result<usize> {
    // epoll counts milliseconds; what is shorter is slept by ppoll, which counts nanoseconds.
    if wait < Duration::from_millis(2) && !wait.is_zero() {
        let mut poll = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&epoll.0),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::ppoll(&mut poll, Some(wait.into()), None)?;
        return Ok(epoll.wait(events, EpollTimeout::ZERO)?);
    }
    let millis = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
    match epoll.wait(events, EpollTimeout::from(millis)) {
        Err(nix::errno::Errno::EINTR) => Ok(0),
        other => Ok(other?),
    }
}
