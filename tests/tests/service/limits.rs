//! Limits: on rates, connections and requests.

use metadata_proxy_tests::{Connection, Kind, METADATA_V4, TenantFixture};

use metadata_proxy_tests::stage::{Stage, assert_served};

#[test]
fn more_than_the_rate_limit_is_429_with_a_time_to_come_back() {
    let stage = Stage::with(|agent| {
        agent
            .set("rate_limit.rate_limit_enabled", "true")
            .set("rate_limit.base_query_rate_limit", 3)
            .set("rate_limit.base_window_duration", 60)
    });
    let tenant = TenantFixture::builder(Kind::Router)
        .guests(2)
        .build(&stage.node)
        .unwrap();
    let tenant = stage.served(tenant);
    let [greedy, modest] = &tenant.subnets[0].guests[..] else {
        panic!("two guests")
    };
    let statuses: Vec<_> = (0..3)
        .map(|_| greedy.curl(METADATA_V4, &[]).unwrap().status)
        .collect();
    assert_eq!(statuses, [200, 200, 200]);
    let reply = greedy.curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.status, 429, "{reply:?}");
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    assert_eq!(stage.take_requests().len(), 3);
    // Each guest by itself, IPv4 by default only.
    assert_eq!(modest.curl(METADATA_V4, &[]).unwrap().status, 200);
    assert_eq!(greedy.curl(&greedy.metadata_v6(), &[]).unwrap().status, 200);
    let denied = stage
        .agent
        .metric("metadata_proxy_rate_limited_total", &[])
        .unwrap();
    assert!(denied >= 1.0);
    // Another tenant's guest of the same address is another guest.
    let other = stage.tenant(Kind::Network);
    assert_eq!(other.guest().v4, greedy.v4);
    assert_eq!(other.guest().curl(METADATA_V4, &[]).unwrap().status, 200);
}

#[test]
fn both_ip_versions_can_be_limited_together() {
    let stage = Stage::with(|agent| {
        agent
            .set("rate_limit.rate_limit_enabled", "true")
            .set("rate_limit.ip_versions", "[4, 6]")
            .set("rate_limit.burst_query_rate_limit", 1)
            .set("rate_limit.burst_window_duration", 60)
    });
    let tenant = stage.tenant(Kind::OvnNetwork);
    let guest = tenant.guest();
    for url in [METADATA_V4.to_owned(), guest.metadata_v6()] {
        assert_eq!(guest.curl(&url, &[]).unwrap().status, 200);
        assert_eq!(guest.curl(&url, &[]).unwrap().status, 429);
    }
}

#[test]
fn one_guest_may_not_take_all_connections() {
    let stage = Stage::with(|agent| agent.set("limits.connections_per_guest", 2));
    let tenant = TenantFixture::builder(Kind::Router)
        .guests(2)
        .build(&stage.node)
        .unwrap();
    let tenant = stage.served(tenant);
    let [greedy, modest] = &tenant.subnets[0].guests[..] else {
        panic!("two guests")
    };
    let mut kept: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = Connection::v4(greedy).unwrap();
            assert_eq!(connection.get("/").unwrap().status, 200);
            connection
        })
        .collect();
    let mut one_more = Connection::v4(greedy).unwrap();
    let _ = one_more.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(one_more.rest().unwrap(), b"");
    assert_eq!(modest.curl(METADATA_V4, &[]).unwrap().status, 200);
    // One that goes makes room.
    drop(kept.pop());
    metadata_proxy_tests::wait_until("room", metadata_proxy_tests::stage::SOON, || {
        greedy
            .curl(METADATA_V4, &["--max-time", "2"])
            .unwrap()
            .status
            == 200
    })
    .unwrap();
}

#[test]
fn one_guest_may_not_have_all_requests_in_flight() {
    let (stage, gate) = Stage::gated(|agent| agent.set("limits.requests_in_flight_per_guest", 1));
    let tenant = stage.tenant(Kind::Router);
    let mut first = Connection::v4(tenant.guest()).unwrap();
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    gate.wait_arrived(1).unwrap();
    let mut second = Connection::v4(tenant.guest()).unwrap();
    assert_eq!(second.get("/").unwrap().status, 429);
    gate.open();
    assert_eq!(first.answer().unwrap().status, 200);
    assert_eq!(second.get("/").unwrap().status, 200);
}

#[test]
fn many_connections_of_one_guest_are_served() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    let mut connections: Vec<_> = (0..100)
        .map(|_| Connection::v4(tenant.guest()).unwrap())
        .collect();
    for connection in &mut connections {
        assert_eq!(connection.get("/").unwrap().status, 200);
    }
    let status = stage.agent.tenant(&tenant).unwrap().unwrap();
    assert_eq!(status["connections"]["open"], 100, "{status}");
    drop(connections);
    assert_served(&tenant);
}
