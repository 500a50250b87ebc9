//! Tenants that haproxy's stand-ins register: from a lease to a declaration, and back.

use std::{collections::HashMap, sync::Arc};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use metadata_proxy_common::TenantKind;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    identity::Tenant,
    netns::{Netns, NetnsId},
    register::{self, LeaseId, RegisterEvent, Registration, ReplyHandle},
    tenants::{Command, Declaration, Provider, RegistryHandle, Source},
};

/// Serves the socket on which haproxy's stand-ins register their tenants.
pub(super) fn serve_registrations(
    listener: register::Listener,
    config: &Arc<ArcSwap<Config>>,
    registry: &RegistryHandle,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let server = register::Server::new(listener, register::Limits::default())
        .context("cannot watch the registration socket")?;
    let (events, mut inbox) = mpsc::channel(64);
    let mut leases = Leases {
        config: Arc::clone(config),
        registry: registry.clone(),
        held: HashMap::new(),
    };
    tokio::spawn(async move {
        while let Some(event) = inbox.recv().await {
            match event {
                RegisterEvent::Started(registration) => leases.start(*registration).await,
                RegisterEvent::Ended(lease) => leases.end(lease).await,
            }
        }
    });
    Ok(tokio::spawn(async move {
        // The socket's file goes with the listener.
        drop(server.serve(events, stop).await);
    }))
}

/// Which stand-in holds which namespace.
struct Leases {
    config: Arc<ArcSwap<Config>>,
    registry: RegistryHandle,
    /// A handle that is dropped sends its stand-in away, so they are kept.
    held: HashMap<LeaseId, (NetnsId, ReplyHandle)>,
}

impl Leases {
    async fn start(&mut self, registration: Registration) {
        let Registration {
            lease,
            tenant,
            netns,
            settings,
            reply,
            ..
        } = registration;
        let Some(netns) = Netns::from_fd(netns) else {
            reply.failed("what was handed over is no network namespace");
            return;
        };
        let id = netns.id();
        let config = self.config.load();
        let interfaces = &config.interfaces;
        let declaration = Declaration {
            provider: Provider::Register,
            tenant,
            name: namespace_name(tenant),
            netns: id,
            source: Source::File(Arc::new(netns.into_fd())),
            // A router may be served from within a network's namespace.
            interfaces: [
                &interfaces.router[..],
                &interfaces.network,
                &interfaces.ovn_network,
            ]
            .concat(),
            settings: Some(Arc::new(settings)),
        };
        match self.registry.declare(declaration).await {
            Ok(()) => reply.serving(),
            Err(error) => reply.failed(error),
        }
        self.held.insert(lease, (id, reply));
    }

    async fn end(&mut self, lease: LeaseId) {
        let Some((netns, _)) = self.held.remove(&lease) else {
            return;
        };
        // Neutron may start the next stand-in before the last one is gone.
        if !self.held.values().any(|(of, _)| *of == netns) {
            let withdraw = Command::Withdraw(netns, Provider::Register);
            self.registry.send(withdraw).await;
        }
    }
}

/// What Neutron would call the namespace of a tenant that registered.
fn namespace_name(tenant: Tenant) -> String {
    let prefix = match tenant.kind {
        TenantKind::Router => "qrouter",
        TenantKind::Network => "qdhcp",
        TenantKind::OvnNetwork => "ovnmeta",
    };
    format!("{prefix}-{}", tenant.id)
}
