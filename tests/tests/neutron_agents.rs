//! Neutron's agents come and go, and are of different releases; guests notice nothing.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    Agent, HttpAgent, Kind, NeutronProxy, Node, Running, TenantFixture,
    crowd::{self, Member, Tally},
    metadata_agent, neutron, wait_until,
};
use nix::sys::signal::Signal;

/// What the agent takes for an answer.
const SERVICE_TIME: &str = "1";
/// How long the agent is away at each restart: much longer than any request takes, well within
/// `timeouts.connect`.
const AWAY: Duration = Duration::from_millis(700);

/// Starts Neutron's agent as a process and waits until it listens.
fn start_agent(node: &Node, socket: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fixture-agent"));
    command.arg(socket).args(["1", SERVICE_TIME]);
    node.enter_cgroup(&mut command).unwrap();
    let log = node.directory().join("fixture-agent.log");
    let running = Running::start("fixture-agent", &mut command, &log).unwrap();
    let listens = || std::os::unix::net::UnixStream::connect(socket).is_ok();
    wait_until("the agent's socket", Duration::from_secs(10), listens).unwrap();
    running
}

/// A node with two tenants of ten guests each, served by the agent.
fn place(node: &Node, socket: &Path) -> (Vec<TenantFixture>, Agent) {
    let tenants: Vec<_> = [Kind::Router, Kind::OvnNetwork]
        .into_iter()
        .map(|kind| {
            let tenant = TenantFixture::new(node, kind).unwrap();
            if kind == Kind::Router {
                neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
            }
            crowd::multiply(tenant.guest(), 10).unwrap();
            tenant
        })
        .collect();
    let agent = Agent::builder(node)
        .upstream_agent(socket)
        .set("log.access", false)
        .start()
        .unwrap();
    for tenant in &tenants {
        agent.wait_served(tenant).unwrap();
    }
    (tenants, agent)
}

fn members(tenants: &[TenantFixture]) -> Vec<Member<'_>> {
    let of_tenant = |tenant| {
        (5..15).map(move |last| Member {
            tenant,
            source: [10, 0, 0, last].into(),
        })
    };
    tenants.iter().flat_map(of_tenant).collect()
}

/// All guests ask again and again while something happens.
fn ask_while(tenants: &[TenantFixture], happens: impl FnOnce(&AtomicUsize) + Send) -> Tally {
    let is_over = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    let tallies = thread::scope(|scope| {
        let (is_over, asked) = (&is_over, &asked);
        scope.spawn(move || {
            // Ends the asking after a panic too.
            let _over = Over(is_over);
            happens(asked);
        });
        crowd::all_at_once(&members(tenants), |guest| {
            let (tenant, source) = (guest.tenant.id.to_string(), guest.source.to_string());
            let mut tally = Tally::default();
            while !is_over.load(Ordering::SeqCst) {
                tally.add(crowd::ask_once(Some(guest.source), &[&tenant, &source]));
                asked.fetch_add(1, Ordering::SeqCst);
            }
            tally
        })
    });
    let mut all = Tally::default();
    tallies
        .unwrap()
        .into_iter()
        .for_each(|tally| all.merge(tally));
    all
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_agents_restart_under_load_costs_no_guest_an_error() {
    let node = Node::new().unwrap();
    let socket = node.directory().join("agent");
    let mut upstream = start_agent(&node, &socket);
    let (tenants, agent) = place(&node, &socket);
    let tally = ask_while(&tenants, |asked| {
        let soon = Duration::from_secs(20);
        for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
            let before = asked.load(Ordering::SeqCst);
            wait_until("load", soon, || asked.load(Ordering::SeqCst) > before + 200).unwrap();
            upstream.signal(signal).unwrap();
            upstream.wait(soon).unwrap();
            let gone = Instant::now();
            wait_until("the time it is away", soon, || gone.elapsed() > AWAY).unwrap();
            upstream = start_agent(&node, &socket);
        }
        let before = asked.load(Ordering::SeqCst);
        wait_until("load", soon, || asked.load(Ordering::SeqCst) > before + 200).unwrap();
    });
    let waited = tally.quantile(1.0);
    println!(
        "three restarts, {} requests: {tally}; slowest {waited:.1?}",
        tally.asked()
    );
    assert_eq!(tally.failed(), 0, "{tally}");
    assert!(waited > AWAY, "nobody met a restart: this shows nothing");
    drop(agent);
}

#[test]
fn an_agent_until_2024_2_is_served_without_configuration() {
    let node = Node::new().unwrap();
    let socket = node.directory().join("agent");
    let upstream = HttpAgent::start(&socket, false, metadata_agent::who_asked).unwrap();
    let (tenants, agent) = place(&node, &socket);
    let tally = ask_while(&tenants, |asked| {
        let enough = || asked.load(Ordering::SeqCst) > 2_000;
        wait_until("load", Duration::from_secs(30), enough).unwrap();
    });
    let (requests, connections) = upstream.totals();
    println!(
        "{} requests: {tally}; {requests} over {connections} connections",
        tally.asked()
    );
    assert_eq!(tally.failed(), 0, "{tally}");
    // Its own errors and a body of some size pass as well.
    let guest = tenants[0].guest();
    let url = format!(
        "{}/openstack/latest/password",
        metadata_proxy_tests::METADATA_V4
    );
    let posted = guest.curl(&url, &["--data", &"p".repeat(2_000)]).unwrap();
    assert_eq!(posted.status, 200, "{posted:?}");
    drop(agent);
}
