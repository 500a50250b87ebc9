//! Connections that begin with a SYN cookie, of which nothing is known when their first ACK comes.

use std::net::SocketAddr;

use metadata_proxy_tests::{
    Connection, Kind, NeutronProxy, TenantFixture, connection::METADATA_V4_SOCKET, neutron,
    wait_until,
};
use socket2::{Domain, Protocol, Socket, Type};

use metadata_proxy_tests::stage::{SOON, Stage, assert_served_twice};

#[test]
fn guests_are_served_when_every_connection_begins_with_a_cookie() {
    for kind in Kind::ALL {
        let stage = Stage::new();
        let tenant = stage.tenant(kind);
        tenant.netns.sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
        assert_served_twice(&tenant);
        assert!(
            stage.outcome("steered_syncookie") >= 2,
            "{kind}: IPv4 and IPv6"
        );
    }
}

#[test]
fn guests_are_served_by_cookies_beside_neutrons_rules() {
    for proxy in [NeutronProxy::Enabled, NeutronProxy::Disabled] {
        let stage = Stage::new();
        let tenant = TenantFixture::new(&stage.node, Kind::Router).unwrap();
        neutron::install_rules(&tenant.netns, proxy).unwrap();
        tenant.netns.sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
        let tenant = stage.served(tenant);
        assert_served_twice(&tenant);
        assert!(
            stage.outcome("steered_syn") >= 2,
            "{proxy:?}: IPv4 and IPv6"
        );
    }
}

#[test]
fn half_open_connections_do_not_shut_other_guests_out() {
    // Far more than the listener keeps.
    const HALF_OPEN: u16 = 64;
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Network)
        .name("not-yet")
        .guests(2)
        .build(&stage.node)
        .unwrap();
    for (key, value) in [
        ("net/ipv4/tcp_syncookies", "1"),
        ("net/core/somaxconn", "4"),
        ("net/ipv4/tcp_max_syn_backlog", "4"),
    ] {
        tenant.netns.sysctl(key, value).unwrap();
    }
    // Its listener is bound only now, within the limits above.
    let id = tenant.id.to_string();
    let add = [
        "tenants", "add", "--kind", "network", "--id", &id, "--netns", "not-yet",
    ];
    stage.agent.cli(&add).unwrap();
    let tenant = stage.served(tenant);

    let [flooding, honest] = &tenant.subnets[0].guests[..] else {
        panic!("two guests")
    };
    // It never hears the second step of a handshake, so it never takes the third.
    for iptables in ["iptables", "ip6tables"] {
        let mut command = flooding.netns.command(iptables).unwrap();
        command.args(["-A", "INPUT", "-p", "tcp", "-j", "DROP"]);
        metadata_proxy_tests::process::run(&mut command).unwrap();
    }
    let sockets: Vec<_> = (0..HALF_OPEN)
        .map(|_| begin_connection(flooding, METADATA_V4_SOCKET.into()))
        .collect();
    wait_until("a flood", SOON, || {
        stage.outcome("steered_syn") >= u64::from(HALF_OPEN)
    })
    .unwrap();

    let before = stage.outcome("steered_syncookie");
    for _ in 0..4 {
        let mut connection = Connection::v4(honest).unwrap();
        assert_eq!(connection.get("/").unwrap().status, 200);
        let mut connection = Connection::v6(honest).unwrap();
        assert_eq!(connection.get("/").unwrap().status, 200);
    }
    assert!(stage.outcome("steered_syncookie") > before);
    drop(sockets);
}

/// Sends a SYN and does not wait.
fn begin_connection(guest: &metadata_proxy_tests::Guest, to: SocketAddr) -> Socket {
    guest
        .netns
        .run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
                other => anyhow::bail!("not in progress: {other:?}"),
            }
        })
        .unwrap()
}
