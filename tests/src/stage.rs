//! What most tests begin with: a node with an upstream that tells who was said to have asked, and
//! an agent. Unlike other fixtures these functions assert: what fails here fails the test.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "every function here is an assertion, or makes what a test cannot do without"
)]

use std::time::Duration;

use crate::{
    Agent, Connection, Footprint, Gate, Guest, Kind, METADATA_V4, MetadataAgent, Netns, Node,
    Reply, TenantFixture,
    agent::Builder,
    metadata_agent::{Answer, Request},
};

/// How long what must happen may take, on slow and busy machines.
pub const SOON: Duration = Duration::from_secs(15);

/// How the names of headers begin that say who asks, or that claim a forwarding.
pub const CLAIMS: &[&str] = &[
    "x-neutron",
    "x-ovn",
    "x-instance",
    "x-tenant",
    "x-metadata",
    "x-forwarded",
    "forwarded",
    "x-real-ip",
    "via",
];

/// A node, its upstream and its agent; the agent is stopped first.
pub struct Stage {
    /// The agent.
    pub agent: Agent,
    /// Its upstream.
    pub upstream: MetadataAgent,
    /// Where both are.
    pub node: Node,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// A stage with an agent that is ready.
    pub fn new() -> Self {
        Self::with(|agent| agent)
    }

    /// A stage whose agent is configured differently.
    pub fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::on(Node::new().unwrap(), configure)
    }

    /// A stage on a node where something is already.
    pub fn on(node: Node, configure: impl FnOnce(Builder) -> Builder) -> Self {
        let upstream = upstream(&node);
        let agent = configure(builder(&node, &upstream)).start().unwrap();
        Self {
            agent,
            upstream,
            node,
        }
    }

    /// A stage whose upstream answers only once the gate is open.
    pub fn gated(configure: impl FnOnce(Builder) -> Builder) -> (Self, Gate) {
        let gate = Gate::new();
        let barrier = gate.barrier();
        let stage = Self::answering(configure, move |_| {
            barrier.pass();
            Answer::ok("let through")
        });
        (stage, gate)
    }

    /// A stage whose upstream answers so.
    pub fn answering(
        configure: impl FnOnce(Builder) -> Builder,
        respond: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let node = Node::new().unwrap();
        let upstream = MetadataAgent::builder()
            .workers(4)
            .respond(respond)
            .start(&node.directory().join("agent"))
            .unwrap();
        let agent = configure(builder(&node, &upstream)).start().unwrap();
        Self {
            agent,
            upstream,
            node,
        }
    }

    /// Makes a tenant with one guest and waits until it is served.
    pub fn tenant(&self, kind: Kind) -> TenantFixture {
        self.served(TenantFixture::new(&self.node, kind).unwrap())
    }

    /// Waits until a tenant is served.
    pub fn served(&self, tenant: TenantFixture) -> TenantFixture {
        self.agent.wait_served(&tenant).unwrap();
        tenant
    }

    /// How often something ended so in the kernel.
    pub fn outcome(&self, label: &str) -> u64 {
        let status = self.agent.admin_json("/v1/status").unwrap();
        status["outcomes"][label].as_u64().unwrap_or_default()
    }

    /// The requests the upstream got; they are forgotten.
    pub fn take_requests(&self) -> Vec<Request> {
        let requests = self.upstream.requests();
        self.upstream.forget();
        requests
    }

    /// Whether devices are attached to by TCX links, which only a scan notices to be gone.
    pub fn is_tcx(&self) -> bool {
        self.agent.admin_json("/v1/status").unwrap()["engine"]["attach"] == "tcx"
    }
}

/// An upstream that tells who was said to have asked.
pub fn upstream(node: &Node) -> MetadataAgent {
    MetadataAgent::builder()
        .workers(4)
        .start(&node.directory().join("agent"))
        .unwrap()
}

/// An agent with this upstream, that looks and tries again often.
pub fn builder(node: &Node, upstream: &MetadataAgent) -> Builder {
    Agent::builder(node)
        .upstream_agent(upstream.socket())
        .set("discovery.scan_interval", "\"1s\"")
        .set("discovery.retry_max", "\"500ms\"")
}

/// What the upstream answers to this tenant's guest, from this address.
pub fn told(tenant: &TenantFixture, from: impl std::fmt::Display) -> String {
    format!("{}={} from={from}", tenant.kind.tag_name(), tenant.id)
}

/// The tenant's guest asks over IPv4 and is told that it is itself.
pub fn assert_served(tenant: &TenantFixture) {
    assert_guest_served(tenant, tenant.guest());
}

/// The tenant's guest asks over IPv4 and over IPv6, and is told each time that it is itself.
pub fn assert_served_twice(tenant: &TenantFixture) {
    let guest = tenant.guest();
    assert_guest_served(tenant, guest);
    let reply = guest.curl(&guest.metadata_v6(), &[]).unwrap();
    assert_eq!(reply.text(), told(tenant, guest.link_local), "{reply:?}");
}

/// This guest asks over IPv4 and is told that it is itself.
pub fn assert_guest_served(tenant: &TenantFixture, guest: &Guest) {
    let reply = guest.curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.text(), told(tenant, guest.v4), "{reply:?}");
}

/// A guest gets no answer; it is not kept waiting for long here.
pub fn assert_not_served(guest: &Guest) {
    let reply = guest.curl(METADATA_V4, &["--max-time", "0.5"]).unwrap();
    assert_eq!(reply.status, 0, "{reply:?}");
}

/// One request as bytes, one answer.
pub fn exchange(guest: &Guest, bytes: impl AsRef<[u8]>) -> Reply {
    let mut connection = Connection::v4(guest).unwrap();
    connection.send(bytes).unwrap();
    connection.answer().unwrap()
}

/// A request that reached the upstream names this tenant and this guest, first of all and nowhere
/// else.
pub fn assert_identified(request: &Request, tenant: &TenantFixture, from: impl std::fmt::Display) {
    let expected = [
        (tenant.kind.tag_name().to_owned(), tenant.id.to_string()),
        ("x-forwarded-for".to_owned(), from.to_string()),
    ];
    assert_eq!(request.headers[..2], expected, "{request:?}");
    for (name, _) in &request.headers[2..] {
        let name = name.replace('_', "-");
        assert!(
            !CLAIMS.iter().any(|claim| name.starts_with(claim)),
            "{name} left: {request:?}"
        );
    }
}

/// How many times `steer` is on a device.
pub fn times_steered(netns: &Netns, device: &str) -> usize {
    let footprint = Footprint::of_ingress(netns, device).unwrap().to_string();
    let tcx = format!("tcx on {device}: ");
    let filter = format!("filter on {device}: ");
    footprint
        .lines()
        .filter(|line| {
            line.starts_with(&tcx) || line.starts_with(&filter) && line.contains(" steer ")
        })
        .count()
}

/// What an agent has left on its node outside of namespaces.
pub fn traces_on_node(node: &Node) -> Vec<String> {
    let footprint = Footprint::of_node(node).unwrap().to_string();
    // Every bpffs has the kernel's own two from the start, where the kernel is built so.
    let is_kernels =
        |line: &str| line.ends_with("/bpf/maps.debug") || line.ends_with("/bpf/progs.debug");
    footprint
        .lines()
        .filter(|line| !is_kernels(line))
        .map(str::to_owned)
        .collect()
}
