//! Tells everything to a successor, and stands still until that has it.

use std::io;

use tracing::warn;

use super::{Entry, Giving, HandOver, Registry};
use crate::{
    kernel::NetnsCookie,
    netns::NetnsId,
    takeover::{Handed, HandedDeclaration},
    tenants::{Declaration, Phase, Provider},
};

impl Registry {
    /// Hands over. Commands wait meanwhile, so that two processes never act on a namespace at once.
    pub(super) async fn give(&mut self, giving: Giving) {
        // A worker that has taken a listener has told its service of it.
        self.workers.report().await;
        let handed = self
            .entries
            .iter()
            .map(|(netns, entry)| handed(*netns, entry));
        let handed: io::Result<Vec<_>> = handed.filter_map(Result::transpose).collect();
        match handed {
            Ok(handed) => {
                let _ = giving.tell.send(handed);
            }
            Err(error) => {
                // Dropping the sender tells that there is nothing to take.
                warn!(%error, "cannot hand over");
                return;
            }
        }
        if giving.outcome.await == Ok(HandOver::Taken) {
            self.leave();
        } else {
            // A successor that failed may have changed what is ours.
            self.mend();
            self.dirty.extend(self.entries.keys());
        }
    }

    /// Lets go of every namespace without changing anything in it: it is another process's now.
    /// Connections go on.
    pub(super) fn leave(&mut self) {
        self.is_quiet = true;
        self.dirty.clear();
        for (_, entry) in self.entries.drain() {
            if let Some(served) = entry.served {
                served.watcher.abort();
            }
        }
    }
}

/// What of a namespace is handed over; `None` where a look at the node finds all there is.
fn handed(netns: NetnsId, entry: &Entry) -> io::Result<Option<Handed>> {
    let Some(declaration) = entry.declaration() else {
        return Ok(None);
    };
    let (cookie, listeners) = match &entry.served {
        Some(served) => (served.service.cookie, served.service.listeners()?),
        None => (NetnsCookie(0), Vec::new()),
    };
    let made = |it: &&Declaration| matches!(it.provider, Provider::Admin | Provider::Register);
    let declarations = entry.declarations.values().filter(made);
    let handed = Handed {
        tenant: declaration.tenant,
        cookie,
        netns,
        name: declaration.name.clone(),
        listeners,
        is_suspended: *entry.life.phase() == Phase::Suspended,
        declarations: declarations
            .map(|it| HandedDeclaration {
                provider: it.provider,
                tenant: it.tenant,
                name: it.name.clone(),
                source: it.source.clone(),
                settings: it.settings.as_deref().cloned(),
            })
            .collect(),
    };
    Ok(Some(handed))
}
