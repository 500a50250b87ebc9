//! A guest that asks all the time, and judges each answer by who it is.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    TenantFixture,
    crowd::{Outcome, judged},
    raw_http::Connection,
    stage,
};

/// How long a guest waits for a connection, and for an answer: short, to ask again soon.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(10);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n";

/// What became of a guest's requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Answered as the guest that it is.
    pub(crate) served: usize,
    /// Not answered with 200.
    pub(crate) unserved: usize,
    /// Answered as somebody else.
    pub(crate) wrong: usize,
    /// When the last request was begun that was served.
    last_served: Option<Instant>,
}

/// Asks once, on a thread that is inside the guest's namespace.
pub(crate) fn ask(wanted: &str) -> Outcome {
    match Connection::open(None, PATIENCE) {
        Ok(mut connection) => {
            // Who is refused while writing is told so when reading.
            let _ = connection.send(REQUEST);
            judged(
                &connection.answer("GET", Instant::now() + PATIENCE),
                &[wanted],
            )
        }
        // Whatever the reason, nobody answered.
        Err(_) => Outcome::Refused,
    }
}

/// A thread that asks until it is told to stop.
pub(crate) struct Asking<'scope> {
    thread: Option<ScopedJoinHandle<'scope, ()>>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl<'scope> Asking<'scope> {
    /// Starts to ask as the first guest of a tenant.
    pub(crate) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        tenant: &'env TenantFixture,
    ) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let thread = {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            scope.spawn(move || {
                let guest = tenant.guest();
                if guest.netns.enter().is_err() {
                    return;
                }
                let wanted = stage::told(tenant, guest.v4);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let outcome = ask(&wanted);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Outcome::Served => {
                            seen.served += 1;
                            seen.last_served = Some(begun);
                        }
                        Outcome::Wrong => seen.wrong += 1,
                        _ => seen.unserved += 1,
                    }
                    drop(seen);
                    std::thread::sleep(PAUSE);
                }
            })
        };
        Self {
            thread: Some(thread),
            stop,
            seen,
        }
    }

    /// Whether a request was served that was begun after that moment.
    pub(crate) fn served_since(&self, moment: Instant) -> bool {
        self.now().last_served.is_some_and(|at| at >= moment)
    }

    /// What became of the requests until now.
    pub(crate) fn now(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, and tells what it saw.
    pub(crate) fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = self.thread.take().map(ScopedJoinHandle::join);
        if let Some(Err(panic)) = panicked {
            std::panic::resume_unwind(panic);
        }
        self.now()
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // The scope waits for the thread, also after an error.
        self.stop.store(true, Ordering::Relaxed);
    }
}
