//! Guests of every kind of tenant get answers, and the upstream is told who asked.

use metadata_proxy_tests::{Connection, Kind, METADATA_V4, TenantFixture, Web, connection};
use uuid::Uuid;

use metadata_proxy_tests::stage::{
    Stage, assert_guest_served, assert_identified, assert_not_served, assert_served,
    assert_served_twice, exchange,
};

#[test]
fn guests_of_every_kind_are_served_over_ipv4_and_ipv6_and_tagged() {
    let stage = Stage::new();
    for kind in Kind::ALL {
        let tenant = stage.tenant(kind);
        let guest = tenant.guest();
        for (url, host, from) in [
            (
                METADATA_V4.to_owned(),
                "169.254.169.254",
                guest.v4.to_string(),
            ),
            (
                guest.metadata_v6(),
                "[fe80::a9fe:a9fe]",
                guest.link_local.to_string(),
            ),
        ] {
            let reply = guest.curl(&format!("{url}/openstack?a=b"), &[]).unwrap();
            assert_eq!(reply.status, 200, "{kind}: {reply:?}");
            let requests = stage.take_requests();
            assert_eq!(requests.len(), 1);
            assert_identified(&requests[0], &tenant, from);
            assert_eq!(requests[0].target, "/openstack?a=b");
            assert_eq!(requests[0].header("host"), Some(host));
        }
    }
}

#[test]
fn tenants_that_were_there_before_the_agent_are_served_when_it_is_ready() {
    let node = metadata_proxy_tests::Node::new().unwrap();
    let tenants = Kind::ALL.map(|kind| TenantFixture::new(&node, kind).unwrap());
    let _stage = Stage::on(node, |agent| agent);
    for tenant in &tenants {
        // Not waited for: ready says that it is so.
        assert_served_twice(tenant);
    }
}

#[test]
fn a_segment_behind_the_uuid_does_not_hide_a_network() {
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Network)
        .suffix("-0a1b2c3d")
        .build(&stage.node)
        .unwrap();
    assert_served(&stage.served(tenant));
}

#[test]
fn guests_of_one_network_are_told_apart() {
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Network)
        .guests(3)
        .build(&stage.node)
        .unwrap();
    let tenant = stage.served(tenant);
    for guest in tenant.guests() {
        assert_guest_served(&tenant, guest);
    }
}

#[test]
fn guests_of_every_subnet_of_a_router_are_served() {
    let stage = Stage::new();
    let mut tenant = TenantFixture::new(&stage.node, Kind::Router).unwrap();
    tenant.plug(1).unwrap();
    let tenant = stage.served(tenant);
    for guest in tenant.guests() {
        assert_guest_served(&tenant, guest);
    }
}

#[test]
fn a_namespace_recognised_by_a_configured_pattern_is_served() {
    let pattern = r#"[{ name = "mine", regex = 'mine-(?<id>[0-9a-f-]{36})-x', kind = "router", interfaces = ["lan?"] }]"#;
    let stage = Stage::with(|agent| agent.set("discovery.patterns", pattern));
    let id = Uuid::new_v4();
    let mut tenant = TenantFixture::builder(Kind::Router)
        .id(id)
        .name(&format!("mine-{id}-x"))
        .build(&stage.node)
        .unwrap();
    let device = &mut tenant.subnets[0].device;
    tenant
        .netns
        // Older kernels rename nothing that is up.
        .ip_batch(&format!(
            "link set {device} down\nlink set {device} name lan7\nlink set lan7 up\n"
        ))
        .unwrap();
    *device = "lan7".to_owned();
    // Over IPv4: with the device, the kernel took its IPv6 addresses down.
    assert_served(&stage.served(tenant));
}

#[test]
fn namespaces_of_other_names_are_left_alone() {
    let stage = Stage::new();
    let stranger = TenantFixture::builder(Kind::Router)
        .name("qrouter-of-nobody")
        .build(&stage.node)
        .unwrap();
    // One that comes later is served: the other had its turn.
    let tenant = stage.tenant(Kind::Router);
    assert_not_served(stranger.guest());
    assert_served(&tenant);
    assert_eq!(
        stage.outcome("passed_no_listener"),
        0,
        "nothing is attached there"
    );
}

#[test]
fn what_a_guest_claims_to_be_never_reaches_the_upstream() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::OvnNetwork);
    let other = Uuid::new_v4().to_string();
    let mut arguments = Vec::new();
    for name in [
        "X-OVN-Network-ID",
        "X-Neutron-Router-ID",
        "X-Neutron-Network-ID",
        "x-neutron-router-id",
        "X_Neutron_Router_ID",
        "X-Neutron_Network-ID",
        "X-Instance-ID",
        "X-Instance-ID-Signature",
        "X-Tenant-ID",
        "X-Metadata-Provider",
        "X-Metadata-Provider-Signature",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Real-IP",
        "Connection: X-OVN-Network-ID, X-Forwarded-For\nX-Unused",
    ] {
        // The last one asks for the tag to be taken off on the way, as hop-by-hop headers are.
        for line in format!("{name}: {other}").split('\n') {
            arguments.extend(["-H".to_owned(), line.to_owned()]);
        }
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let guest = tenant.guest();
    assert_eq!(guest.curl(METADATA_V4, &arguments).unwrap().status, 200);
    let requests = stage.take_requests();
    assert_eq!(requests.len(), 1);
    assert_identified(&requests[0], &tenant, guest.v4);
    let values = requests[0].headers.iter().map(|(_, value)| value);
    assert!(
        values.into_iter().all(|value| !value.contains(&other)),
        "{requests:?}"
    );
}

#[test]
fn what_is_not_for_the_metadata_service_passes_untouched() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let guest = tenant.guest();
    let web =
        |address: &str, words| Web::start(&tenant.netns, address.parse().unwrap(), words).unwrap();
    let _router = web("10.0.0.1:80", "the router's own port 80");
    let _other_port = web("0.0.0.0:8080", "another port");
    for (url, words) in [
        ("http://10.0.0.1/", "the router's own port 80"),
        ("http://10.0.0.1:8080/", "another port"),
        ("http://169.254.169.254:8080/", "another port"),
    ] {
        let reply = guest.curl(url, &[]).unwrap();
        assert_eq!(reply.text(), words, "{url}: {reply:?}");
    }
    assert_served(&tenant);
    assert_eq!(stage.take_requests().len(), 1);
}

#[test]
fn a_guest_that_sends_ip_options_is_served() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let to = connection::METADATA_V4_SOCKET.into();
    let mut connection = Connection::with(&tenant.guest().netns, to, |socket| {
        // Four times IPOPT_NOP: the header grows, and nothing else.
        let options = [1_u8; 4];
        // SAFETY: the buffer is as long as said.
        let result = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(socket),
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                options.as_ptr().cast(),
                4,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    })
    .unwrap();
    assert_eq!(connection.get("/").unwrap().status, 200);
    assert!(stage.outcome("steered_syn") >= 1);
}

/// TCP segments that the calling thread's namespace has sent.
fn segments_sent() -> u64 {
    let counts = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = counts
        .lines()
        .filter_map(|line| line.strip_prefix("Tcp: "))
        .map(|line| line.split(' '));
    let (mut names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.position(|name| name == "OutSegs").unwrap();
    values.nth(at).unwrap().parse().unwrap()
}

#[test]
fn a_request_is_acknowledged_by_its_answer() {
    const CONNECTIONS: u64 = 40;
    // The handshake's, the answer with our end of the connection, and what acknowledges the guest's.
    const SEGMENTS: u64 = 3;
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let sent = || tenant.netns.run(|| Ok(segments_sent())).unwrap();
    let before = sent();
    for _ in 0..CONNECTIONS {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(exchange(tenant.guest(), request).status, 200);
    }
    let sent = sent() - before;
    // An answer that takes longer than 40 ms comes after an acknowledgement; and an audit may look.
    assert!(
        sent < CONNECTIONS * SEGMENTS + CONNECTIONS / 2,
        "{sent} segments for {CONNECTIONS} connections"
    );
}
