//! How the agent ends: for good, or in favour of another process.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Running, beginning};
use crate::tenants::Command;

impl Running {
    /// Ends for good: nothing of ours is left.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        // A successor that is about to take over is too late.
        self.successor = None;
        self.sockets_stop.no_successor.cancel();
        info!(grace = ?self.config.load().shutdown.grace,
            connections = self.node.open_connections(), "draining");
        self.manager.tell(&[NotifyState::Stopping]);
        // Nothing new is steered here from now on; what was accepted is served to its end.
        let (quiet, is_quiet) = oneshot::channel();
        self.registry.send(Command::Quiesce(quiet)).await;
        let _ = is_quiet.await;
        self.store.forget_state();
        self.drain().await;
        let programs = self.programs.clone();
        self.finish().await;
        if let Some(programs) = programs {
            programs.remove_pins();
        }
        info!("ended");
        Ok(())
    }

    /// Ends in favour of another process: what is in the kernel stays as it is.
    pub(super) async fn leave(mut self, successor: Option<i32>) -> anyhow::Result<()> {
        self.sockets_stop.no_successor.cancel();
        info!(
            successor,
            connections = self.node.open_connections(),
            "another process takes over; draining"
        );
        match successor.map(u32::try_from) {
            Some(Ok(pid)) => {
                self.manager.tell(&[NotifyState::MainPid(pid)]);
                self.sockets_stop.leave.cancel();
            }
            _ => self.manager.tell(&[NotifyState::Stopping]),
        }
        self.ends.leaving.cancel();
        if successor.is_none() {
            let left = beginning::left(&self.registry, &self.node).await;
            match left.write() {
                Ok(state) => self.store.keep_state(&state),
                Err(error) => warn!(%error, "the next process will not know of all"),
            }
        }
        self.sockets_stop.stop.cancel();
        self.drain().await;
        self.finish().await;
        info!("ended; everything is left for another process");
        Ok(())
    }

    /// Finishes what was accepted, as long as the grace period lasts.
    async fn drain(&mut self) {
        let grace = self.config.load().shutdown.grace;
        self.ends.stopping.cancel();
        tokio::select! {
            () = self.node.connections_over() => {}
            () = tokio::time::sleep(grace) => warn!("grace period over; open connections are dropped"),
            () = self.signals.end() => warn!("told twice; open connections are dropped"),
        }
        self.ends.aborting.cancel();
    }

    /// Ends tasks and threads.
    async fn finish(self) {
        let (down, is_down) = oneshot::channel();
        self.registry.send(Command::Shutdown(down)).await;
        let _ = is_down.await;
        let _ = self.registry_task.await;
        self.sockets_stop.stop.cancel();
        for task in self.tasks {
            // Those that serve sockets remove their files; the others just stop.
            let ended = tokio::time::timeout(Duration::from_millis(200), task);
            let _ = ended.await;
        }
        drop(self.workers);
        self.threads.join();
    }
}
