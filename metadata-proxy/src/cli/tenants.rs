//! What `tenants` prints.

use std::io::{self, Write};

use super::{arguments::Output, print};
use crate::{
    admin::api::{Done, InterfaceState, TenantList, TenantStatus},
    identity::{Tenant, kind_name},
};

pub(super) fn list(
    tenants: &[TenantStatus],
    output: Output,
    out: &mut impl Write,
) -> io::Result<()> {
    match output {
        Output::Json => print::json(
            out,
            &TenantList {
                tenants: tenants.to_vec(),
            },
        ),
        Output::Table if tenants.is_empty() => writeln!(out, "There are no tenants."),
        Output::Table => {
            let mut table = print::table([
                "KIND",
                "ID",
                "NAMESPACE",
                "STATE",
                "SINCE",
                "PROVIDER",
                "INTERFACES",
                "CONNECTIONS",
                "REQUESTS",
            ]);
            table.add_rows(tenants.iter().map(|tenant| {
                [
                    kind_name(tenant.kind).to_owned(),
                    tenant.id.to_string(),
                    tenant.namespace.clone(),
                    tenant.state.to_string(),
                    print::time(tenant.since_unix),
                    tenant.provider.clone(),
                    interfaces(tenant),
                    tenant.connections.open.to_string(),
                    tenant.requests.total.to_string(),
                ]
            }));
            print::rows(out, &mut table)?;
            reasons(tenants, out)
        }
    }
}

/// The interfaces of a tenant; whatever is not attached says so.
fn interfaces(tenant: &TenantStatus) -> String {
    if tenant.interfaces.is_empty() {
        return String::from("-");
    }
    let name = |interface: &crate::admin::api::InterfaceStatus| match interface.state {
        InterfaceState::Attached => interface.name.clone(),
        InterfaceState::Pending => format!("{} (pending)", interface.name),
        InterfaceState::Failing => format!("{} (failing)", interface.name),
    };
    tenant
        .interfaces
        .iter()
        .map(name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Why tenants or their interfaces fail, one line each.
fn reasons(tenants: &[TenantStatus], out: &mut impl Write) -> io::Result<()> {
    for tenant in tenants {
        let name = Tenant {
            kind: tenant.kind,
            id: tenant.id,
        };
        if let Some(reason) = &tenant.reason {
            writeln!(
                out,
                "{name}: {} (tried {} times): {reason}",
                tenant.state, tenant.attempts
            )?;
        }
        for interface in &tenant.interfaces {
            if let Some(reason) = &interface.reason {
                writeln!(out, "{name}: interface {}: {reason}", interface.name)?;
            }
        }
    }
    Ok(())
}

pub(super) fn added(tenant: &TenantStatus, output: Output, out: &mut impl Write) -> io::Result<()> {
    match output {
        Output::Json => print::json(out, tenant),
        Output::Table => {
            let name = Tenant {
                kind: tenant.kind,
                id: tenant.id,
            };
            writeln!(out, "{name} in {} is {}", tenant.namespace, tenant.state)?;
            reasons(std::slice::from_ref(tenant), out)
        }
    }
}

pub(super) fn removed(done: &Done, output: Output, out: &mut impl Write) -> io::Result<()> {
    match output {
        Output::Json => print::json(out, done),
        Output::Table => writeln!(out, "{}", done.message),
    }
}
