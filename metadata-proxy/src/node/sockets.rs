//! The sockets for operators, stand-ins and successors: bound by this process, or by the one before.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{admin::AdminServer, config::Config, register, takeover};

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
