//! From haproxy to the agent and back, under load, without a failed request: the procedure of
//! `docs/migrating-from-haproxy.md`, step by step.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use metadata_proxy_tests::{
    Agent, Haproxy, HttpAgent, Kind, NeutronProxy, Node, TenantFixture,
    crowd::{self, Member, Outcome, Tally},
    kept::KeepingGuest,
    metadata_agent, neutron,
    process::is_alive,
    wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const TENANTS: usize = 20;
const SOON: Duration = Duration::from_secs(30);
/// Between two requests of a guest: 40 guests are not to be a storm.
const PAUSE: Duration = Duration::from_millis(10);
/// Requests of all guests that pass before the next step, so that each step meets load.
const A_WHILE: usize = 150;

/// What guests do while the node is migrated.
struct Load {
    is_over: AtomicBool,
    asked: AtomicUsize,
    /// The step of the procedure, for messages.
    step: Mutex<&'static str>,
}

impl Load {
    /// Says which step comes next.
    fn step(&self, step: &'static str) {
        *self.step.lock().unwrap() = step;
    }

    /// Waits until some more requests have been asked.
    fn a_while(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        let more = || self.asked.load(Ordering::SeqCst) >= before + A_WHILE;
        wait_until("requests", SOON, more).unwrap();
    }
}

/// Ends the load after a panic too.
struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

/// What the guests of a tenant noticed.
#[derive(Default)]
struct Noticed {
    tally: Tally,
    /// What failed in which step.
    failures: Vec<(&'static str, Outcome)>,
    connections: usize,
    stale: usize,
    crossed: usize,
}

impl Noticed {
    fn merge(&mut self, other: Self) {
        self.tally.merge(other.tally);
        self.failures.extend(other.failures);
        self.connections += other.connections;
        self.stale += other.stale;
        self.crossed += other.crossed;
    }
}

/// Asks again and again: over a new connection each time, or over one that is kept.
fn ask(member: &Member<'_>, keeps: bool, load: &Load) -> Noticed {
    let tenant = member.tenant.id.to_string();
    let mut noticed = Noticed::default();
    let mut guest = KeepingGuest::default();
    while !load.is_over.load(Ordering::SeqCst) {
        let asked = if keeps {
            guest.ask(&[&tenant])
        } else {
            crowd::ask_once(None, &[&tenant])
        };
        noticed.tally.add(asked);
        if asked.outcome != Outcome::Served {
            noticed
                .failures
                .push((*load.step.lock().unwrap(), asked.outcome));
        }
        load.asked.fetch_add(1, Ordering::SeqCst);
        thread::sleep(PAUSE);
    }
    noticed.connections = guest.opened;
    noticed.stale = guest.stale;
    noticed.crossed = guest.crossed;
    noticed
}

/// A tenant, its haproxy, and how that listens.
fn tenant(node: &Node, number: usize) -> TenantFixture {
    let kind = Kind::ALL[number % 3];
    let tenant = TenantFixture::new(node, kind).unwrap();
    if kind == Kind::Router {
        neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
    }
    tenant
}

/// Starts a tenant's haproxy as Neutron does; every other one listens for IPv4 only.
fn haproxy(node: &Node, number: usize, tenant: &TenantFixture, upstream: &HttpAgent) -> Haproxy {
    let builder = Haproxy::builder();
    let builder = if number.is_multiple_of(2) {
        builder.ipv4_only()
    } else {
        builder
    };
    builder.start(node, tenant, upstream.socket()).unwrap()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_node_is_migrated_and_migrated_back_without_a_failed_request() {
    let node = Node::new().unwrap();
    let socket = node.directory().join("agent");
    // An agent that takes any number of connections: what fails is the migration's fault.
    let upstream = HttpAgent::start(&socket, false, metadata_agent::who_asked).unwrap();
    let tenants: Vec<_> = (0..TENANTS).map(|number| tenant(&node, number)).collect();
    let start_haproxies = || -> Vec<_> {
        let numbered = tenants.iter().enumerate();
        numbered
            .map(|(number, tenant)| haproxy(&node, number, tenant, &upstream))
            .collect()
    };
    let haproxies = start_haproxies();

    let load = Load {
        is_over: AtomicBool::new(false),
        asked: AtomicUsize::new(0),
        step: Mutex::new("haproxies serve"),
    };
    let members: Vec<_> = tenants
        .iter()
        .flat_map(|tenant| {
            [Member {
                tenant,
                source: tenant.guest().v4,
            }; 2]
        })
        .collect();
    let turn = AtomicUsize::new(0);
    let noticed = thread::scope(|scope| {
        let guests = scope.spawn(|| {
            crowd::all_at_once(&members, |member| {
                let keeps = turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
                ask(member, keeps, &load)
            })
        });
        let over = Over(&load);
        load.a_while();
        let agent = there(&node, &upstream, &tenants, haproxies, &load);
        let haproxies = back(agent, start_haproxies, &load);
        drop(over);
        let noticed = guests.join().unwrap().unwrap();
        drop(haproxies);
        noticed
    });
    let mut all = Noticed::default();
    noticed.into_iter().for_each(|noticed| all.merge(noticed));
    println!(
        "{}: {}; {} kept connections, of which {} were closed while idle; {} requests crossed a \
         close and were asked again",
        all.tally.asked(),
        all.tally,
        all.connections,
        all.stale,
        all.crossed
    );
    assert_eq!(all.tally.failed(), 0, "{:?}", all.failures);
}

/// The agent takes over, then haproxy after haproxy ends.
fn there(
    node: &Node,
    upstream: &HttpAgent,
    tenants: &[TenantFixture],
    haproxies: Vec<Haproxy>,
    load: &Load,
) -> Agent {
    load.step("the agent starts");
    let agent = Agent::builder(node)
        .upstream_agent(upstream.socket())
        .set("log.level", "\"info\"")
        .set("log.access", false)
        .start()
        .unwrap();
    let serving = || {
        let status = agent.admin_json("/v1/status").unwrap();
        status["tenants"]["serving"].as_u64() == u64::try_from(tenants.len()).ok()
    };
    wait_until("all tenants served", SOON, serving).unwrap();
    load.step("both serve");
    load.a_while();
    load.step("haproxies end");
    for haproxy in haproxies {
        signal(haproxy.pid(), Signal::SIGUSR1);
        wait_until("the end of an haproxy", SOON, || !is_alive(haproxy.pid())).unwrap();
    }
    load.step("the agent serves");
    load.a_while();
    agent
}

/// The haproxies start, then the agent ends.
fn back(
    mut agent: Agent,
    start_haproxies: impl FnOnce() -> Vec<Haproxy>,
    load: &Load,
) -> Vec<Haproxy> {
    load.step("haproxies start");
    let haproxies = start_haproxies();
    load.a_while();
    load.step("the agent ends");
    agent.stop().unwrap();
    load.step("haproxies serve again");
    load.a_while();
    haproxies
}
