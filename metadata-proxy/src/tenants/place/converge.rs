//! Brings a namespace to what it should be, at first and whenever it may have changed.

use std::{collections::BTreeSet, net::TcpListener};

use metadata_proxy_common::TenantKind;
use tracing::debug;

use super::{Place, PlaceError, Plan, listeners::bind_missing, system};
use crate::{
    kernel::{Engine, Kernel, Repair},
    netlink::{self, Link, MetadataV6},
};

/// What [`converge`] did.
#[derive(Default)]
pub(in crate::tenants) struct Converged {
    /// How many things were added.
    pub(in crate::tenants) added: usize,
    /// What of that had been there before, and was taken away by somebody.
    pub(in crate::tenants) repairs: Vec<Repair>,
    /// Listeners that had to be opened.
    pub(in crate::tenants) listeners: Vec<TcpListener>,
}

/// Brings the namespace to what it should be: whatever is missing is added, whatever lost its
/// reason is removed. Does nothing where all is well.
pub(in crate::tenants) fn converge(
    kernel: &dyn Kernel,
    plan: &Plan,
    place: &mut Place,
) -> Result<Converged, PlaceError> {
    let mut converged = Converged::default();
    if netlink::add_local_route().map_err(system("cannot add the local metadata route"))? {
        converged.note(Repair::Route, place.has_route);
    }
    place.has_route = true;
    let list = || netlink::links().map_err(system("cannot list the devices"));
    let mut links = list()?;
    let added = converged.added;
    converge_addresses(plan.kind, &faced(plan, &links), place, &mut converged);
    if converged.added > added {
        // The listeners of the `bind` engine follow the addresses.
        links = list()?;
    }
    let faced = faced(plan, &links);
    place.may_forward = may_forward(plan.kind, &faced);
    if plan.engine == Engine::Tc {
        // By its name a device is detached from, and that may have changed.
        for link in &links {
            if let Some(attachment) = place.attachments.get_mut(&link.device.index) {
                attachment.device.clone_from(&link.device);
            }
        }
        converge_attachments(kernel, &faced, place, &mut converged);
    }
    converged.listeners = bind_missing(plan, &links, &faced, place)?;
    converged.added += converged.listeners.len();
    Ok(converged)
}

impl Converged {
    /// Notes something that was added, and whether that was a repair.
    fn note(&mut self, what: Repair, was_there: bool) {
        self.added += 1;
        if was_there {
            self.repairs.push(what);
        }
    }
}

/// The devices that face guests.
fn faced<'a>(plan: &Plan, links: &'a [Link]) -> Vec<&'a Link> {
    links
        .iter()
        .filter(|link| {
            plan.interfaces
                .iter()
                .any(|glob| glob.matches(&link.device.name))
        })
        .collect()
}

/// For a router without an addressed internal device Neutron's agent would match a guest's address
/// across the whole cloud: such a request must not be forwarded.
fn may_forward(kind: TenantKind, faced: &[&Link]) -> bool {
    match kind {
        TenantKind::Router => faced.iter().any(|link| link.is_addressed),
        TenantKind::Network | TenantKind::OvnNetwork => true,
    }
}

/// In a router the IPv6 metadata address is nobody's until we add it. Only to devices that are
/// addressed: the standby of a highly available router must not answer for its master. And not to
/// the port of a DHCP agent, where that agent adds it and settles who has it.
fn converge_addresses(
    kind: TenantKind,
    faced: &[&Link],
    place: &mut Place,
    converged: &mut Converged,
) {
    if kind != TenantKind::Router {
        place.metadata_v6 = BTreeSet::new();
        return;
    }
    place
        .metadata_v6
        .retain(|index| faced.iter().any(|link| link.device.index == *index));
    for link in faced {
        let index = link.device.index;
        if link.metadata_v6 == MetadataV6::Ours {
            place.metadata_v6.insert(index);
        }
        let is_wanted = link.is_addressed && !link.has_metadata_v4;
        let result = match (is_wanted, link.metadata_v6 != MetadataV6::Absent) {
            (true, false) => netlink::add_metadata_v6(index).map(|_| {
                let is_new = place.metadata_v6.insert(index);
                converged.note(Repair::Address, !is_new);
            }),
            (false, true) if place.metadata_v6.contains(&index) => {
                place.metadata_v6.remove(&index);
                netlink::remove_metadata_v6(index)
            }
            _ => Ok(()),
        };
        // IPv4 is served all the same: IPv6 may be switched off on the device.
        if let Err(error) = result {
            debug!(device = link.device.name, %error, "no IPv6 metadata address on this device");
        }
    }
}

fn converge_attachments(
    kernel: &dyn Kernel,
    faced: &[&Link],
    place: &mut Place,
    converged: &mut Converged,
) {
    let Place {
        cookie,
        attachments,
        refused,
        ..
    } = place;
    let gone: Vec<u32> = attachments
        .keys()
        .filter(|index| !faced.iter().any(|link| link.device.index == **index))
        .copied()
        .collect();
    for index in gone {
        // Its link went with the device, or the device has left the pattern by being renamed.
        if let Some(attachment) = attachments.remove(&index)
            && let Err(error) = kernel.detach(*cookie, &attachment)
        {
            debug!(%error, "a device left");
        }
    }
    refused.clear();
    for link in faced {
        let device = &link.device;
        if !link.is_ethernet {
            refused.insert(device.clone(), "not an Ethernet device".to_owned());
            continue;
        }
        let is_attached = attachments
            .get(&device.index)
            .is_some_and(|attachment| kernel.is_attached(attachment).unwrap_or(false));
        if is_attached {
            continue;
        }
        match kernel.attach(*cookie, device) {
            Ok(attachment) => {
                let before = attachments.insert(device.index, attachment);
                converged.note(Repair::Filter, before.is_some());
            }
            Err(error) => {
                attachments.remove(&device.index);
                refused.insert(device.clone(), error.to_string());
            }
        }
    }
}
