//! From haproxy to the agent and back, under load, without a failed request: the procedure of
//! `docs/migrating-from-haproxy.md`, step by step.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use metadata_proxy_tests::{
    Agent, Haproxy, HttpAgent, Kind, NeutronProxy, Node, TenantFixture, agent,
    crowd::{self, Member, Outcome, Tally},
    haproxy,
    kept::KeepingGuest,
    metadata_agent, neutron,
    process::is_alive,
    raw_http::METADATA,
    wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use socket2::{Domain, Socket, Type};

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

/// The stand-in, found first on the search path of Neutron's agents, or the real haproxy; every other
/// one listens for IPv4 only.
fn builder(node: &Node, number: usize, program: Program) -> haproxy::Builder {
    let builder = Haproxy::builder();
    let builder = if number.is_multiple_of(2) {
        builder.ipv4_only()
    } else {
        builder
    };
    match program {
        Program::Haproxy => builder,
        Program::StandIn => {
            let socket = node.directory().join("register.sock");
            builder
                .program(&agent::stand_in().unwrap())
                .env("METADATA_PROXY_REGISTER_SOCKET", socket.as_os_str())
        }
    }
}

#[derive(Clone, Copy)]
enum Program {
    Haproxy,
    StandIn,
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
    let place = Place {
        node: &node,
        upstream: &upstream,
        tenants: &tenants,
    };
    let haproxies: Vec<_> = place
        .numbers()
        .map(|number| place.start(number, Program::Haproxy))
        .collect();

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
        let (agent, stand_ins) = there(&place, haproxies, &load);
        let haproxies = back(&place, agent, stand_ins, &load);
        drop(over);
        let noticed = guests.join().unwrap().unwrap();
        drop(haproxies);
        noticed
    });
    let mut all = Noticed::default();
    for noticed in noticed {
        all.merge(noticed);
    }
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

/// A node that is migrated.
struct Place<'a> {
    node: &'a Node,
    upstream: &'a HttpAgent,
    tenants: &'a [TenantFixture],
}

impl Place<'_> {
    fn numbers(&self) -> std::ops::Range<usize> {
        0..self.tenants.len()
    }

    /// Calls a tenant's haproxy as Neutron does.
    fn start(&self, number: usize, program: Program) -> Haproxy {
        let tenant = &self.tenants[number];
        builder(self.node, number, program)
            .start(self.node, tenant, self.upstream.socket())
            .unwrap()
    }

    fn agent(&self) -> Agent {
        let agent = Agent::builder(self.node)
            .upstream_agent(self.upstream.socket())
            .set("log.level", "\"info\"")
            .set("log.access", false)
            .start()
            .unwrap();
        let serving = || {
            let status = agent.admin_json("/v1/status").unwrap();
            status["tenants"]["serving"].as_u64() == u64::try_from(self.tenants.len()).ok()
        };
        wait_until("all tenants served", SOON, serving).unwrap();
        agent
    }
}

/// "There" in the document: the agent starts, then haproxy after haproxy makes room for a stand-in.
fn there(place: &Place<'_>, haproxies: Vec<Haproxy>, load: &Load) -> (Agent, Vec<Haproxy>) {
    load.step("there, 1: the agent starts");
    let agent = place.agent();
    load.a_while();
    load.step("there, 3: haproxies end, stand-ins start");
    let stand_ins = haproxies
        .into_iter()
        .enumerate()
        .map(|(number, haproxy)| {
            signal(haproxy.pid(), Signal::SIGUSR1);
            wait_until("the end of an haproxy", SOON, || !is_alive(haproxy.pid())).unwrap();
            // It is Neutron that removes these files.
            haproxy.forget();
            // What Neutron does when it sees that one is gone, a minute later at most.
            place.start(number, Program::StandIn)
        })
        .collect();
    load.step("the agent serves");
    load.a_while();
    (agent, stand_ins)
}

/// "Back" in the document: the haproxies start beside the agent, then the agent ends.
fn back(place: &Place<'_>, mut agent: Agent, stand_ins: Vec<Haproxy>, load: &Load) -> Vec<Haproxy> {
    load.step("back, 2: haproxies start");
    let haproxies = place
        .numbers()
        .map(|number| place.start(number, Program::Haproxy))
        .collect::<Vec<_>>();
    load.a_while();
    load.step("back, 3: the agent ends");
    agent.stop().unwrap();
    load.step("back, 4: stand-ins end");
    for stand_in in stand_ins {
        signal(stand_in.pid(), Signal::SIGTERM);
        wait_until("the end of a stand-in", SOON, || !is_alive(stand_in.pid())).unwrap();
        stand_in.forget();
    }
    load.step("haproxies serve again");
    load.a_while();
    let found = |number: usize| haproxies[number].is_active(place.tenants[number].id);
    assert!(
        place.numbers().all(found),
        "Neutron would start a haproxy again"
    );
    haproxies
}

/// Asks from this port, and waits for the other side to end the connection.
fn ask_from(port: u16) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())
        .unwrap();
    // Longer than a SYN that is lost twice.
    let patience = Duration::from_secs(5);
    socket.connect_timeout(&METADATA.into(), patience).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// haproxy has closed the guest's connection, so what lingers of it is in the tenant's namespace.
#[test]
fn what_haproxy_leaves_behind_is_in_no_guests_way() {
    for kind in Kind::ALL {
        let node = Node::new().unwrap();
        let socket = node.directory().join("agent");
        let upstream = HttpAgent::start(&socket, false, metadata_agent::who_asked).unwrap();
        // One whose haproxy listens for IPv4 only, and one whose haproxy does not.
        let tenants = [(); 2].map(|()| TenantFixture::new(&node, kind).unwrap());
        if kind == Kind::Router {
            for tenant in &tenants {
                neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
            }
        }
        let place = Place {
            node: &node,
            upstream: &upstream,
            tenants: &tenants,
        };
        let ask = |number: usize| {
            let guest = &tenants[number].guest().netns;
            let answer = guest.run(|| Ok(ask_from(45_000))).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200 "),
                "{kind} {number}: {answer:?}"
            );
        };
        let haproxies = [0, 1].map(|number| place.start(number, Program::Haproxy));
        (0..2).for_each(ask);
        let _agent = place.agent();
        for haproxy in haproxies {
            signal(haproxy.pid(), Signal::SIGUSR1);
            wait_until("the end of haproxy", SOON, || !is_alive(haproxy.pid())).unwrap();
        }
        (0..2).for_each(ask);
    }
}
