//! A gate in front of an upstream's answers: lets a test see that a request is in flight, and hold
//! it there for as long as it likes.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};

/// How long a request may take to arrive, on slow and busy machines.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

#[derive(Default)]
struct State {
    arrived: usize,
    is_open: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of the upstream.
#[derive(Clone)]
pub struct Barrier(Arc<Shared>);

impl Barrier {
    /// Tells that a request has arrived, and waits until the gate is open.
    pub fn pass(&self) {
        let mut state = self.0.state();
        state.arrived += 1;
        self.0.changed.notify_all();
        while !state.is_open {
            state = self
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The side of the test; closed at first, open for good when opened or dropped.
#[derive(Default)]
pub struct Gate(Arc<Shared>);

impl Gate {
    /// Makes a gate that is closed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the upstream waits at.
    #[must_use]
    pub fn barrier(&self) -> Barrier {
        Barrier(Arc::clone(&self.0))
    }

    /// Waits until this many requests have arrived, those that were let through included.
    ///
    /// # Errors
    /// They do not.
    pub fn wait_arrived(&self, count: usize) -> Result<()> {
        let (state, waited) = self
            .0
            .changed
            .wait_timeout_while(self.0.state(), ARRIVES_WITHIN, |state| {
                state.arrived < count
            })
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            bail!("{} of {count} requests have arrived", state.arrived);
        }
        Ok(())
    }

    /// How many requests have arrived.
    #[must_use]
    pub fn arrived(&self) -> usize {
        self.0.state().arrived
    }

    /// Lets everything through, from now on.
    pub fn open(&self) {
        self.0.state().is_open = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}
