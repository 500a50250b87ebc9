//! What `status` prints.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;

use super::{arguments::Output, print};
use crate::{
    admin::api::{NodeStatus, TenantState, TenantStatus},
    identity::kind_name,
};

/// What `status --output json` says: the node, and the tenants that need somebody.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    node: &'a NodeStatus,
    failing_tenants: Vec<TenantStatus>,
}

pub(super) fn show(
    node: &NodeStatus,
    mut tenants: Vec<TenantStatus>,
    output: Output,
    out: &mut impl Write,
) -> io::Result<()> {
    tenants.retain(|tenant| tenant.state == TenantState::Failing || tenant.fault.is_some());
    match output {
        Output::Json => print::json(
            out,
            &Shown {
                node,
                failing_tenants: tenants,
            },
        ),
        Output::Table => {
            print::rows(out, &mut print::facts(facts(node)))?;
            outcomes(node, out)?;
            failing(&tenants, out)?;
            for warning in &node.warnings {
                writeln!(out, "\nwarning: {warning}")?;
            }
            Ok(())
        }
    }
}

fn facts(node: &NodeStatus) -> [(&'static str, String); 9] {
    let uptime = humantime::format_duration(Duration::from_secs(node.uptime_seconds));
    let attach = match &node.engine.attach {
        Some(attach) => format!(", attached by {attach}"),
        None => String::new(),
    };
    let last_error = match &node.upstream.last_error {
        Some(error) => format!(
            "; last error {}: {}",
            print::time(error.at_unix),
            error.message
        ),
        None => String::new(),
    };
    let (queue, tenants) = (&node.queue, &node.tenants);
    [
        (
            "agent",
            format!(
                "{} (ABI {}), pid {}, up {uptime}",
                node.version, node.abi_version, node.pid
            ),
        ),
        ("kernel", node.kernel.clone()),
        (
            "engine",
            format!("{}{attach}: {}", node.engine.name, node.engine.reason),
        ),
        (
            "upstream",
            format!(
                "{} at {}{last_error}",
                node.upstream.kind, node.upstream.place
            ),
        ),
        (
            "queue",
            format!(
                "{} of {} in flight, {} waiting",
                queue.in_flight, queue.bound, queue.waiting
            ),
        ),
        (
            "tenants",
            format!(
                "{} serving, {} pending, {} failing, {} leaving",
                tenants.serving, tenants.pending, tenants.failing, tenants.leaving
            ),
        ),
        (
            "audit",
            format!(
                "{} proved within {} s, {} faulty, {} repairs",
                node.audit.proved,
                2 * node.audit.connect_interval_seconds,
                node.audit.faulty,
                node.audit.repairs.values().sum::<u64>()
            ),
        ),
        (
            "connections",
            format!(
                "{} open, {} in all",
                node.connections.open, node.connections.total
            ),
        ),
        (
            "requests",
            format!(
                "{} in flight, {} in all",
                node.requests.open, node.requests.total
            ),
        ),
    ]
}

/// How packets and connects ended, as far as any did.
fn outcomes(node: &NodeStatus, out: &mut impl Write) -> io::Result<()> {
    let seen: Vec<_> = node
        .outcomes
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    if seen.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = print::table(["OUTCOME", "COUNT"]);
    table.add_rows(
        seen.into_iter()
            .map(|(label, count)| [label.clone(), count.to_string()]),
    );
    print::rows(out, &mut table)
}

fn failing(tenants: &[TenantStatus], out: &mut impl Write) -> io::Result<()> {
    if tenants.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = print::table(["FAILING", "ID", "NAMESPACE", "SINCE", "TRIED", "REASON"]);
    table.add_rows(tenants.iter().map(|tenant| {
        [
            kind_name(tenant.kind).to_owned(),
            tenant.id.to_string(),
            tenant.namespace.clone(),
            print::time(tenant.since_unix),
            tenant.attempts.to_string(),
            tenant
                .reason
                .clone()
                .or_else(|| tenant.fault.clone())
                .unwrap_or_else(|| String::from("not told")),
        ]
    }));
    print::rows(out, &mut table)
}
