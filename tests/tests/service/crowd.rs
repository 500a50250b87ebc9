//! Many tenants with the same addresses at once, each with an answer of its own.

use std::{fmt::Write as _, fs, sync::Barrier, thread};

use metadata_proxy_tests::{Agent, Connection, Kind, Node, TenantFixture};

#[test]
fn two_hundred_tenants_with_the_same_addresses_never_get_anothers_answer() {
    const TENANTS: usize = 200;
    const ROUNDS: usize = 3;
    let node = Node::new().unwrap();
    let tenants: Vec<_> = (0..TENANTS)
        .map(|index| TenantFixture::new(&node, Kind::ALL[index % 3]).unwrap())
        .collect();
    let file = node.directory().join("instances.yaml");
    fs::write(&file, instances(&tenants)).unwrap();
    let agent = Agent::builder(&node)
        .upstream_embedded(&file)
        .start()
        .unwrap();
    let status = agent.admin_json("/v1/status").unwrap();
    assert_eq!(
        status["tenants"]["serving"], TENANTS,
        "ready means that all are served"
    );
    let all_connected = Barrier::new(TENANTS);
    thread::scope(|scope| {
        for tenant in &tenants {
            let all_connected = &all_connected;
            scope.spawn(move || ask_as(tenant, all_connected, ROUNDS));
        }
    });
    let list = agent.admin_json("/v1/tenants").unwrap();
    let list = list["tenants"].as_array().unwrap();
    assert_eq!(list.len(), TENANTS);
    for status in list {
        assert_eq!(status["requests"]["total"], 2 * ROUNDS, "{status}");
    }
}

/// Asks over IPv4 and IPv6 while all others do the same.
fn ask_as(tenant: &TenantFixture, all_connected: &Barrier, rounds: usize) {
    let guest = tenant.guest();
    let opened = Connection::v4(guest).and_then(|v4| Ok((v4, Connection::v6(guest)?)));
    // Everybody waits here, so one that failed must come too.
    all_connected.wait();
    let (mut v4, mut v6) = opened.unwrap();
    for _ in 0..rounds {
        for connection in [&mut v4, &mut v6] {
            let reply = connection.get("/latest/meta-data/hostname").unwrap();
            assert_eq!(reply.text(), hostname(tenant), "{reply:?}");
        }
    }
}

fn hostname(tenant: &TenantFixture) -> String {
    format!("guest-of-{}", tenant.id)
}

/// Every tenant has an instance at the same two addresses.
fn instances(tenants: &[TenantFixture]) -> String {
    let mut text = "tenants:\n".to_owned();
    for tenant in tenants {
        let guest = tenant.guest();
        let name = hostname(tenant);
        writeln!(
            text,
            "  - {}: {}\n    instances:\n      - addresses: [{}, \"{}\"]\n        name: {name}\n        \
             hostname: {name}",
            tenant.kind, tenant.id, guest.v4, guest.link_local
        )
        .unwrap();
    }
    text
}
