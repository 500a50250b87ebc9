//! The fixtures do what they say, and what they did is gone after they were dropped.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    Footprint, Haproxy, Kind, METADATA_V4, MetadataAgent, Netns, NeutronProxy, Node, TenantFixture,
    haproxy::RateLimit,
    metadata_agent::Answer,
    mountinfo::{cgroup2_root, is_mount_point},
    neutron,
    process::is_alive,
    wait_for, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

fn cgroup_of(directory: &Path) -> std::path::PathBuf {
    cgroup2_root().unwrap().join(directory.file_name().unwrap())
}

/// A listener that answers one connection with one line.
fn serve_once_in(netns: &Netns, address: &str) -> thread::JoinHandle<()> {
    // A program that another test is just starting may for a moment hold a listener closed here.
    let listener = wait_for("the address", SOON, || {
        netns.run(|| Ok(std::net::TcpListener::bind(address).ok()))
    })
    .unwrap();
    thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhere").unwrap();
    })
}

#[test]
fn a_node_is_gone_after_drop() {
    let node = Node::new().unwrap();
    let directory = node.directory().to_owned();
    assert!(is_mount_point(&node.bpffs()).unwrap());
    assert!(node.cgroup().is_dir());
    drop(node);
    assert!(!directory.exists());
    assert!(!is_mount_point(&directory.join("bpf")).unwrap());
    assert!(!cgroup_of(&directory).exists());
}

#[test]
fn a_process_in_the_nodes_cgroup_goes_with_the_node() {
    let node = Node::new().unwrap();
    let mut command = Command::new("sleep");
    node.enter_cgroup(command.arg("1000")).unwrap();
    let mut child = command.spawn().unwrap();
    assert_eq!(node.processes().unwrap(), [child.id()]);
    drop(node);
    assert!(!is_alive(child.id()));
    child.wait().unwrap();
}

#[test]
fn a_killed_owners_node_is_removed_by_the_next() {
    let node = Node::new().unwrap();
    // What a killed process leaves: a node whose lock nobody holds.
    let name = format!("mdp-test-stale-{}", std::process::id());
    let stale = Path::new("/run").join(&name);
    fs::create_dir_all(stale.join("netns")).unwrap();
    let cgroup = cgroup_of(&stale);
    fs::create_dir(&cgroup).unwrap();
    fs::write(stale.join("lock"), "").unwrap();
    drop(Node::new().unwrap());
    wait_until("removal of what was left", SOON, || {
        !stale.exists() && !cgroup.exists()
    })
    .unwrap();
    assert!(
        node.directory().exists(),
        "the node of a living owner stays"
    );
}

#[test]
fn a_namespace_and_its_processes_are_gone_after_a_panic() {
    let node = Node::new().unwrap();
    let path = node.netns_dir().join("qrouter-x");
    let (sender, receiver) = std::sync::mpsc::channel();
    let its_node = node.clone();
    let panicked = thread::spawn(move || {
        let netns = Netns::tenant(&its_node, "qrouter-x").unwrap();
        let child = netns.command("sleep").unwrap().arg("1000").spawn().unwrap();
        assert_eq!(netns.processes().unwrap(), [child.id()]);
        sender.send(child).unwrap();
        panic!("wanted");
    })
    .join();
    assert!(panicked.is_err());
    let mut child = receiver.recv().unwrap();
    assert!(!is_alive(child.id()));
    child.wait().unwrap();
    assert!(!path.exists());
    assert!(!is_mount_point(&path).unwrap());
}

#[test]
fn a_dropped_namespace_is_freed_by_the_kernel() {
    let node = Node::new().unwrap();
    let mut tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    let subnet = tenant.subnets.remove(0);
    assert!(tenant.netns.ip("link").unwrap().contains(&subnet.device));
    let device = subnet.device.clone();
    drop(subnet);
    // The other end of its veth goes only when nothing holds the guest's namespace any more.
    wait_until("the end of the guest's device", SOON, || {
        !tenant.netns.ip("link").unwrap().contains(&device)
    })
    .unwrap();
}

#[test]
fn a_function_runs_inside_the_namespace_only() {
    let node = Node::new().unwrap();
    let netns = Netns::hidden(&node, "inside").unwrap();
    let inode = || {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    };
    let before = inode();
    let inside = netns.run(|| Ok(inode())).unwrap();
    assert_eq!(inside, netns.inode().unwrap());
    assert_eq!(inode(), before);
    assert_ne!(inside, before);
}

#[test]
fn guests_reach_their_tenants_port_over_ipv4_and_ipv6() {
    let node = Node::new().unwrap();
    for kind in Kind::ALL {
        let tenant = TenantFixture::builder(kind).guests(2).build(&node).unwrap();
        for guest in tenant.guests() {
            for (bind, url) in [
                (
                    "0.0.0.0:8080",
                    if kind == Kind::Router {
                        "10.0.0.1"
                    } else {
                        "10.0.0.2"
                    },
                ),
                ("[::]:8080", "[fe80::f816:3eff:fe00:1%25eth0]"),
            ] {
                let url = if kind == Kind::Router {
                    url
                } else {
                    &url.replace(":1%", ":2%")
                };
                let server = serve_once_in(&tenant.netns, bind);
                let reply = guest.curl(&format!("http://{url}:8080/"), &[]).unwrap();
                assert_eq!(
                    (reply.status, &*reply.text()),
                    (200, "here"),
                    "{kind}: {reply:?}"
                );
                server.join().unwrap();
            }
        }
    }
}

#[test]
fn the_metadata_address_is_local_where_neutron_makes_it_so() {
    let node = Node::new().unwrap();
    for kind in [Kind::Network, Kind::OvnNetwork] {
        let tenant = TenantFixture::new(&node, kind).unwrap();
        for (bind, url) in [
            ("169.254.169.254:80", METADATA_V4.to_owned()),
            ("[::]:80", tenant.guest().metadata_v6()),
        ] {
            let server = serve_once_in(&tenant.netns, bind);
            let reply = tenant.guest().curl(&url, &[]).unwrap();
            assert_eq!(reply.text(), "here", "{kind} {url}: {reply:?}");
            server.join().unwrap();
        }
    }
    let router = TenantFixture::new(&node, Kind::Router).unwrap();
    let reply = router
        .guest()
        .curl(METADATA_V4, &["--max-time", "1"])
        .unwrap();
    assert_eq!(reply.status, 0, "{reply:?}");
}

#[test]
fn tenants_have_the_same_addresses_and_names_of_their_own() {
    let node = Node::new().unwrap();
    let a = TenantFixture::new(&node, Kind::Router).unwrap();
    let b = TenantFixture::builder(Kind::Router)
        .suffix("-x")
        .build(&node)
        .unwrap();
    assert_eq!(
        (a.guest().v4, a.guest().link_local),
        (b.guest().v4, b.guest().link_local)
    );
    assert_ne!(a.netns.name(), b.netns.name());
    let path = a.netns.path().to_owned();
    drop(a);
    assert!(!path.exists());
}

#[test]
fn a_second_subnet_can_be_plugged() {
    let node = Node::new().unwrap();
    let mut tenant = TenantFixture::builder(Kind::Router)
        .guests(0)
        .build(&node)
        .unwrap();
    assert_eq!(tenant.guests().count(), 0);
    tenant.plug(1).unwrap();
    tenant.plug(1).unwrap();
    let devices = tenant.netns.ip("-brief link").unwrap();
    assert_eq!(devices.matches("qr-").count(), 2, "{devices}");
    let server = serve_once_in(&tenant.netns, "10.0.1.1:8080");
    let reply = tenant.subnets[1].guests[0]
        .curl("http://10.0.1.1:8080", &[])
        .unwrap();
    assert_eq!(reply.text(), "here", "{reply:?}");
    server.join().unwrap();
}

#[test]
fn neutrons_rules_redirect_and_guard_the_port() {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
    for url in [METADATA_V4.to_owned(), tenant.guest().metadata_v6()] {
        let server = serve_once_in(&tenant.netns, "[::]:9697");
        let direct = tenant
            .guest()
            .curl("http://10.0.0.1:9697", &["--max-time", "1"])
            .unwrap();
        assert_eq!(direct.status, 0, "the port is guarded: {direct:?}");
        let reply = tenant.guest().curl(&url, &[]).unwrap();
        assert_eq!(reply.text(), "here", "{url}: {reply:?}");
        server.join().unwrap();
    }
}

#[test]
fn neutrons_rules_without_the_proxy_redirect_nothing() {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    neutron::install_rules(&tenant.netns, NeutronProxy::Disabled).unwrap();
    let _listener = tenant
        .netns
        .run(|| std::net::TcpListener::bind("[::]:9697").map_err(anyhow::Error::from))
        .unwrap();
    let reply = tenant
        .guest()
        .curl(METADATA_V4, &["--max-time", "1"])
        .unwrap();
    assert_eq!(reply.status, 0, "{reply:?}");
}

#[test]
fn haproxy_tags_each_kind_and_is_gone_after_drop() {
    let node = Node::new().unwrap();
    let agent = MetadataAgent::builder()
        .start(&node.directory().join("agent"))
        .unwrap();
    for kind in Kind::ALL {
        let tenant = TenantFixture::new(&node, kind).unwrap();
        if kind == Kind::Router {
            neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
        }
        let proxy = Haproxy::builder()
            .start(&node, &tenant, agent.socket())
            .unwrap();
        let guest = tenant.guest();
        for (url, address) in [
            (METADATA_V4.to_owned(), guest.v4.to_string()),
            (guest.metadata_v6(), guest.link_local.to_string()),
        ] {
            let reply = guest.curl(&url, &[]).unwrap();
            let text = reply.text();
            assert!(
                text.starts_with(&format!("{}={}", kind.tag_name(), tenant.id)),
                "{reply:?}"
            );
            assert!(text.ends_with(&address), "{reply:?}");
        }
        let pid = proxy.pid();
        drop(proxy);
        assert!(!is_alive(pid));
    }
}

#[test]
fn haproxy_limits_as_neutron_configures_it() {
    let node = Node::new().unwrap();
    let agent = MetadataAgent::builder()
        .start(&node.directory().join("agent"))
        .unwrap();
    let tenant = TenantFixture::new(&node, Kind::Network).unwrap();
    let limit = RateLimit {
        ip_version: 4,
        base_window_seconds: 60,
        base_limit: 3,
        burst_window_seconds: 10,
        burst_limit: 10,
    };
    let _proxy = Haproxy::builder()
        .rate_limit(limit)
        .start(&node, &tenant, agent.socket())
        .unwrap();
    let statuses: Vec<_> = (0..4)
        .map(|_| tenant.guest().curl(METADATA_V4, &[]).unwrap().status)
        .collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
}

#[test]
fn haproxy_makes_502_of_a_silent_agent() {
    let node = Node::new().unwrap();
    let agent = MetadataAgent::builder()
        .workers(2)
        .respond(|_| Answer::Silence)
        .start(&node.directory().join("agent"))
        .unwrap();
    let tenant = TenantFixture::new(&node, Kind::OvnNetwork).unwrap();
    let _proxy = Haproxy::builder()
        .start(&node, &tenant, agent.socket())
        .unwrap();
    let reply = tenant.guest().curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.status, 502);
}

#[test]
fn an_agents_workers_and_delay_are_as_asked_for() {
    let node = Node::new().unwrap();
    let delay = Duration::from_millis(200);
    let agent = MetadataAgent::builder()
        .delay(delay)
        .start(&node.directory().join("agent"))
        .unwrap();
    let tenant = TenantFixture::new(&node, Kind::Network).unwrap();
    let _proxy = Haproxy::builder()
        .start(&node, &tenant, agent.socket())
        .unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(tenant.guest().curl(METADATA_V4, &[]).unwrap().status, 200));
        }
    });
    assert!(
        start.elapsed() >= 2 * delay,
        "one worker serves one after the other"
    );
    assert_eq!(agent.requests().len(), 2);
    agent.forget();
    assert_eq!(agent.requests(), []);
}

#[test]
fn a_footprint_shows_what_was_added_and_its_end() {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    let look = || Footprint::of_netns(&tenant.netns);
    let before = look().unwrap();
    tenant
        .netns
        .ip_batch("route add local 169.254.169.254/32 dev lo table local")
        .unwrap();
    let device = &tenant.subnets[0].device;
    let mut tc = tenant.netns.command("tc").unwrap();
    assert!(
        tc.args(["qdisc", "add", "dev", device, "clsact"])
            .status()
            .unwrap()
            .success()
    );
    let listener = tenant
        .netns
        .run(|| std::net::TcpListener::bind("127.0.0.1:9697").map_err(anyhow::Error::from))
        .unwrap();
    let now = look().unwrap();
    let more = now.beyond(&before);
    assert_eq!(more.len(), 3, "{more:?}");
    let error = Footprint::wait_for_return(&before, Duration::ZERO, look).unwrap_err();
    assert!(error.to_string().contains("clsact"), "{error}");
    drop(listener);
    tenant
        .netns
        .ip("route del local 169.254.169.254/32 dev lo table local")
        .unwrap();
    let mut tc = tenant.netns.command("tc").unwrap();
    assert!(
        tc.args(["qdisc", "del", "dev", device, "clsact"])
            .status()
            .unwrap()
            .success()
    );
    Footprint::wait_for_return(&before, SOON, look).unwrap();
}

#[test]
fn a_footprint_shows_pins() {
    let node = Node::new().unwrap();
    let before = Footprint::of_node(&node).unwrap();
    fs::create_dir(node.bpffs().join("metadata-proxy")).unwrap();
    let now = Footprint::of_node(&node).unwrap();
    assert_eq!(now.beyond(&before).len(), 1);
    fs::remove_dir(node.bpffs().join("metadata-proxy")).unwrap();
    assert_eq!(Footprint::of_node(&node).unwrap(), before);
}

#[test]
fn two_hundred_tenants_can_be_made_at_once() {
    let node = Node::new().unwrap();
    let start = Instant::now();
    let tenants: Vec<_> = (0..200)
        .map(|_| TenantFixture::new(&node, Kind::Router).unwrap())
        .collect();
    eprintln!("made in {:?}", start.elapsed());
    assert_eq!(
        fs::read_dir(node.netns_dir()).unwrap().count(),
        tenants.len()
    );
    let start = Instant::now();
    drop(tenants);
    eprintln!("gone in {:?}", start.elapsed());
    assert_eq!(fs::read_dir(node.netns_dir()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.guests_dir()).unwrap().count(), 0);
}
