//! Tenants that haproxy's stand-ins register: from a lease to a declaration, and back.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use metadata_proxy_common::TenantKind;
use tokio::{sync::mpsc, task::JoinHandle};

use super::Stop;
use crate::{
    config::{Config, InterfaceGlob},
    identity::Tenant,
    netns::{Netns, NetnsId},
    register::{self, LeaseId, RegisterEvent, Registration, ReplyHandle},
    tenants::{Command, Declaration, Provider, RegistryHandle, Source},
};

/// How long tenants of a predecessor are served without their stand-ins, which register anew within
/// seconds.
pub(super) const INHERITED_FOR: Duration = Duration::from_secs(10);

/// Serves the socket on which haproxy's stand-ins register their tenants. Those `inherited` are
/// declared already, by a predecessor's word.
pub(super) fn serve_registrations(
    listener: register::Listener,
    config: &Arc<ArcSwap<Config>>,
    registry: &RegistryHandle,
    inherited: HashSet<NetnsId>,
    stop: Stop,
) -> anyhow::Result<JoinHandle<()>> {
    let server = register::Server::new(listener, register::Limits::default())
        .context("cannot watch the registration socket")?;
    let (events, mut inbox) = mpsc::channel(64);
    let mut leases = Leases {
        config: Arc::clone(config),
        registry: registry.clone(),
        held: HashMap::new(),
        inherited,
    };
    tokio::spawn(async move {
        let inherited_over = tokio::time::sleep(INHERITED_FOR);
        tokio::pin!(inherited_over);
        loop {
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(RegisterEvent::Started(registration)) => {
                        leases.start(*registration).await;
                    }
                    Some(RegisterEvent::Ended(lease)) => leases.end(lease).await,
                    None => return,
                },
                () = &mut inherited_over, if !leases.inherited.is_empty() => {
                    leases.end_inherited().await;
                }
            }
        }
    });
    Ok(tokio::spawn(async move {
        let mut listener = server.serve(events, stop.stop).await;
        if stop.leave.is_cancelled() {
            listener.leave_file();
        }
        // The socket's file goes with the listener.
        drop(listener);
    }))
}

/// Which stand-in holds which namespace.
struct Leases {
    config: Arc<ArcSwap<Config>>,
    registry: RegistryHandle,
    /// A handle that is dropped sends its stand-in away, so they are kept.
    held: HashMap<LeaseId, (NetnsId, ReplyHandle)>,
    /// Registered with a predecessor, and not yet here.
    inherited: HashSet<NetnsId>,
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
        self.inherited.remove(&id);
        let config = self.config.load();
        let declaration = Declaration {
            provider: Provider::Register,
            tenant,
            name: namespace_name(tenant),
            netns: id,
            source: Source::File(Arc::new(netns.into_fd())),
            interfaces: interfaces(&config),
            settings: Some(Arc::new(settings)),
        };
        match self.registry.declare(declaration).await {
            Ok(()) => reply.serving(),
            Err(error) => reply.failed(error),
        }
        self.held.insert(lease, (id, reply));
    }

    /// Ends tenants whose stand-ins have not come back.
    async fn end_inherited(&mut self) {
        for netns in std::mem::take(&mut self.inherited) {
            let withdraw = Command::Withdraw(netns, Provider::Register);
            self.registry.send(withdraw).await;
        }
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

/// Which devices guests of a tenant that registered are behind: a router may be served from within a
/// network's namespace.
pub(super) fn interfaces(config: &Config) -> Vec<InterfaceGlob> {
    let interfaces = &config.interfaces;
    [
        &interfaces.router[..],
        &interfaces.network,
        &interfaces.ovn_network,
    ]
    .concat()
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
