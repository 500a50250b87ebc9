//! The threads that serve: each with a runtime of its own, so that a connection never changes its
//! thread and nothing on its way needs a lock that another thread holds for long.

use std::{
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{serve, tenants::Service};

/// How long open connections may take to be dropped.
const DROPPED_WITHIN: Duration = Duration::from_secs(1);

/// What a worker is given.
struct Job {
    service: Arc<Service>,
    listener: TcpListener,
}

/// Hands listeners to the threads that serve.
#[derive(Clone)]
pub struct Workers {
    inboxes: Arc<[mpsc::UnboundedSender<Job>]>,
    next: Arc<AtomicUsize>,
}

/// The threads, to be waited for.
pub struct WorkerThreads(Vec<thread::JoinHandle<()>>);

impl Workers {
    /// Starts `count` threads. They end when `stop` is cancelled and their connections are over, or
    /// when `abort` is.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize, node: &Arc<serve::Node>) -> io::Result<(Self, WorkerThreads)> {
        let mut inboxes = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let (inbox, jobs) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let node = Arc::clone(node);
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || runtime.block_on(work(jobs, node)))?;
            inboxes.push(inbox);
            threads.push(thread);
        }
        let workers = Self {
            inboxes: inboxes.into(),
            next: Arc::default(),
        };
        Ok((workers, WorkerThreads(threads)))
    }

    /// Has a tenant's listener served, by the workers in turn.
    pub fn listen(&self, service: Arc<Service>, listener: TcpListener) {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.inboxes.len();
        // A worker that has ended serves nobody; that happens only when the process ends.
        let _ = self.inboxes[index].send(Job { service, listener });
    }
}

impl WorkerThreads {
    /// Waits for every thread to end.
    pub fn join(self) {
        for thread in self.0 {
            // A panic was logged where it happened.
            let _ = thread.join();
        }
    }
}

async fn work(mut jobs: mpsc::UnboundedReceiver<Job>, node: Arc<serve::Node>) {
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(Job { service, listener }) => {
                    tokio::spawn(serve::accept(listener, service, Arc::clone(&node)));
                }
                None => break,
            },
            () = node.ends.stopping.cancelled() => break,
        }
    }
    drop(jobs);
    // Connections go on until they are through or nobody waits for them any longer.
    tokio::select! {
        () = node.connections_over() => {}
        () = node.ends.aborting.cancelled() => {
            // Each connection is dropped by its own task, which takes no time worth mentioning.
            let _ = tokio::time::timeout(DROPPED_WITHIN, node.connections_over()).await;
        }
    }
}
