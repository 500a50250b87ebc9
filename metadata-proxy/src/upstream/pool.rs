//! Connections kept open to an HTTP server, a stock of them on each worker thread.
//!
//! A connection belongs to the runtime of the thread that opened it, so it is kept in that thread's
//! own storage and never moves: taking one costs no lock and no system call.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::http::Stream;

thread_local! {
    /// This thread's stocks; there are only ever a few upstreams.
    static STOCKS: RefCell<Vec<Stock>> = const { RefCell::new(Vec::new()) };
}

/// One pool's connections on one thread, the longest idle first.
struct Stock {
    pool: u64,
    idle: VecDeque<Idle>,
}

struct Idle {
    stream: Stream,
    since: Instant,
}

/// Names the stocks of one upstream, and says how many connections are kept for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    id: u64,
    most_idle: usize,
    longest_idle: Duration,
}

impl Pool {
    /// A pool of at most `most_idle` connections per thread, each idle for at most `longest_idle`.
    pub(super) fn new(most_idle: usize, longest_idle: Duration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            most_idle,
            longest_idle,
        }
    }

    /// Takes the connection used last that the peer has not closed.
    pub(super) fn take(&self) -> Option<Stream> {
        STOCKS.with_borrow_mut(|stocks| {
            let stock = stocks.iter_mut().find(|stock| stock.pool == self.id)?;
            while let Some(idle) = stock.idle.pop_back() {
                // A close, or bytes that answer nothing.
                if idle.stream.is_quiet() {
                    return Some(idle.stream);
                }
            }
            None
        })
    }

    /// Keeps a connection whose last answer ended properly.
    pub(super) fn put(&self, stream: Stream) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.most_idle == 0 {
            return;
        }
        let idle = Idle {
            stream,
            since: Instant::now(),
        };
        STOCKS.with_borrow_mut(|stocks| {
            if let Some(stock) = stocks.iter_mut().find(|stock| stock.pool == self.id) {
                if stock.idle.len() >= self.most_idle {
                    stock.idle.pop_front();
                }
                stock.idle.push_back(idle);
            } else {
                stocks.push(Stock {
                    pool: self.id,
                    idle: VecDeque::from([idle]),
                });
                runtime.spawn(clear(*self));
            }
        });
    }

    /// Closes what has been idle for too long; says when to look again, if anything is left.
    fn expire(&self, now: Instant) -> Option<Instant> {
        STOCKS.with_borrow_mut(|stocks| {
            let at = stocks.iter().position(|stock| stock.pool == self.id)?;
            let idle = &mut stocks[at].idle;
            while idle
                .front()
                .is_some_and(|idle| idle.since + self.longest_idle <= now)
            {
                idle.pop_front();
            }
            if let Some(oldest) = idle.front() {
                return Some(oldest.since + self.longest_idle);
            }
            stocks.swap_remove(at);
            None
        })
    }
}

/// Runs while a thread has a stock of this pool.
async fn clear(pool: Pool) {
    while let Some(next) = pool.expire(Instant::now()) {
        sleep_until(next).await;
    }
}
