//! What the registry can be asked, and how.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::super::{Declaration, Provider, Settings, Verdict};
use crate::{
    admin::api::TenantStatus, config::AuditConfig, identity::Tenant, netns::NetnsId,
    takeover::Handed,
};

/// Why a tenant could not be added by hand.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The namespace belongs to another tenant.
    #[error("{0}")]
    Conflict(String),
    /// It is declared, but could not be brought up yet.
    #[error("declared, but not served yet: {0}")]
    Failing(String),
}

/// What the registry is asked to do.
pub enum Command {
    /// A provider declares a tenant.
    Declare(Declaration, Option<oneshot::Sender<Result<(), AddError>>>),
    /// A provider takes its declaration back.
    Withdraw(NetnsId, Provider),
    /// A namespace has lost its name: it is to be let go, whoever declared it.
    Gone(NetnsId),
    /// What this path stands for has changed, or is gone.
    PathChanged(PathBuf),
    /// Something changed inside a namespace.
    Changed(NetnsId),
    /// A scan is over: look whether everything is as it should be.
    Scanned,
    /// What became of our own connections.
    Audited(Vec<Verdict>),
    /// The first scan is over. Answered once every tenant declared before was tried.
    Settled(oneshot::Sender<()>),
    /// Forget what an earlier process left and this one has no use for.
    ForgetEarlier,
    /// A successor takes over: tell everything, and change nothing until it has, or has failed.
    Give(Giving),
    /// Use these settings from now on, and audit so often. Answered once every tenant has
    /// them.
    Reconfigure(Arc<Settings>, AuditConfig, oneshot::Sender<()>),
    /// Tell how every tenant is doing.
    List(oneshot::Sender<Vec<TenantStatus>>),
    /// A tenant that was added by hand is to go; answers whether it was, `None` if it is not known.
    Remove(Tenant, oneshot::Sender<Option<bool>>),
    /// Steer nothing more; what is open goes on.
    Quiesce(oneshot::Sender<()>),
    /// Take everything down; the registry ends.
    Shutdown(oneshot::Sender<()>),
}

/// How a hand-over went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// The successor serves everything.
    Taken,
    /// It does not; go on.
    Failed,
}

/// A hand-over under way.
pub struct Giving {
    /// Where everything is told.
    pub tell: oneshot::Sender<Vec<Handed>>,
    /// How it went; a dropped sender means that it failed.
    pub outcome: oneshot::Receiver<HandOver>,
}

/// Sends commands to the registry.
#[derive(Clone)]
pub struct RegistryHandle(pub(super) mpsc::Sender<Command>);

impl RegistryHandle {
    /// Sends a command, waiting while the registry is busy. Lost when the process is ending.
    pub async fn send(&self, command: Command) {
        let _ = self.0.send(command).await;
    }

    /// Sends a command from a thread that may wait. Lost when the process is ending.
    pub fn blocking_send(&self, command: Command) {
        let _ = self.0.blocking_send(command);
    }

    /// Tells how every tenant is doing.
    pub async fn list(&self) -> Vec<TenantStatus> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::List(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Says that the first scan is over, and waits until every tenant it found was tried.
    pub async fn settle(&self) {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Settled(done)).await;
        let _ = is_done.await;
    }

    /// Puts settings in force, and waits until every tenant has them.
    pub async fn reconfigure(&self, settings: Arc<Settings>, audit: AuditConfig) {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Reconfigure(settings, audit, done)).await;
        let _ = is_done.await;
    }

    /// Takes back a declaration made by hand; false if others declare the tenant, `None` if nobody.
    pub async fn remove(&self, tenant: Tenant) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Remove(tenant, reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Declares a tenant and waits for the outcome of the first attempt.
    ///
    /// # Errors
    /// [`AddError`].
    pub async fn declare(&self, declaration: Declaration) -> Result<(), AddError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Declare(declaration, Some(reply))).await;
        answer
            .await
            .unwrap_or_else(|_| Err(AddError::Failing("the agent is ending".to_owned())))
    }
}
