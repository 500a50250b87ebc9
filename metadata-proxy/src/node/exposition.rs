//! All metrics as Prometheus reads them: those that are counted as things happen, and those that
//! are looked up when they are asked for.

use metadata_proxy_common::Outcome;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::Arc;

use crate::{
    admin::api::TenantStatus, admission::Refusal, identity::kind_name, serve, upstream::Upstream,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabels {
    kind: &'static str,
    id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    name: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    upstream: String,
    reason: &'static str,
}

/// The metrics in Prometheus' text format.
pub(super) fn text(
    counted: &Registry,
    tenants: &[TenantStatus],
    outcomes: &[(Outcome, u64)],
    upstreams: &[Arc<Upstream>],
    node: &serve::Node,
) -> String {
    let mut looked_up = Registry::with_prefix("metadata_proxy");
    add_tenants(&mut looked_up, tenants);
    add_node(&mut looked_up, outcomes, node);
    add_upstreams(&mut looked_up, upstreams);
    let mut text = String::new();
    // Writing to a string fails only if a metric cannot write itself.
    if encode(&mut text, counted).is_err() {
        text.clear();
    }
    // Both end with a mark of the end; one is enough.
    if let Some(without_end) = text.strip_suffix("# EOF\n") {
        text.truncate(without_end.len());
    }
    let _ = encode(&mut text, &looked_up);
    text
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn add_tenants(registry: &mut Registry, tenants: &[TenantStatus]) {
    let requests = Family::<TenantLabels, Gauge>::default();
    let connections = Family::<TenantLabels, Gauge>::default();
    let states = Family::<Label, Gauge>::default();
    for tenant in tenants {
        let labels = TenantLabels {
            kind: kind_name(tenant.kind),
            id: tenant.id.to_string(),
        };
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        requests
            .get_or_create(&labels)
            .set(count(tenant.requests.total));
        connections
            .get_or_create(&labels)
            .set(count(tenant.connections.open));
        states
            .get_or_create(&Label {
                name: tenant.state.word(),
            })
            .inc();
    }
    registry.register(
        "tenant_requests",
        "Requests of a tenant's guests so far",
        requests,
    );
    registry.register(
        "tenant_connections",
        "Connections of a tenant's guests now",
        connections,
    );
    registry.register("tenants", "Tenants by state", states);
}

fn add_node(registry: &mut Registry, outcomes: &[(Outcome, u64)], node: &serve::Node) {
    let kernel = Family::<Label, Gauge>::default();
    for (outcome, count) in outcomes {
        let value = i64::try_from(*count).unwrap_or(i64::MAX);
        kernel
            .get_or_create(&Label {
                name: outcome.label(),
            })
            .set(value);
    }
    registry.register(
        "outcomes",
        "How packets and connects ended in the kernel",
        kernel,
    );
    let limits = node.limits.snapshot();
    registry.register(
        "connections",
        "Connections open now",
        gauge(limits.connections.into()),
    );
    registry.register(
        "requests_in_flight",
        "Requests in flight",
        gauge(limits.requests.into()),
    );
    let refused = Family::<Label, Gauge>::default();
    for (refusal, count) in Refusal::ALL.iter().zip(limits.refused) {
        let value = i64::try_from(count).unwrap_or(i64::MAX);
        refused
            .get_or_create(&Label {
                name: refusal.label(),
            })
            .set(value);
    }
    registry.register(
        "limit_refusals",
        "What was refused because of a limit",
        refused,
    );
    let rates = node.rates.snapshot();
    registry.register(
        "rate_limited",
        "Requests refused because of a rate limit",
        ConstCounter::new(rates.denied),
    );
    registry.register(
        "rate_limit_addresses",
        "Guest addresses whose rate is remembered",
        gauge(rates.tracked as u64),
    );
}

fn add_upstreams(registry: &mut Registry, upstreams: &[Arc<Upstream>]) {
    let in_flight = Family::<UpstreamLabels, Gauge>::default();
    let bound = Family::<UpstreamLabels, Gauge>::default();
    let waiting = Family::<UpstreamLabels, Gauge>::default();
    let retries = Family::<RetryLabels, Gauge>::default();
    for upstream in upstreams {
        let snapshot = upstream.snapshot();
        let labels = UpstreamLabels {
            upstream: upstream.name().to_owned(),
        };
        in_flight
            .get_or_create(&labels)
            .set(snapshot.queue.in_flight.into());
        bound
            .get_or_create(&labels)
            .set(snapshot.queue.bound.into());
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        waiting
            .get_or_create(&labels)
            .set(count(snapshot.queue.waiting as u64));
        for (reason, tried) in snapshot.retries {
            let labels = RetryLabels {
                upstream: upstream.name().to_owned(),
                reason: reason.label(),
            };
            retries.get_or_create(&labels).set(count(tried));
        }
    }
    registry.register(
        "upstream_in_flight",
        "Requests with the upstream",
        in_flight,
    );
    registry.register(
        "upstream_bound",
        "Requests the upstream may be given at once",
        bound,
    );
    registry.register(
        "upstream_waiting",
        "Requests that wait for their turn",
        waiting,
    );
    registry.register("upstream_retries", "Attempts beyond the first", retries);
}
