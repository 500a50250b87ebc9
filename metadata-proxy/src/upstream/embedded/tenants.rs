//! What the file declares: tenants, each with its instances.

use std::collections::HashMap;

use bytes::Bytes;
use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::{
    declaration::Declaration,
    document::{Node, Value},
    fields::{Fields, Report},
    problem::Place,
};
use crate::identity::{GuestAddress, Tenant, kind_name};

/// How a file beside the file of instances is read.
pub(super) type ReadFile<'a> = dyn FnMut(&str) -> std::io::Result<Bytes> + 'a;

/// Reads all tenants and their instances.
pub(super) fn tenants(
    document: &Node,
    read_file: &mut ReadFile<'_>,
    report: &mut Report,
) -> Vec<(Tenant, Vec<Declaration>)> {
    let Some(mut fields) = Fields::of(document, "the file", report) else {
        return Vec::new();
    };
    let tenants = fields.list("tenants", report);
    let tenants = fields
        .require("tenants", tenants, report)
        .unwrap_or_default();
    fields.finish(report);

    let mut declared = Vec::with_capacity(tenants.len());
    let mut first: HashMap<Tenant, Place> = HashMap::new();
    for node in tenants {
        let Some(mut fields) = Fields::of(node, "a tenant", report) else {
            continue;
        };
        let tenant = read_tenant(node, &mut fields, report);
        let instances = fields.list("instances", report);
        let instances = fields
            .require("instances", instances, report)
            .unwrap_or_default();
        fields.finish(report);
        let instances = read_instances(instances, tenant, read_file, report);
        let Some(tenant) = tenant else { continue };
        if let Some(place) = first.insert(tenant, node.place) {
            report.add(
                node.place,
                format!("{tenant} is declared twice, first at {place}"),
            );
        }
        declared.push((tenant, instances));
    }
    declared
}

fn read_tenant(node: &Node, fields: &mut Fields<'_>, report: &mut Report) -> Option<Tenant> {
    let mut named = 0;
    let mut tenant = None;
    for kind in [
        TenantKind::Router,
        TenantKind::Network,
        TenantKind::OvnNetwork,
    ] {
        let key = kind_name(kind);
        named += usize::from(has_key(node, key));
        let id = fields.parsed(key, UUID, report, |text| Uuid::try_parse(text).ok());
        tenant = tenant.or(id.map(|id| Tenant { kind, id }));
    }
    if named != 1 {
        report.add(
            node.place,
            "a tenant needs one of `router`, `network`, `ovn-network`",
        );
        return None;
    }
    tenant
}

/// What a UUID looks like, for those who wrote something else.
pub(super) const UUID: &str = "a UUID like 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11";

fn has_key(node: &Node, key: &str) -> bool {
    matches!(&node.value, Value::Table(entries) if entries.iter().any(|entry| entry.key == key))
}

fn read_instances(
    nodes: &[Node],
    tenant: Option<Tenant>,
    read_file: &mut ReadFile<'_>,
    report: &mut Report,
) -> Vec<Declaration> {
    let mut declared = Vec::with_capacity(nodes.len());
    let mut addresses: HashMap<GuestAddress, Place> = HashMap::new();
    let mut uuids: HashMap<Uuid, Place> = HashMap::new();
    for node in nodes {
        let instance = Declaration::read(node, tenant, &mut addresses, read_file, report);
        let Some(instance) = instance else { continue };
        // The nil UUID stands for one that could not be told; why is in the report already.
        if instance.uuid.is_nil() {
            continue;
        }
        if let Some(place) = uuids.insert(instance.uuid, node.place) {
            report.add(
                node.place,
                format!(
                    "instance {} is declared twice in one tenant, first at {place}; \
                     list all its addresses in one place",
                    instance.uuid
                ),
            );
        }
        declared.push(instance);
    }
    declared
}
