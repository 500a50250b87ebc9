//! The boot storm: many guests ask at once, and Neutron's agent takes few connections at a time.
//!
//! Behind haproxy most of them get 503. Behind the agent nobody does.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    Agent, Haproxy, Kind, MetadataAgent, NeutronProxy, Node, TenantFixture,
    crowd::{self, Member, Tally},
    document, neutron,
    process::run,
};

const REQUESTS: usize = 20;
const TENANTS: usize = 10;
/// Guests of all tenants.
const STORMS: [usize; 4] = [10, 30, 100, 300];
/// About what Neutron's agent itself takes for a request when nova answers at once.
const SERVICE_TIME: Duration = Duration::from_millis(1);
/// How many requests each kind of agent works on at a time.
const AGENTS: [(&str, usize); 2] = [("OVN agent (serial)", 1), ("ML2/OVS agent (8 threads)", 8)];

/// A node with tenants, their guests, and the metadata agent; no proxy yet.
struct Place {
    // In the order in which they must go.
    tenants: Vec<TenantFixture>,
    upstream: MetadataAgent,
    node: Node,
}

impl Place {
    fn new(workers: usize) -> Self {
        let node = Node::new().unwrap();
        let guests_each = STORMS.iter().max().unwrap() / TENANTS;
        let tenants: Vec<_> = (0..TENANTS)
            .map(|_| {
                let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
                neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
                crowd::multiply(tenant.guest(), guests_each.try_into().unwrap()).unwrap();
                tenant
            })
            .collect();
        let upstream = MetadataAgent::builder()
            .workers(workers)
            .delay(SERVICE_TIME)
            .start(&node.directory().join("agent"))
            .unwrap();
        Self {
            tenants,
            upstream,
            node,
        }
    }

    /// So many guests, the same number of each tenant.
    fn guests(&self, count: usize) -> Vec<Member<'_>> {
        let each = u8::try_from(count / TENANTS).unwrap();
        let of_tenant = |tenant| {
            let first = TenantFixture::guest(tenant).v4.octets()[3];
            (first..first + each).map(move |last| Member {
                tenant,
                source: [10, 0, 0, last].into(),
            })
        };
        self.tenants.iter().flat_map(of_tenant).collect()
    }

    /// Every guest asks again and again, each time over a new connection.
    fn storm(&self, count: usize) -> Storm {
        let began = Instant::now();
        let tallies = crowd::all_at_once(&self.guests(count), |guest| {
            let mut tally = Tally::default();
            let (tenant, source) = (guest.tenant.id.to_string(), guest.source.to_string());
            for _ in 0..REQUESTS {
                tally.add(crowd::ask_once(Some(guest.source), &[&tenant, &source]));
            }
            tally
        });
        let took = began.elapsed();
        self.upstream.forget();
        let mut tally = Tally::default();
        tallies
            .unwrap()
            .into_iter()
            .for_each(|one| tally.merge(one));
        assert_eq!(tally.asked(), count * REQUESTS);
        Storm { tally, took }
    }

    fn through_haproxy(&self) -> Vec<Storm> {
        let start = |tenant| {
            Haproxy::builder()
                .start(&self.node, tenant, self.upstream.socket())
                .unwrap()
        };
        let _proxies: Vec<_> = self.tenants.iter().map(start).collect();
        STORMS.iter().map(|count| self.storm(*count)).collect()
    }

    fn through_us(&self) -> Vec<Storm> {
        let agent = Agent::builder(&self.node)
            .upstream_agent(self.upstream.socket())
            .set("log.level", "\"info\"")
            .set("log.access", false)
            .start()
            .unwrap();
        for tenant in &self.tenants {
            agent.wait_served(tenant).unwrap();
        }
        STORMS.iter().map(|count| self.storm(*count)).collect()
    }
}

struct Storm {
    tally: Tally,
    took: Duration,
}

impl Storm {
    /// Failures of all, and the time within which nearly all were over.
    fn cell(&self) -> String {
        let Self { tally, took } = self;
        let (failed, asked, p99) = (tally.failed(), tally.asked(), tally.quantile(0.99));
        format!("{failed} of {asked} ({took:.1?}, p99 {p99:.0?})")
    }
}

#[test]
fn a_boot_storm_costs_no_guest_an_error() {
    let mut table = String::from(
        "| guests × 20 requests | agent | failed behind haproxy | failed behind metadata-proxy |\n\
         |---|---|---|---|\n",
    );
    let mut failures = Vec::new();
    for (name, workers) in AGENTS {
        // In the same namespaces, as on a node that is migrated: what haproxy's connections leave
        // behind for a minute, in TIME_WAIT, is not to stand in our guests' way.
        let place = Place::new(workers);
        let theirs = place.through_haproxy();
        let ours = place.through_us();
        for ((count, theirs), ours) in STORMS.iter().zip(&theirs).zip(&ours) {
            let (their_cell, our_cell) = (theirs.cell(), ours.cell());
            writeln!(table, "| {count} | {name} | {their_cell} | {our_cell} |").unwrap();
            println!(
                "{name}, {count} guests: haproxy: {}; we: {}",
                theirs.tally, ours.tally
            );
            if ours.tally.failed() > 0 {
                failures.push(format!("{name}, {count} guests: {}", ours.tally));
            }
        }
    }
    println!("{table}");
    assert!(failures.is_empty(), "{failures:?}\n{table}");
    if document::is_updating() {
        document::keep_current("boot-storm.md", &written(&table)).unwrap();
    }
}

fn written(table: &str) -> String {
    let haproxy = run(std::process::Command::new("haproxy").arg("-v")).unwrap();
    let haproxy = haproxy
        .split(' ')
        .nth(2)
        .unwrap()
        .split('-')
        .next()
        .unwrap();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel: Vec<_> = kernel.split(['.', '-']).take(2).collect();
    let cores = std::thread::available_parallelism().unwrap();
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    format!(
        "# The boot storm\n\n\
         Many guests boot at once and ask for their metadata; Neutron's agent takes as many \
         connections as it\nserves at a time and five more, and refuses all others. haproxy turns \
         such a refusal into a 503.\n`metadata-proxy` lets the request wait for its turn.\n\n\
         {TENANTS} routers with Neutron's rules; every guest has an address of its own and asks \
         {REQUESTS} times, each time\nover a new connection. The agent behind them behaves as \
         Neutron's does: one read per connection, a\nbacklog of 5, {} for each answer. \
         haproxy is configured as Neutron configures it. One run of both:\n\n\
         {table}\n\
         Failed is every request not answered with 200 and with what the guest asked for. In \
         parentheses: the\ntime the storm took, and the time within which 99 of 100 requests were \
         over; a 503 is quick.\n\n\
         {cores} cores, Linux {}, haproxy {haproxy}, a {build} build of metadata-proxy. The test \
         fails if a\nrequest behind metadata-proxy fails; the figures of this document are written \
         by it:\n\n\
         ```\nUPDATE_DOCS=1 cargo xtask test a_boot_storm\n```\n",
        humane(SERVICE_TIME),
        kernel.join("."),
    )
}

fn humane(time: Duration) -> String {
    format!("{time:?}").replace("ms", " ms")
}
