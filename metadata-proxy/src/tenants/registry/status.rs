//! How a tenant is doing, for operators.

use std::{sync::atomic::Ordering::Relaxed, time::UNIX_EPOCH};

use super::{Entry, Served};
use crate::{
    admin::api::{Counts, InterfaceState, InterfaceStatus, TenantState, TenantStatus},
    netns::NetnsId,
    tenants::Phase,
};

/// Tells how one tenant is doing; `None` if nobody declares it any more.
pub(super) fn status(netns: NetnsId, entry: &Entry, port: u16) -> Option<TenantStatus> {
    let declaration = entry.declaration()?;
    let counters = &entry.counters;
    let (state, reason) = match entry.life.phase() {
        Phase::Pending => (TenantState::Pending, None),
        Phase::Serving => (TenantState::Serving, None),
        Phase::Failing { reason, .. } => (TenantState::Failing, Some(reason.clone())),
        Phase::Suspended => {
            let reason = "its stand-in ended; it is served again when the next one starts";
            (TenantState::Pending, Some(reason.to_owned()))
        }
    };
    let since = entry
        .life
        .since()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Some(TenantStatus {
        kind: declaration.tenant.kind,
        id: declaration.tenant.id,
        namespace: declaration.name.clone(),
        netns_inode: netns.inode(),
        netns_cookie: entry
            .served
            .as_ref()
            .map_or(0, |served| served.place.cookie.0),
        provider: declaration.provider.label().to_owned(),
        state,
        reason,
        fault: entry
            .served
            .as_ref()
            .and_then(|served| Some(served.fault.as_ref()?.to_string())),
        proved_unix: entry
            .served
            .as_ref()
            .and_then(|served| served.proved?.duration_since(UNIX_EPOCH).ok())
            .map(|since| since.as_secs()),
        attempts: entry.life.failures().into(),
        since_unix: since.as_secs(),
        listener: entry.served.as_ref().map(|_| format!("[::]:{port}")),
        interfaces: entry.served.as_ref().map(interfaces).unwrap_or_default(),
        connections: Counts {
            open: counters.open.load(Relaxed),
            total: counters.connections.load(Relaxed),
        },
        requests: Counts {
            open: 0,
            total: counters.requests.load(Relaxed),
        },
    })
}

fn interfaces(served: &Served) -> Vec<InterfaceStatus> {
    let attached = served
        .place
        .attachments
        .values()
        .map(|attachment| InterfaceStatus {
            name: attachment.device.name.clone(),
            index: attachment.device.index,
            state: InterfaceState::Attached,
            reason: None,
        });
    let refused = served
        .place
        .refused
        .iter()
        .map(|(device, reason)| InterfaceStatus {
            name: device.name.clone(),
            index: device.index,
            state: InterfaceState::Failing,
            reason: Some(reason.clone()),
        });
    attached.chain(refused).collect()
}
