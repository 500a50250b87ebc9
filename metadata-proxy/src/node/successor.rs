//! Offers everything to a successor, for as long as the agent runs.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    task::JoinHandle,
};
use tracing::{info, warn};

use super::Stop;
use crate::{
    admission::rate::WindowRecord,
    register, serve,
    takeover::{self, Channel, Offer, OfferedNode, Question},
    tenants::{Command, Giving, HandOver, RegistryHandle},
};

/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// What is offered.
pub(super) struct Offering {
    pub(super) node: OfferedNode,
    pub(super) sockets: [OwnedFd; 3],
    pub(super) registry: RegistryHandle,
    pub(super) serving: Arc<serve::Node>,
}

/// Waits for a successor. Its process id comes once it serves in our place; from then on nothing is
/// accepted here.
pub(super) fn offer(
    listener: register::Listener,
    offering: Offering,
    stop: Stop,
) -> anyhow::Result<(JoinHandle<()>, oneshot::Receiver<i32>)> {
    // SAFETY: a listener names the same descriptor, which it owns, for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?;
    let (taken, is_taken) = oneshot::channel();
    let offering = Arc::new(offering);
    let task = tokio::spawn(async move {
        let successor = tokio::select! {
            () = stop.no_successor.cancelled() => None,
            pid = wait(&watched, &offering, &stop) => Some(pid),
        };
        // The socket's file goes with the listener, unless a successor has it.
        let mut listener = watched.into_inner();
        if let Some(pid) = successor {
            listener.leave_file();
            let _ = taken.send(pid);
        }
    });
    Ok((task, is_taken))
}

/// Talks to one successor after the other, until one has taken over.
async fn wait(
    listener: &AsyncFd<register::Listener>,
    offering: &Arc<Offering>,
    stop: &Stop,
) -> i32 {
    loop {
        let accepted = listener
            .async_io(Interest::READABLE, register::Listener::accept)
            .await;
        let told = match accepted.and_then(Channel::new) {
            Ok(channel) => converse(Arc::new(channel), offering, stop).await,
            Err(error) => {
                warn!(%error, "cannot talk to a successor");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match told {
            Some(Ok(pid)) => return pid,
            Some(Err(error)) => {
                warn!(%error, "nothing is handed over; this process goes on");
            }
            None => {}
        }
    }
}

/// One conversation, on a thread that may wait. It is cut short when the process is to end.
async fn converse(
    channel: Arc<Channel>,
    offering: &Arc<Offering>,
    stop: &Stop,
) -> Option<Result<i32, takeover::OfferError>> {
    let hang_up = HangUp(Arc::clone(&channel));
    let offering = Arc::clone(offering);
    let conversation = tokio::task::spawn_blocking(move || {
        let mut giving = GivingAway {
            offering: &offering,
            outcome: None,
        };
        let told = takeover::answer(&channel, &mut giving);
        if told.is_ok() {
            offering.serving.ends.leaving.cancel();
        }
        giving.end(told.is_ok());
        told
    });
    let told = tokio::select! {
        told = conversation => told.ok(),
        () = stop.no_successor.cancelled() => None,
    };
    drop(hang_up);
    told
}

/// Ends a conversation that nobody waits for any more.
struct HangUp(Arc<Channel>);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// Answers for the running process.
struct GivingAway<'a> {
    offering: &'a Offering,
    outcome: Option<oneshot::Sender<HandOver>>,
}

impl GivingAway<'_> {
    fn end(&mut self, is_taken: bool) {
        if let Some(outcome) = self.outcome.take() {
            let _ = outcome.send(if is_taken {
                HandOver::Taken
            } else {
                HandOver::Failed
            });
        }
    }

    fn sockets(&self) -> io::Result<[OwnedFd; 3]> {
        let [admin, register, successor] = &self.offering.sockets;
        Ok([
            admin.try_clone()?,
            register.try_clone()?,
            successor.try_clone()?,
        ])
    }
}

impl Question for GivingAway<'_> {
    fn give(&mut self) -> Option<Offer> {
        info!("a successor takes over");
        let sockets = self.sockets().ok()?;
        let (tell, told) = oneshot::channel();
        let (outcome, heard) = oneshot::channel();
        let giving = Giving {
            tell,
            outcome: heard,
        };
        self.offering.registry.blocking_send(Command::Give(giving));
        let tenants = told.blocking_recv().ok()?;
        self.outcome = Some(outcome);
        Some(Offer {
            node: self.offering.node.clone(),
            sockets,
            tenants,
        })
    }

    fn windows(&mut self) -> Vec<WindowRecord> {
        self.offering.serving.rates.windows(Instant::now())
    }
}
