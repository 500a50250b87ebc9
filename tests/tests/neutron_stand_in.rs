//! The stand-in for haproxy, driven as Neutron drives haproxy, with the agent behind it.
//!
//! Discovery of namespaces is switched off: a tenant is served because its stand-in runs.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    ffi::{OsStr, OsString},
    fs, iter,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    Agent, Haproxy, Kind, METADATA_V4, MetadataAgent, NeutronProxy, Node, Running, TenantFixture,
    agent, neutron, process::is_alive, wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(10);
/// What the issue of a stand-in's end may take.
const A_SECOND: Duration = Duration::from_secs(1);
/// As many tenants as a busy node has.
const MANY: usize = 200;

/// A node with Neutron's metadata agent, and the stand-in first on Neutron's search path.
struct Place {
    upstream: MetadataAgent,
    search_path: OsString,
    node: Node,
}

impl Place {
    fn new() -> Self {
        let node = Node::new().unwrap();
        let bin = node.directory().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(agent::stand_in().unwrap(), bin.join("haproxy")).unwrap();
        let rest = std::env::var_os("PATH").unwrap();
        let directories = iter::once(bin).chain(std::env::split_paths(&rest));
        let search_path = std::env::join_paths(directories).unwrap();
        let upstream = MetadataAgent::builder()
            .start(&node.directory().join("agent"))
            .unwrap();
        Self {
            upstream,
            search_path,
            node,
        }
    }

    fn agent(&self) -> Agent {
        self.builder().start().unwrap()
    }

    fn builder(&self) -> agent::Builder {
        Agent::builder(&self.node)
            .upstream_agent(self.upstream.socket())
            .set("discovery.neutron", false)
    }

    fn tenant(&self, kind: Kind) -> TenantFixture {
        let tenant = TenantFixture::new(&self.node, kind).unwrap();
        if kind == Kind::Router {
            neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
        }
        tenant
    }

    fn register_socket(&self) -> PathBuf {
        self.node.directory().join("register.sock")
    }

    /// Starts a tenant's haproxy as Neutron does; success means that requests are served.
    fn spawn(&self, tenant: &TenantFixture) -> Haproxy {
        self.call()
            .start(&self.node, tenant, self.upstream.socket())
            .unwrap()
    }

    fn call(&self) -> metadata_proxy_tests::haproxy::Builder {
        Haproxy::builder().through_ip(&self.search_path).env(
            "METADATA_PROXY_REGISTER_SOCKET",
            self.register_socket().as_os_str(),
        )
    }
}

/// What a guest gets: the status, 0 for none.
fn asked(tenant: &TenantFixture) -> u16 {
    let url = format!("{METADATA_V4}/openstack");
    let reply = tenant.guest().curl(&url, &["--max-time", "2"]).unwrap();
    if reply.status == 200 {
        assert!(reply.text().contains(&tenant.id.to_string()), "{reply:?}");
    }
    reply.status
}

/// Tenants the agent serves now.
fn serving(agent: &Agent) -> usize {
    let list = agent.admin_json("/v1/tenants").unwrap();
    let is_served = |tenant: &&serde_json::Value| tenant["state"] == "serving";
    list["tenants"]
        .as_array()
        .unwrap()
        .iter()
        .filter(is_served)
        .count()
}

/// How long it takes until the agent serves so many.
fn until_serving(agent: &Agent, wanted: usize, within: Duration) -> Duration {
    let began = Instant::now();
    let what = format!("{wanted} tenants served");
    wait_until(&what, within, || serving(agent) == wanted)
        .unwrap_or_else(|error| panic!("{error}; {} are", serving(agent)));
    began.elapsed()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

fn program_of(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

#[test]
fn neutron_starts_it_finds_it_and_ends_it() {
    let place = Place::new();
    let agent = place.agent();
    for kind in Kind::ALL {
        let tenant = place.tenant(kind);
        assert_ne!(
            asked(&tenant),
            200,
            "{kind} is served before anybody asked for that"
        );
        let proxy = place.spawn(&tenant);
        assert_eq!(
            asked(&tenant),
            200,
            "{kind} is not served though the call came back"
        );
        assert!(proxy.is_active(tenant.id));
        assert_eq!(
            program_of(proxy.pid()),
            fs::canonicalize(agent::stand_in().unwrap()).unwrap()
        );

        signal(proxy.pid(), Signal::SIGTERM);
        let took = until_serving(&agent, 0, SOON);
        assert!(
            took < A_SECOND,
            "{kind} was served for {took:?} after SIGTERM"
        );
        wait_until("its end", A_SECOND, || !is_alive(proxy.pid())).unwrap();
        assert_ne!(
            asked(&tenant),
            200,
            "{kind} is served though Neutron ended it"
        );
    }
}

#[test]
fn a_killed_one_is_noticed_at_once_and_respawned() {
    let place = Place::new();
    let agent = place.agent();
    let tenant = place.tenant(Kind::Router);
    let first = place.spawn(&tenant);
    signal(first.pid(), Signal::SIGKILL);
    let took = until_serving(&agent, 0, SOON);
    println!("noticed within {took:?}");
    assert!(took < A_SECOND, "noticed after {took:?}");
    // What Neutron's poll sees, and what it does then.
    assert!(!first.is_active(tenant.id));
    let second = place.spawn(&tenant);
    assert!(second.is_active(tenant.id));
    assert_eq!(asked(&tenant), 200);
}

#[test]
fn two_hundred_tenants_come_stay_over_a_restart_and_go() {
    let place = Place::new();
    let mut agent = place.agent();
    let tenants: Vec<_> = (0..MANY)
        .map(|_| {
            TenantFixture::builder(Kind::Network)
                .guests(0)
                .build(&place.node)
                .unwrap()
        })
        .collect();
    let began = Instant::now();
    let proxies: Vec<_> = tenants.iter().map(|tenant| place.spawn(tenant)).collect();
    let spawned = began.elapsed();
    assert_eq!(serving(&agent), MANY);

    let pids: Vec<_> = proxies.iter().map(Haproxy::pid).collect();
    agent.stop().unwrap();
    assert!(
        pids.iter().all(|pid| is_alive(*pid)),
        "the agent's end ended a stand-in"
    );
    drop(agent);
    let agent = place.agent();
    let registered = until_serving(&agent, MANY, Duration::from_secs(20));
    let is_active = |(proxy, tenant): (&Haproxy, &TenantFixture)| proxy.is_active(tenant.id);
    assert!(proxies.iter().zip(&tenants).all(is_active));

    for pid in &pids {
        signal(*pid, Signal::SIGTERM);
    }
    let gone = until_serving(&agent, 0, SOON);
    wait_until("the end of all", SOON, || {
        !pids.iter().any(|pid| is_alive(*pid))
    })
    .unwrap();
    println!(
        "{MANY} tenants: spawned in {spawned:.1?}, registered again {registered:.1?} after the \
         agent's restart, gone {gone:.1?} after SIGTERM"
    );
}

#[test]
fn from_a_container_of_its_own_a_tenant_is_served_too() {
    let place = Place::new();
    let agent = place.agent();
    let tenant = place.tenant(Kind::OvnNetwork);
    // The configuration is Neutron's; kolla and tripleo run it in the foreground of a container.
    let config = place
        .call()
        .write(&place.node, &tenant, place.upstream.socket())
        .unwrap();
    let mut container = contained(&place, &tenant, &config);
    until_serving(&agent, 1, SOON);
    assert_eq!(asked(&tenant), 200);

    // Its first process is the only one that can be signalled from outside; the container ends.
    let first = child_of(container.pid());
    signal(first, Signal::SIGTERM);
    let took = until_serving(&agent, 0, SOON);
    assert!(took < A_SECOND, "served for {took:?} after SIGTERM");
    container.wait(SOON).unwrap();

    // A container that is killed with all that is in it.
    let mut container = contained(&place, &tenant, &config);
    until_serving(&agent, 1, SOON);
    signal(child_of(container.pid()), Signal::SIGKILL);
    let took = until_serving(&agent, 0, SOON);
    assert!(took < A_SECOND, "noticed after {took:?}");
    container.wait(SOON).unwrap();
}

/// `haproxy -Ds -f` as the first process of mount and pid namespaces of its own.
fn contained(place: &Place, tenant: &TenantFixture, config: &Path) -> Running {
    let mut command = tenant.netns.command("unshare").unwrap();
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["haproxy", "-Ds", "-f"])
        .arg(config)
        .env("PATH", &place.search_path)
        .env("METADATA_PROXY_REGISTER_SOCKET", place.register_socket());
    place.node.enter_cgroup(&mut command).unwrap();
    let log = place.node.directory().join("container.log");
    Running::start("container", &mut command, &log).unwrap()
}

fn child_of(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}

#[test]
fn without_an_agent_the_real_haproxy_serves() {
    let place = Place::new();
    let tenant = place.tenant(Kind::Router);
    let real = real_haproxy();
    let proxy = place
        .call()
        .env("METADATA_PROXY_FALLBACK", real.as_os_str())
        .start(&place.node, &tenant, place.upstream.socket())
        .unwrap();
    assert!(proxy.is_active(tenant.id));
    assert_eq!(program_of(proxy.pid()), fs::canonicalize(real).unwrap());
    assert_eq!(asked(&tenant), 200);
}

#[test]
fn without_an_agent_and_a_fallback_neutron_is_told() {
    let place = Place::new();
    let tenant = place.tenant(Kind::Router);
    let refused = place
        .call()
        .start(&place.node, &tenant, place.upstream.socket())
        .unwrap_err();
    let text = format!("{refused:#}");
    assert!(text.contains("metadata-proxy running?"), "{text}");
}

/// The real haproxy, wherever it is installed.
fn real_haproxy() -> PathBuf {
    let output = Command::new("sh")
        .args(["-c", "command -v haproxy"])
        .output()
        .unwrap();
    PathBuf::from(OsStr::new(String::from_utf8(output.stdout).unwrap().trim()))
}

#[test]
fn an_upgrade_of_the_agent_costs_no_guest_an_answer() {
    let place = Place::new();
    let mut agent = place.agent();
    let (tenant, silent) = (place.tenant(Kind::Router), place.tenant(Kind::Network));
    let (_proxy, stopped) = (place.spawn(&tenant), place.spawn(&silent));
    // It cannot register with the next agent, and is not to be without service at once all the same.
    signal(stopped.pid(), Signal::SIGSTOP);
    let next = place.builder().taking_over().start().unwrap();
    let mut before = std::mem::replace(&mut agent, next);
    assert_eq!((asked(&tenant), asked(&silent)), (200, 200));
    assert!(before.wait(SOON).unwrap().success());
    assert_eq!((asked(&tenant), asked(&silent)), (200, 200));
    // Served all the while, by its stand-in's word again; the other one's word is too old by then.
    wait_until("the end of the silent one's tenant", 2 * SOON, || {
        assert_eq!(asked(&tenant), 200);
        serving(&agent) == 1
    })
    .unwrap();
    assert_eq!(asked(&tenant), 200);
    assert_ne!(asked(&silent), 200);
    signal(stopped.pid(), Signal::SIGCONT);
    until_serving(&agent, 2, SOON);
    assert_eq!(asked(&silent), 200);
}
