//! Processes inside tenant namespaces: the connect hooks.

use std::sync::Arc;

use metadata_proxy_tests::{Kind, METADATA_V4, Netns, Node, Reply, TenantFixture, Web};

use metadata_proxy_tests::stage::{Stage, assert_identified, builder, upstream};

/// Makes curl print whom it was connected to, as it sees that.
const REMOTE: &[&str] = &["--write-out", "\n%{remote_ip} %{remote_port}"];

/// What curl was connected to, behind the body.
fn remote(reply: &Reply) -> String {
    reply.text().lines().last().unwrap_or_default().to_owned()
}

/// Asks as a process of a namespace, within the node's cgroup.
fn curl_inside(node: &Node, netns: &Netns, url: &str) -> Reply {
    let mut command = netns.command("curl").unwrap();
    node.enter_cgroup(&mut command).unwrap();
    command.args(["-q", "--noproxy", "*", "-sS", "-i", "--max-time", "5"]);
    let output = metadata_proxy_tests::process::output(command.args(REMOTE).arg(url)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    Reply {
        exit: output.status.code().unwrap(),
        status: status.unwrap_or_default(),
        headers: Vec::new(),
        body: output.stdout,
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_process_of_a_tenant_is_served_and_sees_the_address_it_dialled() {
    for kind in Kind::ALL {
        let stage = Stage::new();
        let tenant = stage.tenant(kind);
        for (url, sees, from) in [
            (METADATA_V4, "169.254.169.254 80", "127.0.0.1"),
            ("http://[fe80::a9fe:a9fe]", "fe80::a9fe:a9fe 80", "::1"),
            (
                "http://[::ffff:169.254.169.254]",
                "::ffff:169.254.169.254 80",
                "127.0.0.1",
            ),
        ] {
            let reply = tenant.curl(url, REMOTE).unwrap();
            assert_eq!(reply.status, 200, "{kind} {url}: {reply:?}");
            assert_eq!(remote(&reply), sees, "{kind} {url}");
            let requests = stage.take_requests();
            assert_eq!(requests.len(), 1);
            assert_identified(&requests[0], &tenant, from);
        }
        assert_eq!(stage.outcome("connect_rewritten"), 3);
        assert!(stage.outcome("peer_name_restored") >= 3);
    }
}

#[test]
fn a_process_outside_the_cgroup_is_not_served() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut command = tenant.netns.command("curl").unwrap();
    command.args(["-q", "-sS", "--max-time", "2", METADATA_V4]);
    let output = metadata_proxy_tests::process::output(&mut command).unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(stage.outcome("connect_rewritten"), 0);
    assert_eq!(stage.take_requests(), []);
}

#[test]
fn a_process_of_a_namespace_that_is_no_tenant_goes_where_it_wants_to() {
    let stage = Stage::new();
    // Somebody must be served, or nothing would be there to be left alone by.
    let _tenant = stage.tenant(Kind::Router);
    let netns = Netns::hidden(&stage.node, "no-tenant").unwrap();
    netns.ip("addr add 169.254.169.254/32 dev lo").unwrap();
    let _web = Web::start(
        &netns,
        "169.254.169.254:80".parse().unwrap(),
        "another cloud",
    )
    .unwrap();
    let reply = curl_inside(&stage.node, &netns, METADATA_V4);
    assert!(reply.text().contains("another cloud"), "{reply:?}");
    assert_eq!(remote(&reply), "169.254.169.254 80");
    assert_eq!(stage.outcome("connect_rewritten"), 0);
    assert!(stage.outcome("connect_no_tenant") >= 1);
}

#[test]
fn a_process_of_a_tenant_reaches_everything_else_as_before() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    let web =
        |address: &str, words| Web::start(&tenant.netns, address.parse().unwrap(), words).unwrap();
    let _other_port = web("169.254.169.254:8080", "another port");
    let _own = web("10.0.0.2:80", "its own");
    for (url, words, sees) in [
        (
            "http://169.254.169.254:8080",
            "another port",
            "169.254.169.254 8080",
        ),
        ("http://10.0.0.2", "its own", "10.0.0.2 80"),
    ] {
        let reply = tenant.curl(url, REMOTE).unwrap();
        assert!(reply.text().starts_with(words), "{reply:?}");
        assert_eq!(remote(&reply), sees);
    }
    assert_eq!(stage.outcome("connect_rewritten"), 0);
}

#[test]
fn the_agents_own_connections_are_left_alone() {
    let node = Node::new().unwrap();
    // A node in a cloud: its own namespace has a metadata service too, and that is its upstream.
    let host = Arc::new(Netns::hidden(&node, "host").unwrap());
    host.ip("addr add 169.254.169.254/32 dev lo").unwrap();
    let web = Web::start(&host, "169.254.169.254:80".parse().unwrap(), "the upstream").unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    let unused = upstream(&node);
    let agent = builder(&node, &unused)
        .inside(Arc::clone(&host))
        .upstream_http("169.254.169.254:80")
        .start()
        .unwrap();
    agent.wait_served(&tenant).unwrap();
    let reply = tenant.guest().curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.text(), "the upstream", "{reply:?}");
    let reply = tenant.curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.text(), "the upstream", "{reply:?}");
    let requests = web.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        let tag = format!("X-Neutron-Router-ID: {}", tenant.id).to_lowercase();
        assert!(request.to_lowercase().contains(&tag), "{request}");
    }
}

#[test]
fn without_the_hooks_processes_are_left_alone_and_guests_are_served() {
    let stage = Stage::with(|agent| agent.set("steering.connect_hooks", "false"));
    let tenant = stage.tenant(Kind::Router);
    let reply = tenant.curl(METADATA_V4, &["--max-time", "1"]).unwrap();
    assert_eq!(reply.status, 0, "{reply:?}");
    metadata_proxy_tests::stage::assert_served_twice(&tenant);
}
