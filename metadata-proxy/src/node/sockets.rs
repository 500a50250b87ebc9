//! The sockets for operators, stand-ins and successors: bound by this process, or by the one before,
//! and served.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use anyhow::Context as _;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    control::NodeControl,
    registrations,
    successor::{self, Offering},
};
use crate::{
    admin::AdminServer,
    config::Config,
    kernel::Decision,
    netns::NetnsId,
    register,
    service_manager::ServiceManager,
    takeover::{self, OfferedNode},
};

/// How sockets cease to be served.
#[derive(Clone, Default)]
pub(super) struct Stop {
    /// Nobody is served any more.
    pub(super) stop: CancellationToken,
    /// Said before that: another process serves from here on, so that files stay.
    pub(super) leave: CancellationToken,
    /// Nobody may take over any more.
    pub(super) no_successor: CancellationToken,
}

/// All sockets of the process itself.
pub(super) struct Sockets {
    pub(super) admin: AdminServer,
    pub(super) register: register::Listener,
    /// Missing where its path would be too long.
    pub(super) successor: Option<register::Listener>,
}

impl Sockets {
    /// Binds all of them. The first says whether another agent is running.
    pub(super) fn bind(config: &Config) -> anyhow::Result<Self> {
        let path = takeover::socket_path(&config.admin.socket);
        Ok(Self {
            admin: AdminServer::bind(&config.admin.socket)?,
            register: register::Listener::bind(&config.admin.register_socket)?,
            successor: match register::Listener::bind(&path) {
                Ok(listener) => Some(listener),
                Err(error) => {
                    warn!(%error, "no successor can take over from this process");
                    None
                }
            },
        })
    }

    /// Takes those of the process before. A socket that is to be elsewhere now is bound there.
    pub(super) fn adopt(
        [admin, register, successor]: [OwnedFd; 3],
        before: &takeover::OfferedNode,
        config: &Config,
    ) -> anyhow::Result<Self> {
        let socket = &config.admin.register_socket;
        let path = takeover::socket_path(&config.admin.socket);
        Ok(Self {
            admin: AdminServer::adopt(admin, &config.admin.socket)?,
            register: if before.register_socket == *socket {
                register::Listener::adopt(register, socket.clone())
            } else {
                drop(register::Listener::adopt(
                    register,
                    before.register_socket.clone(),
                ));
                register::Listener::bind(socket)?
            },
            successor: Some(register::Listener::adopt(successor, path)),
        })
    }

    /// Second descriptors of all of them, to be handed over.
    pub(super) fn duplicates(&self) -> io::Result<Option<[OwnedFd; 3]>> {
        let Some(successor) = &self.successor else {
            return Ok(None);
        };
        let again = |socket: &dyn AsFd| socket.as_fd().try_clone_to_owned();
        Ok(Some([
            again(&self.admin)?,
            again(&self.register)?,
            again(successor)?,
        ]))
    }
}

/// Serves all of them. Tells of a successor, if one can come.
pub(super) fn serve(
    mut sockets: Sockets,
    control: &Arc<NodeControl>,
    manager: &ServiceManager,
    inherited: HashSet<NetnsId>,
    stop: &Stop,
    tasks: &mut Vec<JoinHandle<()>>,
) -> anyhow::Result<Option<oneshot::Receiver<i32>>> {
    let duplicates = sockets
        .duplicates()
        .context("no descriptors for a successor")?;
    let mut successor = None;
    if let (Some(duplicates), Some(listener)) = (duplicates, sockets.successor.take()) {
        let offering = Offering {
            node: offered(&control.config.load(), &control.engine, manager),
            sockets: duplicates,
            registry: control.registry.clone(),
            serving: Arc::clone(&control.node),
        };
        let (task, taken) = successor::offer(listener, offering, stop.clone())
            .context("cannot wait for successors")?;
        tasks.push(task);
        successor = Some(taken);
    }
    tasks.push(registrations::serve_registrations(
        sockets.register,
        &control.config,
        &control.registry,
        inherited,
        stop.clone(),
    )?);
    tasks.push(serve_operators(sockets.admin, Arc::clone(control), stop));
    Ok(successor)
}

/// What a successor must have in common with this process.
fn offered(config: &Config, engine: &Decision, manager: &ServiceManager) -> OfferedNode {
    let watchdog = manager.watchdog();
    OfferedNode {
        engine: engine.engine.word().to_owned(),
        port: config.listener.port,
        bpffs_dir: config.steering.bpffs_dir.clone(),
        register_socket: config.admin.register_socket.clone(),
        notify_socket: manager.socket().map(str::to_owned),
        watchdog_ms: watchdog.and_then(|it| u64::try_from(it.as_millis()).ok()),
    }
}

/// Serves the admin socket.
fn serve_operators(admin: AdminServer, control: Arc<NodeControl>, stop: &Stop) -> JoinHandle<()> {
    let Stop { stop, leave, .. } = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = admin.leaving(leave).serve(control, stop).await {
            error!(%error, "the admin socket is not served");
        }
    })
}
