//! Counts the connections of a tenant that this end closes first, since each leaves a socket in
//! `TIME_WAIT` for a minute.
//!
//! A guest that uses a port again is to be connected at once, whatever is left of its last
//! connection from there. For most tenants [`listener::free_port`](crate::listener::free_port) sees
//! to that, at the price that what is left is left for the whole minute, however often the port is
//! used. Guests that connect again and again would fill the namespace's table with it
//! (`net.ipv4.tcp_max_tw_buckets`), beyond which the kernel forgets connections whose farewell is not
//! over. So a tenant with many gets listeners on the metadata addresses themselves, which hear only
//! devices that are steered: by these the kernel takes what is left of a connection out of the way when
//! its port is used again, and no port has more than one such socket.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

/// As many sockets in `TIME_WAIT` as a tenant is left with: a megabyte of the kernel's memory.
const MANY: u32 = 4096;
/// How long one lingers (`TCP_TIMEWAIT_LEN`), seconds.
const LINGERS_SECONDS: u64 = 60;

/// What closing the connections of one tenant has come to.
#[derive(Debug)]
pub struct Farewells {
    since: Instant,
    /// The minute that is counted, since `since`.
    minute: AtomicU32,
    in_minute: AtomicU32,
    are_many: CancellationToken,
    are_recycled: AtomicBool,
}

impl Default for Farewells {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            minute: AtomicU32::new(0),
            in_minute: AtomicU32::new(0),
            are_many: CancellationToken::new(),
            are_recycled: AtomicBool::new(false),
        }
    }
}

impl Farewells {
    /// Notes that this end is about to close a connection first, and says whether its port has to be
    /// freed for the guest.
    pub fn note(&self) -> bool {
        if self.are_recycled.load(Ordering::Relaxed) {
            return false;
        }
        self.count(self.since.elapsed().as_secs());
        true
    }

    /// Workers may lose a few of each other's counts when a minute begins, which does not matter.
    fn count(&self, seconds: u64) {
        let minute = u32::try_from(seconds / LINGERS_SECONDS).unwrap_or(u32::MAX);
        if self.minute.swap(minute, Ordering::Relaxed) != minute {
            self.in_minute.store(0, Ordering::Relaxed);
        }
        if self.in_minute.fetch_add(1, Ordering::Relaxed) == MANY {
            self.are_many.cancel();
        }
    }

    /// Cancelled once there have been many within a minute.
    #[must_use]
    pub const fn are_many(&self) -> &CancellationToken {
        &self.are_many
    }

    /// Notes whether the kernel finds a listener for a port that is used again.
    pub fn set_recycled(&self, are_recycled: bool) {
        self.are_recycled.store(are_recycled, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_within_a_minute_are_told_and_many_within_an_hour_are_not() {
        let farewells = Farewells::default();
        for second in 0..3600 {
            for _ in 0..60 {
                farewells.count(second);
            }
        }
        assert!(!farewells.are_many().is_cancelled());
        for _ in 0..=MANY {
            assert!(farewells.note());
        }
        assert!(farewells.are_many().is_cancelled());
    }

    #[test]
    fn a_port_that_the_kernel_frees_is_not_freed_twice() {
        let farewells = Farewells::default();
        assert!(farewells.note());
        farewells.set_recycled(true);
        assert!(!farewells.note());
        farewells.set_recycled(false);
        assert!(farewells.note());
    }
}
