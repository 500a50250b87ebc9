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

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{Node, accept};
use crate::{listener::Acceptor, tenants::Service};

/// How long open connections may take to be dropped.
const DROPPED_WITHIN: Duration = Duration::from_secs(1);

/// What a worker is given.
enum Job {
    /// To accept from.
    Listen {
        service: Arc<Service>,
        listener: TcpListener,
    },
    /// To say that it goes on, and has done what it was given before.
    Report(oneshot::Sender<()>),
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
    /// Starts `count` threads, which accept nothing before `begin` is cancelled. They end when the
    /// node is told to stop and their connections are over, or when it is told to abort.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(
        count: usize,
        node: &Arc<Node>,
        begin: &CancellationToken,
    ) -> io::Result<(Self, WorkerThreads)> {
        let mut inboxes = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let (inbox, jobs) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let node = Arc::clone(node);
            let begin = begin.clone();
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || runtime.block_on(work(jobs, node, begin)))?;
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
        let _ = self.inboxes[index].send(Job::Listen { service, listener });
    }

    /// Waits until every worker has done what it was given before.
    pub async fn report(&self) {
        for inbox in &*self.inboxes {
            let (report, reported) = oneshot::channel();
            let _ = inbox.send(Job::Report(report));
            // A worker that has ended has nothing to do.
            let _ = reported.await;
        }
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

async fn work(mut jobs: mpsc::UnboundedReceiver<Job>, node: Arc<Node>, begin: CancellationToken) {
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(Job::Listen { service, listener }) => {
                    listen(listener, service, Arc::clone(&node), begin.clone());
                }
                Some(Job::Report(report)) => {
                    let _ = report.send(());
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

/// Accepts from a listener once it is time to.
fn listen(listener: TcpListener, service: Arc<Service>, node: Arc<Node>, begin: CancellationToken) {
    let listener = match Acceptor::new(listener) {
        Ok(listener) => Arc::new(listener),
        Err(error) => {
            error!(%error, tenant = %service.tenant, "cannot watch a listener; tenant not served");
            return;
        }
    };
    service.add_listener(&listener);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = service.gone.cancelled() => return,
            () = node.ends.stopping.cancelled() => return,
            () = begin.cancelled() => {}
        }
        accept(listener, service, node).await;
    });
}
