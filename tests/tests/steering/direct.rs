//! Nobody reaches the listener except through steering.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use metadata_proxy_tests::{Connection, Kind, Netns, TenantFixture, wait_until};

use metadata_proxy_tests::stage::{SOON, Stage, assert_served_twice};

const LISTENER_PORT: u16 = 9697;

/// Asks there, gets nothing, and nobody upstream hears of it.
fn assert_refused(stage: &Stage, tenant: &TenantFixture, from: &Netns, to: SocketAddr) {
    let refused = || {
        let reason = [("reason", "not_steered")];
        stage
            .agent
            .metric("metadata_proxy_connections_refused_total", &reason)
            .unwrap()
    };
    let before = refused();
    let mut connection = Connection::open(from, to).unwrap();
    let claim = format!("{}: {}", tenant.kind.tag_name(), tenant.id);
    // It may be closed before it could say anything.
    let _ = connection.send(format!(
        "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n{claim}\r\n\r\n"
    ));
    assert_eq!(connection.rest().unwrap(), b"", "{to}");
    wait_until("a refusal that is counted", SOON, || refused() > before).unwrap();
    assert_eq!(stage.take_requests(), [], "{to}");
}

#[test]
fn a_direct_connection_to_the_listener_is_refused_and_counted() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let guest = tenant.guest();
    let eth0 = guest
        .netns
        .run(|| Ok(nix::net::if_::if_nametoindex("eth0")?))
        .unwrap();
    let router_v6: Ipv6Addr = "fe80::f816:3eff:fe00:1".parse().unwrap();
    for to in [
        (Ipv4Addr::new(10, 0, 0, 1), LISTENER_PORT).into(),
        // Local to the namespace as well, since we added the route.
        (Ipv4Addr::new(169, 254, 169, 254), LISTENER_PORT).into(),
        SocketAddrV6::new(router_v6, LISTENER_PORT, 0, eth0).into(),
    ] {
        assert_refused(&stage, &tenant, &guest.netns, to);
    }
    assert_served_twice(&tenant);
}

#[test]
fn a_process_that_dials_the_listener_by_another_address_is_refused() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let to = (Ipv4Addr::new(10, 0, 0, 1), LISTENER_PORT).into();
    assert_refused(&stage, &tenant, &tenant.netns, to);
}
