//! A place among the requests with an upstream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::time;

use super::{Queue, Standing, Waiter};
use crate::admission::list::Links;

/// A place among the requests with the upstream; dropped, it goes to the next in turn.
pub struct Permit {
    queue: Arc<Queue>,
    open: bool,
    bounced: bool,
}

impl Permit {
    pub(super) fn new(queue: &Arc<Queue>) -> Self {
        Self {
            queue: Arc::clone(queue),
            open: false,
            bounced: false,
        }
    }

    /// The upstream accepted this request's connection.
    pub fn opened(&mut self) {
        if std::mem::replace(&mut self.open, true) {
            return;
        }
        let bounced = std::mem::take(&mut self.bounced);
        let mut state = self.queue.state();
        let pressed = !state.lines.is_empty();
        state.bound.opened(bounced, pressed, Instant::now);
        if pressed || bounced {
            self.queue.grant(state);
        }
    }

    /// The connection is gone, and another will be tried.
    pub fn closed(&mut self) {
        if std::mem::take(&mut self.open) {
            self.queue.state().bound.closed();
        }
    }

    /// The upstream refused the connection because its backlog is full: waits until one of its
    /// connections has ended, but no longer than until `retry_at`.
    pub async fn refused(&mut self, retry_at: time::Instant) {
        let anew = !std::mem::replace(&mut self.bounced, true);
        self.queue.state().bound.refused(anew, Instant::now());
        let _ = time::timeout_at(
            retry_at,
            Bounce {
                queue: &self.queue,
                waiter: None,
            },
        )
        .await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        if self.open {
            state.bound.closed();
        }
        if self.bounced {
            state.bound.settle(Instant::now);
        }
        state.in_flight -= 1;
        self.queue.grant(state);
    }
}

/// Lends a permit's place back to the queue; however it ends, the permit has one again.
struct Bounce<'a> {
    queue: &'a Queue,
    waiter: Option<usize>,
}

impl Future for Bounce<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let queue = self.queue;
        let mut state = queue.state();
        let Some(at) = self.waiter else {
            let state = &mut *state;
            let at = state.waiters.insert(Waiter {
                links: Links::unlinked(),
                standing: Standing::Bounced,
                waker: cx.waker().clone(),
                since: Instant::now(),
            });
            state.bounced.push_back(&mut state.waiters, at);
            state.in_flight -= 1;
            self.waiter = Some(at);
            return Poll::Pending;
        };
        if matches!(state.waiters[at].standing, Standing::Granted) {
            return Poll::Ready(());
        }
        let replaced = std::mem::replace(&mut state.waiters[at].waker, cx.waker().clone());
        drop(state);
        // Dropping a waker can run foreign code: not under the lock.
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Bounce<'_> {
    fn drop(&mut self) {
        let Some(at) = self.waiter else { return };
        let mut state = self.queue.state();
        if matches!(state.waiters[at].standing, Standing::Bounced) {
            let state = &mut *state;
            state.bounced.remove(&mut state.waiters, at);
            state.in_flight += 1;
        }
        let waiter = state.waiters.remove(at);
        drop(state);
        drop(waiter);
    }
}
